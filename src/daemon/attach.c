/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/attach.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/hidden.h"
#include "base/io.h"
#include "daemon/cache.h"
#include "wire/message.h"

enum {
    TRIES = 20, /* one may end while another begins */
    PAUSE_USEC = 50000,
    RELAY_BYTES = 256 << 10, /* in each direction */
};

/* ---- a cache on demand ---- */

static _Noreturn void cache_become(const struct daemon_options *asked)
{
    static char log[PATH_MAX];
    struct daemon_options options = *asked;
    close_range(STDERR_FILENO + 1, ~0u, 0); /* the connection is not ours */
    snprintf(log, sizeof(log), "%s/image-cache.log", options.workdir);
    options.accept = options.on_demand = true;
    options.once = false; /* others may come to share it: it ends when it is idle */
    options.address = "nowhere";
    options.ps_socket = -EBADF;
    options.daemonize = (struct daemonize){.background = true, .log = log, .status_fd = -EBADF};
    struct error err = {0};
    int r = daemonize_begin(&options.daemonize, &err);
    if (r == 0)
        r = cache_run(&options, &err);
    if (r < 0 && err.code != FAILURE_BUSY)
        fprintf(stderr, "godwit image-cache: %s\n", err.text);
    _exit(r < 0 ? (int)err.code : r);
}

/* Connects to the cache of the work-dir, which is started if need be.  A socket, or -1 with *err.
 */
static int cache_connect(const struct daemon_options *options, struct error *err)
{
    _cleanup_close_ int workdir = workdir_open(options->workdir, true, NULL, err);
    if (workdir < 0)
        return -1;
    for (unsigned i = 0; i < TRIES; i++) {
        int fd = unix_connect_at(workdir, LOCAL_CACHE_SOCKET, SOCK_SEQPACKET);
        if (fd >= 0)
            return fd;
        pid_t pid = fork();
        if (pid == 0)
            cache_become(options);
        int status = 0;
        while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        if (pid < 0 ||
            (WIFEXITED(status) && WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != FAILURE_BUSY))
            return error_set(err, FAILURE_SYSTEM, "the image-cache in %s does not start",
                             options->workdir);
        if (status != 0)
            usleep(PAUSE_USEC);
    }
    return error_set(err, FAILURE_SYSTEM, "the image-cache in %s does not answer",
                     options->workdir);
}

int cache_ensure(const char *workdir, struct error *err)
{
    struct daemon_options options = {.workdir = workdir,
                                     .silence_usec = DAEMON_DEFAULT_SILENCE_USEC,
                                     .log_level = LOG_LEVEL_INFO};
    int fd = cache_connect(&options, err);
    close_fd(fd);
    return fd < 0 ? -1 : 0;
}

/* ---- a relay ---- */

/* What has been read from one side and not been written to the other. */
struct pipe {
    int from, to; /* -EBADF: at its end */
    size_t start, end;
    char *buf; /* RELAY_BYTES */
};

static void pipe_read(struct pipe *pipe)
{
    ssize_t n = read(pipe->from, pipe->buf, RELAY_BYTES);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    pipe->start = 0;
    pipe->end = n > 0 ? (size_t)n : 0;
    if (n <= 0)
        pipe->from = -EBADF;
}

static void pipe_write(struct pipe *pipe)
{
    ssize_t n = write(pipe->to, pipe->buf + pipe->start, pipe->end - pipe->start);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n < 0)
        pipe->from = -EBADF; /* nobody is there to take it */
    pipe->start = n < 0 ? pipe->end : pipe->start + (size_t)n;
}

/* Whether the pipe has anything to do still; closes its far side for writing when not. */
static bool pipe_lives(struct pipe *pipe)
{
    if (pipe->from >= 0 || pipe->start < pipe->end)
        return true;
    if (pipe->to >= 0 && shutdown(pipe->to, SHUT_WR) < 0)
        close(pipe->to);
    pipe->to = -EBADF;
    return false;
}

static int relay(int in, int out, int socket)
{
    struct pipe up = {.from = in, .to = socket, .buf = hidden_alloc(RELAY_BYTES)};
    struct pipe down = {.from = socket, .to = out, .buf = hidden_alloc(RELAY_BYTES)};
    if (!up.buf || !down.buf)
        return -ENOMEM;
    signal(SIGPIPE, SIG_IGN);
    set_nonblocking(in, true);
    set_nonblocking(out, true);
    set_nonblocking(socket, true);
    struct pipe *pipes[] = {&up, &down};
    /* The cache's side decides: when it has closed, and that has been passed on, it is over. */
    while (pipe_lives(&up), pipe_lives(&down)) {
        struct pollfd fds[2];
        for (size_t i = 0; i < 2; i++) {
            bool full = pipes[i]->start < pipes[i]->end;
            fds[i] = (struct pollfd){.fd = full ? pipes[i]->to : pipes[i]->from,
                                     .events = full ? POLLOUT : POLLIN};
        }
        if (poll(fds, 2, -1) < 0)
            continue;
        for (size_t i = 0; i < 2; i++) {
            if (!fds[i].revents)
                continue;
            if (fds[i].events == POLLOUT)
                pipe_write(pipes[i]);
            else
                pipe_read(pipes[i]);
        }
    }
    return 0;
}

/* ---- attaching ---- */

static int attach(int cache, int socket, struct error *err)
{
    int r = local_send(cache, LOCAL_ATTACH, NULL, &socket, 1);
    struct local_packet packet;
    if (r == 0)
        r = local_receive(cache, &packet);
    if (r < 0)
        return r; /* it was about to end */
    if (packet.kind == LOCAL_DONE)
        return 0;
    struct error reason;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__failure__descriptor, packet.bytes, packet.length, &reason);
    failure_to_reason((const Godwit__Pb__Failure *)message, "the image-cache refused", err);
    return -ECONNREFUSED;
}

int cache_attach_stdio(const struct daemon_options *options, struct error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "socketpair");
    int r = -ECONNRESET;
    for (unsigned i = 0; i < TRIES && r < 0 && r != -ECONNREFUSED; i++) {
        _cleanup_close_ int cache = cache_connect(options, err);
        if (cache < 0)
            return -1;
        r = attach(cache, pair[1], err);
        if (r < 0 && r != -ECONNREFUSED)
            usleep(PAUSE_USEC);
    }
    close_fd(pair[1]);
    if (r < 0)
        return r == -ECONNREFUSED ? -1
                                  : error_set_errno(err, FAILURE_PEER, r, "the image-cache in %s",
                                                    options->workdir);
    r = relay(STDIN_FILENO, STDOUT_FILENO, pair[0]);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "the relay") : 0;
}
