/* SPDX-License-Identifier: Apache-2.0 */
/* The rounds of a migration: what is copied while the process runs, and when that ends. */
#include <stdarg.h>
#include <stdio.h>

#include "criu/lazy_areas.h"
#include "migrate/migration.h"

/* ---- telling ---- */

static void tell(struct godwit_migration *m, const char *format, ...) _printf_(2, 3);

static void tell(struct godwit_migration *m, const char *format, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    struct findings findings = {0};
    findings_add(&findings, GODWIT__PB__FINDING__SEVERITY__WARNING, "live", "", "%s", text);
    migration_report_findings(m, &findings);
}

static void tell_skipped(struct godwit_migration *m, const struct rounds_stats *stats)
{
    if (stats->skipped == 0 || m->told_skipped)
        return;
    m->told_skipped = true;
    tell(m, "%u of %u processes cannot be followed while they run, and stand still longer: %s",
         stats->skipped, stats->skipped + stats->tasks, stats->reason.text);
}

static void tell_compared(struct godwit_migration *m, const struct rounds_stats *stats)
{
    if (stats->compared == 0 || !stats->why_compared.text[0] || m->told_compared)
        return;
    m->told_compared = true;
    tell(m,
         "%u of %u processes are followed by reading all of their memory each time, also while "
         "they stand still (--tracker compare): %s",
         stats->compared, stats->tasks, stats->why_compared.text);
}

static void tell_why_now(struct godwit_migration *m, enum converge_verdict verdict)
{
    double predicted = (double)m->converge.predicted_usec / USEC_PER_MSEC;
    double target = (double)m->converge.target_usec / USEC_PER_MSEC;
    const char *why = verdict == CONVERGE_LIMIT ? "no more rounds or time are allowed"
                                                : "further rounds do not lower that";
    tell(m,
         "a downtime of some %.0f ms is expected, more than the %.0f ms that were asked for: the "
         "process writes %.0f MB/s, %.0f MB/s are sent, %.0f ms are the cost of its size; %s",
         predicted, target, (double)m->converge.written_bytes_per_sec / 1e6,
         (double)m->converge.sent_bytes_per_sec / 1e6,
         (double)m->converge.fixed_usec / USEC_PER_MSEC, why);
}

/* ---- rounds ---- */

static void begin_round(struct godwit_migration *m)
{
    struct error err;
    m->before_round_bytes = sender_bytes(m->sender);
    if (rounds_begin(m->rounds, &err) < 0) {
        migration_happens(m, EVENT_CANCEL, &err);
        return;
    }
    const struct rounds_stats *stats = rounds_stats(m->rounds);
    tell_skipped(m, stats);
    tell_compared(m, stats);
    migration_report(m, GODWIT_EVENT_PROGRESS);
}

static void give_up(struct godwit_migration *m)
{
    struct error err;
    error_set(&err, FAILURE_ABORTED,
              "a downtime of %.0f ms is expected and %.0f ms are allowed (--strict): the process "
              "writes %.0f MB/s, and %.0f MB/s are sent",
              (double)m->converge.predicted_usec / USEC_PER_MSEC,
              (double)m->converge.target_usec / USEC_PER_MSEC,
              (double)m->converge.written_bytes_per_sec / 1e6,
              (double)m->converge.sent_bytes_per_sec / 1e6);
    migration_happens(m, EVENT_CANCEL, &err);
}

/* What is compared is read once more in the freeze, and so is all that is verified. */
static uint64_t again_usec(const struct godwit_migration *m, const struct rounds_stats *stats)
{
    /* A round may be slow because it has to be: reading alone is faster than that. */
    uint64_t most = m->total_bytes * USEC_PER_SEC / GIB(1);
    if (m->flags & GODWIT_VERIFY)
        return MIN(m->result.first_round_usec, most);
    return stats->compared > 0 ? MIN(stats->usec, most) : 0;
}

