/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/freeze.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "criu/hook.h"
#include "criu/scan_filter.h"
#include "criu/scan_questions.h"

/* How closely the moment of the freeze is told. */
#define WATCH_USEC (1 * USEC_PER_MSEC)

/* ---- the scan filter ---- */

/* criu waits for it, and scans by itself what is not in it. */
static void tell_filter(const struct freeze *freeze, int fd, const struct scan_table *table)
{
    char byte = 0;
    /* Half a table is none: it begins with how long it is. */
    if (scan_table_write(table, freeze->table_fd) < 0)
        (void)!ftruncate(freeze->table_fd, 0);
    send(fd, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void filter_said(struct freeze *freeze, int fd, char what)
{
    struct scan_table table = {0};
    freeze->narrowed |= what == SCAN_FILTER_LESS;
    if (what != SCAN_FILTER_STILL)
        return;
    if (!freeze->frozen_usec)
        freeze->frozen_usec = now_usec();
    freeze->ops->frozen(freeze, &table, freeze->user);
    if (freeze->filter_io)
        tell_filter(freeze, fd, &table);
    scan_table_free(&table);
}

/* All that it has said; false: there will be no more, for criu has ended. */
static bool hear_filter(struct freeze *freeze, int fd)
{
    char what;
    ssize_t n;
    while ((n = read(fd, &what, 1)) == 1) {
        filter_said(freeze, fd, what);
        if (!freeze->filter_io)
            return true; /* that was the end of it all */
    }
    return n < 0;
}

static int on_filter(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)events;
    return hear_filter(user, fd) ? 0 : sd_event_source_set_enabled(source, SD_EVENT_OFF);
}

/* ---- a criu without it ---- */

static int on_question(sd_event_source *source, int fd, uint32_t events, void *user)
{
    struct freeze *freeze = user;
    int r = events & EPOLLIN ? scan_questions_answer(fd, freeze->hidden) : -EPIPE;
    freeze->narrowed |= r > 0;
    return r < 0 ? sd_event_source_set_enabled(source, SD_EVENT_OFF) : 0;
}

/* Takes the descriptor. */
static int freeze_hear_questions(struct freeze *freeze, int questions, const char *hidden)
{
    freeze->hidden = hidden ? strdup(hidden) : NULL;
    int r = sd_event_add_io(freeze->event, &freeze->questions_io, questions, EPOLLIN, on_question,
                            freeze);
    if (r < 0)
        close_fd(questions);
    else
        r = sd_event_source_set_io_fd_own(freeze->questions_io, true);
    return hidden && !freeze->hidden ? -ENOMEM : r;
}

/* criu could not dump such a tree if it were asked about its scans, see criu/scan_questions.h. */
static bool tree_has_seccomp_filter(pid_t root)
{
    pid_t *pids = NULL;
    size_t count = 0;
    bool found = task_list_tree(root, &pids, &count) < 0;
    for (size_t i = 0; i < count && !found; i++)
        found = task_has_seccomp_filter(pids[i]);
    free(pids);
    return found;
}

/* ---- the hook ---- */

static int freeze_say(struct freeze *freeze, uint32_t kind, const char *text)
{
    char packet[sizeof(kind) + 400];
    memcpy(packet, &kind, sizeof(kind));
    int n = snprintf(packet + sizeof(kind), sizeof(packet) - sizeof(kind), "%s", text);
    size_t length = MIN((size_t)n, sizeof(packet) - sizeof(kind) - 1);
    ssize_t sent =
        send(freeze->hook_fd, packet, sizeof(kind) + length, MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? -errno : 0;
}

static void freeze_close_hook(struct freeze *freeze)
{
    freeze->hook_io = sd_event_source_disable_unref(freeze->hook_io);
    freeze->hook_fd = close_fd(freeze->hook_fd);
}

void freeze_answer(struct freeze *freeze, bool yes, const char *text)
{
    if (freeze->hook_fd < 0)
        return;
    freeze_say(freeze, yes ? HOOK_YES : HOOK_NO, text);
    freeze_close_hook(freeze);
}

void freeze_beat(struct freeze *freeze)
{
    if (freeze->hook_fd >= 0)
        freeze_say(freeze, HOOK_WAIT, "");
}

static int on_hook(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct freeze *freeze = user;
    struct hook_ask ask;
    ssize_t n = recv(fd, &ask, sizeof(ask), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    bool asks = n == sizeof(ask) && ask.kind == HOOK_ASK && ask.token == freeze->token;
    if (asks && freeze->tree.count == 0) {
        freeze->held_usec = now_usec();
        if (freeze->filter_io) /* it was before the hook */
            hear_filter(freeze, sd_event_source_get_io_fd(freeze->filter_io));
        freeze->ops->held(freeze, freeze->user);
        return 0;
    }
    freeze_close_hook(freeze);
    freeze->ops->hook_lost(freeze, freeze->user);
    return 0;
}

static int on_hook_connects(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct freeze *freeze = user;
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (accepted < 0)
        return 0;
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    if (freeze->hook_fd >= 0 ||
        sd_event_add_io(freeze->event, &freeze->hook_io, accepted, EPOLLIN, on_hook, freeze) < 0) {
        close_fd(accepted);
        return 0;
    }
    freeze->hook_fd = accepted;
    freeze->hook_pid = peer.pid;
    return 0;
}

/* ---- criu ---- */

static void freeze_reap(struct freeze *freeze)
{
    int status = 0;
    while (waitpid(freeze->criu, &status, 0) < 0 && errno == EINTR)
        ;
    freeze->status = criu_exit_status(status);
    freeze->criu = 0;
    freeze->watch = sd_event_source_disable_unref(freeze->watch);
    freeze->criu_io = sd_event_source_disable_unref(freeze->criu_io);
    freeze->criu_pidfd = close_fd(freeze->criu_pidfd);
}

static int on_criu_end(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct freeze *freeze = user;
    freeze_reap(freeze);
    freeze_close_hook(freeze);
    freeze->ops->ended(freeze, freeze->user);
    return 0;
}

static int on_watch(sd_event_source *source, uint64_t usec, void *user)
{
    (void)usec;
    struct freeze *freeze = user;
    if (task_is_traced(freeze->root)) {
        freeze->frozen_usec = now_usec();
        freeze->watch = sd_event_source_disable_unref(freeze->watch);
        return 0;
    }
    sd_event_source_set_time_relative(source, WATCH_USEC);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* criu's end of a socket, or a negative errno. */
static int freeze_open_filter(struct freeze *freeze)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    freeze->table_fd = memfd_create("godwit-scan-table", MFD_CLOEXEC);
    int r = freeze->table_fd < 0 ? -errno : set_nonblocking(fds[0], true);
    if (r == 0)
        r = sd_event_add_io(freeze->event, &freeze->filter_io, fds[0], EPOLLIN, on_filter, freeze);
    if (r < 0) {
        close_fd(fds[0]);
        close_fd(fds[1]);
        return r;
    }
    sd_event_source_set_io_fd_own(freeze->filter_io, true);
    return fds[1];
}

static int freeze_listen(struct freeze *freeze, const char *workdir)
{
    int n = snprintf(freeze->socket_path, sizeof(freeze->socket_path), "%s/proxy.sock", workdir);
    if (n >= (int)sizeof(freeze->socket_path) ||
        snprintf(freeze->log, sizeof(freeze->log), "%s/dump.log", workdir) >=
            (int)sizeof(freeze->log))
        return -ENAMETOOLONG;
    int fd = unix_listen_path(freeze->socket_path, SOCK_SEQPACKET);
    if (fd < 0)
        return fd;
    int r =
        sd_event_add_io(freeze->event, &freeze->listener, fd, EPOLLIN, on_hook_connects, freeze);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    return sd_event_source_set_io_fd_own(freeze->listener, true);
}

static int freeze_start_criu(struct freeze *freeze, const struct freeze_request *request,
                             const char *hook, struct error *err)
{
    struct criu_args args = {0};
    criu_dump_arguments(&freeze->dump, request->criu, request->pid, request->workdir, freeze->log,
                        hook, &args);
    if (request->options)
        criu_args_add_all(&args, request->options);
    char filter[4096];
    _cleanup_close_ int filter_fd = -EBADF, questions = -EBADF;
    struct error no_filter;
    if (request->narrow && request->preload && criu_can_be_preloaded(request->criu) &&
        criu_find_scan_filter(filter, sizeof(filter), &no_filter) == 0)
        filter_fd = freeze_open_filter(freeze);
    bool asks = request->narrow && filter_fd < 0 && !tree_has_seccomp_filter(request->pid);
    int keep[] = {freeze->dump.images_fd, freeze->dump.pages_fd, filter_fd, freeze->table_fd};
    struct criu_spawn spawn = {
        .keep = keep,
        .keep_count = filter_fd >= 0 ? 4 : 2,
        .scan_filter = filter_fd >= 0 ? filter : NULL,
        .scan_filter_fd = filter_fd,
        .scan_filter_table = freeze->table_fd,
        .scan_filter_hidden = request->hidden,
        .ret_questions = asks ? &questions : NULL,
        .hook_workdir = request->workdir,
        .hook_token = freeze->token,
        .hook_silence_usec = request->silence_usec,
        .hook_journal = request->journal,
        .ignore_interrupt = true,
    };
    pid_t criu = criu_start(&args, &spawn, &freeze->criu_pidfd, err);
    criu_args_free(&args);
    if (criu < 0)
        return -1;
    freeze->criu = criu;
    /* What criu has of its socket is criu's alone: its end has to be seen. */
    freeze->dump.pages_fd = close_fd(freeze->dump.pages_fd);
    int r = sd_event_add_io(freeze->event, &freeze->criu_io, freeze->criu_pidfd, EPOLLIN,
                            on_criu_end, freeze);
    if (r >= 0 && questions >= 0)
        r = freeze_hear_questions(freeze, TAKE_FD(questions), request->hidden);
    if (r >= 0)
        r = sd_event_add_time_relative(freeze->event, &freeze->watch, CLOCK_MONOTONIC, WATCH_USEC,
                                       1, on_watch, freeze);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "watching criu") : 0;
}

int freeze_begin(struct freeze *freeze, sd_event *event, const struct freeze_request *request,
                 const struct freeze_ops *ops, void *user, struct error *err)
{
    *freeze = (struct freeze){
        .event = event,
        .ops = ops,
        .user = user,
        .root = request->pid,
        .dump = CRIU_DUMP_CLOSED,
        .criu_pidfd = -EBADF,
        .hook_fd = -EBADF,
        .table_fd = -EBADF,
    };
    char hook[4096];
    if (criu_find_hook(hook, sizeof(hook), err) < 0)
        return -1;
    if (getrandom(&freeze->token, sizeof(freeze->token), 0) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "getrandom");
    freeze->token |= 1;
    int r = freeze_listen(freeze, request->workdir);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s", request->workdir);
    if (criu_dump_open(&freeze->dump, err) < 0)
        return -1;
    return freeze_start_criu(freeze, request, hook, err);
}

bool freeze_holds(const struct freeze *freeze)
{
    struct pollfd fds[] = {{.fd = freeze->hook_fd, .events = POLLIN},
                           {.fd = freeze->criu_pidfd, .events = POLLIN}};
    /* The hook has nothing more to say: that it can be read means that it has gone. */
    return freeze->hook_fd >= 0 && freeze->criu > 0 && poll(fds, ARRAY_SIZE(fds), 0) == 0;
}

void freeze_kill(struct freeze *freeze)
{
    if (freeze->hook_fd >= 0 && freeze->hook_pid > 0)
        kill(freeze->hook_pid, SIGKILL); /* it waits for us, so it is still that process */
    if (freeze->criu > 0)
        syscall(SYS_pidfd_send_signal, freeze->criu_pidfd, SIGKILL, NULL, 0);
}

void freeze_close(struct freeze *freeze)
{
    freeze_kill(freeze);
    if (freeze->criu > 0)
        freeze_reap(freeze);
    freeze_close_hook(freeze);
    freeze->watch = sd_event_source_disable_unref(freeze->watch);
    freeze->criu_io = sd_event_source_disable_unref(freeze->criu_io);
    freeze->filter_io = sd_event_source_disable_unref(freeze->filter_io);
    freeze->questions_io = sd_event_source_disable_unref(freeze->questions_io);
    free(freeze->hidden);
    freeze->table_fd = close_fd(freeze->table_fd);
    if (freeze->listener)
        unlink(freeze->socket_path);
    freeze->listener = sd_event_source_disable_unref(freeze->listener);
    freeze->criu_pidfd = close_fd(freeze->criu_pidfd);
    task_tree_close(&freeze->tree);
    criu_dump_close(&freeze->dump);
}
