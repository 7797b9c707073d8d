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

/* What to do for a message but a fork.  0, or -ENOSPC: it cannot be done, and stays in the slot. */
int filler_message(struct filler *filler);
void filler_message_done(struct filler *filler);

void filler_retry_held(struct filler *filler);

/* Has all faults told again: for those that were read by somebody who is dead. */
void filler_wake_all(struct filler *filler);

/* Looks whether the task lives, when there is nothing to fill. */
void filler_probe(struct filler *filler);

/* Bytes of a sheet for a map of so many pages. */
uint64_t sheet_bytes(uint64_t pages);
uint64_t *sheet_bits(struct sheet *sheet);
