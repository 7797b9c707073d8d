/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/filler.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum {
    AT_ONCE = 64,              /* pages of one ioctl: 256 KiB */
    BATCH_PAGES = 4 * AT_ONCE, /* of one batch: a fault waits that long */
    AHEAD = 16,                /* pages: behind a fault */
    SHARE = 8, /* one part in so many is filled out of order, or before the task is built */
};

#define RETRY_CHANGING 200ull
#define RETRY_UNBUILT USEC_PER_MSEC
#define RETRY_MEMORY (10 * USEC_PER_MSEC)
#define PROBE_AT MIB(16)

/* ---- the userfaultfd ---- */

static int uffd_zero(int uffd, uint64_t vaddr)
{
    struct uffdio_zeropage zero = {.range = {.start = vaddr, .len = PAGE_BYTES}};
    return ioctl(uffd, UFFDIO_ZEROPAGE, &zero) < 0 ? -errno : 0;
}

static void uffd_wake(int uffd, uint64_t vaddr)
{
    struct uffdio_range range = {.start = vaddr, .len = PAGE_BYTES};
    ioctl(uffd, UFFDIO_WAKE, &range);
}

void filler_wake_all(struct filler *filler)
{
    /* Where address spaces begin and end: the kernel refuses what reaches beyond. */
    static const uint64_t starts[] = {PAGE_BYTES, KIB(32), KIB(64), MIB(1), MIB(4)};
    static const uint64_t ends[] = {1ull << 57, 1ull << 56, 1ull << 52, 1ull << 48,
                                    1ull << 47, 1ull << 42, 1ull << 39};
    for (size_t i = 0; i < 2 * ARRAY_SIZE(ends); i++) {
        uint64_t end = ends[i / 2] - i % 2 * PAGE_BYTES; /* x86 leaves out the last page */
        for (size_t k = 0; k < ARRAY_SIZE(starts); k++) {
            struct uffdio_range all = {.start = starts[k], .len = end - starts[k]};
            if (ioctl(filler->record->uffd, UFFDIO_WAKE, &all) == 0)
                return;
        }
    }
}

/* ---- bits ---- */

uint64_t sheet_bytes(uint64_t pages)
{
    return sizeof(struct sheet) + (pages + 63) / 64 * 8;
}

uint64_t *sheet_bits(struct sheet *sheet)
{
    return (uint64_t *)(sheet + 1);
}

static bool is_done(const struct filler *filler, uint64_t page)
{
    return filler->done[page / 64] >> page % 64 & 1;
}

/* The first page in [page, end) whose bit is |set|; end if there is none. */
static uint64_t find_bit(const struct filler *filler, uint64_t page, uint64_t end, bool set)
{
    uint64_t flip = set ? 0 : UINT64_MAX;
    while (page < end) {
        uint64_t word = (filler->done[page / 64] ^ flip) >> page % 64;
        if (word)
            return MIN(page + (uint64_t)__builtin_ctzll(word), end);
        page += 64 - page % 64;
    }
    return end;
}

static uint64_t page_offset(const struct filler *filler, uint64_t entry, uint64_t page)
{
    return filler->map.entries[entry].offset + (page - filler->first[entry]) * PAGE_BYTES;
}

/* Pages [page, end) of an entry need no filling any more. */
static void mark(struct filler *filler, uint64_t entry, uint64_t page, uint64_t end)
{
    while ((page = find_bit(filler, page, end, false)) < end) {
        uint64_t stop = find_bit(filler, page, end, true);
        uint64_t offset = page_offset(filler, entry, page), pages = stop - page;
        for (; page < stop; page++)
            filler->done[page / 64] |= 1ull << page % 64;
        filler->missing -= pages;
        filler->report->filled += pages;
        space_filled(filler->spaces, filler->space, offset, pages);
    }
}

/* Index of the first entry that reaches beyond the home address, and its part in [*home, end). */
static bool next_part(const struct filler *filler, uint64_t *home, uint64_t end,
                      uint64_t *ret_entry, uint64_t *ret_page, uint64_t *ret_stop)
{
    uint64_t i = fill_map_above(&filler->map, *home);
    if (i == filler->map.count || filler->map.entries[i].vaddr >= end || *home >= end)
        return false;
    const struct fill_map_entry *entry = &filler->map.entries[i];
    uint64_t from = MAX(*home, entry->vaddr);
    uint64_t to = MIN(end, entry->vaddr + entry->pages * PAGE_BYTES);
    *ret_entry = i;
    *ret_page = filler->first[i] + (from - entry->vaddr) / PAGE_BYTES;
    *ret_stop = filler->first[i] + (to - entry->vaddr + PAGE_BYTES - 1) / PAGE_BYTES;
    *home = to;
    return true;
}

