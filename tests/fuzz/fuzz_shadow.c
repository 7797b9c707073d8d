/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte of mode, then what happens to a space, four bytes each: what, page number (two),
 * number of pages.  Everything is done to a shadow, in whose arena a page is a number, and to a
 * plain table beside it; in the end both have to tell the same.
 *   bit 0 of mode   a small budget
 *   bit 1           what is not listed is dropped in the end
 *   bit 2           and the arena is sorted
 * Without the first, the arena has all its room from the beginning, in a file that stays mapped
 * from one input to the next: most of them need no memory from the kernel.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "store/shadow.h"
#include "unit/peer.h"

enum {
    MODE_SMALL = 1,
    MODE_LISTED = 2,
    MODE_SORTED = 4,
    CHUNKS = 4,
    PAGES = CHUNKS * CHUNK_PAGES,
    WORD_BITS = 64,
    OPERATIONS_MAX = 64,
    COUNT_MAX = 24,
    COUNT_USUAL = 6,
};

enum operation { PLACE, PLACE_LAZY, PLACE_LISTED, ZERO, LIST, ROUND, OPERATIONS };

#define CHUNK_BYTES ((uint64_t)CHUNK_PAGES * PAGE_BYTES)

/* Two beside one another, one by itself, and the last that there is. */
static const uint64_t chunk_vaddr[CHUNKS] = {0, CHUNK_BYTES, 77 * CHUNK_BYTES,
                                             (1ull << 57) - CHUNK_BYTES};

struct page {
    bool present, zero, lazy, listed;
    uint8_t round;
    uint32_t content;
};

struct world {
    struct budget budget;
    struct arena arena;
    struct arena_window window;
    struct shadow *shadow;
    struct page pages[PAGES];
    uint64_t named[PAGES / WORD_BITS]; /* the others are as they were in the beginning */
    uint8_t round;
};

/* Never the same again: the file may hold what an earlier input has left. */
static uint32_t next_content;

static uint64_t vaddr_of(unsigned page)
{
    return chunk_vaddr[page / CHUNK_PAGES] + (uint64_t)(page % CHUNK_PAGES) * PAGE_BYTES;
}

/* How many of |count| pages, from a page on, lie together in the table. */
static unsigned together(unsigned page, unsigned count)
{
    unsigned end =
        page / CHUNK_PAGES == 0 ? 2 * CHUNK_PAGES : (page / CHUNK_PAGES + 1) * CHUNK_PAGES;
    return MIN(count, end - page);
}

static void name(struct world *world, unsigned page, unsigned count)
{
    for (unsigned i = page; i < page + count; i++)
        world->named[i / WORD_BITS] |= 1ull << (i % WORD_BITS);
}

/* The first page from |page| on that has been named; PAGES: none. */
static unsigned next_named(const struct world *world, unsigned page)
{
    while (page < PAGES) {
        uint64_t rest = world->named[page / WORD_BITS] >> (page % WORD_BITS);
        if (rest)
            return page + (unsigned)__builtin_ctzll(rest);
        page = (page / WORD_BITS + 1) * WORD_BITS;
    }
    return PAGES;
}

/* ---- doing ---- */

static void put(struct world *world, const struct shadow_run *run, unsigned page, bool listed)
{
    for (unsigned i = 0; i < run->pages; i++) {
        void *place;
        size_t length = PAGE_BYTES;
        must(arena_at(&world->arena, &world->window, run->offset + i * PAGE_BYTES, &place,
                      &length) == 0);
        struct page *is = &world->pages[page + i];
        *is = (struct page){.present = true,
                            .lazy = run->lazy,
                            .listed = is->listed || listed,
                            .round = world->round,
                            .content = ++next_content};
        memcpy(place, &is->content, sizeof(is->content));
    }
}

static void place(struct world *world, unsigned page, unsigned count, unsigned flags)
{
    while (count > 0) {
        struct shadow_run run;
        int r = shadow_place(world->shadow, vaddr_of(page), count, flags, &run);
        if (r == -EDQUOT)
            return;
        must(r == 0 && run.vaddr == vaddr_of(page) && run.pages > 0 && run.pages <= count);
        must(run.lazy == ((flags & SHADOW_LAZY) != 0) && run.round == world->round);
        put(world, &run, page, flags & SHADOW_LISTED);
        page += (unsigned)run.pages;
        count -= (unsigned)run.pages;
    }
}

