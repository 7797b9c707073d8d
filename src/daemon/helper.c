/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/helper.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "base/io.h"
#include "daemon/ask.h"
#include "daemon/confine.h"
#include "daemon/half.h"
#include "wire/owner.h"

enum help_kind {
    /* A child does it, and answers over the socket that comes with it. */
    HELP_USERFAULTFD = TASK_HELP_USERFAULTFD, /* pid */
    HELP_STOP = TASK_HELP_STOP,               /* pid */
    HELP_CLEAR = TASK_HELP_CLEAR,             /* pid */
    HELP_DIAL,

    HELP_PEER, /* of the socket that comes with it: the inode of its other end */

    /* As in ask.h. */
    HELP_ROOM,
    HELP_LOG,
    HELP_READY,
    HELP_END, /* with the pid file */
    HELP_END_UNPREPARED,
    HELP_KINDS,
};

/* Records are of fixed size, in the machine's own layout, with at most one descriptor. */
struct help {
    uint32_t kind;
    uint32_t pid;
};

struct helper {
    const struct daemon *daemon;
    int asks;
    struct task_helpers tasks;
    struct dialler dialler;
};

/* ---- asking ---- */

_Noreturn void helper_lost(const struct helper *helper, int error_number)
{
    log_error(&helper->daemon->log,
              "the process that stops tasks has gone (%s): ending, as if killed",
              error_number == ENODATA ? "killed" : strerror(error_number));
    _exit(FAILURE_SYSTEM);
}

/* The result.  *ret_passed: a descriptor that came with it. */
static int64_t helper_ask_with(const struct helper *helper, const struct help *help, int passed,
                               int *ret_passed)
{
    int64_t result = 0;
    size_t count;
    int r = ask_send(helper->asks, help, sizeof(*help), passed);
    if (r == 0)
        r = ask_receive(helper->asks, &result, sizeof(result), ret_passed, &count);
    if (r < 0)
        helper_lost(helper, -r);
    return result;
}

static int64_t helper_ask(const struct helper *helper, enum help_kind kind, pid_t pid, int passed)
{
    const struct help help = {.kind = kind, .pid = (uint32_t)pid};
    int came;
    int64_t result = helper_ask_with(helper, &help, passed, &came);
    close_fd(came);
    return result;
}

static int start_task_help(void *user, enum task_help help, pid_t pid, int socket)
{
    return (int)helper_ask(user, (enum help_kind)help, pid, socket);
}

static int start_dial(void *user, int socket)
{
    return (int)helper_ask(user, HELP_DIAL, 0, socket);
}

const struct task_helpers *helper_tasks(const struct helper *helper)
{
    return &helper->tasks;
}

const struct dialler *helper_dialler(const struct helper *helper)
{
    return &helper->dialler;
}

int helper_peer_inode(const struct helper *helper, int fd, uint64_t *ret)
{
    int64_t result = helper_ask(helper, HELP_PEER, 0, fd);
    *ret = result < 0 ? 0 : (uint64_t)result;
    return result < 0 ? (int)result : 0;
}

void helper_make_room(const struct helper *helper, int fd)
{
    helper_ask(helper, HELP_ROOM, 0, fd);
}

int helper_open_log(const struct helper *helper)
{
    const struct help help = {.kind = HELP_LOG};
    int log;
    helper_ask_with(helper, &help, -EBADF, &log);
    return log;
}

void helper_ready(const struct helper *helper)
{
    helper_ask(helper, HELP_READY, 0, -EBADF);
}

int helper_fd(const struct helper *helper)
{
    return helper->asks;
}

/* ---- in the helper ---- */

struct serving {
    const struct helper_setup *setup;
    pid_t parser;
    int asks;
};

static const struct rule {
    bool pid;
    size_t fds;
} rules[HELP_KINDS] = {
    [HELP_USERFAULTFD] = {true, 1}, [HELP_STOP] = {true, 1},  [HELP_CLEAR] = {true, 1},
    [HELP_DIAL] = {false, 1},       [HELP_PEER] = {false, 1}, [HELP_ROOM] = {false, 1},
};

static bool may_ask(const struct help *help, size_t fds)
{
    if (help->kind == 0 || help->kind >= HELP_KINDS)
        return false;
    const struct rule *rule = &rules[help->kind];
    return fds == rule->fds &&
           (rule->pid ? help->pid > 0 && help->pid <= INT32_MAX : help->pid == 0);
}

