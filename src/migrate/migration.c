/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of a migration.  The states and what leads from one to the next are in
 * migrate/commit.h; this file does what a state asks for when it is entered, and tells the machine
 * what happens.
 */
#include "migrate/migration.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#define REDIAL_USEC (200 * USEC_PER_MSEC)

enum {
    SESSION = 1,
    ANSWER_SILENCES = 3,              /* for an answer of a peer that lives */
    STALL_SILENCES = 6,               /* for a criu that sends nothing while it dumps */
    RESTORE_BYTES_PER_SEC = 64 << 20, /* a restore that is slower is given up */
};

/* ---- telling the caller ---- */

static const char *migration_status(const struct godwit_migration *m)
{
    switch (m->state) {
    case SOURCE_COPYING:
        return "active";
    case SOURCE_DUMPING:
    case SOURCE_SENDING:
    case SOURCE_PREPARING:
    case SOURCE_COMMITTED:
        return "device";
    case SOURCE_ABORTED:
        return "cancelling";
    case SOURCE_MOVED:
        return "completed";
    case SOURCE_REFUSED:
    case SOURCE_DOUBT:
        return "failed";
    default:
        return "setup";
    }
}

static uint64_t transferred(const struct godwit_migration *m)
{
    return m->sender ? sender_bytes(m->sender) : 0;
}

/* What a later round has found so far, or will by the rate of the last, is to be sent behind what
 * was sent before. */
static uint64_t total_estimate(const struct godwit_migration *m)
{
    const struct rounds_stats *stats = m->rounds ? rounds_stats(m->rounds) : NULL;
    if (m->state == SOURCE_MOVED)
        return transferred(m);
    if (!stats || stats->round < 2 || m->state != SOURCE_COPYING)
        return m->total_bytes;
    uint64_t expected = m->converge.written_bytes_per_sec * stats->since_usec / USEC_PER_SEC;
    return m->before_round_bytes + MAX(stats->written_pages * PAGE_BYTES, expected);
}

void migration_report(struct godwit_migration *m, enum godwit_event_type type)
{
    if (!m->on_event)
        return;
    m->progress_usec = now_usec();
    m->told_status = migration_status(m);
    struct godwit_event event = {
        .type = type,
        .status = m->told_status,
        .transferred = transferred(m),
        .total = total_estimate(m),
        .elapsed_usec = now_usec() - m->began_usec,
        .round = m->rounds ? rounds_stats(m->rounds)->round : 0,
        .dirty_bytes_per_sec = m->converge.written_bytes_per_sec,
        .expected_downtime_usec = m->converge.predicted_usec,
    };
    m->on_event(&event, m->user);
}

void migration_report_finding(struct godwit_migration *m, const Godwit__Pb__Finding *finding)
{
    struct godwit_event event = {
        .type = GODWIT_EVENT_FINDING,
        .severity = (enum godwit_severity)finding->severity,
        .topic = finding->topic,
        .host = finding->host,
        .text = finding->text,
        .remedy = finding->remedy,
    };
    if (finding->severity == GODWIT__PB__FINDING__SEVERITY__PROBLEM) {
        struct error problem;
        error_set(&problem, FAILURE_REFUSED, "%s: %s%s%s", finding->host, finding->text,
                  *finding->remedy ? ": " : "", finding->remedy);
        if (m->problems > 0 && strcmp(problem.text, m->problem.text) == 0)
            return; /* every part of the facts meets with it */
        m->problem = problem;
        if (m->problems++ == 0)
            m->reason = problem;
    }
    if (m->on_event)
        m->on_event(&event, m->user);
}

void migration_report_findings(struct godwit_migration *m, struct findings *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        migration_report_finding(m, findings->list[i]);
    findings_free(findings);
}

/* ---- the end ---- */

void migration_over(struct godwit_migration *m)
{
    if (m->over)
        return;
    m->over = true;
    m->result.total_usec = now_usec() - m->began_usec;
    m->result.code = (int)m->reason.code;
    m->result.text = m->reason.text;
    m->result.transferred = transferred(m);
    if (migration_status(m) != m->told_status)
        migration_report(m, GODWIT_EVENT_STATUS);
}

static bool criu_is_over(const struct godwit_migration *m)
{
    return !m->frozen || m->freeze.criu == 0;
}

