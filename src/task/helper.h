/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What is done to a process that is followed, besides reading: a child does it each time, so that a
 * process that never stops hangs nobody.
 *
 * A caller that has given up the right to do it, or to fork, has somebody else start the child.
 */
#include <sys/types.h>

enum task_help {
    TASK_HELP_USERFAULTFD = 1, /* task/inject.h */
    TASK_HELP_STOP,            /* task/stop.h */
    TASK_HELP_CLEAR,           /* page_table_clear() */
};

struct task_helpers {
    /* Has a child call task_help(), with the socket, which stays the caller's.  0 or a negative
     * errno. */
    int (*start)(void *user, enum task_help help, pid_t pid, int socket);
    void *user;
};

struct task_helper {
    pid_t pid;  /* 0: it is not our child */
    int socket; /* SOCK_SEQPACKET, to the helper */
};

/* Starts one; helpers: NULL: a child of this process.  0 or a negative errno. */
int task_helper_start(const struct task_helpers *helpers, enum task_help help, pid_t pid,
                      struct task_helper *ret);

/* An answer that is a number: that, or -EIO: the helper has ended without one. */
int task_helper_result(const struct task_helper *helper);

/* Says that no more is wanted, and waits until it has ended. */
void task_helper_end(struct task_helper *helper);

/* In the child: does it, answers, and ends. */
_Noreturn void task_help(enum task_help help, pid_t pid, int socket);
