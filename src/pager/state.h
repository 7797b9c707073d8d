/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The file `fill`: what the pager and those who look at it share.  Native byte order. */
#include <limits.h>
#include <sys/types.h>

#include "pager/pager.h"

#define PAGER_STATE_MAGIC "godwitS\1"

struct pager_state {
    char magic[8];
    /* Written by the pager. */
    uint32_t phase;
    int32_t leader, standby;
    uint32_t text_version; /* odd while the text is being written */
    uint64_t pages, filled, faults, began_usec, done_usec, takeovers;
    char text[200];
    /* Written by others. */
    uint32_t release, stopping;
    /* Written once. */
    uint32_t moves_exact; /* what the kernel tells of a move is what has been moved */
    char socket[PATH_MAX];
};

/* Becomes the pager; the descriptors are those that it keeps.  ready: gets one zero byte when both
 * processes are there, or a struct error. */
_Noreturn void pager_run(struct pager_state *state, int state_fd, int listener, int imagefd,
                         int workdir, int ready);
