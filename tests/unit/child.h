/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Real processes to look at. */
#include <stdint.h>
#include <sys/types.h>

/*
 * Starts a child that leads a session, has nothing open but /dev/null, prepares itself and waits to
 * be ended.  Returns when it is ready.  prepare may be NULL; it returns 0, or what is looked at
 * instead: the pid of a process that it started.
 */
pid_t child_start(pid_t (*prepare)(void *user), void *user);

/* Returns once that process sleeps in a system call, its program having come as far as it goes. */
void until_asleep(pid_t pid);

/* Ends it, and its children by the death of their parent. */
void child_end(void);

/* A child of who calls, that waits to be ended; it ends with its parent. */
pid_t child_fork(void);

/* What a servant and its master share. */
struct orders {
    void (*volatile job)(struct orders *orders);
    volatile uint64_t numbers[8];
    uint8_t *volatile region; /* the servant's, for its jobs */
    volatile uint64_t result;
};

/* A process that does one job after the other, in its own memory. */
struct servant {
    pid_t pid;
    struct orders *orders;
};

/* prepare() is the first job, and done when this returns. */
void servant_start(struct servant *servant, void (*prepare)(struct orders *orders));
void servant_begin(struct servant *servant, void (*job)(struct orders *orders));
void servant_wait(struct servant *servant); /* until it is done */
void servant_do(struct servant *servant, void (*job)(struct orders *orders));
void servant_kill(struct servant *servant); /* also when it has ended */
