/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Which pages of a running process have been written, without stopping it (Linux 6.7 or newer).
 *
 *   userfaultfd (task/inject.h), WP_ASYNC ──▶ every area that is scanned, registered
 *   PAGEMAP_SCAN: pages that exist and are not write-protected; protects them in the same step
 *
 * A page that tracker_scan() reports is write-protected from then on: read it after the scan, and
 * any write to it, before or during the reading, makes the next scan report it again.  The first
 * scan of an area reports all of its pages; so does that of one that was mapped, or moved, since
 * the scan before.  What is not reported is either as it was, or does not exist any more: which
 * pages exist is told by tracker_list().
 *
 * Where an area that is registered ends, the kernel does not join another to it, and mremap() moves
 * no two at once.  So an area is registered only if it is still as it was when the map was read; it
 * is for the process to notice that memory which it maps later, beside that, stays an area of its
 * own.
 *
 * For anonymous memory only.  Where a protected page of a private mapping of a file is dropped
 * (MADV_DONTNEED), the kernel leaves a note that counts as a page that is swapped out and has not
 * been written; what is there is the file's content, and no scan tells that it has changed.
 *
 * Not seen are writes by devices into pages that were pinned before the scan (O_DIRECT reads under
 * way); nor shared memory, which has pages of its own.
 *
 * A process has one tracker at a time: of another's marks this one would take away what the other
 * has to be told.  The second one is refused when it opens, or in its first scan.
 *
 * When the process executes another program, or ends, its memory has gone: -ESRCH.  Neither the
 * process nor a criu that dumps it notices the tracker.  On any one thread.
 */
#include "base/error.h"
#include "task/helper.h"
#include "task/page_table.h"

struct tracker {
    int uffd;
    int maps; /* /proc/PID/maps, to be asked about single areas */
    struct page_table table;
    bool begun;            /* something of it is registered */
    uint64_t stopped_nsec; /* how long a thread stood still for tracker_open() */
};

/* 0, or -1 with *err set: it has a tracker (FAILURE_BUSY), or the kernel or the process does not
 * allow it, see task_take_userfaultfd(). */
int tracker_open(struct tracker *tracker, pid_t pid, const struct task_helpers *helpers,
                 struct error *err);

/* Lets go: costs the process some 30 ms per GiB, in which it cannot map memory. */
void tracker_close(struct tracker *tracker);

/*
 * Adds what was written in an area since the last scan to *runs; all that is there where that
 * cannot be told, each time.  0, -ESRCH, or another negative errno.
 */
int tracker_scan(struct tracker *tracker, const struct memory_area *area, struct page_runs *runs);

/* Adds all pages of an area that criu would dump: they exist, and are no longer those of a file. */
int tracker_list(struct tracker *tracker, const struct memory_area *area, struct page_runs *runs);

/* The same of an area of which all is tracked (-EPERM: it is not; some may have been added), and
 * what of it has been written since the last scan. */
int tracker_list_written(struct tracker *tracker, const struct memory_area *area,
                         struct page_runs *runs, struct page_runs *written);

/* The same, but only where it is tracked: an area may have become another than it was when it was
 * scanned. */
int tracker_list_tracked(struct tracker *tracker, const struct memory_area *area,
                         struct page_runs *runs);
