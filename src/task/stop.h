/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Having all threads of a process stand still for a moment, by ptrace.
 *
 * Nobody inside or outside is told: there is no signal, and no SIGCHLD.  Signals that come
 * meanwhile are delivered afterwards, system calls that were under way go on as after any stop
 * (some, like epoll_wait(), return EINTR; signal(7)), and a process that a signal has stopped stays
 * so.
 */
#include <sys/types.h>

#include "base/error.h"
#include "task/helper.h"

struct task_stop {
    struct task_helper helper; /* which traces it */
};

/*
 * Stops a process.  0; or -1 with *err set, and it runs: it has gone (FAILURE_NOT_FOUND), it is
 * traced, or a thread does not stop within a second (vfork, a device).  Takes some 0.2 ms, and some
 * 20 us per thread.
 */
int task_stop(pid_t pid, const struct task_helpers *helpers, struct task_stop *ret,
              struct error *err);

/* Lets it go on.  0, or a negative errno if it has not stood still all the time, because somebody
 * killed the helper. */
int task_go_on(struct task_stop *stop);

/* What a helper does; its end lets the process go as well. */
void task_help_stop(pid_t pid, int socket);
