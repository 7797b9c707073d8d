/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/rounds.h"

#include <stdio.h>
#include <string.h>

#include "migrate/doors.h"
#include "migrate/shared.h"
#include "task/follow.h"
#include "task/task.h"

enum {
    BATCH_PAGES = LINK_BATCH_BYTES / PAGE_BYTES,
    ZERO_RUNS_MAX = 4096,
    BURST_MSEC = 200, /* of what was not sent in time is made up for, where the rate is limited */
    BREATH_PAGES = 4096, /* read and found to be as they were, in one turn of the loop */
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

/* ---- tasks ---- */

static void task_let_go(struct round_task *task)
{
    task->fresh = task->kept = false;
    follower_close(&task->follower);
    page_runs_free(&task->runs);
    page_runs_free(&task->list);
    page_runs_free(&task->missed);
}

static struct round_task *rounds_find(struct rounds *rounds, pid_t pid)
{
    uint64_t started = task_started(pid);
    for (size_t i = 0; i < rounds->count; i++) {
        if (rounds->tasks[i]->pid == pid && rounds->tasks[i]->started == started)
            return rounds->tasks[i];
    }
    return NULL;
}

static int rounds_add(struct rounds *rounds, pid_t pid, struct round_task **ret)
{
    if (rounds->count == rounds->room) {
        size_t room = MAX(8, 2 * rounds->room);
        struct round_task **grown = realloc(rounds->tasks, room * sizeof(struct round_task *));
        if (!grown)
            return -ENOMEM;
        rounds->tasks = grown;
        rounds->room = room;
    }
    struct round_task *task = calloc(1, sizeof(*task));
    if (!task)
        return -ENOMEM;
    *task =
        (struct round_task){.pid = pid, .started = task_started(pid), .inner = task_inner_pid(pid)};
    rounds->tasks[rounds->count++] = task;
    *ret = task;
    return 0;
}

/* The processes that there are now; those that are no more are let go. */
static int rounds_look(struct rounds *rounds)
{
    pid_t *pids;
    size_t count;
    int r = task_list_tree(rounds->root, &pids, &count);
    if (r < 0)
        return r;
    for (size_t i = 0; i < rounds->count; i++)
        rounds->tasks[i]->seen = false;
    for (size_t i = 0; i < count && r == 0; i++) {
        struct round_task *task = rounds_find(rounds, pids[i]);
        if (!task)
            r = rounds_add(rounds, pids[i], &task);
        if (r == 0)
            task->seen = true;
    }
    free(pids);
    for (size_t i = 0; i < rounds->count; i++) {
        if (!rounds->tasks[i]->seen)
            task_let_go(rounds->tasks[i]);
    }
    return r;
}

static bool is_followed(const struct round_task *task)
{
    return task->follower.way != NULL;
}

static int task_take_missed(struct round_task *task)
{
    int r = follower_scan_missed(&task->follower, &task->missed, &task->runs);
    page_runs_free(&task->missed);
    return r;
}

static int task_look(struct round_task *task)
{
    int r = task_take_missed(task);
    return r < 0 ? r : follower_scan(&task->follower, &task->runs);
}

static int task_follow(struct rounds *rounds, struct round_task *task, struct error *err)
{
    if (follower_open(&task->follower, task->pid, rounds->kind, err) < 0)
        return -1;
    if (err->text[0])
        rounds->stats.why_compared = *err;
    task->fresh = true;
    return 0;
}

/*
 * Scans; a task that has another memory than the last time, because it has executed another
 * program, is begun anew.  Whatever does not work leaves the task to criu, which is shown all of
 * its pages then.
 */
static void task_scan(struct rounds *rounds, struct round_task *task)
{
    struct error err;
    page_runs_free(&task->runs);
    int r = is_followed(task) ? task_look(task) : -ESRCH;
    if (r == -ESRCH) {
        struct task_stat stat;
        task_let_go(task);
        if (!task_read_stat(task->pid, &stat) || stat.state == 'Z')
            return;
        if (task_follow(rounds, task, &err) < 0) {
            /* One that has ended meanwhile, or is ending, is nothing to tell about. */
            if (err.code != FAILURE_NOT_FOUND) {
                rounds->stats.skipped++;
                rounds->stats.reason = err;
            }
            return;
        }
        r = task_look(task);
    }
    if (r < 0) {
        task_let_go(task);
        if (r == -ESRCH)
            return; /* or its memory has gone: it ends, or begins another program */
        rounds->stats.skipped++;
        error_set_errno(&rounds->stats.reason, FAILURE_SYSTEM, r, "the memory of process %d",
                        task->pid);
        return;
    }
    rounds->stats.tasks++;
    rounds->stats.stopped_usec = MAX(rounds->stats.stopped_usec, task->follower.stopped_usec);
    rounds->stats.compared += follower_kind(&task->follower) == FOLLOW_COMPARE;
}

/* ---- sending ---- */

static struct space *task_space(const struct rounds *rounds, struct round_task *task)
{
    task->begun = true;
    return sender_space(rounds->sender, SPACE_TASK, (uint64_t)task->inner,
                        task->kept ? SPACE_BASED : SPACE_MAKE);
}

/* Full of zeros; most pages that are not show it in their first word. */
static bool is_zero(const uint8_t *page)
{
    const uint64_t *words = (const uint64_t *)(const void *)page;
    enum { WORDS = PAGE_BYTES / 8, STEP = 8 };
    for (size_t i = 0; i < WORDS; i += STEP) {
        uint64_t any = 0;
        for (size_t j = i; j < i + STEP; j++)
            any |= words[j];
        if (any)
            return false;
    }
    return true;
}

static void put_run(uint8_t *at, uint64_t vaddr, uint64_t pages)
{
    put_le64(at, vaddr);
    put_le64(at + 8, pages);
}

static void note_zero(struct part *part, uint64_t vaddr)
{
    uint8_t *last = part->zeros + (part->zero_runs - 1) * WIRE_RUN_BYTES;
    if (part->zero_runs > 0 && part->zeros_end == vaddr)
        put_le64(last + 8, get_le64(last + 8) + 1);
    else
        put_run(part->zeros + part->zero_runs++ * WIRE_RUN_BYTES, vaddr, 1);
    part->zero_pages++;
    part->zeros_end = vaddr + PAGE_BYTES;
}

enum page_fate { PAGE_AS_IT_WAS, PAGE_OF_ZEROS, PAGE_TO_SEND };

static enum page_fate judge_page(struct round_task *task, uint64_t vaddr, bool anonymous,
                                 const uint8_t *page)
{
    if (!follower_wants(&task->follower, vaddr, anonymous, page))
        return PAGE_AS_IT_WAS;
    return anonymous && is_zero(page) ? PAGE_OF_ZEROS : PAGE_TO_SEND;
}

/* Adds what was read to the batch, but for pages of zeros, and those that are as they were.  What
 * is of a file is never lazy. */
static void add_run(struct part *part, struct round_task *task, struct space *space,
                    struct link_batch *batch, const struct page_run *run, const uint8_t *bytes)
{
    struct rounds *rounds = part->rounds;
    uint64_t first = 0;
    for (uint64_t i = 0; i <= run->pages; i++) {
        uint64_t vaddr = run->start + i * PAGE_BYTES;
        enum page_fate fate = i < run->pages
                                  ? judge_page(task, vaddr, run->anonymous, bytes + i * PAGE_BYTES)
                                  : PAGE_AS_IT_WAS;
        rounds->stats.written_pages += rounds->phase == SENDING && fate != PAGE_AS_IT_WAS;
        if (fate == PAGE_TO_SEND)
            continue;
        if (i > first)
            space_add_pages(rounds->sender, part->stream, space, batch,
                            run->start + first * PAGE_BYTES, bytes + first * PAGE_BYTES, i - first,
                            run->anonymous ? PAGES_LAZY : 0);
        if (fate == PAGE_OF_ZEROS)
            note_zero(part, vaddr);
        first = i + 1;
    }
}

/*
 * Reads the next pages of a part and puts into the batch what of them is to be sent.  How many have
 * been read; 0: there are no more; or a negative errno.
 */
static int64_t draw_pages(struct part *part, struct round_task *task, struct link_batch *batch)
{
    struct page_run runs[READ_RUNS_MAX];
    int count = page_reader_next(&part->reader, batch->buf, BATCH_PAGES, runs);
    if (count <= 0)
        return count;
    struct space *space = task_space(part->rounds, task);
    const uint8_t *bytes = batch->buf;
    int64_t read = 0;
    for (int i = 0; i < count; i++) {
        add_run(part, task, space, batch, &runs[i], bytes);
        bytes += runs[i].pages * PAGE_BYTES;
        read += (int64_t)runs[i].pages;
    }
    part->rounds->stats.bytes += batch->bytes;
    return read;
}

static void draw_zeros(struct part *part, struct round_task *task, struct link_batch *batch)
{
    size_t bytes = part->zero_runs * WIRE_RUN_BYTES;
    memcpy(batch->buf, part->zeros, bytes);
    space_add_list(part->rounds->sender, part->stream, task_space(part->rounds, task), batch,
                   FRAME_PAGE_RUNS, RUNS_ZERO, batch->buf, bytes);
    part->zero_runs = part->zero_pages = 0;
}

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

static void account(struct rounds *rounds, uint64_t bytes)
{
    if (rounds->bytes_per_sec == 0)
        return;
    uint64_t now = now_usec(), burst = BURST_MSEC * USEC_PER_MSEC;
    rounds->allowed_usec = MAX(rounds->allowed_usec, now > burst ? now - burst : 0) +
                           bytes * USEC_PER_SEC / rounds->bytes_per_sec;
}

static void part_drop(struct part *part)
{
    if (part->reading)
        page_reader_close(&part->reader);
    part->reading = part->done = false;
    part->zero_runs = part->zero_pages = 0;
    part->copied = (struct run_cursor){0};
    page_runs_free(&part->runs);
    page_runs_free(&part->copies);
}

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

/* The loop has other things to do as well: on with it in its next turn. */
static int breathe(struct rounds *rounds)
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
        if (other->pid == parent && other->seen && is_followed(other))
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
    rounds->copies_of = task_space(rounds, parent);
}

