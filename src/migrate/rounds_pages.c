/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "migrate/rounds_parts.h"

enum {
    BREATH_PAGES = 4096, /* read and found to be as they were, in one turn of the loop */
};

void part_drop(struct part *part)
{
    if (part->reading)
        page_reader_close(&part->reader);
    part->reading = part->done = false;
    part->zero_runs = part->zero_pages = 0;
    part->copied = (struct run_cursor){0};
    page_runs_free(&part->runs);
    page_runs_free(&part->copies);
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

/* ---- pages ---- */

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
    struct space *space = round_task_space(part->rounds, task);
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
    space_add_list(part->rounds->sender, part->stream, round_task_space(part->rounds, task), batch,
                   FRAME_PAGE_RUNS, RUNS_ZERO, batch->buf, bytes);
    part->zero_runs = part->zero_pages = 0;
}

size_t batch_put_runs(struct link_batch *batch, const struct page_runs *runs, struct run_cursor *at)
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

int part_send(struct part *part, struct round_task *task, struct link_batch *batch)
{
    struct rounds *rounds = part->rounds;
    int64_t read = begin_part(part, task), unsent = 0;
    while (read > 0 && part->zero_runs + BATCH_PAGES <= ZERO_RUNS_MAX &&
           part->zero_pages + BATCH_PAGES <= WIRE_LIST_PAGES_MAX) {
        if (unsent >= BREATH_PAGES && rounds_breathe(rounds) < 0)
            return -EAGAIN;
        read = draw_pages(part, task, batch);
        unsent += read;
        if (batch->frames > 0) {
            rounds_account(rounds, batch->bytes);
            return 1;
        }
    }
    if (read >= 0 && part->zero_runs > 0) {
        draw_zeros(part, task, batch);
        return 1;
    }
    if (read == 0 && part->copied.run < part->copies.count) {
        size_t bytes = batch_put_runs(batch, &part->copies, &part->copied);
        space_add_copies(rounds->sender, part->stream, round_task_space(rounds, task), batch,
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

int part_sum(struct part *part, struct round_task *task, struct link_batch *batch)
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
    space_add_list(part->rounds->sender, part->stream, round_task_space(part->rounds, task), batch,
                   FRAME_PAGE_SUMS, 0, batch->buf, bytes);
    return 1;
}
