/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/session.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "criu/process.h"
#include "wire/message.h"

/* ---- opening and closing ---- */

int session_open(struct session *session, const char *workdir, const char *socket_name,
                 const char *daemon_name, struct error *err)
{
    session->daemon_name = daemon_name;
    session->daemon = -EBADF;
    session->progress = isatty(STDERR_FILENO);
    session->workdir = workdir_open(workdir, false, &session->workdir_path, err);
    if (session->workdir >= 0)
        session->daemon = unix_connect_at(session->workdir, socket_name, SOCK_SEQPACKET);
    int r = session->workdir < 0 ? session->workdir : session->daemon;
    if (r == -ENOENT || r == -ECONNREFUSED)
        return error_set(err, FAILURE_PEER,
                         "no %s works in %s: start `godwit %s -d`, or name its work-dir with -W",
                         daemon_name, workdir, daemon_name);
    if (session->workdir < 0)
        return -1;
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "work-dir %s", workdir) : 0;
}

void session_close(struct session *session)
{
    if (session->progress_shown)
        fputs("\r\033[K", stderr);
    close_fd(session->daemon);
    close_fd(session->workdir);
    free(session->workdir_path);
    session->daemon = session->workdir = -EBADF;
    session->workdir_path = NULL;
}

int session_make_directory(struct session *session, const char *prefix, const char *id,
                           const char *log, struct error *err)
{
    snprintf(session->directory, sizeof(session->directory), "%.10s-%.64s", prefix, id);
    if (mkdirat(session->workdir, session->directory, 0700) < 0 && errno != EEXIST)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s/%s", session->workdir_path,
                               session->directory);
    int n;
    if (!log)
        n = snprintf(session->log, sizeof(session->log), "%s/%s/%s.log", session->workdir_path,
                     session->directory, prefix);
    else if (*log == '/')
        n = snprintf(session->log, sizeof(session->log), "%s", log);
    else
        n = snprintf(session->log, sizeof(session->log), "%s/%s", session->workdir_path, log);
    if (n >= (int)sizeof(session->log))
        return error_set_errno(err, FAILURE_USAGE, ENAMETOOLONG, "the log file");
    return 0;
}

void session_remove_directory(struct session *session)
{
    /* By name and never recursively: criu may have left mounts in its work-dir. */
    static const char *const leavings[] = {"dump.log",    "restore.log",   "stats-dump",
                                           "irmap-cache", "stats-restore", "pidfile"};
    int dirfd = openat(session->workdir, session->directory,
                       O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    for (size_t i = 0; dirfd >= 0 && i < ARRAY_SIZE(leavings); i++)
        unlinkat(dirfd, leavings[i], 0);
    close_fd(dirfd);
    unlinkat(session->workdir, session->directory, AT_REMOVEDIR);
}

/* ---- what the daemon says ---- */

static void session_show(struct session *session, const Godwit__Pb__Progress *progress)
{
    if (!session->progress)
        return;
    char size[24];
    fprintf(stderr, "\r\033[K%s %s", format_bytes(progress->bytes, size), progress->phase);
    session->progress_shown = true;
}

/* Takes one packet.  1: there is something in it; 0: no more than progress; -1: *err set. */
static int session_receive(struct session *session, struct local_packet *packet, struct error *err)
{
    int r = local_receive(session->daemon, packet);
    if (r < 0)
        return error_set(err, FAILURE_PEER, "the %s ended", session->daemon_name);
    bool failure = packet->kind == LOCAL_FAILURE, done = packet->kind == LOCAL_DONE;
    if (packet->kind != LOCAL_PROGRESS && !failure && !done)
        return 1;
    struct error reason;
    _cleanup_message_ ProtobufCMessage *message = message_unpack(
        failure ? &godwit__pb__failure__descriptor : &godwit__pb__progress__descriptor,
        packet->bytes, packet->length, &reason);
    local_packet_close(packet);
    if (failure && message)
        failure_to_reason((const Godwit__Pb__Failure *)message, "the daemon gave no reason",
                          &reason);
    if (failure || !message) {
        *err = reason;
        return -1;
    }
    const Godwit__Pb__Progress *progress = (const Godwit__Pb__Progress *)message;
    session->bytes = progress->bytes;
    if (!done)
        session_show(session, progress);
    return done;
}

static int session_silent(const struct session *session, struct error *err)
{
    return error_set(err, FAILURE_PEER, "the %s has been silent for %g s", session->daemon_name,
                     (double)session->silence_usec / (double)USEC_PER_SEC);
}

int session_next(struct session *session, struct local_packet *ret, struct error *err)
{
    for (;;) {
        struct pollfd poll_fd = {.fd = session->daemon, .events = POLLIN};
        int n = poll(&poll_fd, 1, (int)(session->silence_usec / USEC_PER_MSEC));
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            return session_silent(session, err);
        int r = session_receive(session, ret, err);
        if (r != 0)
            return r < 0 ? r : 0;
    }
}

int session_expect(struct session *session, uint32_t kind, struct local_packet *ret,
                   struct error *err)
{
    int r = session_next(session, ret, err);
    if (r < 0 || ret->kind == kind)
        return r;
    local_packet_close(ret);
    return error_set(err, FAILURE_PEER, "the %s answered something else", session->daemon_name);
}

int session_open_snapshot(struct session *session, const Godwit__Pb__RestoreOpen *open,
                          struct session_snapshot *ret, struct error *err)
{
    struct local_packet packet;
    int r = local_send(session->daemon, LOCAL_RESTORE_OPEN, &open->base, NULL, 0);
    if (r < 0)
        return error_set_errno(err, FAILURE_PEER, r, "asking the %s", session->daemon_name);
    if (session_expect(session, LOCAL_RESTORE_READY, &packet, err) < 0)
        return -1;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__restore_ready__descriptor, packet.bytes, packet.length, err);
    local_packet_close(&packet);
    if (!message)
        return -1;
    const Godwit__Pb__RestoreReady *ready = (const Godwit__Pb__RestoreReady *)message;
    *ret = (struct session_snapshot){
        .moved = ready->moved, .streamed = ready->streamed, .token = ready->token};
    snprintf(ret->id, sizeof(ret->id), "%s", ready->id);
    snprintf(ret->images, sizeof(ret->images), "%s", ready->directory);
    snprintf(ret->memory, sizeof(ret->memory), "%s", ready->memory);
    return 0;
}

