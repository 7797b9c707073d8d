/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Real processes to look at. */
#include <sys/types.h>

/*
 * Starts a child that leads a session, has nothing open but /dev/null, prepares itself and waits to
 * be ended.  Returns when it is ready.  prepare may be NULL; it returns 0, or what is looked at
 * instead: the pid of a process that it started.
 */
pid_t child_start(pid_t (*prepare)(void *user), void *user);

/* Ends it, and its children by the death of their parent. */
void child_end(void);