bool migration_process_runs(const struct godwit_migration *m)
{
    return task_started(m->pid) == m->journal.started && !task_is_dying(m->pid);
}

static void migration_finish_abort(struct godwit_migration *m)
{
    if (m->over || !criu_is_over(m))
        return;
    bool waiting = m->must_tell && !m->told;
    if (waiting && now_usec() - m->decided_usec < ANSWER_SILENCES * m->silence_usec)
        return;
    if (!m->resumed && m->reason.code != FAILURE_NOT_FOUND)
        error_append(&m->reason,
                     migration_process_runs(m) ? "; process %d runs on here"
                                               : "; process %d has ended here by itself",
                     m->pid);
    if (waiting)
        error_append(&m->reason,
                     "; the other host may hold a copy that stands still: godwit "
                     "resolve %s",
                     m->journal.id);
    else
        journal_remove(m->place.workdir, m->journal.id);
    migration_over(m);
}

static void migration_check_end(struct godwit_migration *m)
{
    if (m->state == SOURCE_ABORTED)
        migration_finish_abort(m);
    else if (m->state == SOURCE_MOVED && !m->told &&
             now_usec() - m->decided_usec < ANSWER_SILENCES * m->silence_usec)
        return; /* it is over, and worth a moment that the destination hears of it */
    else if (m->state >= SOURCE_MOVED && criu_is_over(m))
        migration_over(m);
}

/* ---- the verdict ---- */

static void send_verdict(struct godwit_migration *m)
{
    if (!m->link_up)
        return;
    Godwit__Pb__Verdict verdict = GODWIT__PB__VERDICT__INIT;
    verdict.id = m->journal.id;
    verdict.nonce = m->journal.nonce;
    verdict.commit = m->journal.decision == JOURNAL_COMMIT;
    verdict.text = verdict.commit ? (char *)"" : m->reason.text;
    link_send(m->link, FRAME_VERDICT, 0, 0, &verdict.base);
}

/*
 * The decision.  Here, in this order: criu and its hook still hold the tasks; it is written down;
 * SIGKILL is queued to every task; only then the destination is told.
 */
static void commit(struct godwit_migration *m)
{
    struct error err;
    if (!freeze_holds(&m->freeze)) {
        error_set(&err, FAILURE_CRIU, "criu let go of the process before the decision");
        m->state = SOURCE_PREPARING;
        migration_happens(m, EVENT_HOOK_LOST, &err);
        return;
    }
    m->journal.decision = JOURNAL_COMMIT;
    int r = journal_write(m->place.workdir, &m->journal);
    if (r < 0) {
        error_set_errno(&err, FAILURE_SYSTEM, r, "the journal in %s", m->place.workdir_path);
        m->state = SOURCE_PREPARING;
        migration_happens(m, EVENT_CANCEL, &err);
        return;
    }
    task_tree_give_way(&m->freeze.tree);
    task_tree_kill(&m->freeze.tree);
    m->must_tell = true;
    send_verdict(m);
    m->decided_usec = now_usec();
    freeze_answer(&m->freeze, true, "");
}

static void start_abort(struct godwit_migration *m)
{
    m->decided_usec = now_usec();
    m->must_tell = m->sender && sender_end_is_sent(m->sender);
    m->journal.decision = JOURNAL_ABORT;
    if (m->must_tell)
        journal_write(m->place.workdir, &m->journal); /* it lives as an open one if that fails */
    if (m->frozen)
        freeze_answer(&m->freeze, false, m->reason.text);
    if (m->sender)
        sender_fail(m->sender, &m->reason);
    if (m->must_tell)
        send_verdict(m);
    if (m->must_tell && !m->link)
        dial_begin_after(m->dial, REDIAL_USEC);
}

/* The destination remembers the process until it has heard that this is over. */
static void send_settled(struct godwit_migration *m)
{
    Godwit__Pb__Standing standing = GODWIT__PB__STANDING__INIT;
    standing.id = m->journal.id;
    standing.nonce = m->journal.nonce;
    link_send(m->link, FRAME_SETTLED, 0, 0, &standing.base);
}

static void settle(struct godwit_migration *m)
{
    journal_remove(m->place.workdir, m->journal.id);
    m->decided_usec = now_usec();
    m->told = false;
    if (m->link_up)
        send_settled(m);
}

