/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The process that leads, and its parts:
 *
 *   pair.c      two processes: start, death, taking over
 *   leader.c    the leader's round: look, read, fill
 *   handoff.c   what criu says
 *   record.c    a userfaultfd gets its record, and its filler
 */
#include "pager/filler.h"
#include "pager/state.h"

/* Tags of what is not a record, in epoll's data. */
enum { TAG_SOCKET = RECORDS_MAX, TAG_STANDBY };

struct pager {
    struct book *book;         /* shared by both */
    struct pager_state *state; /* shared with whoever looks */
    /* The leader's own. */
    int self; /* its pidfd: what the standby waits for */
    int epoll;
    unsigned short_lives; /* leaders that died without having done anything, one after the other */
    uint64_t filled_at_start;
    struct filler *fillers[RECORDS_MAX];
    unsigned used, turn; /* records in use; whose turn it is to be filled */
    struct spaces spaces;
    struct copier copier;
    struct fill_report report;
    uint64_t probe_usec; /* when to look next whether the tasks live */
    bool pending;        /* something is there to be read that cannot be taken yet */
};

/* leader.c */

/* Says why something does not work; the first reason stays. */
void pager_fail(struct pager *pager, const char *text);
int pager_watch(struct pager *pager, int fd, uint32_t tag);

/* Makes everything that is the leader's own from the book. */
void pager_open_book(struct pager *pager);

/* Leads until everything is done.  Returns only in another process, which is to lead now. */
void pager_lead(struct pager *pager);

/* record.c */

/* The record in use with that userfaultfd, or -ENOENT. */
int record_find(const struct pager *pager, int uffd);

/* A record for a task, whose files are read.  0, or -ENOSPC. */
int record_add_task(struct pager *pager, int32_t pid, int uffd);

/* A record for the child of a fork, which lacks what its parent lacks.  0, or a negative errno. */
int record_add_child(struct pager *pager, const struct filler *parent, int uffd);

/* The leader's side of a record that is in use. */
void record_open(struct pager *pager, unsigned i);
void record_free(struct pager *pager, unsigned i);

/* handoff.c */
void handoff_accept(struct pager *pager);

/* What is to be done when criu has connected, as far as it has not been done. */
void handoff_connected(struct pager *pager);

/* A leader may have died when it had accepted the connection and not yet written down which: to
 * close that would be to lose what lies in it. */
void handoff_find(struct book *book);
void handoff_read(struct pager *pager);

/* The task that is in the book's arrival gets its record. */
void handoff_take_arrival(struct pager *pager);

/* pair.c */

/* The standby has died, or there is none.  True in its successor, when the leader has died too. */
bool pair_replace_standby(struct pager *pager);

/* All is done: ends the standby too. */
_Noreturn void pair_end(struct pager *pager);
