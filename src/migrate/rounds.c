/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/rounds.h"

#include <string.h>

#include "migrate/rounds_parts.h"
#include "task/task.h"

enum {
    BURST_MSEC = 200, /* of what was not sent in time is made up for, where the rate is limited */
};

/* ---- when a batch may leave ---- */

/* Every stream is asked what it has to do. */
static void rounds_wake(struct rounds *rounds)
{
    for (unsigned i = 0; i < rounds->sender->stream_count; i++)
        link_source_ready(rounds->sender->streams[i].link, &rounds->parts[i].source);
}

static int on_pause_over(sd_event_source *source, uint64_t usec, void *user)
{
    (void)source;
    (void)usec;
    struct rounds *rounds = user;
    if (rounds->sender)
        rounds_wake(rounds);
    return 0;
}

/* The source is made ready when a batch may leave.  0 or a negative errno. */
static int set_pause(struct rounds *rounds)
{
    if (!rounds->pause)
        sd_event_add_time(rounds->sender->event, &rounds->pause, CLOCK_MONOTONIC,
                          rounds->allowed_usec, USEC_PER_MSEC / 4, on_pause_over, rounds);
    sd_event_source_set_time(rounds->pause, rounds->allowed_usec);
    return sd_event_source_set_enabled(rounds->pause, SD_EVENT_ONESHOT);
}

/* Whether a batch may leave now; else the source is made ready when it may. */
static bool may_leave(struct rounds *rounds)
{
    if (rounds->bytes_per_sec == 0 || now_usec() >= rounds->allowed_usec)
        return true;
    /* Without memory for a timer it is better to go on than to stand. */
    return set_pause(rounds) < 0;
}

void rounds_account(struct rounds *rounds, uint64_t bytes)
{
    if (rounds->bytes_per_sec == 0)
        return;
    uint64_t now = now_usec(), burst = BURST_MSEC * USEC_PER_MSEC;
    rounds->allowed_usec = MAX(rounds->allowed_usec, now > burst ? now - burst : 0) +
                           bytes * USEC_PER_SEC / rounds->bytes_per_sec;
}

int rounds_breathe(struct rounds *rounds)
{
    rounds->allowed_usec = MAX(rounds->allowed_usec, now_usec());
    return set_pause(rounds) < 0 ? 0 : -EAGAIN;
}

/* ---- what a child has of its parent ---- */

/* The parent, if what was sent of it is what it has: its turn in this round is over. */
static struct round_task *find_parent(const struct rounds *rounds, const struct round_task *task)
{
    pid_t parent = task_parent(task->pid);
    for (size_t i = 0; i < rounds->current; i++) {
        struct round_task *other = rounds->tasks[i];
        if (other->pid == parent && other->seen && round_task_is_followed(other))
            return other->missed.count == 0 ? other : NULL;
    }
    return NULL;
}

/* Pages that a new child has by fork cross the link once. */
static void find_copies(struct rounds *rounds, struct round_task *task, struct page_runs *copies)
{
    struct page_runs rest = {0};
    struct round_task *parent = task->fresh ? find_parent(rounds, task) : NULL;
    task->fresh = false;
    if (!parent)
        return;
    if (follower_divide(&task->follower, &parent->follower, &task->runs, copies, &rest) < 0) {
        page_runs_free(copies);
        page_runs_free(&rest);
        return;
    }
    page_runs_free(&task->runs);
    task->runs = rest;
    rounds->copies_of = round_task_space(rounds, parent);
}

/* ---- who sends what ---- */

static struct page_runs *part_runs(struct part *part, bool copies)
{
    return copies ? &part->copies : &part->runs;
}

/* Gives each stream those of its addresses, and empties the list.  0 or -ENOMEM. */
static int share_out(struct rounds *rounds, struct page_runs *runs, bool copies)
{
    if (rounds->sender->stream_count == 1) {
        *part_runs(&rounds->parts[0], copies) = *runs;
        *runs = (struct page_runs){0};
        return 0;
    }
    int r = 0;
    for (size_t i = 0; i < runs->count; i++) {
        struct page_run run = runs->list[i];
        while (run.pages > 0 && r == 0) {
            struct part *part = &rounds->parts[stream_of(rounds->sender, run.start)];
            uint64_t pages = stream_pages(rounds->sender, run.start, run.pages);
            r = page_runs_add(part_runs(part, copies), run.start, pages, run.anonymous);
            run.start += pages * PAGE_BYTES;
            run.pages -= pages;
        }
    }
    page_runs_free(runs);
    return r;
}