/* ---- each stream's part ---- */

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
    if (!is_followed(task) || task->list.count == 0)
        return 0;
    int r = page_runs_add_all(&out, &task_space(rounds, task)->criu);
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
    if (r < 0 || !is_followed(task))
        return r;
    rounds->gently = rounds->phase != VERIFYING && task->runs.count > 0 &&
                     pages_are_shared(task->pid, &task->runs);
    r = share_out(rounds, &task->runs, false);
    int also = share_out(rounds, &copies, true);
    return r < 0 ? r : also;
}

/* 1, 0 when there is nothing to read, or a negative errno. */
static int begin_part(struct part *part, struct round_task *task)
{
    if (part->reading || part->runs.count == 0)
        return part->reading;
    int r = page_reader_open(&part->reader, task->pid);
    if (r < 0)
        return r;
    part->reading = true;
    part->reader.gently = part->rounds->gently;
    page_reader_begin(&part->reader, &part->runs, &task->missed);
    return 1;
}

/* Encodes runs of a list from *at on, as many as go into a frame; how many bytes that are. */
static size_t put_runs(struct link_batch *batch, const struct page_runs *runs,
                       struct run_cursor *at)
{
    uint64_t left = WIRE_LIST_PAGES_MAX;
    size_t bytes = 0;
    for (; at->run < runs->count && left > 0 && bytes < LINK_BATCH_BYTES; bytes += WIRE_RUN_BYTES) {
        const struct page_run *run = &runs->list[at->run];
        uint64_t pages = MIN(run->pages - at->pages, left);
        put_run(batch->buf + bytes, run->start + at->pages * PAGE_BYTES, pages);
        left -= pages;
        at->pages += pages;
        if (at->pages == run->pages)
            *at = (struct run_cursor){.run = at->run + 1};
    }
    return bytes;
}