static struct views *views(const struct filler *filler)
{
    return &filler->sheet->views[filler->record->commit & COMMIT_VIEWS];
}

/* Nothing at [start, end) of the task needs filling any more. */
static void mark_range(struct filler *filler, uint64_t start, uint64_t end)
{
    uint64_t home, length, entry, page, stop;
    while (views_next(views(filler), &start, end, &home, &length)) {
        uint64_t home_end = home + length;
        while (next_part(filler, &home, home_end, &entry, &page, &stop))
            mark(filler, entry, page, stop);
    }
}

static bool lacks_any(const struct filler *filler, uint64_t home, uint64_t length)
{
    uint64_t entry, page, stop, end = home + length;
    while (next_part(filler, &home, end, &entry, &page, &stop)) {
        if (find_bit(filler, page, stop, false) < stop)
            return true;
    }
    return false;
}

/* Whether something is missing at [start, end) of the task. */
static bool lacks_at(const struct filler *filler, uint64_t start, uint64_t end)
{
    uint64_t home, length;
    while (views_next(views(filler), &start, end, &home, &length)) {
        if (lacks_any(filler, home, length))
            return true;
    }
    return false;
}

/* ---- opening ---- */

static int open_map(struct filler *filler, struct error *err)
{
    struct record *record = filler->record;
    int r = fill_map_open(&filler->map, record->map, err);
    if (r < 0)
        return r;
    filler->first = malloc((filler->map.count + 1) * sizeof(*filler->first));
    uint64_t bytes = sheet_bytes(filler->map.pages);
    void *sheet = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, record->sheet, 0);
    if (sheet != MAP_FAILED)
        filler->sheet = sheet;
    if (!filler->first || !filler->sheet) {
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a fill map");
        return -ENOMEM;
    }
    r = spaces_get(filler->spaces, record->space_number, record->space, &filler->space);
    if (r < 0) {
        error_set_errno(err, FAILURE_SYSTEM, r, "space-%u", record->space_number);
        return r;
    }
    if (filler->map.end > filler->space->length || filler->map.space != record->space_number) {
        error_set(err, FAILURE_SYSTEM, "space-%u is shorter than its fill map says",
                  record->space_number);
        return -EPROTO;
    }
    return 0;
}

static void count_missing(struct filler *filler)
{
    uint64_t page = 0;
    for (uint64_t i = 0; i < filler->map.count; i++) {
        uint64_t end = page + filler->map.entries[i].pages;
        filler->first[i] = page;
        /* Also what is filled: the leader that did it may have died before it gave it back. */
        space_want(filler->space, page_offset(filler, i, page), end - page);
        for (uint64_t stop; (page = find_bit(filler, page, end, false)) < end; page = stop) {
            stop = find_bit(filler, page, end, true);
            filler->missing += stop - page;
            space_lack(filler->space, page_offset(filler, i, page), stop - page);
        }
        page = end;
    }
    filler->first[filler->map.count] = page;
}

/* The last round before that one: false if there is none. */
static bool round_before(const struct filler *filler, uint64_t before, uint64_t *ret)
{
    bool found = false;
    for (uint64_t i = 0; i < filler->map.count; i++) {
        uint64_t round = filler->map.entries[i].round;
        if (round < before && (!found || round > *ret)) {
            *ret = round;
            found = true;
        }
    }
    return found;
}

/* Whether as much is there as may be taken from all over the space. */
static bool has_share(const struct filler *filler)
{
    uint64_t pages = filler->record->pages;
    return pages - MIN(filler->missing, pages) >= pages / SHARE;
}

static void begin_pass(struct filler *filler, bool by_address)
{
    filler->by_address = by_address;
    filler->cursor = (struct cursor){0};
    if (!by_address)
        filler->cursor.passed = !round_before(filler, UINT64_MAX, &filler->cursor.round);
}

