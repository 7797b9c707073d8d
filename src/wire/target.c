/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/target.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "base/passing.h"
#include "wire/owner.h"
#include "wire/tcp.h"

enum { CHILD_PATIENCE_MSEC = 2000 };

/* ---- names ---- */

static int target_invalid(const char *text, struct error *err)
{
    return error_set(err, FAILURE_USAGE,
                     "%s: is no target: HOST[:PORT], unix:PATH, ssh://[USER@]HOST[:PORT] or "
                     "exec:COMMAND",
                     text);
}

/* HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT; more than one colon is an IPv6 address. */
static int take_host_and_port(const char *text, struct target *target)
{
    const char *colon = strrchr(text, ':'), *close = strrchr(text, ']');
    bool bracketed = *text == '[' && close;
    if (colon && (bracketed ? colon < close : colon != strchr(text, ':')))
        colon = NULL;
    const char *begin = text + bracketed;
    const char *end = bracketed ? close : colon ? colon : text + strlen(text);
    if (bracketed && close[1] && close + 1 != colon)
        return -EINVAL;
    target->host = strndup(begin, (size_t)(end - begin));
    uint64_t number;
    if (colon && (parse_number(colon + 1, 65535, &number) < 0 || number == 0))
        return -EINVAL;
    if (colon)
        target->port = strdup(colon + 1);
    if (target->host && strpbrk(target->host, "[]"))
        return -EINVAL;
    /* ssh would take a host that begins with a dash for an option. */
    return target->host && *target->host && *target->host != '-' ? 0 : -EINVAL;
}

int target_parse(const char *text, struct target *ret, struct error *err)
{
    *ret = (struct target){.kind = TARGET_TCP};
    int r = 0;
    if (strncmp(text, "unix:", 5) == 0) {
        ret->kind = TARGET_UNIX;
        ret->rest = strdup(text + 5);
    } else if (strncmp(text, "exec:", 5) == 0) {
        ret->kind = TARGET_EXEC;
        ret->rest = strdup(text + 5);
    } else if (strncmp(text, "ssh://", 6) == 0) {
        ret->kind = TARGET_SSH;
        r = strchr(text + 6, '/') ? -EINVAL : take_host_and_port(text + 6, ret);
    } else {
        r = strstr(text, "://") ? -EINVAL : take_host_and_port(text, ret);
        if (r == 0 && !ret->port)
            ret->port = strdup(TARGET_DEFAULT_PORT);
    }
    if (r < 0 || (ret->rest && !*ret->rest))
        return target_invalid(text, err);
    return 0;
}

void target_free(struct target *target)
{
    free(target->host);
    free(target->port);
    free(target->rest);
    *target = (struct target){0};
}

int target_check(const struct target *target, const struct protection *protection,
                 struct error *err)
{
    if (target->kind != TARGET_TCP || tcp_check(target->host, target->port, protection, err) == 0)
        return 0;
    return err->code == FAILURE_USAGE ? -1 : 0;
}

/* ---- dialling ---- */

struct dial {
    sd_event *event;
    const struct target *target;
    const struct protection *protection;
    uint64_t silence_usec;
    const struct dial_ops *ops;
    void *user;
    const struct dialler *dialler; /* NULL: we do it ourselves */
    sd_event_source *io, *timer;   /* of the attempt, or of the pause before it */
    struct tcp_dial tcp;
    struct error last; /* of the addresses tried so far */
    pid_t child;       /* that carries the link, or 0 */
    int child_pidfd;
};

static void dial_stop(struct dial *dial)
{
    dial->io = sd_event_source_disable_unref(dial->io);
    dial->timer = sd_event_source_disable_unref(dial->timer);
    tcp_dial_end(&dial->tcp);
}

static void dial_connected(struct dial *dial, int fd)
{
    dial_stop(dial);
    struct transport *transport = dial->target->kind == TARGET_TCP
                                      ? tcp_transport(fd, dial->protection, dial->target->host)
                                      : transport_plain(fd);
    dial->ops->connected(dial, transport, dial->user);
}

