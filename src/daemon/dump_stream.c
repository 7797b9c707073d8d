/* SPDX-License-Identifier: Apache-2.0 */
/* An unmodified criu dump --stream: images by pipes, which it passes over a socket. */
#include <sys/socket.h>

#include "daemon/dump.h"

static void dump_stream_fail(struct dump *dump, int error_number, const char *what)
{
    struct error err;
    error_set_errno(&err, FAILURE_CRIU, error_number, "criu --stream: %s", what);
    dump_fail(dump, &err);
}

static void dump_stream_end(struct dump *dump)
{
    dump->stream_io = sd_event_source_disable_unref(dump->stream_io);
    dump_criu_ended(dump);
}

void dump_stream_unasked(struct dump *dump)
{
    if (sender_has_inventory(dump->sender)) {
        dump->state = DUMP_ASKED;
        dump->is_unasked = true;
        sender_finish(dump->sender);
        return;
    }
    struct error err = dump_error(FAILURE_CRIU, "criu --stream ended before its inventory.img");
    dump_fail(dump, &err);
}

static void dump_stream_pipe(struct dump *dump, int fd)
{
    dump->parser.want_pipe = false;
    _cleanup_free_ char *name = TAKE_PTR(dump->stream_name);
    if (fd < 0) {
        dump_stream_fail(dump, EBADMSG, "no pipe came with the byte");
        return;
    }
    int r = sender_open_pipe(dump->sender, name, fd);
    if (r < 0)
        dump_stream_fail(dump, r, "opening an image");
}

/* Takes one message from the capture socket.  False when there is none now. */
static bool dump_stream_take(struct dump *dump)
{
    int fd = sd_event_source_get_io_fd(dump->stream_io);
    uint8_t bytes[512];
    int passed;
    ssize_t n = stream_receive(fd, bytes, MIN(stream_want(&dump->parser), sizeof(bytes)), &passed);
    if (n == -EAGAIN)
        return false;
    if (n <= 0) {
        dump_stream_end(dump);
        return true;
    }
    if (dump->state != DUMP_SENDING) {
        close_fd(passed); /* too late to be of the snapshot */
        return true;
    }
    if (dump->parser.want_pipe) {
        dump_stream_pipe(dump, passed);
        return true;
    }
    close_fd(passed);
    struct error err;
    int r = stream_take(&dump->parser, bytes, (size_t)n, &dump->stream_name, &err);
    if (r < 0)
        dump_fail(dump, &err);
    else if (r > 0)
        dump->parser.want_pipe = true;
    return true;
}

bool dump_stream_is_whole(struct dump *dump)
{
    while (dump->state == DUMP_SENDING && dump->stream_io && dump_stream_take(dump))
        ;
    if (dump->state == DUMP_SENDING && (dump->criu_ended || !sender_has_inventory(dump->sender))) {
        struct error err =
            dump_error(FAILURE_CRIU, "criu --stream ended, or sent no inventory.img");
        dump_fail(dump, &err);
    }
    return dump->state == DUMP_SENDING;
}

static int on_stream(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    dump_stream_take(user);
    return 0;
}

void dump_open_stream(struct proxy *proxy, int fd)
{
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    struct dump *dump =
        dumps_are_many(proxy) ? NULL : dump_new(proxy, "", (uint32_t)peer.pid, "criu --stream");
    if (!dump) {
        close_fd(fd);
        return;
    }
    dump->is_stream = true;
    dump->criu_pid = peer.pid;
    if (dump_watch(dump, &dump->stream_io, fd, on_stream) < 0) {
        dump_free(dump);
        return;
    }
    /* criu waits in its pipes until the cache has taken the snapshot. */
    sd_event_source_set_enabled(dump->stream_io, SD_EVENT_OFF);
    log_info(&proxy->daemon.log, "dump %s: criu %d streams", dump->id, peer.pid);
    dump_start(dump);
}
