/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One `criu restore --stream` on the serve socket.  Its first request waits until a snapshot is
 * ready; from then on every image is there or is not, and criu is told at once.  An image goes from
 * the file into criu's pipe by splice, with no copy; many pipes are open at once; criu may close
 * any of them unread.
 *
 * criu does not say how the restore went.  With godwit-hook as its action script it does, as in
 * claim.c; without, the snapshot stays as "started" until it is forgotten or taken over.
 *
 * `godwit restore` of a snapshot that shares memory with others uses it too, on a socket of its
 * own: then the snapshot is the claim's, and nothing but the feeding is done here.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/io.h"
#include "criu/stream.h"
#include "daemon/cache.h"
#include "store/feed.h"
#include "wire/frame.h"

/* A pipe of criu's. */
struct outlet {
    struct serve *serve;
    struct outlet *next;
    sd_event_source *io;
    struct feed feed;
};

struct serve {
    struct cache *cache;
    struct serve *next;
    sd_event_source *io;      /* NULL: criu has closed the socket */
    sd_event_source *criu_io; /* its pidfd */
    int fd;
    pid_t criu_pid;
    struct stream_parser parser;
    char *waiting; /* a request that waits for a snapshot */
    bool served;   /* a snapshot has been taken, whatever became of it */
    bool fed;      /* and some image of it has been asked for and was there */
    bool claimed;  /* the snapshot is a claim's */
    bool spoilt;   /* an image could not be read: criu may take what it had of it for the whole */
    struct feed feed; /* that the next pipe is for */
    struct snapshot *snapshot;
    struct outlet *outlets;
};

/* ---- pipes ---- */

static void outlet_free(struct outlet *outlet)
{
    struct outlet **at = &outlet->serve->outlets;
    while (*at != outlet)
        at = &(*at)->next;
    *at = outlet->next;
    sd_event_source_disable_unref(outlet->io);
    feed_close(&outlet->feed);
    free(outlet);
}

static void serve_spoil(struct serve *serve, int r)
{
    log_error(&serve->cache->daemon.log, "an image for criu --stream cannot be read: %s",
              strerror(-r));
    serve->spoilt = true;
    if (serve->claimed && serve->snapshot)
        claims_snapshot_spoilt(serve->cache, serve->snapshot);
}

static void serve_check_end(struct serve *serve);

static int on_room(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct outlet *outlet = user;
    struct serve *serve = outlet->serve;
    ssize_t n = feed_some(&outlet->feed, fd);
    if (n > 0 || n == -EAGAIN)
        return 0;
    /* The end of the image; or criu does not want the rest, which is its right. */
    if (n < 0 && n != -EPIPE)
        serve_spoil(serve, (int)n);
    outlet_free(outlet);
    serve_check_end(serve);
    return 0;
}

static int serve_pipe(struct serve *serve, int pipe)
{
    struct outlet *outlet = calloc(1, sizeof(*outlet));
    if (!outlet) {
        close_fd(pipe);
        return -ENOMEM;
    }
    serve->fed = true;
    *outlet = (struct outlet){.serve = serve, .next = serve->outlets, .feed = serve->feed};
    serve->feed = (struct feed){.file = -EBADF};
    serve->outlets = outlet;
    if (outlet->feed.arena) /* criu wakes us less often; without, it is slower */
        fcntl(pipe, F_SETPIPE_SZ, FEED_BYTES);
    int r = set_nonblocking(pipe, true);
    if (r >= 0)
        r = sd_event_add_io(serve->cache->daemon.event, &outlet->io, pipe, EPOLLOUT, on_room,
                            outlet);
    if (r < 0) {
        close_fd(pipe);
        outlet_free(outlet);
        return r;
    }
    sd_event_source_set_io_fd_own(outlet->io, true);
    return 0;
}

/* ---- its life ---- */

