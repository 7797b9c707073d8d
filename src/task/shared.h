/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared memory that no file system shows: anonymous (MAP_SHARED), memfd, System V. */
#include <sys/types.h>

#include "base/util.h"

/* An object that a process has mapped, or (a memfd) has open. */
struct shared_memory {
    uint64_t inode; /* by which CRIU names it (criu/proc_parse.c, criu/memfd.c: shmid) */
    /* To be opened (CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; proc(5), map_files) and read by
     * offset.  Where nobody has written it is a hole.  As long as it is open it takes its memory.
     */
    char path[96];
};

/* Calls found() for each of a process's, for one object maybe more than once, until that returns
 * other than 0, which is returned then.  0, or a negative errno: -ESRCH when there is no such
 * process. */
int shared_memory_each(pid_t pid, int (*found)(const struct shared_memory *memory, void *user),
                       void *user);
