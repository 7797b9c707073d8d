/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One userfaultfd, and what its task still lacks.  The leader's side of a record: all of it can be
 * made anew from the record and its files.
 *
 * Pages are numbered through the map, entry by entry.  done has a bit per page: it has been filled,
 * or it is not wanted any more (unmapped, removed, overwritten by a move).  A bit is never cleared.
 */
#include "pager/book.h"
#include "pager/copier.h"
#include "pager/map.h"
#include "pager/space.h"

enum { FILLER_HELD = 64 };

/* What all fillers of a leader count into, and tell. */
struct fill_report {
    uint64_t filled, faults, lost; /* lost: pages that have no place */
    void (*trouble)(void *user, const char *text);
    void *user;
};

struct filler {
    struct record *record;
    struct spaces *spaces;
    struct fill_report *report;

    struct fill_map map; /* no entries: nothing to fill */
    uint64_t *first;     /* number of the first page of each entry; and of all pages */
    struct space *space;
    struct sheet *sheet;
    uint64_t *done;
    uint64_t missing;

    /*
     * Where filling goes on: rounds from the last to the first, until a part of it all is there;
     * then by address, so that whole pieces of the space can be given back.
     */
    struct cursor {
        uint64_t round, entry, page; /* number of the page */
        bool passed;                 /* a whole pass is over */
    } cursor;
    bool by_address;
    /* Numbers of the pages behind the last fault: they are likely the next. */
    uint64_t ahead, ahead_end, ahead_entry;
    uint64_t at_once; /* pages per ioctl: less where areas end */
    uint64_t retry_usec;

    uint64_t held[FILLER_HELD]; /* faults that wait for events to be read, or for memory */
    unsigned held_count;

    struct uffd_msg *own_unmap; /* in the backlog: of the move that is next; NULL: none */

    bool events; /* its memory has been changed since it came */
    bool stuck;  /* a page cannot be filled: it is never over */
    bool gone;   /* its task */
};

/* Maps and counts what the record says.  0, or a negative errno with *err. */
int filler_open(struct filler **ret, struct record *record, struct spaces *spaces,
                struct fill_report *report, struct error *err);

/* The task is done with: what it lacked is not wanted by it. */
struct filler *filler_close(struct filler *filler);

/* Frees the leader's side and touches nothing else; NULL will do. */
struct filler *filler_forget(struct filler *filler);

/* Whether nothing is left to do for it. */
bool filler_over(const struct filler *filler);

/*
 * Fills some pages.  True if there may be more to do at once.  finished: the task is built, so what
 * has no place now will have none; before that only a part is filled.
 */
bool filler_step(struct filler *filler, struct copier *copier, bool finished);

/* Reads one message into the record's slot.  1: it is there; 0: none; or a negative errno. */
int filler_read(struct filler *filler);

/*
 * Does what a message asks for, but for a fork, of which the caller makes a record first: the one
 * in the slot, or, of_backlog, the first that waits, which is then gone.  0, or -ENOSPC: it cannot
 * be done, and stays.
 */
int filler_do(struct filler *filler, const struct uffd_msg *message, bool of_backlog);

/* Puts the message in the slot behind those that wait.  False: too many do. */
bool filler_put_off(struct filler *filler);

/* The message in the slot has been done or put off. */
void filler_message_done(struct filler *filler);

/* Whether messages wait; nothing is filled, and no fault answered, meanwhile. */
bool filler_waits(const struct filler *filler);

/* The first that waits, if it need not any more, with the length that has been moved. */
bool filler_next(struct filler *filler, struct uffd_msg *ret);

void filler_retry_held(struct filler *filler);

/* Has all faults told again: for those that were read by somebody who is dead. */
void filler_wake_all(struct filler *filler);

/* Looks whether the task lives, when there is nothing to fill. */
bool filler_probe(struct filler *filler);

/* Bytes of a sheet for a map of so many pages. */
uint64_t sheet_bytes(uint64_t pages);
uint64_t *sheet_bits(struct sheet *sheet);