static void serve_free(struct serve *serve)
{
    struct serve **at = &serve->cache->serves;
    while (*at != serve)
        at = &(*at)->next;
    *at = serve->next;
    while (serve->outlets)
        outlet_free(serve->outlets);
    sd_event_source_disable_unref(serve->io);
    sd_event_source_disable_unref(serve->criu_io);
    feed_close(&serve->feed);
    free(serve->waiting);
    free(serve);
}

void serves_free(struct cache *cache)
{
    while (cache->serves)
        serve_free(cache->serves);
}

static void serve_check_end(struct serve *serve)
{
    if (serve->io || serve->outlets)
        return;
    if (serve->claimed) {
        serve_free(serve);
        return;
    }
    /* criu closes its socket before its last hook: that one, or criu's end, is the end of this. */
    if (serve->criu_io && serve->snapshot && serve->snapshot->state == SNAPSHOT_STARTED)
        return;
    struct cache *cache = serve->cache;
    struct snapshot *snapshot = TAKE_PTR(serve->snapshot);
    bool fed = serve->fed;
    serve_free(serve);
    if (!snapshot || snapshot->state != SNAPSHOT_RESTORING)
        return;
    if (!fed) {
        cache_snapshot_release(cache, snapshot); /* criu had gone before it could begin */
        return;
    }
    cache_set_state(cache, snapshot, SNAPSHOT_STARTED);
    log_info(&cache->daemon.log,
             "snapshot %s: handed to criu --stream, which does not tell how that went: godwit "
             "forget %s when it runs",
             snapshot->id, snapshot->id);
    if (cache->daemon.options->once)
        daemon_exit(&cache->daemon, 0);
}

static void serve_close(struct serve *serve)
{
    serve->io = sd_event_source_disable_unref(serve->io);
    serve_check_end(serve);
}

/* ---- requests ---- */