/* ---- entering states ---- */

/* The first part is empty: its answer tells how far the other host is. */
static void send_facts(struct godwit_migration *m)
{
    Godwit__Pb__Facts empty = GODWIT__PB__FACTS__INIT;
    m->asked_usec = now_usec();
    link_send(m->link, FRAME_CHECK, 0, 0, &empty.base);
    for (size_t i = 0; i < m->facts.count; i++)
        link_send(m->link, FRAME_CHECK, 0, 0, &m->facts.parts[i]->base);
}

static void on_sender_changed(struct sender *sender, void *user);
static const struct sender_ops sender_ops = {.changed = on_sender_changed};

static void offer(struct godwit_migration *m)
{
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = m->journal.id;
    begin.nonce = m->journal.nonce;
    begin.pid = (uint32_t)m->pid;
    begin.command = m->journal.command;
    begin.restore = true;
    begin.lazy = !(m->flags & GODWIT_EAGER);
    begin.streams = m->stream_count > 1 ? m->stream_count : 0;
    begin.options = m->criu_options;
    begin.n_options = criu_count_options(m->criu_options);
    m->sender = sender_new(m->event, m->link, SESSION, &begin, &sender_ops, m);
    struct error err;
    if (!m->sender) {
        error_set_errno(&err, FAILURE_SYSTEM, ENOMEM, "a migration");
        migration_happens(m, EVENT_CANCEL, &err);
    }
}

static void on_frozen(struct freeze *freeze, struct scan_table *table, void *user);
static void on_held(struct freeze *freeze, void *user);
static void on_hook_lost(struct freeze *freeze, void *user);
static void on_criu_ended(struct freeze *freeze, void *user);
static const struct freeze_ops freeze_ops = {
    .frozen = on_frozen, .held = on_held, .hook_lost = on_hook_lost, .ended = on_criu_ended};

static int begin_dump(struct godwit_migration *m, struct error *err)
{
    char journal[PATH_MAX];
    if (place_make_directory(&m->place, m->journal.id, err) < 0)
        return -1;
    int r = journal_path(m->place.workdir_path, m->journal.id, journal, sizeof(journal));
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s", m->place.workdir_path);
    _cleanup_free_ char *hidden = m->rounds ? rounds_hide(m->rounds) : NULL;
    struct freeze_request request = {
        .pid = m->pid,
        .criu = m->criu,
        .workdir = m->place.path,
        .journal = journal,
        .silence_usec = m->silence_usec,
        .options = m->criu_options,
        .narrow = m->rounds,
        .preload = !(m->flags & GODWIT_NO_SCAN_FILTER),
        .hidden = hidden,
    };
    m->frozen = true;
    if (link_peer_minor(m->link) >= 1)
        link_send(m->link, FRAME_FREEZING, SESSION, 0, NULL);
    if (freeze_begin(&m->freeze, m->event, &request, &freeze_ops, m, err) < 0)
        return -1;
    r = sender_open_page_door(m->sender, TAKE_FD(m->freeze.dump.pages_peer_fd), NULL, NULL);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "criu's pages") : 0;
}

/* From here on the destination may come to hold a copy. */
static int send_rest(struct godwit_migration *m, struct error *err)
{
    int r = task_tree_open(m->pid, &m->freeze.tree);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the tasks of process %d", m->pid);
    r = journal_write(m->place.workdir, &m->journal);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the journal in %s", m->place.workdir_path);
    live_check_dump(m);
    if (live_list(m, NULL, err) < 0 || live_verify(m, m->freeze.dump.images_fd, err) < 0)
        return -1;
    r = sender_open_directory(m->sender, TAKE_FD(m->freeze.dump.images_fd));
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "criu's images");
    sender_finish(m->sender);
    return 0;
}

