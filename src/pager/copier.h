/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Copies pages into tasks, with a second thread where there is a second CPU: what costs is the
 * kernel's making of pages, one by one.
 *
 * A batch is over when copier_run() returns.  So nothing is ever copied while the leader reads the
 * events that say where pages belong.
 */
#include "base/util.h"

struct copy_job {
    int uffd;
    uint64_t vaddr, bytes;
    const void *source;
    /* Where it comes from, for the caller. */
    uint64_t entry, page;
    /* Written then: 0 and at least one page; or a negative errno and none. */
    int result;
    uint64_t placed;
};

enum { COPY_JOBS = 16 };

struct copier {
    bool helped;    /* there is a second thread */
    unsigned alone; /* batches to do without it, because it has kept the first waiting */
    /* Set before a batch. */
    struct copy_job jobs[COPY_JOBS];
    /* Shared. */
    uint64_t turn;   /* batch, its jobs, the next of them to take: in one word, so that who comes
                        late takes none that is not there for it */
    uint32_t batch;  /* the second thread waits for a change of it */
    uint32_t copied; /* jobs of the batch that are done */
};

/* Never fails: without a second thread the first does it all. */
void copier_start(struct copier *copier);

/* Does the first |count| of its jobs. */
void copier_run(struct copier *copier, unsigned count);

/* One copy.  0: *ret_placed bytes, at least a page, have been copied; or a negative errno. */
int uffd_copy(int uffd, uint64_t vaddr, const void *source, uint64_t bytes, uint64_t *ret_placed);