/* Page by page, so that it is known what has been taken when the budget ends. */
static void mark(struct world *world, unsigned page, unsigned count, enum operation what)
{
    for (unsigned i = page; i < page + count; i++) {
        int r = what == ZERO ? shadow_zero(world->shadow, vaddr_of(i), 1)
                             : shadow_list(world->shadow, vaddr_of(i), 1);
        if (r == -EDQUOT)
            return;
        must(r == 0);
        if (what == LIST)
            world->pages[i].listed = true;
        else
            world->pages[i] = (struct page){.zero = true, .listed = world->pages[i].listed};
    }
}

static void mark_at_once(struct world *world, unsigned page, unsigned count, enum operation what)
{
    if (world->budget.limit == UINT64_MAX) {
        int r = what == ZERO ? shadow_zero(world->shadow, vaddr_of(page), count)
                             : shadow_list(world->shadow, vaddr_of(page), count);
        must(r == 0);
    }
    mark(world, page, count, what); /* again: nothing changes */
}

/* Most are short: each page has its price in time. */
static unsigned count_of(uint8_t byte)
{
    return 1u + (byte < COUNT_MAX ? byte : byte % COUNT_USUAL);
}

static void operate(struct world *world, const uint8_t *bytes)
{
    unsigned page = (unsigned)(bytes[1] | bytes[2] << 8) % PAGES;
    unsigned count = together(page, count_of(bytes[3]));
    name(world, page, count);
    switch ((enum operation)(bytes[0] % OPERATIONS)) {
    case PLACE:
        place(world, page, count, 0);
        break;
    case PLACE_LAZY:
        place(world, page, count, SHADOW_LAZY);
        break;
    case PLACE_LISTED:
        place(world, page, count, SHADOW_LISTED);
        break;
    case ZERO:
    case LIST:
        mark_at_once(world, page, count, (enum operation)(bytes[0] % OPERATIONS));
        break;
    default:
        shadow_end_round(world->shadow);
        world->round += world->round < UINT8_MAX;
    }
}

/* ---- looking ---- */

static uint32_t content_at(struct world *world, uint64_t offset)
{
    uint32_t content;
    void *place;
    size_t length = PAGE_BYTES;
    must(arena_at(&world->arena, &world->window, offset, &place, &length) == 0);
    memcpy(&content, place, sizeof(content));
    return content;
}

/* Of the pages one by one. */
static void check_pages(struct world *world)
{
    uint64_t offset;
    for (unsigned i = next_named(world, 0); i < PAGES; i = next_named(world, i + 1)) {
        const struct page *page = &world->pages[i];
        int r = shadow_find(world->shadow, vaddr_of(i), &offset);
        must(r == (page->present ? 1 : page->zero ? 0 : -ENODATA));
        must(r != 1 || content_at(world, offset) == page->content);
    }
}

static unsigned page_of(uint64_t vaddr)
{
    for (unsigned c = 0; c < CHUNKS; c++) {
        if (vaddr >= chunk_vaddr[c] && vaddr - chunk_vaddr[c] < CHUNK_BYTES)
            return c * CHUNK_PAGES + (unsigned)((vaddr - chunk_vaddr[c]) / PAGE_BYTES);
    }
    must(!"an address that was never named");
    return 0;
}

/* Where |pages| pages from an address on are in the table, at or behind |least|. */
static unsigned first_of(uint64_t vaddr, uint64_t pages, unsigned least)
{
    must(pages > 0 && pages <= PAGES);
    unsigned first = page_of(vaddr);
    must(first >= least && page_of(vaddr + (pages - 1) * PAGE_BYTES) == first + pages - 1);
    return first;
}

static void check_run(struct world *world, const struct shadow_run *run, unsigned first)
{
    for (unsigned i = 0; i < run->pages; i++) {
        const struct page *page = &world->pages[first + i];
        must(page->present && page->lazy == run->lazy && page->round == run->round);
        must(content_at(world, run->offset + i * PAGE_BYTES) == page->content);
    }
}

/* All runs together are the pages that are present, each once and in order, and those of zeros the
 * ones that are full of zeros. */
