/* SPDX-License-Identifier: Apache-2.0 */
/* The starter's side: root, small, and asked by somebody who is not to be believed. */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "base/io.h"
#include "daemon/cache.h"
#include "daemon/half.h"
#include "daemon/starter.h"
#include "task/task.h"

struct serving {
    const struct starter_setup *setup;
    struct restores restores;
    struct ask_limits limits;
    pid_t parser;
    int asks, tells;
};

/* ---- restores ---- */

static void do_start(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    char *options[ASK_OPTIONS_MAX + 1];
    ask_options(ask, options);
    const struct restore_order order = {
        .id = ask->id,
        .token = ask->token,
        .lazy = ask->flags & ASK_LAZY,
        .ahead = ask->flags & ASK_AHEAD,
        .options = options,
    };
    ret->result = restores_start(&serving->restores, &order, &ret->err);
    if (ret->result == 0)
        log_info(serving->setup->log,
                 "snapshot %s: criu restore is started, with %u options of others", ask->id,
                 ask->count);
}

static void do_go(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    bool went = restores_go(&serving->restores, ask->id, ask->flags & ASK_LAZY);
    ret->result = went ? 0 : -ESRCH;
}

static void do_leave(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ret;
    restores_leave(&serving->restores, ask->id);
}

static void do_stop(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ret;
    restores_stop(&serving->restores, ask->id);
}

static void do_remove(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ret;
    restores_remove(&serving->restores, ask->id, ask->flags & ASK_KEEP_LOG);
}

static void do_clear_up(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ask;
    (void)ret;
    restores_clear_up(&serving->restores);
}

static void do_look(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    ret->result = restores_look(&serving->restores, ask->id, &ret->view);
}

static void do_release(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ret;
    restores_release(&serving->restores, ask->id);
}

static void do_stop_pager(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ret;
    restores_stop_pager(&serving->restores, ask->id);
}

static void do_root(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    ret->result = restores_root(&serving->restores, ask->id, (pid_t)ask->pid);
}

static void do_root_lives(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    ret->result = restores_root_lives(&serving->restores, ask->id);
}

static void do_kill(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    ret->result = restores_kill(&serving->restores, ask->id);
}

/* ---- pre-flight ---- */

static void do_host(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)serving;
    (void)ask;
    preflight_see_host(NULL, &ret->host);
}

static void do_file(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)serving;
    preflight_see_file(NULL, ask->text, ask->flags & ASK_PROGRAM, &ret->file);
}

static void do_pid(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)serving;
    ret->result = preflight_see_pid(NULL, ask->pid, ret->command);
}

/* ---- the daemon itself ---- */

static void do_parent(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)serving;
    ret->pid = task_parent((pid_t)ask->pid);
}

static void do_ready(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ask;
    (void)ret;
    daemonize_leave(&serving->setup->options->daemonize);
    sd_pid_notify(serving->parser, 0, "READY=1");
}

static void do_end(struct serving *serving, const struct ask *ask, struct answer *ret)
{
    (void)ret;
    const struct daemon_options *options = serving->setup->options;
    const struct restores *restores = &serving->restores;
    struct target target = daemon_target(options);
    prctl(PR_SET_PDEATHSIG, 0); /* it has said its word */
    unlinkat(restores->workdir, LOCAL_CACHE_SOCKET, 0);
    unlinkat(restores->workdir, CACHE_SERVE_SOCKET, 0);
    if (ask->flags & ASK_UNIX_SOCKET && target.kind == TARGET_UNIX)
        unlink(target.rest);
    if (ask->flags & ASK_PIDFILE)
        daemonize_end(&options->daemonize);
    store_unmount(restores->store_path, restores->store);
}

/* ---- the loop ---- */

static void (*const deeds[ASK_KINDS])(struct serving *serving, const struct ask *ask,
                                      struct answer *ret) = {
    [ASK_START] = do_start,
    [ASK_GO] = do_go,
    [ASK_LEAVE] = do_leave,
    [ASK_STOP] = do_stop,
    [ASK_REMOVE] = do_remove,
    [ASK_CLEAR_UP] = do_clear_up,
    [ASK_LOOK] = do_look,
    [ASK_RELEASE] = do_release,
    [ASK_STOP_PAGER] = do_stop_pager,
    [ASK_ROOT] = do_root,
    [ASK_ROOT_LIVES] = do_root_lives,
    [ASK_KILL] = do_kill,
    [ASK_HOST] = do_host,
    [ASK_FILE] = do_file,
    [ASK_PID] = do_pid,
    [ASK_PARENT] = do_parent,
    [ASK_READY] = do_ready,
    [ASK_END] = do_end,
};

