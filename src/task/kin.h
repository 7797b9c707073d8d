/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Processes that are one in their memory, as by clone(CLONE_VM); the threads of a process are not
 * meant.  Any thread.
 */
#include <sys/types.h>

#include "base/util.h"

/* One that has the same memory as another. */
struct kin_pair {
    pid_t pid, with;
};

/*
 * Finds those of a list that have the same memory as one before them in it.  A child by vfork has
 * that of its parent until it executes: where any are found they are looked at once more a tenth of
 * a second later, and only those told that still are so.  ret: room for |count|.  Number of pairs;
 * *ret_unknown: the kernel did not tell of all of them.
 */
size_t kin_find(const pid_t *pids, size_t count, struct kin_pair *ret, bool *ret_unknown);

/* Another process that has the same memory right now; 0 when there is none, or none can be seen.
 * Asks about all processes of the machine. */
pid_t kin_of(pid_t pid);
