/* SPDX-License-Identifier: Apache-2.0 */
#include "task/page_table.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>

#include "base/pagemap_scan.h"

enum {
    REGIONS = 4096,
    ENTRIES = 4096,     /* in one reading */
    DIVIDE_PAGES = 512, /* compared at once */
};

/* An entry of the file, see Documentation/admin-guide/mm/pagemap.rst. */
#define ENTRY_FRAME ((1ull << 55) - 1)
#define ENTRY_DIRTY (1ull << 55) /* soft-dirty */
#define ENTRY_EXCLUSIVE (1ull << 56)
#define ENTRY_PROTECTED (1ull << 57)
#define ENTRY_GUARD (1ull << 58)
#define ENTRY_FILE (1ull << 61)
#define ENTRY_SWAPPED (1ull << 62)
#define ENTRY_PRESENT (1ull << 63)

/* ---- PAGEMAP_SCAN ---- */

/* Whether the kernel knows a category of pages. */
static bool knows(const struct page_table *table, uint64_t category)
{
    struct pagemap_scan ask = {
        .size = sizeof(ask),
        .end = PAGE_BYTES,
        .vec = (uintptr_t)table->regions,
        .vec_len = REGIONS,
        .anyof_mask = category,
        .return_mask = category,
    };
    return ioctl(table->fd, SCAN, &ask) >= 0;
}

static int add_region(struct page_runs *runs, const struct page_region *region,
                      const struct memory_area *area)
{
    return page_runs_add(runs, region->start, (region->end - region->start) / PAGE_BYTES,
                         area->anonymous);
}

/* written: NULL, or gets those that are. */
static int scan_area(struct page_table *table, const struct memory_area *area, uint64_t flags,
                     uint64_t wanted, struct page_runs *runs, struct page_runs *written)
{
    struct pagemap_scan ask = {
        .size = sizeof(ask),
        .flags = flags,
        .start = area->start,
        .end = area->end,
        .vec = (uintptr_t)table->regions,
        .vec_len = REGIONS,
        .inverted = table->never,
        .mask = table->never | wanted,
        .anyof_mask = PAGE_PRESENT | PAGE_SWAPPED,
        .return_mask = written ? PAGE_WRITTEN : PAGE_PRESENT,
    };
    while (ask.start < area->end) {
        int n = ioctl(table->fd, SCAN, &ask);
        if (n < 0)
            return errno == EINTR ? -EAGAIN : -errno;
        for (int i = 0; i < n; i++) {
            const struct page_region *region = &table->regions[i];
            int r = add_region(runs, region, area);
            if (r == 0 && written && region->categories & PAGE_WRITTEN)
                r = add_region(written, region, area);
            if (r < 0)
                return r;
        }
        /* The kernel (6.18) has its own room for 512 regions, and where it says that it has got to
         * is where that was full the last time, whatever it has told behind. */
        ask.start = n > 0 ? MAX(ask.walk_end, table->regions[n - 1].end) : ask.walk_end;
    }
    return 0;
}

int page_table_scan(struct page_table *table, const struct memory_area *area, uint64_t flags,
                    uint64_t wanted, struct page_runs *runs)
{
    return scan_area(table, area, flags, wanted, runs, NULL);
}

int page_table_scan_tracked(struct page_table *table, const struct memory_area *area,
                            struct page_runs *runs, struct page_runs *written)
{
    return scan_area(table, area, SCAN_CHECK_TRACKED, 0, runs, written);
}

/* ---- reading ---- */

/* Reads the entries of the pages from an address on.  How many there are, or a negative errno. */
static ssize_t read_entries(int fd, uint64_t vaddr, uint64_t pages, uint64_t *entries)
{
    ssize_t n = pread(fd, entries, pages * sizeof(*entries),
                      (off_t)(vaddr / PAGE_BYTES * sizeof(*entries)));
    return n < 0 ? -errno : n / (ssize_t)sizeof(*entries);
}

/* The entry of a page of this process. */
static uint64_t own_entry(const volatile uint8_t *page)
{
    uint64_t entry;
    _cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    return read_entries(fd, (uintptr_t)page, 1, &entry) == 1 ? entry : 0;
}

/*
 * Two pages that were only read have the same frame, if the kernel has such a page at all (one that
 * is booted with pvm_no_zero_page has not).  Needs CAP_SYS_ADMIN; without, pages of zeros are taken
 * for pages like others.
 */
