/* SPDX-License-Identifier: Apache-2.0 */
/* The parser's side: the fork, and a function for each ask. */
#include "daemon/starter.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

struct starter {
    const struct logger *log;
    int asks, tells;
};

/* ---- asking ---- */

/* What it was to do may have been done or not: that is as if both had been killed. */
static _Noreturn void starter_lost(const struct starter *starter, int r)
{
    log_error(starter->log, "the process that starts criu has gone (%s): ending, as if killed",
              r == -ENODATA ? "killed" : strerror(-r));
    _exit(FAILURE_SYSTEM);
}

/* Asks, and waits for the answer.  *ret_passed: a descriptor that came with it. */
static void starter_ask_with(const struct starter *starter, const struct ask *ask, int passed,
                             struct answer *ret, int *ret_passed)
{
    size_t count;
    int r = ask_send(starter->asks, ask, sizeof(*ask), passed);
    if (r == 0)
        r = ask_receive(starter->asks, ret, sizeof(*ret), ret_passed, &count);
    if (r < 0)
        starter_lost(starter, r);
}

static int starter_ask(const struct starter *starter, const struct ask *ask, struct answer *ret)
{
    int passed;
    starter_ask_with(starter, ask, -EBADF, ret, &passed);
    close_fd(passed);
    return ret->result;
}

/* An ask that has no more than an id, and flags. */
static int starter_ask_of(const struct starter *starter, enum ask_kind kind, const char *id,
                          uint32_t flags, struct answer *ret)
{
    struct ask ask = {.kind = kind, .flags = flags};
    strncpy(ask.id, id, sizeof(ask.id) - 1);
    return starter_ask(starter, &ask, ret);
}

/* ---- restores ---- */

int starter_start(struct starter *starter, const struct restore_order *order, struct error *err)
{
    struct answer answer;
    struct ask ask = {
        .kind = ASK_START,
        .flags = (order->lazy ? ASK_LAZY : 0) | (order->ahead ? ASK_AHEAD : 0),
        .token = order->token,
    };
    strncpy(ask.id, order->id, sizeof(ask.id) - 1);
    for (char *const *option = order->options; option && *option; option++) {
        if (ask_add_text(&ask, *option) < 0)
            return error_set_errno(err, FAILURE_SYSTEM, E2BIG, "the options for criu");
    }
    if (starter_ask(starter, &ask, &answer) == 0)
        return 0;
    *err = answer.err;
    return -1;
}

bool starter_go(struct starter *starter, const char *id, bool lazy)
{
    struct answer answer;
    return starter_ask_of(starter, ASK_GO, id, lazy ? ASK_LAZY : 0, &answer) == 0;
}

void starter_leave(struct starter *starter, const char *id)
{
    struct answer answer;
    starter_ask_of(starter, ASK_LEAVE, id, 0, &answer);
}

void starter_stop(struct starter *starter, const char *id)
{
    struct answer answer;
    starter_ask_of(starter, ASK_STOP, id, 0, &answer);
}

void starter_remove(struct starter *starter, const char *id, bool keep_log)
{
    struct answer answer;
    starter_ask_of(starter, ASK_REMOVE, id, keep_log ? ASK_KEEP_LOG : 0, &answer);
}

void starter_clear_up(struct starter *starter)
{
    struct answer answer;
    starter_ask_of(starter, ASK_CLEAR_UP, "", 0, &answer);
}

int starter_look(struct starter *starter, const char *id, struct pager_view *ret)
{
    struct answer answer;
    int r = starter_ask_of(starter, ASK_LOOK, id, 0, &answer);
    if (r == 0)
        *ret = answer.view;
    return r;
}

void starter_release(struct starter *starter, const char *id)
{
    struct answer answer;
    starter_ask_of(starter, ASK_RELEASE, id, 0, &answer);
}

void starter_stop_pager(struct starter *starter, const char *id)
{
    struct answer answer;
    starter_ask_of(starter, ASK_STOP_PAGER, id, 0, &answer);
}

int starter_root(struct starter *starter, const char *id, pid_t pid)
{
    struct answer answer;
    struct ask ask = {.kind = ASK_ROOT, .pid = (uint32_t)pid};
    strncpy(ask.id, id, sizeof(ask.id) - 1);
    return starter_ask(starter, &ask, &answer);
}

bool starter_root_lives(struct starter *starter, const char *id)
{
    struct answer answer;
    return starter_ask_of(starter, ASK_ROOT_LIVES, id, 0, &answer) > 0;
}

