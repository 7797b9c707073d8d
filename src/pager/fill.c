/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/fill.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum {
    FAULT_PAGES = 16,  /* placed for one fault, if they are there to be placed */
    CHUNK_PAGES = 512, /* given back at a time */
    WORD_BITS = 64,
};

/* ---- the bitmap ---- */

static bool is_left(const struct fill *fill, uint64_t page)
{
    return fill->left[page / WORD_BITS] >> page % WORD_BITS & 1;
}

static void set_left(struct fill *fill, uint64_t page)
{
    fill->left[page / WORD_BITS] |= 1ull << page % WORD_BITS;
}

static void clear_left(struct fill *fill, uint64_t page)
{
    fill->left[page / WORD_BITS] &= ~(1ull << page % WORD_BITS);
}

static size_t left_bytes(const struct fill *fill)
{
    uint64_t words = (fill->source_pages + WORD_BITS - 1) / WORD_BITS;
    return MAX(words, 1) * sizeof(uint64_t);
}

uint64_t fill_left(const struct fill *fill)
{
    uint64_t count = 0;
    for (size_t i = 0; i < left_bytes(fill) / sizeof(uint64_t); i++)
        count += (uint64_t)__builtin_popcountll(fill->left[i]);
    return fill->over ? 0 : count;
}

/* Gives a chunk of the file back once nothing of it is left. */
static void give_back(struct fill *fill, uint64_t page)
{
    uint64_t first = page / CHUNK_PAGES * CHUNK_PAGES;
    if (!fill->punch || first + CHUNK_PAGES > fill->source_pages)
        return;
    for (uint64_t i = first; i < first + CHUNK_PAGES; i += WORD_BITS) {
        if (fill->left[i / WORD_BITS])
            return;
    }
    fallocate(fill->source_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              (off_t)(first * PAGE_BYTES), (off_t)CHUNK_PAGES * PAGE_BYTES);
}

static void placed(struct fill *fill, uint64_t page, uint64_t pages)
{
    for (uint64_t i = page; i < page + pages; i++)
        clear_left(fill, i);
    for (uint64_t i = page; i < page + pages; i += CHUNK_PAGES - i % CHUNK_PAGES)
        give_back(fill, i);
}

/* ---- its life ---- */