/*
 * What criu has sent is left out: that it arrives as it was is told by the digest of the space, and
 * some of it changes although the task stands still, for criu has it run code in between.
 */
static int list_to_verify(struct rounds *rounds, struct round_task *task)
{
    struct page_runs out = {0};
    if (!round_task_is_followed(task) || task->list.count == 0)
        return 0;
    int r = page_runs_add_all(&out, &round_task_space(rounds, task)->criu);
    if (r == 0)
        r = page_runs_add_all(&out, &rounds->unsteady);
    page_runs_sort(&out);
    for (size_t i = 0; i < task->list.count && r == 0; i++)
        r = page_runs_add_without(&task->runs, &task->list.list[i], &out);
    page_runs_free(&out);
    return r;
}

/* The current task is begun: what is to be done, and by whom.  0 or -ENOMEM. */
static int divide_task(struct rounds *rounds, struct round_task *task)
{
    struct page_runs copies = {0};
    int r = 0;
    if (rounds->divided)
        return 0;
    rounds->divided = true;
    if (rounds->phase == VERIFYING)
        r = list_to_verify(rounds, task);
    else if (task->fresh && rounds->phase == SENDING)
        find_copies(rounds, task, &copies);
    if (r < 0 || !round_task_is_followed(task))
        return r;
    rounds->gently = rounds->phase != VERIFYING && task->runs.count > 0 &&
                     pages_are_shared(task->pid, &task->runs);
    r = share_out(rounds, &task->runs, false);
    int also = share_out(rounds, &copies, true);
    return r < 0 ? r : also;
}

/* ---- the end of a task, and of a round ---- */

/* On to the next: all streams at once, so that what was sent of a parent is all there when a child
 * is divided. */
static void task_is_done(struct rounds *rounds)
{
    for (unsigned i = 0; i < rounds->sender->stream_count; i++)
        part_drop(&rounds->parts[i]);
    page_runs_free(&rounds->tasks[rounds->current]->runs);
    rounds->divided = false;
    rounds->current++;
    if (rounds->sender->stream_count > 1)
        rounds_wake(rounds);
}

static int on_end(sd_event_source *source, void *user)
{
    struct rounds *rounds = user;
    sd_event_source_set_enabled(source, SD_EVENT_OFF);
    if (rounds->sender)
        rounds->ops->over(rounds, rounds->user);
    return 0;
}

/* The caller is told from the loop, since it may begin the next one. */
static void round_is_over(struct rounds *rounds)
{
    rounds->phase = IDLE;
    rounds->stats.usec = now_usec() - rounds->began_usec;
    for (unsigned i = 0; i < rounds->sender->stream_count; i++)
        link_send(rounds->sender->streams[i].link, FRAME_ROUND_END, rounds->sender->session, 0,
                  NULL);
    int r =
        rounds->end ? 0 : sd_event_add_defer(rounds->sender->event, &rounds->end, on_end, rounds);
    if (r >= 0)
        r = sd_event_source_set_enabled(rounds->end, SD_EVENT_ONESHOT);
    if (r < 0)
        sender_fail_errno(rounds->sender, r, "the round of copying");
}

/* What cannot be read although its task stands still would be missing, or be what it was before. */
static bool all_is_read(struct rounds *rounds)
{
    for (size_t i = 0; i < rounds->count; i++) {
        const struct round_task *task = rounds->tasks[i];
        if (task->missed.count == 0)
            continue;
        struct error err;
        error_set(&err, FAILURE_SYSTEM, "process %d: memory at %#llx cannot be read", task->pid,
                  (unsigned long long)task->missed.list[0].start);
        sender_fail(rounds->sender, &err);
        return false;
    }
    return true;
}

/*
 * A task that cannot be read has ended, which is no matter; or it is let go, and criu is then shown
 * all of it.  When it stands still this is no time to leave.
 */
static bool leave_task(struct rounds *rounds, struct round_task *task, int error_number)
{
    if (rounds->phase == SENDING) {
        round_task_let_go(task);
        return true;
    }
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, error_number, "reading the memory of process %d",
                    task->pid);
    sender_fail(rounds->sender, &err);
    return false;
}

/* ---- what a stream sends ---- */

/* 1 when the batch has something of the current task, 0 when this stream has no more of it, or as
 * part_send(). */
static int do_part(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    struct round_task *task = rounds->tasks[rounds->current];
    int r = divide_task(rounds, task);
    if (r < 0 || part->done)
        return r;
    r = rounds->phase == VERIFYING ? part_sum(part, task, batch) : part_send(part, task, batch);
    part->done = r == 0;
    return r;
}