int filler_open(struct filler **ret, struct record *record, struct spaces *spaces,
                struct fill_report *report, struct error *err)
{
    struct filler *filler = calloc(1, sizeof(*filler));
    if (!filler) {
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a task");
        return -ENOMEM;
    }
    *filler =
        (struct filler){.record = record, .spaces = spaces, .report = report, .at_once = AT_ONCE};
    int r = record->map >= 0 ? open_map(filler, err) : 0;
    if (r < 0) {
        filler_forget(filler);
        return r;
    }
    if (filler->map.count > 0) {
        filler->done = sheet_bits(filler->sheet);
        count_missing(filler);
    }
    begin_pass(filler, has_share(filler));
    *ret = filler;
    return 0;
}

struct filler *filler_forget(struct filler *filler)
{
    if (!filler)
        return NULL;
    spaces_put(filler->spaces, filler->space);
    if (filler->sheet)
        munmap(filler->sheet, sheet_bytes(filler->map.pages));
    free(filler->first);
    fill_map_close(&filler->map);
    free(filler);
    return NULL;
}

struct filler *filler_close(struct filler *filler)
{
    /* What it lacked nobody will ask for; the space may be another's too. */
    for (uint64_t i = 0; filler->missing > 0 && i < filler->map.count; i++) {
        uint64_t page = filler->first[i], end = filler->first[i + 1];
        for (uint64_t stop; (page = find_bit(filler, page, end, false)) < end; page = stop) {
            stop = find_bit(filler, page, end, true);
            space_filled(filler->spaces, filler->space, page_offset(filler, i, page), stop - page);
        }
    }
    return filler_forget(filler);
}

bool filler_waits(const struct filler *filler)
{
    return backlog_count(filler->record->commit) > 0;
}

bool filler_over(const struct filler *filler)
{
    return filler->gone || (filler->missing == 0 && !filler->stuck);
}

/* ---- what the kernel answers ---- */

static void trouble(struct filler *filler, const char *what, int error)
{
    char text[160];
    snprintf(text, sizeof(text), "pid %d: %s: %s", filler->record->pid, what, strerror(-error));
    filler->report->trouble(filler->report->user, text);
}

static void wait_for(struct filler *filler, uint64_t usec)
{
    filler->retry_usec = now_usec() + usec;
}

/* No area that is registered begins at that page, and none can have: asked twice, because a move
 * may have begun after the kernel looked whether something is changing. */
static bool has_no_place(struct filler *filler, uint64_t vaddr, const void *source)
{
    uint64_t bytes;
    return uffd_copy(filler->record->uffd, vaddr, source, PAGE_BYTES, &bytes) == -ENOENT;
}

static void no_place(struct filler *filler, uint64_t entry, uint64_t page)
{
    mark(filler, entry, page, page + 1);
    /* What was unmapped has been told.  A page that never had a place is another matter. */
    if (!filler->events && !filler->record->child) {
        filler->report->lost++;
        trouble(filler, "pages have no place in it", -ENOENT);
    }
}

/* It stays missing: better a task that waits than one that reads zeroes. */
static void leave_out(struct filler *filler, const struct copy_job *job)
{
    filler->stuck = true;
    if (filler->cursor.entry == job->entry && filler->cursor.page == job->page)
        filler->cursor.page += job->bytes / PAGE_BYTES;
    trouble(filler, "a page cannot be filled", job->result);
}

/* A job was refused: none of its pages have been copied. */
static void refused(struct filler *filler, const struct copy_job *job, bool finished)
{
    switch (job->result) {
    case -EEXIST: /* it has come by another way: a leader that is dead now */
        mark(filler, job->entry, job->page, job->page + 1);
        uffd_wake(job->uffd, job->vaddr);
        return;
    case -EAGAIN: /* its memory is changing: an event is there or about to come */
        wait_for(filler, RETRY_CHANGING);
        return;
    case -ENOENT: /* the pages are not all in one area, or that is not registered */
        if (job->bytes > PAGE_BYTES)
            filler->at_once = job->bytes / PAGE_BYTES / 2;
        else if (!finished)
            wait_for(filler, RETRY_UNBUILT);
        else if (has_no_place(filler, job->vaddr, job->source))
            no_place(filler, job->entry, job->page);
        return;
    case -ESRCH:
        filler->gone = true;
        return;
    case -EINTR:
        return;
    case -ENOMEM:
    case -ENOSPC:
        wait_for(filler, RETRY_MEMORY);
        return;
    default:
        leave_out(filler, job);
    }
}