/* Reads until there is something to be sent.  1, 0 when there is nothing more, -EAGAIN: later, or
 * another negative errno. */
static int send_part(struct part *part, struct round_task *task, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    int64_t read = begin_part(part, task), unsent = 0;
    while (read > 0 && part->zero_runs + BATCH_PAGES <= ZERO_RUNS_MAX &&
           part->zero_pages + BATCH_PAGES <= WIRE_LIST_PAGES_MAX) {
        if (unsent >= BREATH_PAGES && breathe(rounds) < 0)
            return -EAGAIN;
        read = draw_pages(part, task, batch);
        unsent += read;
        if (batch->frames > 0) {
            account(rounds, batch->bytes);
            return 1;
        }
    }
    if (read >= 0 && part->zero_runs > 0) {
        draw_zeros(part, task, batch);
        return 1;
    }
    if (read == 0 && part->copied.run < part->copies.count) {
        size_t bytes = put_runs(batch, &part->copies, &part->copied);
        space_add_copies(rounds->sender, part->stream, task_space(rounds, task), batch,
                         rounds->copies_of, batch->buf, bytes);
        return 1;
    }
    return (int)read;
}

/* ---- digests of what exists ---- */

/* The batch has room for digests in its first half, and for the pages that they are of. */
enum {
    SUMS_BYTES = LINK_BATCH_BYTES / 2,
    SUMS_PAGES = (LINK_BATCH_BYTES - SUMS_BYTES) / PAGE_BYTES,
    SUMS_READS = WIRE_LIST_PAGES_MAX / SUMS_PAGES,
};