/* ---- criu and the daemon at once ---- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    interrupted = signal_number;
}

struct run_state {
    bool criu_ended, daemon_ended, gave_up, interrupt_taken, may_kill, killed;
    uint64_t heard, gave_up_at;
    bool done;           /* the daemon said so */
    struct error reason; /* of the daemon's failure, or of giving up */
};

static void run_give_up(struct session_run *run, struct run_state *state)
{
    if (state->gave_up || state->criu_ended)
        return;
    state->gave_up = true;
    state->gave_up_at = now_usec();
    state->may_kill = run->give_up(run->user, interrupted);
}

static void run_take_packet(struct session *session, struct session_run *run,
                            struct run_state *state)
{
    struct local_packet packet;
    struct error failure;
    int r = session_receive(session, &packet, &failure);
    state->heard = now_usec();
    if (r == 0)
        return;
    if (r > 0)
        local_packet_close(&packet);
    state->daemon_ended = true;
    run->daemon_failure = r < 0 ? failure.code : FAILURE_NONE;
    if (r < 0 && !state->gave_up) /* what came of giving up is no better reason than why */
        state->reason = failure;
    state->done = r > 0 && packet.kind == LOCAL_DONE;
    if (!state->done)
        run_give_up(run, state);
    else if (run->done)
        run->done(run->user);
}

static void run_take_criu(struct session *session, struct session_run *run, struct run_state *state)
{
    int status = 0;
    while (waitpid(run->criu, &status, 0) < 0 && errno == EINTR)
        ;
    run->status = criu_exit_status(status);
    state->criu_ended = true;
    Godwit__Pb__Exited exited = GODWIT__PB__EXITED__INIT;
    exited.status = run->status;
    /* A daemon that has gone may have said before how it ended: what it sent is read still. */
    if (!state->daemon_ended)
        local_send(session->daemon, LOCAL_EXITED, &exited.base, NULL, 0);
}

static void run_check_time(struct session *session, struct session_run *run,
                           struct run_state *state)
{
    uint64_t now = now_usec();
    if (interrupted && !state->interrupt_taken && !state->done) {
        state->interrupt_taken = true;
        state->gave_up = false; /* what gave up before was not the user */
        error_set(&state->reason, FAILURE_SYSTEM, "interrupted by signal %d", (int)interrupted);
        run_give_up(run, state);
        /* With criu at its end there is nothing to stop, only the daemon's word to wait for. */
        if (state->criu_ended)
            state->daemon_ended = true;
    }
    if (!state->daemon_ended && now - state->heard > session->silence_usec) {
        session_silent(session, &state->reason);
        state->daemon_ended = true;
        run_give_up(run, state);
    }
    if (state->may_kill && !state->killed && now > state->gave_up_at + 2 * session->silence_usec) {
        state->killed = true;
        syscall(SYS_pidfd_send_signal, run->criu_pidfd, SIGKILL, NULL, 0);
    }
}

int session_run(struct session *session, struct session_run *run, struct error *err)
{
    struct run_state state = {.heard = now_usec()};
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    while (!state.criu_ended || !state.daemon_ended) {
        struct pollfd fds[] = {
            {.fd = state.daemon_ended ? -1 : session->daemon, .events = POLLIN},
            {.fd = state.criu_ended ? -1 : run->criu_pidfd, .events = POLLIN},
        };
        int n = poll(fds, ARRAY_SIZE(fds), 200);
        if (n > 0 && fds[0].revents)
            run_take_packet(session, run, &state);
        if (n > 0 && fds[1].revents)
            run_take_criu(session, run, &state);
        run_check_time(session, run, &state);
    }
    if (state.done)
        return 0;
    *err = state.reason;
    return -1;
}