/* What is to be copied for [page, end), which lies in one entry.  False: nothing. */
static bool make_job(struct filler *filler, struct copy_job *job, uint64_t entry, uint64_t page,
                     uint64_t end)
{
    const struct fill_map_entry *in = &filler->map.entries[entry];
    uint64_t home = in->vaddr + (page - filler->first[entry]) * PAGE_BYTES, vaddr;
    uint64_t length = (end - page) * PAGE_BYTES;
    if (!views_locate(views(filler), home, &vaddr, &length)) {
        mark(filler, entry, page, page + 1); /* no move leaves such a page unmarked */
        return false;
    }
    *job = (struct copy_job){
        .uffd = filler->record->uffd,
        .vaddr = vaddr,
        .bytes = length,
        .source = space_at(filler->space, page_offset(filler, entry, page), length),
        .entry = entry,
        .page = page,
    };
    return true;
}

static void jobs_done(struct filler *filler, const struct copy_job *jobs, unsigned count,
                      bool finished)
{
    bool whole = true;
    for (unsigned i = 0; i < count; i++) {
        const struct copy_job *job = &jobs[i];
        whole &= job->result == 0;
        if (job->result == 0)
            mark(filler, job->entry, job->page, job->page + job->placed / PAGE_BYTES);
    }
    for (unsigned i = 0; i < count && !filler->gone; i++) {
        if (jobs[i].result < 0)
            refused(filler, &jobs[i], finished);
    }
    if (whole)
        filler->at_once = MIN(filler->at_once * 2, (uint64_t)AT_ONCE);
}

/* ---- filling ---- */

static void next_round(const struct filler *filler, struct cursor *cursor)
{
    cursor->entry = cursor->page = 0;
    cursor->passed = filler->by_address || !round_before(filler, cursor->round, &cursor->round);
}

/* The next pages that are missing, in one entry; the cursor moves behind them. */
static bool next_run(const struct filler *filler, struct cursor *cursor, uint64_t *ret_entry,
                     uint64_t *ret_page, uint64_t *ret_end)
{
    for (; !cursor->passed; next_round(filler, cursor)) {
        for (; cursor->entry < filler->map.count; cursor->entry++) {
            uint64_t first = filler->first[cursor->entry], end = filler->first[cursor->entry + 1];
            if (!filler->by_address && filler->map.entries[cursor->entry].round != cursor->round)
                continue;
            uint64_t page = find_bit(filler, MAX(first, cursor->page), end, false);
            if (page == end)
                continue;
            *ret_entry = cursor->entry;
            *ret_page = page;
            *ret_end = find_bit(filler, page, MIN(end, page + filler->at_once), true);
            cursor->page = *ret_end;
            return true;
        }
    }
    return false;
}

static void fill_ahead(struct filler *filler, bool finished)
{
    uint64_t page = find_bit(filler, filler->ahead, filler->ahead_end, false);
    uint64_t end = find_bit(filler, page, filler->ahead_end, true);
    struct copy_job job;
    filler->ahead = filler->ahead_end;
    if (page == end || !make_job(filler, &job, filler->ahead_entry, page, end))
        return;
    job.result = uffd_copy(job.uffd, job.vaddr, job.source, job.bytes, &job.placed);
    jobs_done(filler, &job, 1, finished);
}

/* Up to a batch of what is missing next.  The cursor stays before it: what has not been filled
 * then is next again. */
static unsigned make_batch(struct filler *filler, struct copy_job *jobs)
{
    struct cursor cursor = filler->cursor;
    uint64_t entry, page, end, pages = 0;
    unsigned count = 0;
    while (count < COPY_JOBS && pages < BATCH_PAGES &&
           next_run(filler, &cursor, &entry, &page, &end)) {
        if (pages == 0)
            filler->cursor = (struct cursor){cursor.round, entry, page, false};
        pages += end - page;
        count += make_job(filler, &jobs[count], entry, page, end);
    }
    if (pages == 0)
        filler->cursor = cursor;
    return count;
}

/* Whether something is to be filled now. */
static bool wants_filling(const struct filler *filler, bool finished)
{
    if (filler->missing == 0 || filler->gone || filler_waits(filler) ||
        (filler->retry_usec && now_usec() < filler->retry_usec))
        return false;
    if (filler->by_address && filler->cursor.passed && filler->stuck)
        return false; /* what it lacks now it will always lack */
    return finished || !has_share(filler);
}