static bool all_parts_are_done(const struct rounds *rounds)
{
    for (unsigned i = 0; i < rounds->sender->stream_count; i++) {
        if (!rounds->parts[i].done)
            return false;
    }
    return true;
}

/* Whether all tasks have had their turn; the batch may have something, or not, when they have not.
 */
static bool do_parts(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    while (rounds->current < rounds->count) {
        int r = do_part(part, batch);
        if (r > 0 || r == -EAGAIN ||
            (r < 0 && !leave_task(rounds, rounds->tasks[rounds->current], r)) ||
            (r == 0 && !all_parts_are_done(rounds)))
            return false;
        task_is_done(rounds);
    }
    return true;
}

/* Of shared memory, in a round.  As part_send(). */
static int send_shared(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    if (!rounds->shared || rounds->phase != SENDING)
        return 0;
    int r = shared_fill(rounds->shared, part->stream, batch, &rounds->stats.written_pages);
    rounds->stats.bytes += batch->bytes;
    rounds_account(rounds, batch->bytes);
    return r == -EAGAIN && rounds_breathe(rounds) < 0 ? r : MAX(r, 0);
}

static bool send_some(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    if (!may_leave(rounds))
        return false;
    int r = send_shared(part, batch);
    if (r != 0)
        return r > 0;
    if (!do_parts(part, batch))
        return batch->frames > 0;
    if (rounds->phase == SENDING) {
        round_is_over(rounds);
        return false;
    }
    rounds->current = 0;
    rounds->phase = LISTING;
    if (!all_is_read(rounds))
        return false;
    rounds_wake(rounds);
    return true;
}

static bool list_some(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    if (part->stream > 0)
        return false; /* in which order this comes is all the same */
    while (rounds->current < rounds->count) {
        struct round_task *task = rounds->tasks[rounds->current];
        size_t bytes = batch_put_runs(batch, &task->list, &task->listed);
        if (bytes == 0) {
            rounds->current++;
            continue;
        }
        space_add_list(rounds->sender, 0, round_task_space(rounds, task), batch, FRAME_PAGE_RUNS,
                       RUNS_EXIST, batch->buf, bytes);
        return true;
    }
    rounds->current = 0;
    rounds->phase = rounds->verify ? VERIFYING : IDLE;
    if (rounds->phase == IDLE)
        sender_check_end(rounds->sender);
    else
        rounds_wake(rounds);
    return rounds->phase != IDLE;
}

static bool verify_some(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    if (!do_parts(part, batch))
        return batch->frames > 0;
    if (!all_is_read(rounds))
        return false;
    rounds->phase = IDLE;
    sender_check_end(rounds->sender);
    return false;
}

static bool rounds_fill(struct link_source *source, struct link_batch *batch)
{
    struct part *part = (struct part *)source;
    switch (part->rounds->phase) {
    case SENDING:
    case CATCHING_UP:
        return send_some(part, batch);
    case LISTING:
        return list_some(part, batch);
    case VERIFYING:
        return verify_some(part, batch);
    default:
        return false;
    }
}

/* ---- what exists ---- */

void rounds_verify(struct rounds *rounds, struct page_runs *unsteady)
{
    rounds->verify = true;
    rounds->unsteady = *unsteady;
    *unsteady = (struct page_runs){0};
    if (rounds->phase != IDLE)
        return; /* it comes behind the list */
    rounds->current = 0;
    rounds->phase = VERIFYING;
    rounds_wake(rounds);
}

int rounds_list(struct rounds *rounds, struct scan_table *table, struct error *err)
{
    if (rounds->will_verify)
        table = NULL; /* see task_list_existing() */
    for (size_t i = 0; i < rounds->count; i++) {
        if (round_task_list(rounds, rounds->tasks[i], table, err) < 0)
            return -1;
    }
    if (rounds->shared)
        shared_list(rounds->shared);
    rounds->current = 0;
    rounds->phase = CATCHING_UP;
    rounds->bytes_per_sec = 0; /* nobody is to stand still for long */
    rounds_wake(rounds);
    return 0;
}

/* ---- rounds ---- */

static int rounds_look_at_shared(struct rounds *rounds)
{
    int r = 0;
    if (!rounds->shared)
        return 0;
    shared_look_begin(rounds->shared);
    for (size_t i = 0; i < rounds->count && r == 0; i++) {
        if (rounds->tasks[i]->seen)
            r = shared_look(rounds->shared, rounds->tasks[i]->pid);
    }
    shared_look_end(rounds->shared);
    return r;
}

