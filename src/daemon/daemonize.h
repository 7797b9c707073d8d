/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Becoming a daemon, for both daemons: fork and setsid, log file, pid file, and telling whoever
 * waits that the work can begin (the starting process, --status-fd, systemd).
 */
#include "base/error.h"

struct daemonize {
    /* set by the caller; strings are borrowed */
    bool background;     /* -d */
    const char *log;     /* -o: absolute, or NULL: standard error stays */
    const char *pidfile; /* NULL: none */
    int status_fd;       /* gets one zero byte when ready, then is closed; -EBADF: none */
    /* its own */
    int waiting;         /* write end of the pipe on which the starting process waits */
    int null_fd, log_fd; /* what standard input and outputs are going to be */
};

/*
 * With background: forks, and the starting process waits here until daemonize_ready(), then leaves
 * with status 0, or, if the daemon dies before, with the daemon's status.  Standard error stays
 * until then, so that what fails at the start is seen.
 */
int daemonize_begin(struct daemonize *daemonize, struct error *err);

/* Writes the pid file, and opens what the daemon will write to.  0, or -1 with *err set. */
int daemonize_prepare(struct daemonize *daemonize, struct error *err);

/* The daemon can be used from now on: it leaves the terminal, and tells who waits (systemd is the
 * caller's to tell). */
void daemonize_ready(struct daemonize *daemonize);

/* Leaves the terminal: for another process of the daemon. */
void daemonize_leave(const struct daemonize *daemonize);

/* Opens the log file anew, for log rotation.  The file, to be closed, or -EBADF when there is none.
 */
int daemonize_reopen_log(const struct daemonize *daemonize);

/* Writes to this log from now on, and closes the descriptor. */
void daemonize_use_log(int fd);

/* Removes the pid file. */
void daemonize_end(const struct daemonize *daemonize);
