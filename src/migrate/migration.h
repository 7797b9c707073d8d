/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A migration from the inside: api.c makes it, starts it and tells what came of it; migration.c is
 * the machine between, live.c what it does while the process still runs.  All on the caller's
 * thread.
 */
#include <systemd/sd-event.h>

#include "godwit.h"
#include "migrate/commit.h"
#include "migrate/converge.h"
#include "migrate/freeze.h"
#include "migrate/journal.h"
#include "migrate/place.h"
#include "migrate/preflight.h"
#include "migrate/rounds.h"
#include "migrate/sender.h"
#include "migrate/streams.h"
#include "wire/link.h"
#include "wire/target.h"

struct godwit_migration {
    /* what was asked for */
    pid_t pid;
    char *target_text, *criu;
    char **criu_options; /* ended by NULL */
    struct target target;
    struct protection protection; /* of the way there, if that is TCP */
    uint64_t silence_usec;
    uint64_t bytes_per_sec;  /* at most that fast, while the process runs; 0: no limit */
    enum follow_kind follow; /* how, while it runs */
    unsigned stream_count;   /* connections that carry memory, the link among them */
    uint32_t flags;
    godwit_event_fn *on_event;
    void *user;
    const char *told_status; /* the last one */
    struct error no_criu;    /* why there is none */

    /* how far it is */
    enum source_state state;
    struct error reason; /* of the end, or of what leads to it */
    bool over;
    bool resumed;   /* from the journal: there is nothing here but the verdict */
    bool must_tell; /* the destination may hold a copy, and has to hear the verdict */
    bool told;
    uint64_t began_usec, entered_usec, progress_usec, acked_usec, decided_usec;
    uint64_t leaving_usec; /* since when the user does not want to wait for what is decided; or 0 */
    uint64_t progress_bytes, waiting_since;
    struct godwit_result result;
    char host[65];

    sd_event *event;
    sd_event_source *ticker, *cancel_io;
    int cancel_fd;
    struct dial *dial;
    struct link *link;
    bool link_up;
    uint64_t question_at;    /* where on the link what was asked last ends */
    struct streams *streams; /* data connections; NULL: none were wanted, or not yet */

    /* the process */
    struct place place;
    struct preflight_facts facts;
    size_t answers;      /* to parts of the facts, and to the empty one in front of them */
    uint64_t asked_usec; /* when that was sent */
    unsigned problems;
    struct error problem; /* the last of them */
    uint64_t total_bytes;
    uint64_t before_round_bytes; /* sent */
    struct journal_entry journal;
    struct sender *sender;
    struct rounds *rounds; /* NULL: it was not asked for */
    struct converge converge;
    bool told_skipped, told_compared, told_exposed, listed;
    struct freeze freeze;
    bool frozen; /* freeze is open */
    bool criu_failed;
};

extern const struct dial_ops migration_dial_ops;

/* What a number of enum godwit_tracker means.  0, or -EINVAL. */
int migration_follow_kind(uint32_t tracker, enum follow_kind *ret);

/* How often migration_tick() has to be called. */
#define MIGRATION_TICK_USEC (250 * USEC_PER_MSEC)

/* Tells the machine what has happened; err: why, for what ends it. */
void migration_happens(struct godwit_migration *m, enum source_event event,
                       const struct error *err);
void migration_enter(struct godwit_migration *m, enum source_state state);
void migration_tick(struct godwit_migration *m);
void migration_cancel(struct godwit_migration *m);

/* Copies while the process runs, until EVENT_COPIED; and when it stands still, tells what exists:
 * the destination, and in *table (which may be NULL) criu. */
void live_begin(struct godwit_migration *m);
int live_list(struct godwit_migration *m, struct scan_table *table, struct error *err);

/* And behind that, with what criu has written: compares, if that is asked for.  0, or -1. */
int live_verify(struct godwit_migration *m, int images_fd, struct error *err);

/* criu has dumped: warns if it has dumped what had been copied. */
void live_check_dump(struct godwit_migration *m);

/* It is over, with m->reason: its code is the result's. */
void migration_over(struct godwit_migration *m);

/* Whether the process that the migration is about runs here, and is not being killed. */
bool migration_process_runs(const struct godwit_migration *m);

void migration_report(struct godwit_migration *m, enum godwit_event_type type);
void migration_report_finding(struct godwit_migration *m, const Godwit__Pb__Finding *finding);

/* All of them, and frees them. */
void migration_report_findings(struct godwit_migration *m, struct findings *findings);