void migration_enter(struct godwit_migration *m, enum source_state state)
{
    const char *before = migration_status(m);
    m->state = state;
    m->entered_usec = m->waiting_since = now_usec();
    if (strcmp(before, migration_status(m)) != 0)
        migration_report(m, GODWIT_EVENT_STATUS);
    struct error err;
    int r = 0;
    switch (state) {
    case SOURCE_CHECKING:
        send_facts(m);
        break;
    case SOURCE_OFFERING:
        offer(m);
        break;
    case SOURCE_COPYING:
        live_begin(m);
        break;
    case SOURCE_DUMPING:
        r = begin_dump(m, &err);
        break;
    case SOURCE_SENDING:
        r = send_rest(m, &err);
        break;
    case SOURCE_COMMITTED:
        commit(m);
        break;
    case SOURCE_ABORTED:
        start_abort(m);
        break;
    case SOURCE_MOVED:
        settle(m);
        break;
    case SOURCE_DOUBT:
        error_append(&m->reason, "; it has ended here: when host %s is there, godwit resolve %s",
                     m->host[0] ? m->host : m->target_text, m->journal.id);
        break;
    default:
        break;
    }
    if (r < 0)
        migration_happens(m, EVENT_CANCEL, &err);
    migration_check_end(m);
}

/* What an end is called outside. */
static enum failure code_of_end(enum source_state state, enum source_event event, enum failure code)
{
    if (state == SOURCE_ABORTED)
        return FAILURE_ABORTED;
    if (state == SOURCE_DOUBT)
        return FAILURE_DOUBT;
    return event == EVENT_PEER_FAILED ? FAILURE_REFUSED : code;
}

void migration_happens(struct godwit_migration *m, enum source_event event, const struct error *err)
{
    enum source_state next = source_next(m->state, event);
    if (next == SOURCE_STAY || m->over)
        return;
    if (err && err != &m->reason)
        m->reason = *err;
    if (next == SOURCE_ABORTED || next == SOURCE_REFUSED || next == SOURCE_DOUBT)
        m->reason.code = code_of_end(next, event, m->reason.code);
    else if (m->problems == 0) /* a dry run goes on with what it has found here */
        m->reason = (struct error){0};
    migration_enter(m, next);
}

static void happens_text(struct godwit_migration *m, enum source_event event, enum failure code,
                         const char *text)
{
    struct error err;
    error_set(&err, code, "%s", text);
    migration_happens(m, event, &err);
}

/* ---- criu ---- */

/* What exists is looked for beside criu, on another CPU. */
static void on_frozen(struct freeze *freeze, struct scan_table *table, void *user)
{
    (void)freeze;
    struct godwit_migration *m = user;
    struct error err;
    if (m->state == SOURCE_DUMPING && live_list(m, table, &err) < 0)
        migration_happens(m, EVENT_CANCEL, &err);
}

static void on_held(struct freeze *freeze, void *user)
{
    struct godwit_migration *m = user;
    if (m->state == SOURCE_DUMPING)
        migration_happens(m, EVENT_HELD, NULL);
    else
        freeze_answer(freeze, false, m->reason.text);
}

static void on_hook_lost(struct freeze *freeze, void *user)
{
    (void)freeze;
    happens_text(user, EVENT_HOOK_LOST, FAILURE_CRIU,
                 "criu's hook has gone before it was answered");
}

static void on_criu_ended(struct freeze *freeze, void *user)
{
    struct godwit_migration *m = user;
    struct error err;
    criu_explain("criu dump", freeze->status, freeze->log, &err);
    m->criu_failed = source_is_dumping(m->state) && !criu_killed_by(freeze->status);
    migration_happens(m, EVENT_CRIU_ENDED, &err);
    migration_check_end(m);
}

/* ---- data connections ---- */

static void on_streams_joined(struct streams *streams, void *user)
{
    struct godwit_migration *m = user;
    if (m->state != SOURCE_OFFERING)
        return;
    for (unsigned i = 1; i < m->stream_count; i++)
        sender_add_stream(m->sender, streams_link(streams, i));
    migration_happens(m, EVENT_ACCEPTED, NULL);
}

static void on_streams_lost(struct streams *streams, const struct error *err, void *user)
{
    (void)streams;
    struct godwit_migration *m = user;
    struct error reason = *err;
    error_prefix(&reason, "%s", m->target_text);
    migration_happens(m, EVENT_LINK_LOST, &reason);
    streams_close(m->streams, &reason);
}

static const struct streams_ops streams_ops = {.joined = on_streams_joined,
                                               .lost = on_streams_lost};