static int on_dial_fails(sd_event_source *source, uint64_t usec, void *user)
{
    (void)source;
    (void)usec;
    struct dial *dial = user;
    struct error err = dial->last;
    dial_stop(dial);
    dial->ops->failed(dial, &err, dial->user);
    return 0;
}

static int dial_after(struct dial *dial, uint64_t usec, sd_event_time_handler_t handler)
{
    dial->timer = sd_event_source_disable_unref(dial->timer);
    return sd_event_add_time_relative(dial->event, &dial->timer, CLOCK_MONOTONIC, usec,
                                      USEC_PER_MSEC, handler, dial);
}

/* Told from the loop, so that nobody is called back from inside his own call. */
static int dial_fail_soon(struct dial *dial)
{
    return dial_after(dial, 0, on_dial_fails);
}

static int dial_watch(struct dial *dial, int fd);

static void explain(const struct target *target, int error_number, struct error *err)
{
    error_set_errno(err, FAILURE_PEER, error_number, "%s, port %s", target->host, target->port);
    if (error_number == ECONNREFUSED)
        error_append(err, ": nobody listens there (`godwit image-cache` on that host does)");
}

static void dial_try_next(struct dial *dial, int error_number)
{
    explain(dial->target, error_number, &dial->last);
    struct error ignored;
    dial->io = sd_event_source_disable_unref(dial->io);
    int fd = tcp_dial_next(&dial->tcp, &ignored);
    if (fd < 0 || dial_watch(dial, fd) < 0)
        dial_fail_soon(dial);
}

static int on_dial_late(sd_event_source *source, uint64_t usec, void *user)
{
    (void)source;
    (void)usec;
    dial_try_next(user, ETIMEDOUT);
    return 0;
}

static int socket_error(int fd)
{
    int error_number = 0;
    socklen_t length = sizeof(error_number);
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error_number, &length) < 0 ? errno : error_number;
}

static int on_dial_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct dial *dial = user;
    int error_number = socket_error(fd);
    if (error_number) {
        dial_try_next(dial, error_number);
        return 0;
    }
    sd_event_source_set_io_fd_own(dial->io, false);
    dial_connected(dial, fd);
    return 0;
}

/* Waits for a connection that is under way; takes the socket over. */
static int dial_watch(struct dial *dial, int fd)
{
    int r = sd_event_add_io(dial->event, &dial->io, fd, EPOLLOUT, on_dial_io, dial);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    sd_event_source_set_io_fd_own(dial->io, true);
    return dial_after(dial, dial->silence_usec, on_dial_late);
}

static int dial_tcp(struct dial *dial, struct error *err)
{
    const struct target *target = dial->target;
    int fd = tcp_dial_begin(&dial->tcp, target->host, target->port, dial->protection, err);
    return fd < 0 ? -1 : dial_watch(dial, fd);
}

static int connect_unix(const struct target *target, struct error *err)
{
    int fd = unix_connect_path(target->rest, SOCK_STREAM);
    if (fd < 0)
        return error_set_errno(err, FAILURE_PEER, fd, "unix:%s", target->rest);
    if (unix_check_owner(fd, err) < 0) {
        close(fd);
        return error_prefix(err, "unix:%s", target->rest);
    }
    set_nonblocking(fd, true);
    return fd;
}

static int dial_unix(struct dial *dial, struct error *err)
{
    int fd = connect_unix(dial->target, err);
    return fd < 0 ? -1 : dial_watch(dial, fd);
}

/* ---- by somebody else ---- */

/* 0, or the errno. */
static int wait_connected(int fd, uint64_t patience_usec)
{
    struct pollfd connected = {.fd = fd, .events = POLLOUT};
    int n;
    while ((n = poll(&connected, 1, (int)(patience_usec / USEC_PER_MSEC))) < 0 && errno == EINTR)
        ;
    return n > 0 ? socket_error(fd) : ETIMEDOUT;
}