static uint64_t find_zero_frame(void)
{
    enum { READ = 2 };
    uint64_t entries[READ];
    uint8_t *pages = mmap(NULL, READ * PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return 0;
    for (size_t i = 0; i < READ; i++) {
        volatile uint8_t *page = pages + i * PAGE_BYTES;
        entries[i] = *page == 0 ? own_entry(page) & (ENTRY_PRESENT | ENTRY_FRAME) : 0;
    }
    munmap(pages, READ * PAGE_BYTES);
    return entries[0] & ENTRY_PRESENT && entries[0] == entries[1] ? entries[0] & ENTRY_FRAME : 0;
}

static bool entry_exists(const struct page_table *table, uint64_t entry)
{
    if (!(entry & (ENTRY_PRESENT | ENTRY_SWAPPED)) || entry & (ENTRY_FILE | ENTRY_GUARD))
        return false;
    bool zero = entry & ENTRY_PRESENT && table->zero_frame != 0 &&
                (entry & ENTRY_FRAME) == table->zero_frame;
    return !zero;
}

static int prepare_to_read(struct page_table *table)
{
    if (table->entries)
        return 0;
    table->entries = calloc(ENTRIES, sizeof(*table->entries));
    table->zero_frame = find_zero_frame();
    return table->entries ? 0 : -ENOMEM;
}

/* Adds the pages that exist and whose entries have all these bits. */
static int read_area(struct page_table *table, const struct memory_area *area, uint64_t wanted,
                     struct page_runs *runs)
{
    if (prepare_to_read(table) < 0)
        return -ENOMEM;
    for (uint64_t at = area->start; at < area->end;) {
        uint64_t count = MIN((area->end - at) / PAGE_BYTES, ENTRIES);
        ssize_t n = read_entries(table->fd, at, count, table->entries);
        if (n <= 0)
            return n == -EINTR ? -EAGAIN : (int)n; /* 0: this memory has gone */
        for (ssize_t i = 0; i < n; i++, at += PAGE_BYTES) {
            if (entry_exists(table, table->entries[i]) && (table->entries[i] & wanted) == wanted &&
                page_runs_add(runs, at, 1, area->anonymous) < 0)
                return -ENOMEM;
        }
    }
    return 0;
}

/* ---- either ---- */

int page_table_open(struct page_table *table, pid_t pid)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
    *table = PAGE_TABLE_CLOSED;
    table->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (table->fd < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    table->regions = calloc(REGIONS, sizeof(*table->regions));
    table->scans = table->regions && knows(table, PAGE_PRESENT);
    table->never = PAGE_FILE | PAGE_ZERO;
    if (table->scans && knows(table, PAGE_GUARD))
        table->never |= PAGE_GUARD;
    if (table->regions)
        return 0;
    page_table_close(table);
    return -ENOMEM;
}

void page_table_close(struct page_table *table)
{
    close_fd(table->fd);
    free(table->regions);
    free(table->entries);
    *table = PAGE_TABLE_CLOSED;
}

int page_table_list(struct page_table *table, const struct memory_area *area,
                    struct page_runs *runs)
{
    return table->scans ? page_table_scan(table, area, 0, 0, runs)
                        : read_area(table, area, 0, runs);
}

/* ---- what was written ---- */

int page_table_list_dirty(struct page_table *table, const struct memory_area *area,
                          struct page_runs *runs)
{
    return read_area(table, area, ENTRY_DIRTY, runs);
}

int page_table_clear(pid_t pid)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    return write(fd, "4", 1) < 0 ? -errno : 0;
}

bool page_table_has_dirty(void)
{
    volatile uint8_t *page =
        mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return false;
    *page = 1;
    uint64_t entry = own_entry(page);
    munmap((void *)page, PAGE_BYTES);
    return entry & ENTRY_DIRTY;
}

/* ---- memory that two processes share ---- */

static bool is_same(uint64_t entry, uint64_t other)
{
    return entry & other & ENTRY_PRESENT && other & ENTRY_PROTECTED && entry & ENTRY_FRAME &&
           (entry & ENTRY_FRAME) == (other & ENTRY_FRAME);
}

/*
 * Whether all that is mapped there is tracked.  What no longer is may have the bits of protected
 * pages all the same, and be written to (task/tracker.c, forget_protection()).
 */
static bool all_is_tracked(const struct page_table *table, uint64_t start, uint64_t end)
{
    struct page_region none;
    struct pagemap_scan ask = {
        .size = sizeof(ask),
        .flags = SCAN_CHECK_TRACKED,
        .start = start,
        .end = end,
        .vec = (uintptr_t)&none,
        .vec_len = 1,
        .mask = PAGE_PRESENT | PAGE_SWAPPED, /* no page is both */
    };
    return ioctl(table->fd, SCAN, &ask) == 0;
}

int page_table_divide(const struct page_table *table, const struct page_table *other,
                      const struct page_runs *runs, struct page_runs *same, struct page_runs *rest)
{
    uint64_t mine[DIVIDE_PAGES], theirs[DIVIDE_PAGES];
    for (size_t i = 0; i < runs->count; i++) {
        const struct page_run *run = &runs->list[i];
        for (uint64_t done = 0; done < run->pages;) {
            uint64_t vaddr = run->start + done * PAGE_BYTES;
            uint64_t pages = MIN(run->pages - done, DIVIDE_PAGES);
            /* Asked first: who writes to shared memory later has another frame. */
            bool tracked = all_is_tracked(other, vaddr, vaddr + pages * PAGE_BYTES);
            ssize_t n = read_entries(table->fd, vaddr, pages, mine);
            ssize_t m = n > 0 ? read_entries(other->fd, vaddr, (uint64_t)n, theirs) : n;
            if (n <= 0 || m != n)
                return n < 0 ? (int)n : m < 0 ? (int)m : -EIO;
            for (ssize_t k = 0; k < n; k++) {
                struct page_runs *to = tracked && is_same(mine[k], theirs[k]) ? same : rest;
                if (page_runs_add(to, vaddr + (uint64_t)k * PAGE_BYTES, 1, run->anonymous) < 0)
                    return -ENOMEM;
            }
            done += (uint64_t)n;
        }
    }
    return 0;
}

bool pages_are_shared(pid_t pid, const struct page_runs *runs)
{
    enum { SAMPLES = 64 };
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool shared = false;
    for (size_t i = 0; i < SAMPLES && runs->count > 0 && !shared; i++) {
        const struct page_run *run = &runs->list[i * runs->count / SAMPLES];
        uint64_t vaddr = run->start + run->pages * i / SAMPLES * PAGE_BYTES, entry;
        if (read_entries(fd, vaddr, 1, &entry) != 1)
            return false;
        shared = entry & ENTRY_PRESENT && !(entry & ENTRY_EXCLUSIVE);
    }
    return shared;
}
