/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Following the private memory of a running process, in one of several ways:
 *
 *              between two rounds                    in the freeze
 *   uffd-wp    the kernel tells what was written     the same, and criu sends that
 *   soft-dirty the kernel tells what was written,    the same: criu is shown none of it
 *              while the process stands still
 *   compare    all is read; sent is what differs     the same: criu is shown none of it
 *              from what was sent before
 *
 * uffd-wp costs the process a fault per page and round, and us next to nothing; it wants Linux 6.7,
 * and is for anonymous memory (task/tracker.h).  compare wants nothing of the kernel, and reads all
 * memory each time, also while the process stands still.  soft-dirty reads and clears the tables of
 * all pages while the process stands still, by its size, for the kernel does not do both in one
 * step; it wants CONFIG_MEM_SOFT_DIRTY, which Debian's kernels for x86-64 have
 * had since long before 6.7; it has not been tried as much as the others, so FOLLOW_AUTO leaves it
 * out.  What these two say is right for the memory of files too.
 *
 * A way that hides: criu is shown nothing of the process (criu/scan_filter.c), and everything that
 * criu would have found is told by follower_list() and has to be sent.
 *
 * On any one thread.
 */
#include "base/error.h"
#include "task/page_hashes.h"
#include "task/tracker.h"

enum follow_kind { FOLLOW_AUTO, FOLLOW_UFFD_WP, FOLLOW_SOFT_DIRTY, FOLLOW_COMPARE };

struct follow_way;

struct follower {
    const struct follow_way *way; /* NULL: closed */
    pid_t pid;
    const struct task_helpers *helpers;
    struct tracker tracker; /* uffd-wp */
    bool cleared;           /* soft-dirty: the bits are of what was written since the last scan */
    struct page_hashes hashes; /* compare */
    uint64_t stopped_usec; /* the longest that a thread stood still for it, outside the freeze */
};

/*
 * Begins to follow a process.  FOLLOW_AUTO: in the best way that works; then *err, whose text is
 * otherwise "", tells why not in a better one.  0, or -1 with *err set: the process has gone
 * (FAILURE_NOT_FOUND), or it cannot be followed so.  The helpers outlive the follower.
 */
int follower_open(struct follower *follower, pid_t pid, enum follow_kind kind,
                  const struct task_helpers *helpers, struct error *err);
void follower_close(struct follower *follower); /* also one that is closed */

/* Whether criu must not be shown what this process has. */
bool follower_hides(const struct follower *follower);

/* In which way it is followed; FOLLOW_AUTO: it is closed. */
enum follow_kind follower_kind(const struct follower *follower);

/* Adds what is to be read and, where follower_wants() it, sent.  0, -ESRCH when this memory has
 * gone (and the process may have another), or another negative errno. */
int follower_scan(struct follower *follower, struct page_runs *runs);

/* The same for what was told by the last scan and could not be read, which is sorted. */
int follower_scan_missed(struct follower *follower, struct page_runs *missed,
                         struct page_runs *runs);

/*
 * Divides what a scan has told: *copies gets the pages that are, copy-on-write, those that another
 * process has at the same addresses, and of which what was sent last is true at this moment.  0;
 * -EOPNOTSUPP: that cannot be told; or another negative errno, and some may have been added.
 */
int follower_divide(const struct follower *follower, const struct follower *other,
                    const struct page_runs *runs, struct page_runs *copies, struct page_runs *rest);

/* Whether this page, which has just been read, has to be sent; it counts as sent from now on. */
bool follower_wants(struct follower *follower, uint64_t vaddr, bool anonymous, const void *page);

/* Areas of which all is tracked by uffd-wp, ascending; and what has been written in them since the
 * last scan. */
struct tracked_areas {
    struct page_runs areas, written;
};

void tracked_areas_free(struct tracked_areas *tracked);

/*
 * The process stands still: what exists that was sent, or will be, through this follower, is added
 * to *list; and *runs becomes what is to be read now.  What criu finds written in it, in
 * so far as that is known now, is added to *tracked.  0 or a negative errno.
 */
int follower_list(struct follower *follower, struct page_runs *list, struct page_runs *runs,
                  struct tracked_areas *tracked);