static int connect_tcp(const struct target *target, const struct protection *protection,
                       uint64_t silence_usec, struct error *err)
{
    struct tcp_dial tcp;
    struct error ignored;
    int error_number, fd = tcp_dial_begin(&tcp, target->host, target->port, protection, err);
    while (fd >= 0 && (error_number = wait_connected(fd, silence_usec)) != 0) {
        explain(target, error_number, err);
        close_fd(fd);
        fd = tcp_dial_next(&tcp, &ignored);
    }
    tcp_dial_end(&tcp);
    return fd;
}

_Noreturn void dial_help(const struct target *target, const struct protection *protection,
                         uint64_t silence_usec, int socket)
{
    struct error err = {0};
    struct iovec iov = {&err, sizeof(err)};
    int fd = target->kind == TARGET_UNIX ? connect_unix(target, &err)
                                         : connect_tcp(target, protection, silence_usec, &err);
    send_passing(socket, &iov, 1, &fd, fd >= 0);
    _exit(0);
}

/* The connected socket, or -1 with *err set. */
static int take_answer(int socket, struct error *err)
{
    struct iovec iov = {err, sizeof(*err)};
    struct passed passed;
    ssize_t n = receive_passed(socket, 0, &iov, 1, &passed);
    int fd = n < 0 ? -EBADF : passed_take_first(&passed);
    err->text[sizeof(err->text) - 1] = '\0';
    if (n == sizeof(*err) && (fd >= 0 || err->code != FAILURE_NONE))
        return fd < 0 ? -1 : fd;
    close_fd(fd);
    return error_set_errno(err, FAILURE_SYSTEM, n < 0 ? (int)n : EIO, "connecting");
}

static int on_dial_answer(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct dial *dial = user;
    int connected = take_answer(fd, &dial->last);
    dial->io = sd_event_source_disable_unref(dial->io);
    if (connected < 0)
        dial_fail_soon(dial);
    else
        dial_connected(dial, connected);
    return 0;
}

/* The child ends by itself: it has a time for each address. */
static int dial_by_helper(struct dial *dial, struct error *err)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "connecting");
    int r = dial->dialler->start(dial->dialler->user, pair[1]);
    close_fd(pair[1]);
    if (r == 0)
        r = sd_event_add_io(dial->event, &dial->io, pair[0], EPOLLIN, on_dial_answer, dial);
    if (r < 0) {
        close_fd(pair[0]);
        return error_set_errno(err, FAILURE_SYSTEM, r, "connecting");
    }
    return sd_event_source_set_io_fd_own(dial->io, true);
}

/* ---- a program that carries the link ---- */

/* What a shell runs; $0 is the host, $1 the port or nothing.  As with git and rsync, the user may
 * say how to call ssh. */
static const char ssh_script[] = "exec ${GODWIT_SSH:-ssh} ${1:+-p \"$1\"} -- \"$0\" godwit "
                                 "image-cache --stdio --accept --once";

static _Noreturn void dial_exec(const struct target *target, int fd)
{
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for godwit, which has something to say first */
    dup2(fd, STDIN_FILENO);
    dup2(fd, STDOUT_FILENO);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (target->kind == TARGET_SSH)
        execl("/bin/sh", "sh", "-c", ssh_script, target->host, target->port, NULL);
    else
        execl("/bin/sh", "sh", "-c", target->rest, NULL);
    _exit(127);
}

static void dial_reap(struct dial *dial)
{
    if (dial->child <= 0)
        return;
    struct pollfd ended = {.fd = dial->child_pidfd, .events = POLLIN};
    while (poll(&ended, 1, CHILD_PATIENCE_MSEC) < 0 && errno == EINTR)
        ;
    if (!ended.revents)
        kill(dial->child, SIGKILL);
    while (waitpid(dial->child, NULL, 0) < 0 && errno == EINTR)
        ;
    dial->child = 0;
    dial->child_pidfd = close_fd(dial->child_pidfd);
}