int starter_kill(struct starter *starter, const char *id)
{
    struct answer answer;
    return starter_ask_of(starter, ASK_KILL, id, 0, &answer);
}

/* ---- pre-flight ---- */

static void see_host(void *user, struct preflight_host *ret)
{
    struct answer answer;
    struct ask ask = {.kind = ASK_HOST};
    *ret = starter_ask(user, &ask, &answer) == 0 ? answer.host : (struct preflight_host){0};
}

static void see_file(void *user, const char *path, bool program, struct preflight_file *ret)
{
    struct answer answer;
    struct ask ask = {.kind = ASK_FILE, .flags = program ? ASK_PROGRAM : 0};
    *ret = (struct preflight_file){.error = EINVAL};
    if (path[0] == '/' && ask_add_text(&ask, path) == 0 && starter_ask(user, &ask, &answer) == 0)
        *ret = answer.file;
}

static bool see_pid(void *user, uint32_t pid, char command[17])
{
    struct answer answer;
    struct ask ask = {.kind = ASK_PID, .pid = pid};
    if (starter_ask(user, &ask, &answer) <= 0)
        return false;
    memcpy(command, answer.command, sizeof(answer.command));
    return true;
}

struct preflight_eyes starter_eyes(struct starter *starter)
{
    return (struct preflight_eyes){
        .host = see_host, .file = see_file, .pid = see_pid, .user = starter};
}

/* ---- the daemon itself ---- */

pid_t starter_parent(struct starter *starter, pid_t pid)
{
    struct answer answer;
    struct ask ask = {.kind = ASK_PARENT, .pid = (uint32_t)pid};
    return starter_ask(starter, &ask, &answer) == 0 ? answer.pid : 0;
}

void starter_make_room(struct starter *starter, int fd)
{
    int passed;
    struct answer answer;
    struct ask ask = {.kind = ASK_ROOM};
    starter_ask_with(starter, &ask, fd, &answer, &passed);
    close_fd(passed);
}

int starter_open_log(struct starter *starter)
{
    int passed;
    struct answer answer;
    struct ask ask = {.kind = ASK_LOG};
    starter_ask_with(starter, &ask, -EBADF, &answer, &passed);
    return passed;
}

void starter_ready(struct starter *starter)
{
    struct answer answer;
    struct ask ask = {.kind = ASK_READY};
    starter_ask(starter, &ask, &answer);
}

/* ---- its life ---- */

int starter_tells(const struct starter *starter)
{
    return starter->tells;
}

int starter_told(const struct starter *starter, struct tell *ret)
{
    ssize_t n;
    do {
        n = recv(starter->tells, ret, sizeof(*ret), MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n == (ssize_t)sizeof(*ret))
        return 0;
    if (n < 0 && errno == EAGAIN)
        return -EAGAIN;
    starter_lost(starter, n < 0 && errno != ECONNRESET ? -errno : -ENODATA);
}

struct starter *starter_end(struct starter *starter, uint32_t flags)
{
    struct answer answer;
    struct ask ask = {.kind = ASK_END, .flags = flags};
    if (!starter)
        return NULL;
    starter_ask(starter, &ask, &answer);
    close_fd(starter->asks);
    close_fd(starter->tells);
    free(starter);
    return NULL;
}

/* In the child. */
static _Noreturn void starter_begin(const struct starter_setup *setup, pid_t parser, int asks,
                                    int tells)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* until it says by itself what has happened */
    if (getppid() != parser)
        _exit(FAILURE_SYSTEM);
    starter_serve(setup, asks, tells);
}

struct starter *starter_new(const struct starter_setup *setup, struct error *err)
{
    enum { OURS, ITS };
    int asks[2] = {-EBADF, -EBADF}, tells[2] = {-EBADF, -EBADF};
    pid_t parser = getpid(), pid = -1;
    struct starter *starter = malloc(sizeof(*starter));
    if (starter && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, asks) == 0 &&
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, tells) == 0)
        pid = fork();
    if (pid == 0)
        starter_begin(setup, parser, asks[ITS], tells[ITS]);
    int error = errno;
    close_fd(asks[ITS]);
    close_fd(tells[ITS]);
    if (pid > 0) {
        *starter = (struct starter){.log = setup->log, .asks = asks[OURS], .tells = tells[OURS]};
        return starter;
    }
    close_fd(asks[OURS]);
    close_fd(tells[OURS]);
    free(starter);
    error_set_errno(err, FAILURE_SYSTEM, error, "starting the half that is root");
    return NULL;
}
