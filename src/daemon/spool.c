/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/spool.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/io.h"
#include "wire/message.h"

/* How long the child of an image-cache that was killed may take to follow it. */
#define FOLLOW_USEC (2 * USEC_PER_SEC)

struct spool {
    char *path;
    pid_t pid;
    int socket; /* -EBADF: the child has ended */
    sd_event_source *io;
    bool busy;                /* the child has been given something */
    struct snapshot *current; /* which; NULL: it has been forgotten */
};

/* The child ends with us, whatever it is at; it is not waited for: a disk may hold it. */
static struct spool *spool_unref(struct spool *spool)
{
    if (!spool)
        return NULL;
    sd_event_source_disable_unref(spool->io);
    close_fd(spool->socket);
    free(spool->path);
    free(spool);
    return NULL;
}

/* ---- what has become of one ---- */

static void spool_end(struct cache *cache, struct snapshot *snapshot, enum snapshot_spool how)
{
    struct spool *spool = cache->spool;
    if (spool->current == snapshot)
        spool->current = NULL;
    snapshot->spool = how;
    if (snapshot->spent) {
        cache_snapshot_restored(cache, snapshot, false);
        return;
    }
    int r = snapshot_set_state(snapshot, snapshot->state);
    if (r < 0)
        log_error(&cache->daemon.log,
                  "snapshot %s: that it is in the spool is not written down: %s", snapshot->id,
                  strerror(-r));
}

void spool_give_up(struct cache *cache, struct snapshot *snapshot, const char *why)
{
    log_error(
        &cache->daemon.log,
        "snapshot %s: is not in the spool %s: %s; as long as it is here, godwit export writes "
        "it",
        snapshot->id, cache->spool->path, why);
    free(snapshot->spool_error);
    snapshot->spool_error = strdup(why);
    spool_end(cache, snapshot, SPOOL_FAILED);
}

/* ---- the child ---- */

