/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The pager gives a process its memory while it runs already.  `criu restore --lazy-pages` hands
 * over a userfaultfd per task; the pager copies what map.h's files list into them, what is asked
 * for first, and then what was written last.
 *
 * It is two processes that share their table of descriptors and watch one another: a userfaultfd
 * that is closed while pages are missing turns them into zeroes without a word, so killing one of
 * the two must not do that.  Neither belongs to who started it.
 *
 *     WAITING ──criu connects──▶ FILLING ──all is there──▶ DONE
 *        └──────────┴── criu gave up, a file is bad ──▶ FAILED: what it holds waits, and is not
 *                                                       zeroed, until it has been killed
 */
#include "base/error.h"

#define PAGER_STATE_NAME "fill"

enum pager_phase {
    PAGER_WAITING, /* for criu's hand-off */
    PAGER_FILLING,
    PAGER_DONE, /* every page is where it belongs, or its task has gone */
    PAGER_FAILED,
};

struct pager_view {
    enum pager_phase phase;
    bool alive; /* false before DONE or FAILED: what was missing then is lost */
    uint64_t pages, filled;
    uint64_t faults;                /* that were answered */
    uint64_t began_usec, done_usec; /* CLOCK_MONOTONIC; 0: not yet */
    uint64_t takeovers;             /* how often one of the two has replaced the other */
    int leader, standby;            /* pids, for those who watch */
    char text[200];                 /* why it failed, or what is odd */
};

/* Whether this kernel lets us (root) fill the memory of others as criu restore --lazy-pages wants
 * it.  It is tried once, by a child, in some milliseconds. */
bool pager_is_possible(void);

/*
 * Starts it, detached: it listens in WORKDIR/lazy-pages.socket (criu's -W), which is unlinked when
 * criu has connected.  imagefd: the directory with the maps and spaces.  For a caller with one
 * thread.  Its state is a file PAGER_STATE_NAME in dirfd, locked while any of it lives; one of a
 * pager that has ended is replaced.  0, or -1 with *err.
 */
int pager_start(int dirfd, int imagefd, const char *workdir, struct error *err);

/* 0; -ENOENT: none was started; another negative errno. */
int pager_look(int dirfd, struct pager_view *ret);

/* The process runs and its images will not be needed for another restore: from now on what has been
 * filled is given back, 2 MiB of space-N at a time. */
void pager_release(int dirfd);

/* Kills it, when what it fills is dead or is to die, and waits until nothing of it is left (at most
 * some seconds). */
void pager_stop(int dirfd);