int rounds_begin(struct rounds *rounds, struct error *err)
{
    uint64_t now = now_usec();
    struct rounds_stats *stats = &rounds->stats;
    int r = rounds_look(rounds);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the tasks of process %d", rounds->root);
    stats->since_usec = stats->round++ ? now - rounds->began_usec : 0;
    stats->tasks = stats->skipped = stats->compared = 0;
    stats->skipped_bytes = 0;
    stats->written_pages = 0;
    rounds->began_usec = now;
    r = rounds_look_at_shared(rounds);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the shared memory of process %d",
                               rounds->root);
    for (size_t i = 0; i < rounds->count; i++) {
        struct round_task *task = rounds->tasks[i];
        if (!task->seen)
            continue;
        round_task_scan(rounds, task);
        /* What the snapshot before has of it, this one has, although nothing was written. */
        if ((task->runs.count > 0 || task->kept) && !round_task_space(rounds, task))
            return error_set_errno(err, FAILURE_SYSTEM, errno, "the memory of process %d",
                                   task->pid);
    }
    rounds->current = 0;
    rounds->phase = SENDING;
    rounds_wake(rounds);
    return 0;
}

const struct rounds_stats *rounds_stats(const struct rounds *rounds)
{
    return &rounds->stats;
}

bool rounds_door_is_busy(const struct rounds *rounds)
{
    return rounds && rounds->phase != IDLE;
}

/* ---- their life ---- */

struct rounds *rounds_door_close(struct rounds *rounds)
{
    if (rounds) {
        for (unsigned i = 0; i < rounds->sender->stream_count; i++) {
            link_source_remove(&rounds->parts[i].source);
            part_drop(&rounds->parts[i]);
        }
        if (rounds->shared)
            shared_leave(rounds->shared);
        rounds->sender = NULL;
        rounds->phase = IDLE;
    }
    return NULL;
}

struct rounds *rounds_new(struct sender *sender, const struct rounds_request *request,
                          const struct rounds_ops *ops, void *user)
{
    struct rounds *rounds = calloc(1, sizeof(*rounds));
    if (!rounds)
        return NULL;
    rounds->parts = calloc(sender->stream_count, sizeof(*rounds->parts));
    if (request->shared)
        rounds->shared = shared_new();
    if (!rounds->parts || (request->shared && !rounds->shared)) {
        shared_free(rounds->shared);
        free(rounds->parts);
        free(rounds);
        return NULL;
    }
    for (unsigned i = 0; i < sender->stream_count; i++) {
        rounds->parts[i].source.fill = rounds_fill;
        rounds->parts[i].rounds = rounds;
        rounds->parts[i].stream = i;
    }
    if (rounds->shared)
        shared_join(rounds->shared, sender);
    rounds->sender = sender;
    rounds->root = request->root;
    rounds->bytes_per_sec = request->bytes_per_sec;
    rounds->kind = request->kind;
    rounds->helpers = request->helpers;
    rounds->will_verify = request->verify;
    rounds->ops = ops;
    rounds->user = user;
    sender->rounds = rounds;
    return rounds;
}

void rounds_join(struct rounds *rounds, struct sender *sender)
{
    for (size_t i = 0; i < rounds->count; i++) {
        struct round_task *task = rounds->tasks[i];
        task->kept = task->begun && round_task_is_followed(task);
        task->begun = task->hidden = false;
        page_runs_free(&task->list);
        task->listed = (struct run_cursor){0};
    }
    rounds->stats.bytes = 0;
    if (rounds->sender) /* that one is done with us, and need not be gone */
        rounds->sender->rounds = rounds_door_close(rounds);
    if (rounds->shared)
        shared_join(rounds->shared, sender);
    rounds->sender = sender;
    sender->rounds = rounds;
}

struct rounds *rounds_free(struct rounds *rounds)
{
    if (!rounds)
        return NULL;
    if (rounds->sender)
        rounds->sender->rounds = rounds_door_close(rounds);
    sd_event_source_disable_unref(rounds->pause);
    sd_event_source_disable_unref(rounds->end);
    for (size_t i = 0; i < rounds->count; i++) {
        round_task_let_go(rounds->tasks[i]);
        free(rounds->tasks[i]);
    }
    shared_free(rounds->shared);
    page_runs_free(&rounds->unsteady);
    free(rounds->tasks);
    free(rounds->parts);
    free(rounds);
    return NULL;
}