/* Nothing of it comes any more. */
static void spool_lost(struct cache *cache)
{
    struct spool *spool = cache->spool;
    log_error(&cache->daemon.log, "what writes the spool %s has ended: start the image-cache anew",
              spool->path);
    spool->io = sd_event_source_disable_unref(spool->io);
    spool->socket = close_fd(spool->socket);
    while (waitpid(spool->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    spool->pid = 0;
    spool->busy = false;
}

static void spool_ask(struct cache *cache, uint32_t kind, const ProtobufCMessage *message,
                      const int *fds, size_t fd_count)
{
    int r = local_send(cache->spool->socket, kind, message, fds, fd_count);
    if (r < 0) /* it has ended, which it is going to tell */
        log_debug(&cache->daemon.log, "what writes the spool takes nothing: %s", strerror(-r));
}

static struct snapshot *spool_next(const struct cache *cache)
{
    struct snapshot *snapshot = store_first(cache->store);
    while (snapshot && !snapshot_spools(snapshot))
        snapshot = snapshot->next;
    return snapshot;
}

static void spool_write_next(struct cache *cache)
{
    struct spool *spool = cache->spool;
    struct snapshot *next = NULL;
    while (!spool->busy && (next = spool_next(cache))) {
        if (spool->socket < 0)
            spool_give_up(cache, next, "what writes it has ended");
        else if (next->moved)
            spool_give_up(cache, next, "a restore of it was broken off");
        else
            break;
    }
    if (!next)
        return;
    spool->busy = true;
    spool->current = next;
    next->spool = SPOOL_WRITING;
    Godwit__Pb__SpoolWrite write = GODWIT__PB__SPOOL_WRITE__INIT;
    write.id = next->id;
    int fds[] = {next->imagefd, next->memoryfd};
    spool_ask(cache, LOCAL_SPOOL_WRITE, &write.base, fds, next->memoryfd < 0 ? 1 : 2);
}

static void spool_written(struct cache *cache)
{
    struct spool *spool = cache->spool;
    spool_ask(cache, spool->current ? LOCAL_SPOOL_PUBLISH : LOCAL_SPOOL_DROP, NULL, NULL, 0);
    spool->busy = spool->current;
}

static void spool_published(struct cache *cache, const struct local_packet *packet)
{
    struct spool *spool = cache->spool;
    struct error err;
    _cleanup_message_ ProtobufCMessage *message = message_unpack(
        &godwit__pb__spool_published__descriptor, packet->bytes, packet->length, &err);
    if (message)
        log_info(&cache->daemon.log, "in the spool: %s/%s", spool->path,
                 ((const Godwit__Pb__SpoolPublished *)message)->name);
    spool->busy = false;
    if (spool->current)
        spool_end(cache, spool->current, SPOOL_WRITTEN);
}

static void spool_failed(struct cache *cache, const struct local_packet *packet)
{
    struct spool *spool = cache->spool;
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__failure__descriptor, packet->bytes, packet->length, &err);
    spool->busy = false;
    if (spool->current)
        spool_give_up(cache, spool->current,
                      message ? ((const Godwit__Pb__Failure *)message)->text : err.text);
}

static int on_writer(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct cache *cache = user;
    struct local_packet packet;
    int r = local_receive(fd, &packet);
    if (r == -EAGAIN)
        return 0;
    if (r < 0) {
        spool_lost(cache);
        spool_write_next(cache);
        return 0;
    }
    if (packet.kind == LOCAL_SPOOL_WRITTEN)
        spool_written(cache);
    else if (packet.kind == LOCAL_SPOOL_PUBLISHED)
        spool_published(cache, &packet);
    else if (packet.kind == LOCAL_FAILURE)
        spool_failed(cache, &packet);
    local_packet_close(&packet);
    spool_write_next(cache);
    return 0;
}

/* ---- snapshots ---- */

static void spool_add(struct cache *cache, struct snapshot *snapshot)
{
    if (!cache->spool || snapshot->restore || snapshot->spool != SPOOL_NONE)
        return;
    snapshot->spool = SPOOL_WAITING;
}

void spool_snapshot_ready(struct cache *cache, struct snapshot *snapshot)
{
    spool_add(cache, snapshot);
    if (cache->spool)
        spool_write_next(cache);
}

void spool_snapshot_forgotten(struct cache *cache, struct snapshot *snapshot)
{
    if (cache->spool && cache->spool->current == snapshot)
        cache->spool->current = NULL;
}

char *spool_shown(const struct cache *cache, const struct snapshot *snapshot, char *buf,
                  size_t size)
{
    static const char *const names[] = {[SPOOL_NONE] = "",
                                        [SPOOL_WAITING] = "waiting",
                                        [SPOOL_WRITING] = "writing",
                                        [SPOOL_WRITTEN] = "written"};
    if (cache->spool && snapshot->spool == SPOOL_FAILED)
        snprintf(buf, size, "failed: %s", snapshot->spool_error ? snapshot->spool_error : "");
    else
        snprintf(buf, size, "%s", cache->spool ? names[snapshot->spool] : "");
    return buf;
}

/* ---- its life ---- */

/* The lock is the child's: it goes with it. */
static int lock(int directory)
{
    uint64_t since = now_usec();
    while (flock(directory, LOCK_EX | LOCK_NB) < 0) {
        if ((errno != EWOULDBLOCK && errno != EINTR) || now_usec() - since > FOLLOW_USEC)
            return -errno;
        usleep(10000);
    }
    return 0;
}

static int spool_fork(struct spool *spool, int directory)
{
    int sockets[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0)
        return -errno;
    spool->pid = fork();
    if (spool->pid == 0)
        spool_write(sockets[1], directory);
    int r = spool->pid < 0 ? -errno : set_nonblocking(sockets[0], true);
    spool->socket = sockets[0];
    close_fd(sockets[1]);
    return r;
}

int spool_start(const char *directory, struct spool **ret, struct error *err)
{
    struct spool *spool = calloc(1, sizeof(*spool));
    if (!spool)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "the spool");
    spool->socket = -EBADF;
    _cleanup_close_ int fd = safe_directory_open("spool ", directory, true, &spool->path, err);
    if (fd < 0) {
        spool_unref(spool);
        return -1;
    }
    int r = lock(fd);
    if (r == 0)
        r = spool_fork(spool, fd);
    if (r == 0) {
        *ret = spool;
        return 0;
    }
    spool_unref(spool);
    return r == -EWOULDBLOCK ? error_set(err, FAILURE_BUSY,
                                         "spool %s: another image-cache writes there", directory)
                             : error_set_errno(err, FAILURE_SYSTEM, r, "spool %s", directory);
}

int spool_load(struct cache *cache, struct error *err)
{
    struct spool *spool = cache->spool;
    for (struct snapshot *s = store_first(cache->store), *next; s; s = next) {
        next = s->next;
        if (s->state == SNAPSHOT_READY || s->state == SNAPSHOT_STARTED)
            spool_add(cache, s);
        if (s->spent && !snapshot_spools(s))
            snapshot_remove(s);
    }
    if (!spool)
        return 0;
    int r =
        sd_event_add_io(cache->daemon.event, &spool->io, spool->socket, EPOLLIN, on_writer, cache);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the spool");
    spool_write_next(cache);
    return 0;
}

void spool_free(struct cache *cache)
{
    cache->spool = spool_unref(cache->spool);
}