/* Answers one ask.  passed: what came with it. */
static void serve_one(struct serving *serving, const struct ask *ask, int passed, size_t fds)
{
    struct answer answer = {0};
    _cleanup_close_ int log = -EBADF;
    if (ask_check(ask, fds, &serving->limits, &answer.err) < 0) {
        log_error(serving->setup->log, "the process that serves others %s: refused",
                  answer.err.text);
        answer.result = ask->kind == ASK_START ? -1 : -EPERM;
    } else if (ask->kind == ASK_ROOM) {
        answer.result = half_make_room(passed);
    } else if (ask->kind == ASK_LOG) {
        log = daemonize_reopen_log(&serving->setup->options->daemonize);
    } else {
        deeds[ask->kind](serving, ask, &answer);
    }
    if (ask_send(serving->asks, &answer, sizeof(answer), log) < 0 || ask->kind == ASK_END)
        _exit(0);
}

static void receive_one(struct serving *serving)
{
    static struct ask ask;
    size_t fds;
    _cleanup_close_ int passed;
    int r = ask_receive(serving->asks, &ask, sizeof(ask), &passed, &fds);
    if (r == -ENODATA)
        half_parser_has_gone();
    if (r < 0) {
        log_error(serving->setup->log, "the process that serves others breaks the form: %s",
                  strerror(-r));
        _exit(FAILURE_SYSTEM);
    }
    serve_one(serving, &ask, passed, fds);
}

static void tell_end(struct serving *serving, struct restore *restore)
{
    struct tell tell = {.token = restore->token};
    memcpy(tell.id, restore->id, sizeof(tell.id));
    restores_reap(&serving->restores, restore, &tell.end);
    ask_send(serving->tells, &tell, sizeof(tell), -EBADF);
}

/* Who has ended?  One at a time: the list changes. */
static void check_restores(struct serving *serving)
{
    for (struct restore *restore = serving->restores.first; restore; restore = restore->next) {
        struct pollfd poll_fd = {.fd = restore->pidfd, .events = POLLIN};
        if (poll(&poll_fd, 1, 0) > 0) {
            tell_end(serving, restore);
            return;
        }
    }
}

static void wait_for_one(struct serving *serving)
{
    enum { WATCHED_MAX = 64, LOOK_MSEC = 100 };
    struct pollfd fds[1 + WATCHED_MAX] = {{.fd = serving->asks, .events = POLLIN}};
    nfds_t count = 1;
    struct restore *restore = serving->restores.first;
    for (; restore && count < ARRAY_SIZE(fds); restore = restore->next)
        fds[count++] = (struct pollfd){.fd = restore->pidfd, .events = POLLIN};
    /* Those for whom there is no place are looked at now and then. */
    poll(fds, count, restore ? LOOK_MSEC : -1);
    check_restores(serving);
    if (fds[0].revents)
        receive_one(serving);
}

/* Of what the parser has opened before the fork nothing is the starter's. */
static void keep_own(const struct serving *serving)
{
    int keep[] = {STDIN_FILENO,           STDOUT_FILENO,  STDERR_FILENO,
                  serving->asks,          serving->tells, serving->restores.workdir,
                  serving->restores.store};
    close_all_but(keep, ARRAY_SIZE(keep));
}

_Noreturn void starter_serve(const struct starter_setup *setup, int asks, int tells)
{
    struct serving serving = {
        .setup = setup,
        .restores = setup->restores,
        .limits = {.accept = setup->options->accept, .options = setup->options->accept_options},
        .parser = getppid(),
        .asks = asks,
        .tells = tells,
    };
    int room = DAEMON_CLIENT_ROOM;
    prctl(PR_SET_NAME, "godwit-starter");
    /* A parser that asks takes no ends meanwhile. */
    setsockopt(tells, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
    keep_own(&serving);
    half_watch_parser("image-cache", serving.parser);
    for (;;)
        wait_for_one(&serving);
}