static void check_runs(struct world *world)
{
    struct shadow_run run;
    uint64_t present = 0, zeros = 0, vaddr = 0, pages;
    for (unsigned next = 0; shadow_next_run(world->shadow, vaddr, &run);
         vaddr = run.vaddr + run.pages * PAGE_BYTES) {
        unsigned first = first_of(run.vaddr, run.pages, next);
        check_run(world, &run, first);
        next = first + (unsigned)run.pages;
        present += run.pages;
    }
    vaddr = 0;
    for (unsigned next = 0; shadow_next_zeros(world->shadow, vaddr, &vaddr, &pages);
         vaddr += pages * PAGE_BYTES) {
        unsigned first = first_of(vaddr, pages, next);
        next = first + (unsigned)pages;
        for (unsigned i = first; i < next; i++)
            must(world->pages[i].zero);
        zeros += pages;
    }
    for (unsigned i = next_named(world, 0); i < PAGES; i = next_named(world, i + 1)) {
        present -= world->pages[i].present;
        zeros -= world->pages[i].zero;
    }
    must(present == 0 && zeros == 0);
}

static void check_count(const struct world *world)
{
    uint64_t present = 0;
    for (unsigned i = next_named(world, 0); i < PAGES; i = next_named(world, i + 1))
        present += world->pages[i].present;
    must(shadow_pages(world->shadow) == present);
}

static void check(struct world *world)
{
    check_pages(world);
    check_runs(world);
    check_count(world);
}

static void drop_unlisted(struct world *world)
{
    uint64_t missing = 0;
    for (unsigned i = next_named(world, 0); i < PAGES; i = next_named(world, i + 1)) {
        struct page *page = &world->pages[i];
        missing += page->listed && !page->present && !page->zero;
        page->present &= page->listed;
        page->zero &= page->listed;
    }
    must(shadow_drop_unlisted(world->shadow) == missing);
}

/* ---- one space ---- */

static char *directory;
static int dirfd_of, roomy = -1;
static struct arena_window roomy_window;

static void remove_directory(void)
{
    directory_remove(directory);
}

static void make_directory(void)
{
    directory = directory_make();
    atexit(remove_directory);
    dirfd_of = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(dirfd_of >= 0);
    roomy = openat(dirfd_of, "roomy", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(roomy >= 0 && ftruncate(roomy, (off_t)PAGES * PAGE_BYTES) == 0);
}

static void begin_roomy(struct world *world)
{
    uint64_t room = (uint64_t)PAGES * PAGE_BYTES;
    world->budget.limit = UINT64_MAX;
    must(budget_charge(&world->budget, room) == 0);
    world->arena = (struct arena){.budget = &world->budget, .fd = dup(roomy), .room = room};
    must(world->arena.fd >= 0);
    world->window = roomy_window;
}

static void begin(struct world *world, unsigned mode)
{
    if (!directory)
        make_directory();
    if (mode & MODE_SMALL) {
        world->budget.limit = KIB(100);
        must(arena_create(&world->arena, dirfd_of, "pages", &world->budget) == 0);
    } else {
        begin_roomy(world);
    }
    world->shadow = shadow_new(&world->arena);
    must(world->shadow);
}

/* The window goes, with the arena that it shows, unless it is one into the roomy file. */
static void close_window(struct world *world, unsigned mode)
{
    if (mode & MODE_SMALL)
        arena_window_close(&world->window);
    else
        roomy_window = world->window;
    world->window = (struct arena_window){0};
}

static void sort(struct world *world, unsigned mode)
{
    close_window(world, mode);
    if (!(mode & MODE_SMALL))
        must(mknodat(dirfd_of, "pages", S_IFREG | 0600, 0) == 0);
    must(shadow_sort(world->shadow, dirfd_of, "pages") == 0);
    must(shadow_is_ascending(world->shadow));
    check(world);
    arena_window_close(&world->window);
}

static void end(struct world *world, unsigned mode)
{
    if (!(mode & MODE_SORTED))
        close_window(world, mode);
    shadow_free(world->shadow);
    arena_drop(&world->arena);
    must(world->budget.used == 0);
    if (mode & (MODE_SMALL | MODE_SORTED))
        must(unlinkat(dirfd_of, "pages", 0) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct world world;
    if (size == 0)
        return 0;
    unsigned mode = data[0];
    world = (struct world){0};
    begin(&world, mode);
    for (size_t at = 1; at + 4 <= MIN(size, (size_t)4 * OPERATIONS_MAX); at += 4)
        operate(&world, data + at);
    must(world.budget.used <= world.budget.limit);
    if (mode & MODE_LISTED)
        drop_unlisted(&world);
    check(&world);
    if (mode & MODE_SORTED)
        sort(&world, mode);
    end(&world, mode);
    return 0;
}