_Static_assert((int)SUMS_PAGES <= (int)WIRE_SUM_PAGES_MAX, "what is read at once has one digest");

static int put_sum(uint8_t *at, const struct page_run *run, const uint8_t *pages)
{
    struct digest digest;
    int r = digest_begin(&digest);
    if (r < 0)
        return r;
    put_run(at, run->start, run->pages);
    digest_bytes(&digest, pages, run->pages * PAGE_BYTES);
    digest_end(&digest, at + WIRE_RUN_BYTES);
    return 0;
}

/* Digests of the next pages of a part.  How many bytes of them, 0 at the end, or negative errno. */
static ssize_t sum_some(struct part *part, uint8_t *sums, uint8_t *pages)
{
    struct page_run runs[READ_RUNS_MAX];
    int count = page_reader_next(&part->reader, pages, SUMS_PAGES, runs);
    for (int i = 0; i < count; i++) {
        int r = put_sum(sums + i * WIRE_SUM_BYTES, &runs[i], pages);
        if (r < 0)
            return r;
        pages += runs[i].pages * PAGE_BYTES;
    }
    return count < 0 ? count : (ssize_t)count * WIRE_SUM_BYTES;
}

/* As send_part(). */
static int sum_part(struct part *part, struct round_task *task, struct link_batch *batch)
{
    size_t bytes = 0;
    ssize_t n = begin_part(part, task);
    for (int i = 0; n > 0 && i < SUMS_READS && bytes + READ_RUNS_MAX * WIRE_SUM_BYTES <= SUMS_BYTES;
         i++) {
        n = sum_some(part, batch->buf + bytes, batch->buf + SUMS_BYTES);
        bytes += n > 0 ? (size_t)n : 0;
    }
    if (n < 0 || bytes == 0)
        return (int)n;
    space_add_list(part->rounds->sender, part->stream, task_space(part->rounds, task), batch,
                   FRAME_PAGE_SUMS, 0, batch->buf, bytes);
    return 1;
}

/*
 * A task that cannot be read has ended, which is no matter; or it is let go, and criu is then shown
 * all of it.  When it stands still this is no time to leave.
 */
static bool leave_task(struct rounds *rounds, struct round_task *task, int error_number)
{
    if (rounds->phase == SENDING) {
        task_let_go(task);
        return true;
    }
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, error_number, "reading the memory of process %d",
                    task->pid);
    sender_fail(rounds->sender, &err);
    return false;
}

/* 1 when the batch has something of the current task, 0 when this stream has no more of it, or as
 * send_part(). */
