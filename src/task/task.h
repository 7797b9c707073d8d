/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Looking into live tasks, through /proc.  Any thread.
 */
#include <sys/types.h>

#include "base/util.h"

/* The process of a pidfd, or 0 where it cannot be seen (another pid namespace) or has gone. */
pid_t task_of_pidfd(int pidfd);

/* Whether a process has been killed and has not gone yet: SIGKILL waits for it, or it is exiting.
 */
bool task_is_dying(pid_t pid);

/* The parent of a process, or 0. */
pid_t task_parent(pid_t pid);