static void on_round_over(struct rounds *rounds, void *user)
{
    struct godwit_migration *m = user;
    const struct rounds_stats *stats = rounds_stats(rounds);
    struct converge_round round = {
        .number = stats->round,
        .written = stats->written_pages * PAGE_BYTES,
        .written_usec = stats->since_usec,
        .usec = stats->usec,
        .elapsed_usec = now_usec() - m->entered_usec,
        .again_usec = again_usec(m, stats),
    };
    if (m->state != SOURCE_COPYING)
        return;
    m->converge.criu_bytes = m->facts.shared_bytes + stats->skipped_bytes;
    m->result.rounds = stats->round;
    m->result.stopped_usec = stats->stopped_usec;
    if (stats->round == 1) {
        m->result.first_round_usec = stats->usec;
        m->result.first_round_bytes = stats->bytes;
    }
    enum converge_verdict verdict = converge_round(&m->converge, &round);
    bool late = m->converge.predicted_usec > m->converge.target_usec;
    if (verdict == CONVERGE_AGAIN) {
        begin_round(m);
    } else if (late && m->flags & GODWIT_STRICT) {
        give_up(m);
    } else {
        if (late)
            tell_why_now(m, verdict);
        migration_happens(m, EVENT_COPIED, NULL);
    }
}

static const struct rounds_ops rounds_ops = {.over = on_round_over};

void live_begin(struct godwit_migration *m)
{
    if (m->flags & GODWIT_STOP_AND_COPY) {
        migration_happens(m, EVENT_COPIED, NULL);
        return;
    }
    m->converge.memory_bytes = m->total_bytes;
    struct rounds_request request = {
        .root = m->pid,
        .kind = m->follow == FOLLOW_AUTO && m->facts.direct ? FOLLOW_COMPARE : m->follow,
        .bytes_per_sec = m->bytes_per_sec,
        .verify = m->flags & GODWIT_VERIFY,
        /* What is to be compared in the freeze criu sends whole. */
        .shared = !(m->flags & GODWIT_VERIFY)};
    m->rounds = rounds_new(m->sender, &request, &rounds_ops, m);
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, ENOMEM, "the rounds of copying");
    if (m->rounds)
        begin_round(m);
    else
        migration_happens(m, EVENT_CANCEL, &err);
}

int live_list(struct godwit_migration *m, struct scan_table *table, struct error *err)
{
    if (!m->rounds || m->listed || (m->state == SOURCE_DUMPING && rounds_hides(m->rounds)))
        return 0;
    m->listed = true;
    return rounds_list(m->rounds, table, err);
}

/* The pages in which the kernel notes for a thread, whenever it lets it run, which CPU it is on: it
 * did so while there was criu's code in it, and does so again before the thread sees that. */
static int read_unsteady(int images_fd, struct page_runs *ret)
{
    struct lazy_areas rseq;
    int r = lazy_areas_read_rseq(images_fd, &rseq);
    if (r < 0)
        return r;
    for (size_t i = 0; i < rseq.count && r == 0; i++)
        r = page_runs_add(ret, rseq.list[i].start,
                          (rseq.list[i].end - rseq.list[i].start) / PAGE_BYTES, true);
    lazy_areas_free(&rseq);
    return r;
}

int live_verify(struct godwit_migration *m, int images_fd, struct error *err)
{
    struct page_runs unsteady = {0};
    if (!m->rounds || !(m->flags & GODWIT_VERIFY))
        return 0;
    int r = read_unsteady(images_fd, &unsteady);
    if (r == 0)
        rounds_verify(m->rounds, &unsteady);
    page_runs_free(&unsteady);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "the threads in criu's images") : 0;
}

void live_check_dump(struct godwit_migration *m)
{
    if (m->rounds && !m->freeze.narrowed && rounds_stats(m->rounds)->tasks > 0)
        tell(m,
             "criu has dumped all memory again while the process stood still: it cannot be "
             "shown only what was written (nothing can be preloaded into it, and the process has a "
             "seccomp filter?)");
}
