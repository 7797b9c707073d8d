/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The pager: fills restored tasks while they run already, and never lets them see a page that is
 * missing as zeros.
 *
 *   guardian ──────── takes the userfaultfds from criu, holds all of them, watches ──┐
 *      │  forks                                                                       │
 *      ▼                                                                              ▼
 *   worker ────────── answers faults, fills ─── killed? the guardian forks another, which goes on
 *
 * The kernel hands out zeros for missing pages when nobody holds a userfaultfd any more; so two
 * processes hold each, and each starts the other anew when it is killed.  What has been placed and
 * what the tasks have given up is in memory that both share; what else changes (a task forks,
 * memory moves) the worker tells the guardian, and ends; the next one knows it.  Not recoverable is
 * a worker that is killed in the microseconds between taking an event from the kernel and recording
 * it: then lost() has to end the tasks.  Both processes killed at once: nobody can help.
 */
#include "pager/fill.h"

/* Where the pages of a task are. */
struct pager_source {
    int fd;                /* the file; the pager takes it over */
    struct fill_run *runs; /* freed by the pager, with free() */
    size_t count;
};

enum pager_handover { PAGER_NOTHING, PAGER_TASK, PAGER_FINISHED, PAGER_GONE };

struct pager_ops {
    /* Reads the next hand-over from criu's connection: a task with its userfaultfd; that all have
     * been handed over; or that criu has gone without having said so (also after an error). */
    enum pager_handover (*take)(int fd, uint32_t *ret_pid, int *ret_uffd);
    /* 0, or a negative errno: the restore fails then. */
    int (*source)(void *user, uint32_t pid, struct pager_source *ret);
    /* Ends the tasks, whose memory cannot be made whole any more. */
    void (*lost)(void *user, const char *why);
};

/*
 * Serves one restore in this process, the guardian, and its children: from criu's connection, which
 * it takes over, until all pages are placed.  0: every task has all of its memory.  -ECANCELED:
 * criu gave up.  -EIO: lost() was called.  Other negative errnos: nothing was handed over.
 */
int pager_run(int connection, const struct pager_ops *ops, void *user);