bool filler_step(struct filler *filler, struct copier *copier, bool finished)
{
    if (!wants_filling(filler, finished))
        return false;
    filler->retry_usec = 0;
    if (filler->ahead < filler->ahead_end) {
        fill_ahead(filler, finished);
        return true;
    }
    if (!filler->by_address && has_share(filler))
        begin_pass(filler, true);
    unsigned count = make_batch(filler, copier->jobs);
    if (count > 0) {
        copier_run(copier, count);
        jobs_done(filler, copier->jobs, count, finished);
    } else if (filler->cursor.passed && !(filler->by_address && filler->stuck)) {
        begin_pass(filler, true);
    }
    return filler->missing > 0 && !filler->gone && !filler->retry_usec;
}

bool filler_probe(struct filler *filler)
{
    /* An area that criu registers is not registered for this, so that nothing can come of it. */
    struct uffdio_writeprotect probe = {.range = {.start = PROBE_AT, .len = PAGE_BYTES}};
    int r = ioctl(filler->record->uffd, UFFDIO_WRITEPROTECT, &probe) < 0 ? -errno : 0;
    filler->gone |= r == -ESRCH;
    return r != -EAGAIN;
}

/* ---- messages ---- */

static void hold(struct filler *filler, uint64_t vaddr)
{
    if (filler->held_count < FILLER_HELD)
        filler->held[filler->held_count++] = vaddr;
    else
        uffd_wake(filler->record->uffd, vaddr); /* it will ask again */
}

/* The missing page that belongs at the address, if there is one. */
static bool missing_at(const struct filler *filler, uint64_t vaddr, uint64_t *ret_entry,
                       uint64_t *ret_page)
{
    const struct view *view = filler->missing > 0 ? views_find(views(filler), vaddr) : NULL;
    if (!view)
        return false;
    uint64_t home = view->home + (vaddr - view->start), stop;
    return next_part(filler, &home, home + PAGE_BYTES, ret_entry, ret_page, &stop) &&
           !is_done(filler, *ret_page);
}

static int answer_from_map(struct filler *filler, uint64_t vaddr, uint64_t entry, uint64_t page)
{
    const uint8_t *source = space_at(filler->space, page_offset(filler, entry, page), PAGE_BYTES);
    uint64_t bytes;
    int r = uffd_copy(filler->record->uffd, vaddr, source, PAGE_BYTES, &bytes);
    if (r == 0 || r == -EEXIST) {
        mark(filler, entry, page, page + 1);
        filler->ahead_entry = entry;
        filler->ahead = page + 1;
        filler->ahead_end = MIN(page + AHEAD, filler->first[entry + 1]);
    }
    return r;
}

static void fault(struct filler *filler, uint64_t vaddr)
{
    uint64_t entry, page;
    vaddr -= vaddr % PAGE_BYTES;
    if (filler_waits(filler)) {
        hold(filler, vaddr);
        return;
    }
    int r = missing_at(filler, vaddr, &entry, &page) ? answer_from_map(filler, vaddr, entry, page)
                                                     : uffd_zero(filler->record->uffd, vaddr);
    filler->report->faults += r == 0;
    switch (r) {
    case 0:
        return;
    case -ESRCH:
        filler->gone = true;
        return;
    case -EEXIST:
    case -ENOENT: /* the area has gone since */
    case -EINTR:
        uffd_wake(filler->record->uffd, vaddr);
        return;
    case -EAGAIN:
    case -ENOMEM:
    case -ENOSPC:
        hold(filler, vaddr);
        return;
    default:
        filler->stuck = true; /* who asked waits */
        trouble(filler, "a page cannot be filled", r);
    }
}

void filler_retry_held(struct filler *filler)
{
    uint64_t held[FILLER_HELD];
    unsigned count = filler->held_count;
    memcpy(held, filler->held, count * sizeof(held[0]));
    filler->held_count = 0;
    for (unsigned i = 0; i < count; i++)
        fault(filler, held[i]);
}