/* The destination takes it: what more it wants is the connections. */
static void on_accepted(struct godwit_migration *m)
{
    if (m->stream_count == 1) {
        migration_happens(m, EVENT_ACCEPTED, NULL);
        return;
    }
    if (!sender_token(m->sender)) {
        happens_text(m, EVENT_PEER_FAILED, FAILURE_PEER,
                     "the image-cache there knows nothing of data connections: --streams 1, or "
                     "one release of godwit on both hosts");
        return;
    }
    struct streams_request request = {
        .target = &m->target,
        .protection = &m->protection,
        .silence_usec = m->silence_usec,
        .count = m->stream_count,
        .session = SESSION,
        .token = sender_token(m->sender),
    };
    struct error err;
    m->streams = streams_open(m->event, &request, &streams_ops, m, &err);
    if (!m->streams)
        migration_happens(m, EVENT_LINK_LOST, &err);
}

static void on_sender_changed(struct sender *sender, void *user)
{
    static const struct error nothing_is_wrong = {.code = FAILURE_NONE};
    struct godwit_migration *m = user;
    m->question_at = m->link ? link_position(m->link) : 0;
    m->waiting_since = now_usec();
    switch (sender_state(sender)) {
    case SENDER_SENDING:
        on_accepted(m);
        return;
    case SENDER_ENDING:
        if (m->streams)
            streams_mark_end(m->streams);
        return;
    case SENDER_ACKED:
        m->acked_usec = now_usec();
        streams_close(m->streams, &nothing_is_wrong);
        migration_happens(m, EVENT_ACKED, NULL);
        return;
    case SENDER_FAILED:
        streams_close(m->streams, sender_error(sender));
        /* criu's own reason is better than that its pages stopped. */
        if (sender_error(sender)->code != FAILURE_CRIU)
            migration_happens(m, EVENT_PEER_FAILED, sender_error(sender));
        return;
    default:
        return;
    }
}

/* Whether a link is wanted still. */
static bool has_to_tell(const struct godwit_migration *m)
{
    if (m->over)
        return false;
    return m->state == SOURCE_COMMITTED ||
           (!m->told && (m->state == SOURCE_MOVED || (m->state == SOURCE_ABORTED && m->must_tell)));
}

/* ---- the link ---- */

static void report_distance(struct godwit_migration *m)
{
    struct findings findings = {0};
    preflight_tell_distance(m->host, now_usec() - m->asked_usec, &findings);
    migration_report_findings(m, &findings);
}

static void take_findings(struct godwit_migration *m, const Godwit__Pb__Findings *findings)
{
    if (m->answers == 0)
        report_distance(m);
    for (size_t i = 0; i < findings->n_findings; i++)
        migration_report_finding(m, findings->findings[i]);
    if (m->answers++ < m->facts.count)
        return;
    if (m->problems > 0) {
        migration_happens(m, EVENT_PEER_FAILED, &m->reason);
    } else if (m->flags & GODWIT_DRY_RUN) {
        m->state = SOURCE_MOVED;
        m->reason = (struct error){0};
        migration_over(m);
    } else {
        migration_happens(m, EVENT_CHECKED, NULL);
    }
}

static void take_restored(struct godwit_migration *m, const Godwit__Pb__Standing *standing)
{
    uint64_t now = now_usec();
    const struct freeze *freeze = &m->freeze;
    if (m->state == SOURCE_COMMITTED && m->frozen && freeze->frozen_usec) {
        uint64_t ran = now - MIN(standing->ago_usec, now - m->decided_usec);
        m->result.downtime_usec = ran - freeze->frozen_usec;
        m->result.dump_usec = freeze->held_usec - freeze->frozen_usec;
        m->result.send_usec = m->acked_usec - freeze->held_usec;
        m->result.restore_usec = m->decided_usec - m->acked_usec;
        m->result.commit_usec = ran - m->decided_usec;
    }
    migration_happens(m, EVENT_RESTORED, NULL);
}

static void take_standing(struct godwit_migration *m, uint16_t type,
                          const Godwit__Pb__Standing *standing)
{
    if (standing->nonce != m->journal.nonce)
        return;
    struct error err;
    switch (type) {
    case FRAME_PREPARED:
        migration_happens(m, EVENT_PREPARED, NULL);
        return;
    case FRAME_RESTORED:
        take_restored(m, standing);
        return;
    default:
        error_set(&err, FAILURE_CRIU, "%s: %s", m->host, standing->text);
        migration_happens(m, EVENT_PEER_FAILED, &err);
    }
}

