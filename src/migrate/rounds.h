/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The memory of running tasks, sent while they run, and what exists of it once they stand still:
 * the third door of a sender.
 *
 *   rounds_begin() ──▶ every task: what was written since the last time ──▶ read, sent ──▶ over()
 *        ▲                                                                               │
 *        └───────────────────────────── again, as long as it pays ───────────────────────┘
 *   (freeze)  rounds_list() ──▶ every task: which pages exist ──▶ sent
 *
 * A page that is written while it is read comes again in the next round.  What was written behind
 * the last one is criu's to send, which is shown only those pages (criu/scan_filter.c), or, of a
 * task that is compared (task/follow.h), sent here, and criu is shown none.  Tasks that cannot be
 * followed are left to criu whole.
 *
 * On the loop's thread; over() is called from the loop.
 */
#include "migrate/scan_table.h"
#include "migrate/sender.h"
#include "task/follow.h"

struct rounds;

struct rounds_stats {
    unsigned round;            /* the latest, counted from 1 */
    uint64_t written_pages;    /* found written, as far as it has come */
    uint64_t since_usec;       /* within that time: since the round before began; 0 in the first */
    uint64_t usec;             /* it took */
    uint64_t bytes;            /* of memory, all rounds */
    uint64_t stopped_usec;     /* the longest that a thread stood still for it, all rounds */
    unsigned tasks, skipped;   /* followed; left to criu */
    uint64_t skipped_bytes;    /* of memory, of those */
    struct error reason;       /* why the latest of those was left */
    unsigned compared;         /* of the tasks: all of their memory is read each time */
    struct error why_compared; /* why one was not followed in a better way; "": it was not wanted */
};

struct rounds_request {
    pid_t root;
    enum follow_kind kind;
    uint64_t bytes_per_sec;             /* at most, while the tasks run; 0: no limit */
    bool verify;                        /* rounds_verify() will be called */
    bool shared;                        /* shared memory is sent too; else it is criu's alone */
    const struct task_helpers *helpers; /* see task/helper.h; they outlive it */
};

struct rounds_ops {
    /* All of the round has been given to the link. */
    void (*over)(struct rounds *rounds, void *user);
};

/* Nothing is touched yet.  The sender outlives it.  NULL with errno set. */
struct rounds *rounds_new(struct sender *sender, const struct rounds_request *request,
                          const struct rounds_ops *ops, void *user);

/*
 * The next snapshot, which is based on the one before: of that everything has come, up to the last
 * round.  What has been written since is going to be sent through this sender, which has as many
 * streams as the first.
 */
void rounds_join(struct rounds *rounds, struct sender *sender);

/* Lets go of the tasks.  Takes NULL, returns NULL. */
struct rounds *rounds_free(struct rounds *rounds);

/* Looks what was written and starts sending it.  0, or -1 with *err set. */
int rounds_begin(struct rounds *rounds, struct error *err);

/*
 * Tasks of which criu must be shown nothing, because all that exists of them in the freeze is read
 * and compared here: their numbers, "12,15", to be freed; NULL: there are none.  No round begins
 * any more.
 */
char *rounds_hide(struct rounds *rounds);

/* Whether there are such tasks.  They can be listed only when criu has done with them: for a moment
 * there is code of criu's own in them. */
bool rounds_hides(const struct rounds *rounds);

/* The tasks stand still: sends which pages exist, and adds what criu need not scan to *table (NULL:
 * it has done so).  Before sender_finish().  0, or -1 with *err. */
int rounds_list(struct rounds *rounds, struct scan_table *table, struct error *err);

/*
 * Behind that, and when criu has sent its pages: sends digests of all that exist, to be compared,
 * but of what criu has sent, and of *unsteady, which it takes: pages that change while the tasks
 * stand still.
 */
void rounds_verify(struct rounds *rounds, struct page_runs *unsteady);

const struct rounds_stats *rounds_stats(const struct rounds *rounds);
