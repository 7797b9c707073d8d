/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Filling the memory of one task through its userfaultfd, out of a file that holds its pages.
 *
 *   source file   [ 0 ][ 1 ][ 2 ][ 3 ] ...     pages; `left`: those that are still to be placed
 *   runs          vaddr, pages, page in file   follow the task's mremap()s
 *   task          a page that is touched and not there ──▶ event ──▶ from the file, or zeros
 *
 * A page is placed once; what the task unmaps or drops (MADV_DONTNEED) is not placed any more, and
 * reads as zeros from then on, as it would have without us.  The bitmap lies in memory that is
 * shared with whoever goes on when this process is killed, and is only ever changed after the fact.
 */
#include <sys/types.h>

#include "base/util.h"

/* Pages that follow one another in the task and in the file. */
struct fill_run {
    uint64_t vaddr;
    uint64_t pages;
    uint64_t page; /* number of the first in the file */
};

struct fill {
    pid_t pid; /* for messages only */
    int uffd;
    int source_fd;
    const uint8_t *source; /* the file, mapped */
    uint64_t source_pages;
    uint64_t *left; /* bitmap, shared memory */
    struct fill_run *runs;
    size_t count, room;
    size_t at_run; /* where the filling goes on */
    uint64_t at_page;
    bool punch; /* gives back what has been placed */
    bool over;  /* the task has ended */
};

/* What both processes have to know of the worker's doings, whenever it is killed. */
struct fill_shared {
    /* An event has been taken from the kernel, which tells it once, and nobody else knows it yet.
     */
    volatile bool unrecorded;
    volatile bool finished; /* criu has handed over all tasks */
};

/* What a task did that changes more than the bitmap. */
struct fill_change {
    enum { FILL_FORKED, FILL_MOVED } kind;
    uint64_t from, to, length; /* of moved memory */
    int uffd;                  /* of a forked task */
};

/*
 * Takes over the descriptors.  runs, copied: in any order, within the file; those with `left` set
 * are to be placed.  0, or a negative errno; the descriptors are closed then.
 */
int fill_open(struct fill *fill, pid_t pid, int uffd, int source_fd, const struct fill_run *runs,
              size_t count);
void fill_close(struct fill *fill);

/* Pages that are still to be placed. */
uint64_t fill_left(const struct fill *fill);

/*
 * Takes one thing that the kernel has to tell, and answers it if it is a fault.  0; -EAGAIN: there
 * was nothing; 1: *ret is for the caller to pass on, who then resets shared->unrecorded; or another
 * negative errno that nothing can be done about.
 */
int fill_event(struct fill *fill, struct fill_shared *shared, struct fill_change *ret);

/* mremap(): the pages are to be placed elsewhere.  0 or -ENOMEM. */
int fill_move(struct fill *fill, uint64_t from, uint64_t to, uint64_t length);

/* The same pages for a forked task, whose descriptor is taken over. */
int fill_fork(struct fill *child, struct fill *parent, int uffd);

/* Places the next pages, at most |pages|.  0, -EAGAIN when events have to be taken first, or
 * another negative errno. */
int fill_some(struct fill *fill, uint64_t pages);

/* Has every thread that waits for a page ask again: whoever was told may be dead. */
void fill_ask_again(struct fill *fill);