static int add_run(struct fill *fill, const struct fill_run *run)
{
    if (fill->count == fill->room) {
        size_t room = MAX(64, 2 * fill->room);
        struct fill_run *grown = realloc(fill->runs, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        fill->runs = grown;
        fill->room = room;
    }
    fill->runs[fill->count++] = *run;
    return 0;
}

static int compare_runs(const void *a, const void *b)
{
    uint64_t x = ((const struct fill_run *)a)->vaddr, y = ((const struct fill_run *)b)->vaddr;
    return (x > y) - (x < y);
}

static int map_source(struct fill *fill)
{
    struct stat st;
    if (fstat(fill->source_fd, &st) < 0)
        return -errno;
    fill->source_pages = (uint64_t)st.st_size / PAGE_BYTES;
    void *left =
        mmap(NULL, left_bytes(fill), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (left == MAP_FAILED)
        return -errno;
    fill->left = left;
    if (fill->source_pages == 0)
        return 0;
    void *source =
        mmap(NULL, fill->source_pages * PAGE_BYTES, PROT_READ, MAP_SHARED, fill->source_fd, 0);
    if (source == MAP_FAILED)
        return -errno;
    fill->source = source;
    return 0;
}

int fill_open(struct fill *fill, pid_t pid, int uffd, int source_fd, const struct fill_run *runs,
              size_t count)
{
    *fill = (struct fill){.pid = pid, .uffd = uffd, .source_fd = source_fd, .punch = true};
    int r = map_source(fill);
    for (size_t i = 0; i < count && r == 0; i++) {
        if (runs[i].page > fill->source_pages || runs[i].pages > fill->source_pages - runs[i].page)
            r = -EINVAL;
        else
            r = add_run(fill, &runs[i]);
        for (uint64_t k = 0; k < runs[i].pages && r == 0; k++)
            set_left(fill, runs[i].page + k);
    }
    if (r < 0) {
        fill_close(fill);
        return r;
    }
    if (count > 0)
        qsort(fill->runs, fill->count, sizeof(*fill->runs), compare_runs);
    return 0;
}

void fill_close(struct fill *fill)
{
    if (fill->source)
        munmap((void *)fill->source, fill->source_pages * PAGE_BYTES);
    if (fill->left)
        munmap(fill->left, left_bytes(fill));
    fill->uffd = close_fd(fill->uffd);
    fill->source_fd = close_fd(fill->source_fd);
    free(fill->runs);
    *fill = (struct fill){.uffd = -EBADF, .source_fd = -EBADF, .over = true};
}

int fill_fork(struct fill *child, struct fill *parent, int uffd)
{
    int fd = fcntl(parent->source_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        close_fd(uffd);
        return -errno;
    }
    int r = fill_open(child, parent->pid, uffd, fd, parent->runs, parent->count);
    if (r == 0)
        memcpy(child->left, parent->left, left_bytes(parent));
    child->punch = parent->punch = false; /* each needs what the other has */
    return r;
}

/* ---- where things are ---- */

/* Index of the first run that ends above an address. */
static size_t first_run(const struct fill *fill, uint64_t vaddr)
{
    size_t low = 0, high = fill->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct fill_run *run = &fill->runs[middle];
        if (run->vaddr + run->pages * PAGE_BYTES > vaddr)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* How many pages from this one of a run on are to be placed, at most |most|. */
static uint64_t left_from(const struct fill *fill, const struct fill_run *run, uint64_t page,
                          uint64_t most)
{
    uint64_t n = 0;
    while (n < most && page + n < run->pages && is_left(fill, run->page + page + n))
        n++;
    return n;
}

/* The task has given up a range: what was to come there never comes. */
static void drop_range(struct fill *fill, uint64_t start, uint64_t end)
{
    for (size_t i = first_run(fill, start); i < fill->count && fill->runs[i].vaddr < end; i++) {
        const struct fill_run *run = &fill->runs[i];
        uint64_t from = MAX(start, run->vaddr), to = MIN(end, run->vaddr + run->pages * PAGE_BYTES);
        placed(fill, run->page + (from - run->vaddr) / PAGE_BYTES, (to - from) / PAGE_BYTES);
    }
}

/* Makes an address the beginning of a run, if it lies within one. */
static int split_at(struct fill *fill, uint64_t vaddr)
{
    size_t i = first_run(fill, vaddr);
    if (i == fill->count || fill->runs[i].vaddr >= vaddr)
        return 0;
    uint64_t pages = (vaddr - fill->runs[i].vaddr) / PAGE_BYTES;
    struct fill_run rest = {
        .vaddr = vaddr, .pages = fill->runs[i].pages - pages, .page = fill->runs[i].page + pages};
    int r = add_run(fill, &rest);
    if (r < 0)
        return r;
    fill->runs[i].pages = pages;
    qsort(fill->runs, fill->count, sizeof(*fill->runs), compare_runs);
    return 0;
}

int fill_move(struct fill *fill, uint64_t from, uint64_t to, uint64_t length)
{
    int r = split_at(fill, from);
    if (r == 0)
        r = split_at(fill, from + length);
    if (r < 0)
        return r;
    for (size_t i = first_run(fill, from); i < fill->count && fill->runs[i].vaddr < from + length;
         i++) {
        if (fill->runs[i].vaddr >= from)
            fill->runs[i].vaddr += to - from;
    }
    qsort(fill->runs, fill->count, sizeof(*fill->runs), compare_runs);
    fill->at_run = 0;
    fill->at_page = 0;
    return 0;
}

/* ---- placing ---- */

/*
 * Places pages of a run, of which all are left.  0 when it has placed at least one or knows why
 * not, -EAGAIN when the task is changing its memory just now: events come.
 */
static int place(struct fill *fill, const struct fill_run *run, uint64_t page, uint64_t pages)
{
    uint64_t number = run->page + page;
    for (;;) {
        struct uffdio_copy ask = {
            .dst = run->vaddr + page * PAGE_BYTES,
            .src = (uintptr_t)fill->source + number * PAGE_BYTES,
            .len = pages * PAGE_BYTES,
        };
        int r = ioctl(fill->uffd, UFFDIO_COPY, &ask) < 0 ? -errno : 0;
        if (ask.copy > 0) {
            placed(fill, number, (uint64_t)ask.copy / PAGE_BYTES);
            return 0;
        }
        switch (r) {
        case -ENOENT: /* it reaches into another area, or the area has gone */
        case -EINVAL:
            if (pages > 1) {
                pages /= 2;
                continue;
            }
            placed(fill, number, 1);
            return 0;
        case -EEXIST:
            placed(fill, number, 1);
            return 0;
        case -ESRCH:
            fill->over = true;
            return 0;
        case -EINTR:
            continue;
        default:
            return r;
        }
    }
}

static int wake(struct fill *fill, uint64_t start, uint64_t length)
{
    struct uffdio_range range = {.start = start, .len = length};
    return ioctl(fill->uffd, UFFDIO_WAKE, &range);
}

void fill_ask_again(struct fill *fill)
{
    /* All of its addresses: as many as the kernel takes for addresses. */
    enum { LOWEST = 64 << 10, BITS_MAX = 57, BITS_MIN = 38 };
    for (unsigned bits = BITS_MAX; bits >= BITS_MIN; bits--) {
        if (wake(fill, LOWEST, (1ull << bits) - 2 * LOWEST) == 0)
            return;
    }
}

/* A page that was never there, or that the task has dropped. */
static int place_zeros(struct fill *fill, uint64_t vaddr)
{
    struct uffdio_zeropage ask = {.range = {vaddr, PAGE_BYTES}};
    int r = ioctl(fill->uffd, UFFDIO_ZEROPAGE, &ask) < 0 ? -errno : 0;
    switch (r) {
    case -ESRCH:
        fill->over = true;
        return 0;
    case -EEXIST:
    case -ENOENT: /* it is there, or not ours (any more): the task finds out itself */
        wake(fill, vaddr, PAGE_BYTES);
        return 0;
    default:
        return r;
    }
}

static int answer_fault(struct fill *fill, uint64_t address)
{
    uint64_t vaddr = address & ~(uint64_t)(PAGE_BYTES - 1);
    size_t i = first_run(fill, vaddr);
    if (i < fill->count && fill->runs[i].vaddr <= vaddr) {
        uint64_t page = (vaddr - fill->runs[i].vaddr) / PAGE_BYTES;
        uint64_t pages = left_from(fill, &fill->runs[i], page, FAULT_PAGES);
        if (pages > 0) {
            int r = place(fill, &fill->runs[i], page, pages);
            wake(fill, vaddr, PAGE_BYTES); /* also when another thread's fault had brought it */
            return r;
        }
    }
    return place_zeros(fill, vaddr);
}

int fill_some(struct fill *fill, uint64_t pages)
{
    while (fill->at_run < fill->count && !fill->over) {
        const struct fill_run *run = &fill->runs[fill->at_run];
        if (fill->at_page >= run->pages) {
            fill->at_run++;
            fill->at_page = 0;
            continue;
        }
        uint64_t n = left_from(fill, run, fill->at_page, pages);
        if (n > 0)
            return place(fill, run, fill->at_page, n);
        fill->at_page++;
    }
    return 0;
}

/* ---- events ---- */

/* Nothing is lost with an answer that was not given: the thread asks again when it is woken. */
static int take_fault(struct fill *fill, uint64_t address)
{
    int r = answer_fault(fill, address);
    if (r != -EAGAIN && r != -ENOMEM)
        return r;
    wake(fill, address & ~(uint64_t)(PAGE_BYTES - 1), PAGE_BYTES);
    return r == -EAGAIN ? 0 : r;
}

int fill_event(struct fill *fill, struct fill_shared *shared, struct fill_change *ret)
{
    struct uffd_msg event;
    shared->unrecorded = true;
    ssize_t n = read(fill->uffd, &event, sizeof(event));
    if (n != sizeof(event)) {
        shared->unrecorded = false;
        return n < 0 && errno != EINTR ? -errno : -EAGAIN;
    }
    switch (event.event) {
    case UFFD_EVENT_PAGEFAULT:
        shared->unrecorded = false;
        return take_fault(fill, event.arg.pagefault.address);
    case UFFD_EVENT_FORK:
        *ret = (struct fill_change){.kind = FILL_FORKED, .uffd = (int)event.arg.fork.ufd};
        return 1;
    case UFFD_EVENT_REMAP:
        *ret = (struct fill_change){.kind = FILL_MOVED,
                                    .from = event.arg.remap.from,
                                    .to = event.arg.remap.to,
                                    .length = event.arg.remap.len,
                                    .uffd = -EBADF};
        return 1;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
        drop_range(fill, event.arg.remove.start, event.arg.remove.end);
        shared->unrecorded = false;
        return 0;
    default:
        return -EPROTO;
    }
}
