/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The parts of rounds: rounds.c, rounds_tasks.c (who is followed, and what that tells) and
 * rounds_pages.c (what a stream's part of a task puts into a batch). */
#include "migrate/doors.h"
#include "migrate/rounds.h"
#include "migrate/shared.h"
#include "task/follow.h"

enum {
    BATCH_PAGES = LINK_BATCH_BYTES / PAGE_BYTES,
    ZERO_RUNS_MAX = 4096,
};

/* A place in a list of runs. */
struct run_cursor {
    size_t run;
    uint64_t pages; /* of that one which are done */
};

/* A process that is followed, or was. */
struct round_task {
    pid_t pid;
    uint64_t started; /* task_started() */
    pid_t inner;      /* its number as criu knows it */
    bool seen;        /* in the tree at the latest look */
    bool hidden;      /* criu is shown nothing of it */
    bool begun;       /* the snapshot has a space of it, through us */
    bool kept;        /* so has the snapshot before, and it has been followed since */
    struct follower follower;
    bool fresh;               /* followed, and nothing of it has been sent yet */
    struct page_runs runs;    /* to be read now, and sent */
    struct page_runs list;    /* at the freeze: what exists */
    struct page_runs missed;  /* was to be sent, and could not be read */
    struct run_cursor listed; /* what of the list has been sent */
};

enum phase { IDLE, SENDING, CATCHING_UP, LISTING, VERIFYING };

/* What one stream has to do of the current task. */
struct part {
    struct link_source source;
    struct rounds *rounds;
    unsigned stream;
    bool done;
    struct page_runs runs;    /* to be read now, and sent or summed up */
    struct page_runs copies;  /* the same as another's: only to be told */
    struct run_cursor copied; /* what of these has been told */
    struct page_reader reader;
    bool reading;

    /* runs of zero pages that are not sent yet, in the form of the wire */
    uint8_t zeros[ZERO_RUNS_MAX * WIRE_RUN_BYTES];
    size_t zero_runs, zero_pages;
    uint64_t zeros_end; /* address behind the last of them */
};

struct rounds {
    struct part *parts;    /* one for each stream */
    struct sender *sender; /* NULL: it is done with */
    pid_t root;
    enum follow_kind kind; /* how they are to be followed */
    const struct task_helpers *helpers;
    const struct rounds_ops *ops;
    void *user;
    struct shared *shared; /* NULL: it is criu's alone */
    struct round_task **tasks;
    size_t count, room, current;
    bool divided;                  /* the current task's pages are the parts' */
    bool gently;                   /* they are read so, see task/memory.h */
    const struct space *copies_of; /* whose pages the copies are */
    enum phase phase;
    bool will_verify;          /* digests of what exists are going to be wanted */
    bool verify;               /* they are now */
    struct page_runs unsteady; /* of any task: no digests of these */
    uint64_t began_usec;       /* the present round */
    struct rounds_stats stats;

    uint64_t bytes_per_sec; /* 0: no limit */
    uint64_t allowed_usec;  /* the next batch may leave */
    sd_event_source *pause, *end;
};

/* ---- rounds.c ---- */

/* Notes that so many bytes leave, where the rate is limited. */
void rounds_account(struct rounds *rounds, uint64_t bytes);

/* The loop has other things to do as well: on with it in its next turn.  0: there is none (no
 * memory), or -EAGAIN. */
int rounds_breathe(struct rounds *rounds);

/* ---- rounds_tasks.c ---- */

static inline bool round_task_is_followed(const struct round_task *task)
{
    return task->follower.way != NULL;
}

void round_task_let_go(struct round_task *task);

/* The processes that there are now; those that are no more are let go.  0 or a negative errno. */
int rounds_look(struct rounds *rounds);

/*
 * Scans; a task that has another memory than the last time, because it has executed another
 * program, is begun anew.  Whatever does not work leaves the task to criu, which is shown all of
 * its pages then.
 */
void round_task_scan(struct rounds *rounds, struct round_task *task);

/* Its space in the snapshot, which is begun if it has not been.  NULL with errno set. */
struct space *round_task_space(const struct rounds *rounds, struct round_task *task);

/*
 * A task that has ended, or has another memory than in the last round, has an empty list: what
 * exists of it is what criu sends.  0, or -1 with *err set.
 */
int round_task_list(struct rounds *rounds, struct round_task *task, struct scan_table *table,
                    struct error *err);

/* ---- rounds_pages.c ---- */

void part_drop(struct part *part);

/* Encodes runs of a list from *at on, as many as go into a frame; how many bytes that are. */
size_t batch_put_runs(struct link_batch *batch, const struct page_runs *runs,
                      struct run_cursor *at);

/* Reads until there is something to be sent.  1, 0 when there is nothing more, -EAGAIN: later, or
 * another negative errno. */
int part_send(struct part *part, struct round_task *task, struct link_batch *batch);

/* The same, of digests of what exists. */
int part_sum(struct part *part, struct round_task *task, struct link_batch *batch);