static int dial_program(struct dial *dial, struct error *err)
{
    dial_reap(dial);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "socketpair");
    pid_t child = fork();
    if (child == 0)
        dial_exec(dial->target, pair[1]);
    close_fd(pair[1]);
    if (child > 0) {
        dial->child_pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    }
    if (child < 0 || dial->child_pidfd < 0) {
        error_set_errno(err, FAILURE_SYSTEM, errno, "starting a program");
        close_fd(pair[0]);
        return -1;
    }
    dial->child = child;
    set_nonblocking(pair[0], true);
    return dial_watch(dial, pair[0]);
}

void dial_explain(struct dial *dial, struct error *err)
{
    if (dial->child <= 0)
        return;
    struct pollfd ended = {.fd = dial->child_pidfd, .events = POLLIN};
    siginfo_t info = {0};
    if (poll(&ended, 1, 200) <= 0 ||
        waitid(P_PID, (id_t)dial->child, &info, WEXITED | WNOHANG | WNOWAIT) < 0)
        return;
    const char *what = dial->target->kind == TARGET_SSH ? "ssh" : "the command";
    if (info.si_code == CLD_EXITED && info.si_status == 127)
        error_append(err, " (%s: not found)",
                     dial->target->kind == TARGET_SSH ? "godwit there, or ssh" : "the command");
    else if (info.si_code == CLD_EXITED && info.si_status == 255 &&
             dial->target->kind == TARGET_SSH)
        error_append(err, " (ssh failed: try `ssh %s true`, which must ask for nothing)",
                     dial->target->host);
    else if (info.si_code == CLD_EXITED)
        error_append(err, " (%s ended with status %d)", what, info.si_status);
    else
        error_append(err, " (%s was killed by signal %d)", what, info.si_status);
}

/* ---- its life ---- */

struct dial *dial_new(sd_event *event, const struct target *target,
                      const struct protection *protection, uint64_t silence_usec,
                      const struct dial_ops *ops, void *user)
{
    struct dial *dial = calloc(1, sizeof(*dial));
    if (!dial)
        return NULL;
    *dial = (struct dial){
        .event = sd_event_ref(event),
        .target = target,
        .protection = protection,
        .silence_usec = silence_usec,
        .ops = ops,
        .user = user,
        .child_pidfd = -EBADF,
    };
    return dial;
}

void dial_use(struct dial *dial, const struct dialler *dialler)
{
    dial->dialler = dialler;
}

struct dial *dial_free(struct dial *dial)
{
    if (!dial)
        return NULL;
    dial_stop(dial);
    dial_reap(dial);
    sd_event_unref(dial->event);
    free(dial);
    return NULL;
}

static int dial_try(struct dial *dial, struct error *err)
{
    if (dial->dialler)
        return dial_by_helper(dial, err);
    switch (dial->target->kind) {
    case TARGET_TCP:
        return dial_tcp(dial, err);
    case TARGET_UNIX:
        return dial_unix(dial, err);
    default:
        return dial_program(dial, err);
    }
}

int dial_begin(struct dial *dial, struct error *err)
{
    dial_stop(dial);
    error_set(&dial->last, FAILURE_PEER, "no address");
    if (dial_try(dial, &dial->last) >= 0)
        return 0;
    *err = dial->last;
    if (dial->last.code == FAILURE_USAGE || dial_fail_soon(dial) < 0)
        return -1;
    return 0;
}

static int on_pause_over(sd_event_source *source, uint64_t usec, void *user)
{
    (void)source;
    (void)usec;
    struct dial *dial = user;
    struct error err;
    if (dial_begin(dial, &err) < 0)
        dial->ops->failed(dial, &err, dial->user);
    return 0;
}

void dial_begin_after(struct dial *dial, uint64_t usec)
{
    dial_stop(dial);
    dial_after(dial, usec, on_pause_over);
}