static void serve_answer(struct serve *serve, const char *name)
{
    feed_close(&serve->feed);
    int r = serve->snapshot && image_name_valid(name)
                ? feed_open(&serve->feed, serve->snapshot, name)
                : -ENOENT;
    if (r < 0 && r != -ENOENT)
        serve_spoil(serve, r);
    uint8_t reply[STREAM_REPLY_BYTES];
    stream_reply(r == 0, reply);
    serve->parser.want_pipe = r == 0;
    if (send(serve->fd, reply, sizeof(reply), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(reply))
        serve_close(serve);
}

static void serve_take(struct serve *serve, struct snapshot *snapshot)
{
    _cleanup_free_ char *name = TAKE_PTR(serve->waiting);
    serve->snapshot = snapshot;
    serve->served = true;
    cache_snapshot_claim(serve->cache, snapshot);
    sd_event_source_set_io_events(serve->io, EPOLLIN);
    serve_answer(serve, name);
}

static void serve_request(struct serve *serve, char *name)
{
    if (serve->served) {
        serve_answer(serve, name);
        free(name);
        return;
    }
    /* It says nothing while it waits, but it may go. */
    serve->waiting = name;
    sd_event_source_set_io_events(serve->io, EPOLLRDHUP);
    unsigned count;
    struct snapshot *snapshot = cache_next_ready(serve->cache, true, &count);
    if (snapshot)
        serve_take(serve, snapshot);
}

static int on_serve(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct serve *serve = user;
    if (serve->waiting) {
        serve_close(serve);
        return 0;
    }
    uint8_t bytes[512];
    int passed;
    ssize_t n = stream_receive(fd, bytes, MIN(stream_want(&serve->parser), sizeof(bytes)), &passed);
    if (n == -EAGAIN)
        return 0;
    struct error err;
    char *name;
    int r = n <= 0 ? -ENODATA : 0;
    if (r == 0 && serve->parser.want_pipe) {
        serve->parser.want_pipe = false;
        r = passed < 0 ? -EPROTO : serve_pipe(serve, TAKE_FD(passed));
    } else if (r == 0) {
        r = stream_take(&serve->parser, bytes, (size_t)n, &name, &err);
    }
    close_fd(passed);
    if (r < 0)
        serve_close(serve);
    else if (r > 0)
        serve_request(serve, name);
    return 0;
}

static int on_criu_end(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct serve *serve = user;
    serve->criu_io = sd_event_source_disable_unref(serve->criu_io);
    serve_check_end(serve);
    return 0;
}

static void serve_watch_criu(struct serve *serve)
{
    int pidfd = (int)syscall(SYS_pidfd_open, serve->criu_pid, 0);
    if (pidfd >= 0 && sd_event_add_io(serve->cache->daemon.event, &serve->criu_io, pidfd, EPOLLIN,
                                      on_criu_end, serve) >= 0)
        sd_event_source_set_io_fd_own(serve->criu_io, true);
    else
        close_fd(pidfd);
}

/* NULL: there was no memory for it, and the socket is closed. */
static struct serve *serve_new(struct cache *cache, int fd)
{
    struct serve *serve = calloc(1, sizeof(*serve));
    if (!serve) {
        close_fd(fd);
        return NULL;
    }
    *serve = (struct serve){.cache = cache, .fd = fd, .feed = {.file = -EBADF}};
    struct serve **last = &cache->serves; /* first come, first served */
    while (*last)
        last = &(*last)->next;
    *last = serve;
    if (sd_event_add_io(cache->daemon.event, &serve->io, fd, EPOLLIN, on_serve, serve) < 0) {
        close_fd(fd);
        serve_free(serve);
        return NULL;
    }
    sd_event_source_set_io_fd_own(serve->io, true);
    return serve;
}

void serve_open(struct cache *cache, int fd)
{
    struct serve *serve = serve_new(cache, fd);
    if (!serve)
        return;
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    serve->criu_pid = peer.pid;
    serve_watch_criu(serve);
}

void serve_open_claimed(struct cache *cache, int fd, struct snapshot *snapshot)
{
    struct serve *serve = serve_new(cache, fd);
    if (!serve)
        return;
    serve->snapshot = snapshot;
    serve->claimed = serve->served = true;
}

bool serve_hook(struct cache *cache, struct client *client, const struct hook_ask *ask)
{
    pid_t criu = starter_parent(cache->starter, client->pid);
    for (struct serve *serve = cache->serves; serve; serve = serve->next) {
        if (!serve->snapshot || serve->claimed || serve->criu_pid != criu)
            continue;
        if (serve->snapshot->revoked || serve->spoilt) {
            client_hook(client, HOOK_NO,
                        serve->spoilt ? HOOK_SPOILT : "the process runs on at the source");
            return true;
        }
        if (strcmp(ask->action, "post-restore") == 0)
            cache_set_state(cache, serve->snapshot, SNAPSHOT_STARTED);
        else if (strcmp(ask->action, "post-resume") == 0)
            cache_snapshot_restored(cache, TAKE_PTR(serve->snapshot), false);
        client_hook(client, HOOK_YES, "");
        return true;
    }
    return false;
}

bool serves_snapshot_ready(struct cache *cache, struct snapshot *snapshot)
{
    for (struct serve *serve = cache->serves; serve; serve = serve->next) {
        if (serve->waiting && !snapshot->kept && !snapshot->moved) {
            serve_take(serve, snapshot);
            return true;
        }
    }
    return false;
}

/* Those who wait for a snapshot are sent away: criu then says that it cannot read its inventory. */
void serves_snapshot_lost(struct cache *cache)
{
    for (struct serve *serve = cache->serves, *next; serve; serve = next) {
        next = serve->next;
        if (serve->waiting)
            serve_close(serve);
    }
}

bool serves_hold(const struct cache *cache, const struct snapshot *snapshot)
{
    for (const struct serve *serve = cache->serves; serve; serve = serve->next) {
        if (serve->snapshot == snapshot)
            return true;
    }
    return false;
}

void serves_snapshot_forgotten(struct cache *cache, const struct snapshot *snapshot)
{
    for (struct serve *serve = cache->serves; serve; serve = serve->next) {
        if (serve->snapshot == snapshot)
            serve->snapshot = NULL;
    }
}
