/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the two processes of a pager share: all that cannot be found out again.
 *
 *   shared descriptors   userfaultfds, maps, spaces, sheets, criu's socket
 *   book                 which they are; the message that is being handled
 *   sheet, per record    what has been filled, where the task has its memory
 *
 * The leader writes, the standby reads when the leader is dead.  So the only thing that has to be
 * right at every instruction is the order of the leader's writes:
 *
 * - The kernel writes messages straight into the book: a userfaultfd's event into record.slot, a
 *   task's descriptor into arrival.  Neither can be read twice, and neither is lost.
 * - A message is erased when what it asks for has been done.  Doing it twice does no harm: bits in
 *   a sheet are only ever set, a descriptor that has a record is not recorded again, and a move
 *   writes the other of two sets of views and says so in the same word as that it is done.  In that
 *   word it also is whether a message has gone to the backlog, or has left it.
 * - A record is free before its descriptors are closed, and in use when they all are open.  What no
 *   record names is closed by a new leader.
 * - A page is marked as filled after it has been filled.  Filling it again answers EEXIST.
 */
#include <linux/userfaultfd.h>

#include "criu/lazy.h"
#include "pager/backlog.h"
#include "pager/views.h"

enum { RECORDS_MAX = 4096 };

enum { RECORD_FREE, RECORD_USED };

enum {
    COMMIT_VIEWS = 1 << 0, /* which of the sheet's views are true */
    COMMIT_APPLIED =
        1 << 1, /* the event in the slot has moved them already, or is in the backlog */
};

/* One userfaultfd. */
struct record {
    uint32_t state;
    int32_t pid; /* of the task that criu handed over */
    int32_t uffd;
    int32_t map, space, sheet; /* descriptors; map and space may be shared by records; -1: none */
    uint32_t child;            /* came by a fork */
    uint32_t broken;           /* its map cannot be used: nothing of it is answered */
    uint64_t pages;            /* that it lacked when it came */
    uint32_t space_number;
    uint64_t commit;      /* COMMIT_*, and the backlog's counters */
    struct uffd_msg slot; /* the kernel writes here; event 0: none */
};

/* What a record's sheet begins with; a bitmap of the map's pages that need no filling follows. */
struct sheet {
    struct views views[2];
    struct backlog backlog;
};

struct book {
    int32_t listener, workdir; /* until criu has connected; then -1 */
    int32_t socket;            /* criu's; -1: not yet, or over */
    int32_t imagefd, state_fd;
    int32_t watched;   /* the standby's pidfd; the kernel writes it */
    uint32_t finished; /* criu has built all; what runs may run */
    uint32_t over;     /* nothing is missing: the standby may go */
    uint64_t closed_pages;
    struct lazy_arrival arrival;
    struct record records[RECORDS_MAX];
};