static void take_verdict_ack(struct godwit_migration *m, const Godwit__Pb__VerdictAck *ack)
{
    if (ack->nonce != m->journal.nonce)
        return;
    /* One to a commit may come behind `restored`, and is none to `settled`. */
    m->told =
        m->state != SOURCE_MOVED || ack->standing == GODWIT__PB__VERDICT_ACK__STANDING__UNKNOWN;
    if (m->state == SOURCE_COMMITTED && ack->standing == GODWIT__PB__VERDICT_ACK__STANDING__UNKNOWN)
        happens_text(m, EVENT_PEER_FAILED, FAILURE_DOUBT,
                     "the other host knows nothing of the copy that it held");
    migration_check_end(m);
}

static int on_link_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                           void *user, struct error *err)
{
    (void)link;
    struct godwit_migration *m = user;
    const ProtobufCMessageDescriptor *kind;
    switch (frame->type) {
    case FRAME_CHECKED:
        kind = &godwit__pb__findings__descriptor;
        break;
    case FRAME_VERDICT_ACK:
        kind = &godwit__pb__verdict_ack__descriptor;
        break;
    case FRAME_PREPARED:
    case FRAME_RESTORED:
    case FRAME_RESTORE_FAILED:
        kind = &godwit__pb__standing__descriptor;
        break;
    default:
        if (m->sender && frame->session == SESSION)
            return sender_control(m->sender, frame, payload, err);
        return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame of no session",
                         frame_name(frame->type));
    }
    _cleanup_message_ ProtobufCMessage *message = message_unpack(kind, payload, frame->length, err);
    if (!message)
        return -1;
    if (frame->type == FRAME_CHECKED && m->state == SOURCE_CHECKING)
        take_findings(m, (const Godwit__Pb__Findings *)message);
    else if (frame->type == FRAME_VERDICT_ACK)
        take_verdict_ack(m, (const Godwit__Pb__VerdictAck *)message);
    else if (frame->type != FRAME_CHECKED)
        take_standing(m, frame->type, (const Godwit__Pb__Standing *)message);
    return 0;
}

static void on_link_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)link;
    struct godwit_migration *m = user;
    m->link_up = true;
    m->waiting_since = now_usec();
    snprintf(m->host, sizeof(m->host), "%.64s", hello->hostname);
    if (m->state == SOURCE_COMMITTED || m->state == SOURCE_ABORTED)
        send_verdict(m);
    else if (m->state == SOURCE_MOVED)
        send_settled(m);
    migration_happens(m, EVENT_LINKED, NULL);
}

static void on_link_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct godwit_migration *m = user;
    struct error reason = *err;
    if (reason.code == FAILURE_NONE)
        error_set(&reason, FAILURE_PEER, "the image-cache ended");
    error_prefix(&reason, "%s", m->target_text);
    dial_explain(m->dial, &reason);
    m->link_up = false;
    m->link = link_free(m->link);
    if (m->sender)
        sender_link_down(m->sender, &reason);
    migration_happens(m, EVENT_LINK_LOST, &reason);
    if (has_to_tell(m))
        dial_begin_after(m->dial, REDIAL_USEC);
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_CACHE,
    .up = on_link_up,
    .control = on_link_control,
    .down = on_link_down,
};

static void on_dial_failed(struct dial *dial, const struct error *err, void *user)
{
    (void)dial;
    struct godwit_migration *m = user;
    migration_happens(m, EVENT_LINK_LOST, err);
    if (has_to_tell(m))
        dial_begin_after(m->dial, REDIAL_USEC);
}

static void warn_exposed(struct godwit_migration *m)
{
    m->told_exposed = true;
    struct findings findings = {0};
    findings_add(&findings, GODWIT__PB__FINDING__SEVERITY__WARNING, "link", CREDENTIALS_ADVICE,
                 "--insecure: whoever is on the way can read and change the memory of the "
                 "process, and nobody is asked who they are");
    migration_report_findings(m, &findings);
}

static void on_dialled(struct dial *dial, struct transport *transport, void *user)
{
    struct godwit_migration *m = user;
    if (transport && transport->exposed && !m->told_exposed)
        warn_exposed(m);
    m->link = link_new_on(m->event, transport, m->silence_usec, &link_ops, m);
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, ENOMEM, "the link");
    if (!m->link)
        on_dial_failed(dial, &err, m);
}