int filler_read(struct filler *filler)
{
    ssize_t n;
    do {
        n = read(filler->record->uffd, &filler->record->slot, sizeof(filler->record->slot));
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN ? 0 : -errno;
    return n == sizeof(filler->record->slot) ? 1 : -EIO;
}

void filler_message_done(struct filler *filler)
{
    __atomic_store_n(&filler->record->slot.event, 0, __ATOMIC_SEQ_CST);
    __atomic_and_fetch(&filler->record->commit, ~(uint64_t)COMMIT_APPLIED, __ATOMIC_SEQ_CST);
}

/* One store that says all of it: turn is COMMIT_VIEWS if the other views are true now. */
static void commit(struct filler *filler, uint64_t turn, bool of_backlog)
{
    uint64_t word = filler->record->commit ^ turn;
    word = of_backlog ? backlog_popped(word) : word | COMMIT_APPLIED;
    __atomic_store_n(&filler->record->commit, word, __ATOMIC_SEQ_CST);
}

static struct views *other_views(const struct filler *filler)
{
    return &filler->sheet->views[~filler->record->commit & COMMIT_VIEWS];
}

/* Forgets views in which nothing is missing. */
static void prune(struct filler *filler)
{
    const struct views *from = views(filler);
    struct views *to = other_views(filler);
    to->count = 0;
    for (uint64_t i = 0; i < from->count; i++) {
        if (lacks_any(filler, from->list[i].home, from->list[i].end - from->list[i].start))
            to->list[to->count++] = from->list[i];
    }
    __atomic_xor_fetch(&filler->record->commit, COMMIT_VIEWS, __ATOMIC_SEQ_CST);
}

static int move(struct filler *filler, uint64_t from, uint64_t to, uint64_t length, bool of_backlog)
{
    mark_range(filler, to, to + length);
    int r = views_move(other_views(filler), views(filler), from, to, length);
    if (r < 0) {
        prune(filler);
        r = views_move(other_views(filler), views(filler), from, to, length);
    }
    if (r < 0)
        return r;
    commit(filler, COMMIT_VIEWS, of_backlog);
    if (of_backlog && filler->own_unmap)
        filler->own_unmap->event = 0; /* what is there by now is another's */
    return 0;
}

int filler_do(struct filler *filler, const struct uffd_msg *message, bool of_backlog)
{
    if (message->event == UFFD_EVENT_PAGEFAULT) {
        fault(filler, message->arg.pagefault.address);
        return 0;
    }
    filler->events |= message->event != UFFD_EVENT_FORK;
    filler->retry_usec = 0;
    if (!filler->sheet)
        return 0;
    if (message->event == UFFD_EVENT_REMAP)
        return move(filler, message->arg.remap.from, message->arg.remap.to, message->arg.remap.len,
                    of_backlog);
    if (message->event == UFFD_EVENT_REMOVE || message->event == UFFD_EVENT_UNMAP)
        mark_range(filler, message->arg.remove.start, message->arg.remove.end);
    if (of_backlog)
        commit(filler, 0, true);
    return 0;
}

/* ---- messages that wait ---- */

bool filler_put_off(struct filler *filler)
{
    struct record *record = filler->record;
    uint32_t count = backlog_count(record->commit);
    if (count == BACKLOG_MAX)
        return false;
    filler->sheet->backlog.list[backlog_index(record->commit, count)] = record->slot;
    __atomic_store_n(&record->commit, backlog_pushed(record->commit) | COMMIT_APPLIED,
                     __ATOMIC_SEQ_CST);
    return true;
}

/* How much the first, a move, has moved.  False: that is not to be known yet. */
static bool find_length(struct filler *filler, struct uffd_msg *move)
{
    struct backlog_move told;
    uint64_t length = move->arg.remap.len, end = move->arg.remap.from + length;
    if (!backlog_look(&filler->sheet->backlog, filler->record->commit, &told))
        return filler_probe(filler); /* its call is over: it unmaps nothing more */
    uint64_t moved_end = move->arg.remap.from + told.length;
    /* What is missing is registered, and what is unmapped of that is told. */
    if (!told.certain && lacks_at(filler, moved_end, end))
        return true;
    move->arg.remap.len = told.length;
    filler->own_unmap = told.unmapped ? &filler->sheet->backlog.list[told.own] : NULL;
    return true;
}

bool filler_next(struct filler *filler, struct uffd_msg *ret)
{
    if (!filler_waits(filler))
        return false;
    filler->own_unmap = NULL;
    *ret = filler->sheet->backlog.list[backlog_index(filler->record->commit, 0)];
    return ret->event != UFFD_EVENT_REMAP || find_length(filler, ret);
}