static int do_part(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    struct round_task *task = rounds->tasks[rounds->current];
    int r = divide_task(rounds, task);
    if (r < 0 || part->done)
        return r;
    r = rounds->phase == VERIFYING ? sum_part(part, task, batch) : send_part(part, task, batch);
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

/* Of shared memory, in a round.  As send_part(). */
static int send_shared(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    if (!rounds->shared || rounds->phase != SENDING)
        return 0;
    int r = shared_fill(rounds->shared, part->stream, batch, &rounds->stats.written_pages);
    rounds->stats.bytes += batch->bytes;
    account(rounds, batch->bytes);
    return r == -EAGAIN && breathe(rounds) < 0 ? r : MAX(r, 0);
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

/* ---- the list of what exists ---- */

static bool list_some(struct part *part, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    if (part->stream > 0)
        return false; /* in which order this comes is all the same */
    while (rounds->current < rounds->count) {
        struct round_task *task = rounds->tasks[rounds->current];
        size_t bytes = put_runs(batch, &task->list, &task->listed);
        if (bytes == 0) {
            rounds->current++;
            continue;
        }
        space_add_list(rounds->sender, 0, task_space(rounds, task), batch, FRAME_PAGE_RUNS,
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

/*
 * Between our scan and criu's there is criu's code in the task, and when that returns the kernel
 * writes to what the task has registered for rseq(2), as it does whenever it lets it run.  criu's
 * scan finds that; what was there at ours is as good.  To be compared it has to be what is there.
 */
static int task_list(struct round_task *task, struct scan_table *table)
{
    struct tracked_areas tracked = {0};
    int r = follower_list(&task->follower, &task->list, &task->runs, &tracked);
    if (r == 0 && table)
        r = scan_table_add(table, task->pid, &tracked);
    tracked_areas_free(&tracked);
    return r < 0 ? r : task_take_missed(task);
}

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

/*
 * criu is not shown what has the number of such a task; so if that is another process by now,
 * nobody has its memory.
 */
static int check_hidden(const struct round_task *task, struct error *err)
{
    uint64_t started = task_started(task->pid);
    if (!task->hidden || started == 0 || started == task->started)
        return 0;
    return error_set(err, FAILURE_SYSTEM, "process %d has ended, and another has its number",
                     task->pid);
}

/*
 * A task that has ended, or has another memory than in the last round, has an empty list: what
 * exists of it is what criu sends.
 */
static int list_task(struct rounds *rounds, struct round_task *task, struct scan_table *table,
                     struct error *err)
{
    struct space *space = sender_space(rounds->sender, SPACE_TASK, (uint64_t)task->inner,
                                       task->hidden ? SPACE_MAKE : SPACE_IF_BEGUN);
    if (!space && task->hidden)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "the memory of process %d", task->pid);
    if (!space)
        return 0; /* nothing was ever sent of it */
    space->listed = true;
    space->keep_criu = rounds->will_verify;
    if (check_hidden(task, err) < 0)
        return -1;
    int r = is_followed(task) ? task_list(task, table) : 0;
    if (r == -ESRCH)
        task_let_go(task);
    else if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the memory of process %d", task->pid);
    return 0;
}

int rounds_list(struct rounds *rounds, struct scan_table *table, struct error *err)
{
    if (rounds->will_verify)
        table = NULL; /* see task_list() */
    for (size_t i = 0; i < rounds->count; i++) {
        if (list_task(rounds, rounds->tasks[i], table, err) < 0)
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

/* From now on criu's pages may come. */
static void keep_what_criu_sends(struct rounds *rounds, const struct round_task *task)
{
    struct space *space =
        sender_space(rounds->sender, SPACE_TASK, (uint64_t)task->inner, SPACE_IF_BEGUN);
    if (space)
        space->keep_criu = rounds->will_verify;
}

static bool is_to_be_hidden(const struct round_task *task)
{
    return task->seen && follower_hides(&task->follower);
}

char *rounds_hide(struct rounds *rounds)
{
    enum { DIGITS = 12 };
    char *text = malloc(rounds->count * DIGITS + 1);
    size_t used = 0;
    for (size_t i = 0; text && i < rounds->count; i++) {
        struct round_task *task = rounds->tasks[i];
        task->hidden = is_to_be_hidden(task);
        keep_what_criu_sends(rounds, task);
        if (task->hidden)
            used += (size_t)snprintf(text + used, DIGITS + 1, "%s%d", used ? "," : "", task->pid);
    }
    if (used > 0)
        return text;
    free(text);
    return NULL;
}

bool rounds_hides(const struct rounds *rounds)
{
    for (size_t i = 0; i < rounds->count; i++) {
        if (is_to_be_hidden(rounds->tasks[i]))
            return true;
    }
    return false;
}

/* ---- rounds ---- */

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
        task_scan(rounds, task);
        /* What the snapshot before has of it, this one has, although nothing was written. */
        if ((task->runs.count > 0 || task->kept) && !task_space(rounds, task))
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
        task->kept = task->begun && is_followed(task);
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
        task_let_go(rounds->tasks[i]);
        free(rounds->tasks[i]);
    }
    shared_free(rounds->shared);
    page_runs_free(&rounds->unsteady);
    free(rounds->tasks);
    free(rounds->parts);
    free(rounds);
    return NULL;
}
