/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One `criu restore --stream` on the serve socket.  Its first request waits until a snapshot is
 * ready; from then on every image is there or is not, and criu is told at once.  An image goes from
 * the file into criu's pipe by splice, with no copy; many pipes are open at once; criu may close
 * any of them unread.
 *
 * criu does not say how the restore went.  With godwit-hook as its action script it does, as in
 * claim.c; without, the snapshot stays as "started" until it is forgotten or taken over.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/io.h"
#include "criu/stream.h"
#include "daemon/cache.h"
#include "task/task.h"
#include "wire/frame.h"

#define SPLICE_BYTES MIB(1)

struct feed {
    struct serve *serve;
    struct feed *next;
    sd_event_source *io;
    int file;
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
    int file;      /* that the next pipe is for, or -EBADF */
    struct snapshot *snapshot;
    struct feed *feeds;
};

/* ---- pipes ---- */

static void feed_free(struct feed *feed)
{
    struct feed **at = &feed->serve->feeds;
    while (*at != feed)
        at = &(*at)->next;
    *at = feed->next;
    sd_event_source_disable_unref(feed->io);
    close_fd(feed->file);
    free(feed);
}

static void serve_check_end(struct serve *serve);

static int on_feed(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct feed *feed = user;
    ssize_t n = splice(feed->file, NULL, fd, NULL, SPLICE_BYTES, SPLICE_F_NONBLOCK);
    if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
        return 0;
    /* The end of the image; or criu does not want the rest, which is its right. */
    struct serve *serve = feed->serve;
    feed_free(feed);
    serve_check_end(serve);
    return 0;
}

static int serve_feed(struct serve *serve, int pipe)
{
    struct feed *feed = calloc(1, sizeof(*feed));
    if (!feed) {
        close_fd(pipe);
        return -ENOMEM;
    }
    serve->fed = true;
    *feed = (struct feed){.serve = serve, .next = serve->feeds, .file = serve->file};
    serve->file = -EBADF;
    serve->feeds = feed;
    int r = set_nonblocking(pipe, true);
    if (r >= 0)
        r = sd_event_add_io(serve->cache->daemon.event, &feed->io, pipe, EPOLLOUT, on_feed, feed);
    if (r < 0) {
        close_fd(pipe);
        feed_free(feed);
        return r;
    }
    sd_event_source_set_io_fd_own(feed->io, true);
    return 0;
}

/* ---- its life ---- */

static void serve_free(struct serve *serve)
{
    struct serve **at = &serve->cache->serves;
    while (*at != serve)
        at = &(*at)->next;
    *at = serve->next;
    while (serve->feeds)
        feed_free(serve->feeds);
    sd_event_source_disable_unref(serve->io);
    sd_event_source_disable_unref(serve->criu_io);
    close_fd(serve->file);
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
    if (serve->io || serve->feeds)
        return;
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
    serve->file = close_fd(serve->file);
    if (serve->snapshot && image_name_valid(name))
        serve->file = openat(serve->snapshot->imagefd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    uint8_t reply[STREAM_REPLY_BYTES];
    stream_reply(serve->file >= 0, reply);
    serve->parser.want_pipe = serve->file >= 0;
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
    struct snapshot *snapshot = cache_next_ready(serve->cache, &count);
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
        r = passed < 0 ? -EPROTO : serve_feed(serve, TAKE_FD(passed));
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

void serve_open(struct cache *cache, int fd)
{
    struct serve *serve = calloc(1, sizeof(*serve));
    if (!serve) {
        close_fd(fd);
        return;
    }
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    *serve = (struct serve){.cache = cache, .fd = fd, .file = -EBADF, .criu_pid = peer.pid};
    struct serve **last = &cache->serves; /* first come, first served */
    while (*last)
        last = &(*last)->next;
    *last = serve;
    if (sd_event_add_io(cache->daemon.event, &serve->io, fd, EPOLLIN, on_serve, serve) < 0) {
        close_fd(fd);
        serve_free(serve);
        return;
    }
    sd_event_source_set_io_fd_own(serve->io, true);
    serve_watch_criu(serve);
}

bool serve_hook(struct cache *cache, struct client *client, const struct hook_ask *ask)
{
    pid_t criu = task_parent(client->pid);
    for (struct serve *serve = cache->serves; serve; serve = serve->next) {
        if (!serve->snapshot || serve->criu_pid != criu)
            continue;
        if (serve->snapshot->revoked) {
            client_hook(client, HOOK_NO, "the process runs on at the source");
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
        if (serve->waiting && !snapshot->kept) {
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
