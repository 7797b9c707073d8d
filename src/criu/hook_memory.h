/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Memory of tasks that criu has built, and knows nothing of: the hook writes it before they may
 * run.  In a directory, for each task:
 *
 *   pieces-PID   struct hook_piece, one behind the other
 *   pages-PID    what they point to: pages, in any order
 *
 * PID is HOOK_ROOT for the root task, whatever number it has, or that of one of its descendants or
 * its own.  No library, as the hook itself.
 */
#include <stdint.h>
#include <sys/types.h>

#define HOOK_PIECES "pieces-%d"
#define HOOK_PAGES "pages-%d"

enum { HOOK_ROOT = 0, HOOK_NAME_BYTES = 32 };

struct hook_piece {
    uint64_t vaddr;
    uint64_t offset; /* bytes, in pages */
    uint64_t bytes;
};

/* Writes all of it to the tasks, which must not run meanwhile.  0, or -1 with errno set (ESRCH: no
 * such task under the root): some of it may have been written then. */
int hook_write_memory(const char *directory, pid_t root);