static _Noreturn void child_run(const struct serving *serving, const struct help *help, int socket)
{
    const struct daemon *daemon = serving->setup->daemon;
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* it puts everything back, whatever comes */
    signal(SIGCHLD, SIG_DFL);
    close_fd(serving->asks);
    if (help->kind == HELP_DIAL)
        dial_help(serving->setup->target, &daemon->protection, daemon->options->silence_usec,
                  socket);
    task_help((enum task_help)help->kind, (pid_t)help->pid, socket);
}

static int start_child(const struct serving *serving, const struct help *help, int socket)
{
    pid_t child = fork();
    if (child == 0)
        child_run(serving, help, socket);
    return child < 0 ? -errno : 0;
}

static void tell_ready(const struct serving *serving)
{
    daemonize_leave(&serving->setup->daemon->options->daemonize);
    sd_pid_notify(serving->parser, 0, "READY=1");
}

static void clean_up(const struct serving *serving, bool prepared)
{
    const struct daemon *daemon = serving->setup->daemon;
    prctl(PR_SET_PDEATHSIG, 0); /* it has said its word */
    serving->setup->remove(daemon);
    if (prepared)
        daemonize_end(&daemon->options->daemonize);
}

static int64_t look_at_peer(int fd)
{
    uint64_t inode;
    int r = socket_peer_inode(fd, &inode);
    return r < 0 ? r : (int64_t)inode;
}

/* What comes of it; *ret_log: what is passed back. */
static int64_t do_help(const struct serving *serving, const struct help *help, int passed,
                       int *ret_log)
{
    switch (help->kind) {
    case HELP_PEER:
        return look_at_peer(passed);
    case HELP_ROOM:
        return half_make_room(passed);
    case HELP_LOG:
        *ret_log = daemonize_reopen_log(&serving->setup->daemon->options->daemonize);
        return 0;
    case HELP_READY:
        tell_ready(serving);
        return 0;
    case HELP_END:
    case HELP_END_UNPREPARED:
        clean_up(serving, help->kind == HELP_END);
        return 0;
    default:
        return start_child(serving, help, passed);
    }
}

static void serve_one(const struct serving *serving)
{
    struct help help = {0};
    size_t fds;
    _cleanup_close_ int passed = -EBADF, log = -EBADF;
    int r = ask_receive(serving->asks, &help, sizeof(help), &passed, &fds);
    if (r == -ENODATA)
        half_parser_has_gone();
    if (r < 0 || !may_ask(&help, fds)) {
        log_error(&serving->setup->daemon->log, "the process that serves others breaks the form");
        _exit(FAILURE_SYSTEM);
    }
    int64_t result = do_help(serving, &help, passed, &log);
    if (ask_send(serving->asks, &result, sizeof(result), log) < 0 || help.kind == HELP_END ||
        help.kind == HELP_END_UNPREPARED)
        _exit(0);
}

static _Noreturn void helper_serve(const struct helper_setup *setup, pid_t parser, int asks)
{
    const struct serving serving = {.setup = setup, .parser = parser, .asks = asks};
    struct error err;
    int keep[] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, asks, setup->daemon->workdir};
    prctl(PR_SET_NAME, "godwit-helper");
    close_all_but(keep, ARRAY_SIZE(keep));
    half_watch_parser("image-proxy", parser);
    signal(SIGCHLD, SIG_IGN); /* the children are reaped */
    if (confine_helper(&err) < 0) {
        log_error(&setup->daemon->log, "%s", err.text);
        _exit(FAILURE_SYSTEM);
    }
    for (;;)
        serve_one(&serving);
}

/* ---- its life ---- */

struct helper *helper_new(const struct helper_setup *setup, struct error *err)
{
    enum { OURS, ITS };
    int asks[2] = {-EBADF, -EBADF};
    pid_t parser = getpid(), pid = -1;
    struct helper *helper = malloc(sizeof(*helper));
    if (helper && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, asks) == 0)
        pid = fork();
    if (pid == 0)
        helper_serve(setup, parser, asks[ITS]);
    int error = errno;
    close_fd(asks[ITS]);
    if (pid > 0) {
        *helper = (struct helper){
            .daemon = setup->daemon,
            .asks = asks[OURS],
            .tasks = {.start = start_task_help, .user = helper},
            .dialler = {.start = start_dial, .user = helper},
        };
        return helper;
    }
    close_fd(asks[OURS]);
    free(helper);
    error_set_errno(err, FAILURE_SYSTEM, error, "starting the half that stops tasks");
    return NULL;
}

struct helper *helper_end(struct helper *helper)
{
    if (!helper)
        return NULL;
    helper_ask(helper, helper->daemon->prepared ? HELP_END : HELP_END_UNPREPARED, 0, -EBADF);
    close_fd(helper->asks);
    free(helper);
    return NULL;
}