const struct dial_ops migration_dial_ops = {.connected = on_dialled, .failed = on_dial_failed};

/* ---- time ---- */

/* How long the present state may wait for the other side, or for criu; 0: as long as it takes. */
static uint64_t patience_usec(const struct godwit_migration *m)
{
    switch (m->state) {
    case SOURCE_CONNECTING:
    case SOURCE_CHECKING:
    case SOURCE_OFFERING:
    case SOURCE_SENDING:
        return ANSWER_SILENCES * m->silence_usec;
    case SOURCE_COPYING:
    case SOURCE_DUMPING:
        return STALL_SILENCES * m->silence_usec;
    case SOURCE_PREPARING:
    case SOURCE_COMMITTED:
        return ANSWER_SILENCES * m->silence_usec +
               (m->sender ? sender_bytes(m->sender) / RESTORE_BYTES_PER_SEC * USEC_PER_SEC : 0);
    case SOURCE_ABORTED:
    case SOURCE_MOVED:
        return has_to_tell(m) ? m->silence_usec : 0;
    default:
        return 0;
    }
}

/* Whether the question, or what it is about, has not reached the other side yet. */
static bool is_on_its_way(const struct godwit_migration *m)
{
    return (m->link && link_delivered(m->link) < m->question_at) ||
           (m->streams && !streams_are_delivered(m->streams));
}

static void check_patience(struct godwit_migration *m)
{
    uint64_t patience = patience_usec(m), bytes = transferred(m);
    /* What moves, and what has not reached the other side yet, is not waited for. */
    if (bytes != m->progress_bytes || (m->state == SOURCE_SENDING && is_on_its_way(m)))
        m->waiting_since = now_usec();
    m->progress_bytes = bytes;
    if (patience == 0 || now_usec() - m->waiting_since < patience)
        return;
    struct error err;
    error_set(&err, m->state == SOURCE_DUMPING ? FAILURE_CRIU : FAILURE_PEER,
              "%s while %s: nothing has come of it for %g s",
              m->state == SOURCE_DUMPING ? "criu dump" : "the other host",
              source_state_name(m->state), (double)patience / (double)USEC_PER_SEC);
    m->waiting_since = now_usec();
    migration_happens(m, EVENT_TIMEOUT, &err);
    /* After the decision nothing but an answer helps: on a new link it is asked for again. */
    if (has_to_tell(m) && m->link_up)
        link_goodbye(m->link, &err);
}

/* What is decided arrives in a moment if the other host is there, and nobody need be in doubt. */
static void check_leaving(struct godwit_migration *m)
{
    if (m->state == SOURCE_COMMITTED && m->leaving_usec != 0 &&
        (!m->link_up || now_usec() - m->leaving_usec >= m->silence_usec))
        happens_text(m, EVENT_CANCEL, FAILURE_ABORTED, "cancelled");
}

void migration_tick(struct godwit_migration *m)
{
    check_patience(m);
    check_leaving(m);
    if (m->frozen && m->state >= SOURCE_COMMITTED && m->freeze.criu > 0 &&
        now_usec() - m->decided_usec > 2 * m->silence_usec)
        freeze_kill(&m->freeze); /* it was told, and does not end: the kernel does the rest */
    if (m->frozen)
        freeze_beat(&m->freeze);
    migration_check_end(m);
    if (!m->over && now_usec() - m->progress_usec >= USEC_PER_SEC)
        migration_report(m, GODWIT_EVENT_PROGRESS);
}

void migration_cancel(struct godwit_migration *m)
{
    switch (m->state) {
    case SOURCE_COMMITTED:
        if (m->leaving_usec != 0)
            break;
        m->leaving_usec = now_usec();
        check_leaving(m);
        return;
    case SOURCE_ABORTED:
    case SOURCE_MOVED:
        /* Cancelled again, it does not wait for the other host any more. */
        m->decided_usec -= MIN(m->decided_usec, ANSWER_SILENCES * m->silence_usec);
        return;
    default:
        break;
    }
    happens_text(m, EVENT_CANCEL, FAILURE_ABORTED, "cancelled");
}
