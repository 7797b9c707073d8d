/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Memory of a task that criu has built, and knows nothing of: the hook writes it before the task
 * may run.  In a directory:
 *
 *   pieces   struct hook_piece, one behind the other
 *   pages    what they point to: pages, in any order
 *
 * No library, as the hook itself.
 */
#include <stdint.h>
#include <sys/types.h>

#define HOOK_PIECES "pieces"
#define HOOK_PAGES "pages"

struct hook_piece {
    uint64_t vaddr;
    uint64_t offset; /* bytes, in pages */
    uint64_t bytes;
};

/*
 * Writes all of it to a task, which must not run meanwhile, by as many processes as there are
 * processors; when it comes back, none of these is left.  SIGCHLD is set to its default.  0, or -1
 * with errno set: some of it may have been written then.
 */
int hook_write_memory(const char *directory, pid_t pid);
