/* SPDX-License-Identifier: Apache-2.0 */
#include "store/shadow.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK_BYTES ((uint64_t)CHUNK_PAGES * PAGE_BYTES)
#define VADDR_END (1ull << 57) /* of user space with five-level page tables */

struct chunk {
    uint64_t vaddr;
    uint64_t placed[CHUNK_WORDS];  /* it has a place in the arena */
    uint64_t present[CHUNK_WORDS]; /* and its content is there */
    uint64_t zero[CHUNK_WORDS];    /* it is full of zeros; never present as well */
    uint64_t lazy[CHUNK_WORDS];
    uint64_t listed[CHUNK_WORDS];
    uint32_t where[CHUNK_PAGES]; /* page number in the arena, where placed */
    uint8_t round[CHUNK_PAGES];  /* where present */
};

struct shadow {
    struct arena *arena;
    struct chunk **chunks; /* ascending */
    size_t count, room;
    size_t last; /* where the latest look-up ended: look-ups mostly go upwards */
    uint64_t pages;
    uint8_t round; /* of what arrives now */
};

static bool bit_get(const uint64_t *bits, unsigned i)
{
    return bits[i / 64] >> (i % 64) & 1;
}

static void bit_set(uint64_t *bits, unsigned i, bool value)
{
    uint64_t mask = 1ull << (i % 64);
    bits[i / 64] = value ? bits[i / 64] | mask : bits[i / 64] & ~mask;
}

/* The first bit from |i| on that is set; CHUNK_PAGES: none is. */
static unsigned bit_next(const uint64_t *bits, unsigned i)
{
    while (i < CHUNK_PAGES) {
        uint64_t rest = bits[i / 64] >> (i % 64);
        if (rest)
            return i + (unsigned)__builtin_ctzll(rest);
        i = (i / 64 + 1) * 64;
    }
    return CHUNK_PAGES;
}

struct shadow *shadow_new(struct arena *arena)
{
    struct shadow *shadow = calloc(1, sizeof(*shadow));
    if (shadow)
        shadow->arena = arena;
    return shadow;
}

struct shadow *shadow_free(struct shadow *shadow)
{
    if (!shadow)
        return NULL;
    for (size_t i = 0; i < shadow->count; i++)
        free(shadow->chunks[i]);
    budget_refund(shadow->arena->budget, shadow->count * sizeof(struct chunk));
    free(shadow->chunks);
    free(shadow);
    return NULL;
}

/* Index of the first chunk that ends above vaddr. */
static size_t shadow_seek(const struct shadow *shadow, uint64_t vaddr)
{
    size_t low = 0, high = shadow->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (shadow->chunks[middle]->vaddr + CHUNK_BYTES > vaddr)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static struct chunk *shadow_insert(struct shadow *shadow, size_t at, uint64_t vaddr, int *ret_error)
{
    *ret_error = budget_charge(shadow->arena->budget, sizeof(struct chunk));
    if (*ret_error < 0)
        return NULL;
    if (shadow->count == shadow->room) {
        size_t room = MAX(16, 2 * shadow->room);
        struct chunk **grown = realloc(shadow->chunks, room * sizeof(struct chunk *));
        if (!grown)
            goto no_memory;
        shadow->chunks = grown;
        shadow->room = room;
    }
    struct chunk *chunk = calloc(1, sizeof(*chunk));
    if (!chunk)
        goto no_memory;
    chunk->vaddr = vaddr;
    memmove(&shadow->chunks[at + 1], &shadow->chunks[at],
            (shadow->count - at) * sizeof(struct chunk *));
    shadow->chunks[at] = chunk;
    shadow->count++;
    return chunk;

no_memory:
    budget_refund(shadow->arena->budget, sizeof(struct chunk));
    *ret_error = -ENOMEM;
    return NULL;
}

/* The chunk that covers vaddr, made if need be. */
static struct chunk *shadow_chunk(struct shadow *shadow, uint64_t vaddr, int *ret_error)
{
    uint64_t start = vaddr - vaddr % CHUNK_BYTES;
    if (shadow->last < shadow->count && shadow->chunks[shadow->last]->vaddr == start)
        return shadow->chunks[shadow->last];
    size_t at = shadow_seek(shadow, vaddr);
    shadow->last = at;
    if (at < shadow->count && shadow->chunks[at]->vaddr == start)
        return shadow->chunks[at];
    return shadow_insert(shadow, at, start, ret_error);
}

/* Appends the pages [first, end) of a chunk, which have no place, to the arena. */
static int chunk_append(struct shadow *shadow, struct chunk *chunk, unsigned first, unsigned end)
{
    uint64_t offset;
    int r = arena_append(shadow->arena, (uint64_t)(end - first) * PAGE_BYTES, &offset);
    if (r < 0)
        return r;
    if ((offset >> PAGE_SHIFT) + (end - first) > UINT32_MAX)
        return -EFBIG;
    for (unsigned i = first; i < end; i++) {
        chunk->where[i] = (uint32_t)(offset >> PAGE_SHIFT) + (i - first);
        bit_set(chunk->placed, i, true);
    }
    return 0;
}

static bool are_addresses(uint64_t vaddr, uint64_t pages)
{
    return vaddr % PAGE_BYTES == 0 && pages > 0 && vaddr < VADDR_END &&
           pages <= (VADDR_END - vaddr) / PAGE_BYTES;
}

static void chunk_arrive(struct shadow *shadow, struct chunk *chunk, unsigned i, unsigned flags)
{
    shadow->pages += !bit_get(chunk->present, i);
    bit_set(chunk->present, i, true);
    bit_set(chunk->zero, i, false);
    bit_set(chunk->lazy, i, flags & SHADOW_LAZY);
    if (flags & SHADOW_LISTED)
        bit_set(chunk->listed, i, true);
    chunk->round[i] = shadow->round;
}

int shadow_inherit(struct shadow *shadow, const struct shadow_run *run)
{
    uint64_t last = (run->offset >> PAGE_SHIFT) + run->pages - 1;
    if (!are_addresses(run->vaddr, run->pages) || run->offset % PAGE_BYTES || last > UINT32_MAX)
        return -EINVAL;
    for (uint64_t n = 0; n < run->pages; n++) {
        int r = 0;
        uint64_t vaddr = run->vaddr + n * PAGE_BYTES;
        struct chunk *chunk = shadow_chunk(shadow, vaddr, &r);
        if (!chunk)
            return r;
        unsigned i = (unsigned)(vaddr % CHUNK_BYTES >> PAGE_SHIFT);
        chunk_arrive(shadow, chunk, i, run->lazy ? SHADOW_LAZY : 0);
        chunk->where[i] = (uint32_t)((run->offset >> PAGE_SHIFT) + n);
    }
    return 0;
}

int shadow_place(struct shadow *shadow, uint64_t vaddr, uint64_t pages, unsigned flags,
                 struct shadow_run *ret)
{
    if (!are_addresses(vaddr, pages))
        return -EINVAL;
    int r = 0;
    struct chunk *chunk = shadow_chunk(shadow, vaddr, &r);
    if (!chunk)
        return r;

    unsigned first = (unsigned)(vaddr % CHUNK_BYTES >> PAGE_SHIFT);
    unsigned limit = (unsigned)MIN(first + pages, CHUNK_PAGES);
    bool known = bit_get(chunk->placed, first);
    unsigned end = first + 1;
    while (end < limit && bit_get(chunk->placed, end) == known &&
           (!known || chunk->where[end] == chunk->where[end - 1] + 1))
        end++;
    if (!known) {
        r = chunk_append(shadow, chunk, first, end);
        if (r < 0)
            return r;
    }
    for (unsigned i = first; i < end; i++)
        chunk_arrive(shadow, chunk, i, flags);
    *ret = (struct shadow_run){
        .vaddr = vaddr,
        .pages = end - first,
        .offset = (uint64_t)chunk->where[first] << PAGE_SHIFT,
        .lazy = flags & SHADOW_LAZY,
        .round = shadow->round,
    };
    return 0;
}

/* Calls each() for every page of a range. */
static int for_pages(struct shadow *shadow, uint64_t vaddr, uint64_t pages,
                     void (*each)(struct shadow *shadow, struct chunk *chunk, unsigned i))
{
    if (!are_addresses(vaddr, pages))
        return -EINVAL;
    while (pages > 0) {
        int r = 0;
        struct chunk *chunk = shadow_chunk(shadow, vaddr, &r);
        if (!chunk)
            return r;
        unsigned first = (unsigned)(vaddr % CHUNK_BYTES >> PAGE_SHIFT);
        unsigned end = (unsigned)MIN(first + pages, CHUNK_PAGES);
        for (unsigned i = first; i < end; i++)
            each(shadow, chunk, i);
        pages -= end - first;
        vaddr += (uint64_t)(end - first) * PAGE_BYTES;
    }
    return 0;
}

static void page_zero(struct shadow *shadow, struct chunk *chunk, unsigned i)
{
    shadow->pages -= bit_get(chunk->present, i);
    bit_set(chunk->present, i, false);
    bit_set(chunk->zero, i, true);
}

int shadow_zero(struct shadow *shadow, uint64_t vaddr, uint64_t pages)
{
    return for_pages(shadow, vaddr, pages, page_zero);
}

static void page_list(struct shadow *shadow, struct chunk *chunk, unsigned i)
{
    (void)shadow;
    bit_set(chunk->listed, i, true);
}

int shadow_list(struct shadow *shadow, uint64_t vaddr, uint64_t pages)
{
    return for_pages(shadow, vaddr, pages, page_list);
}

void shadow_end_round(struct shadow *shadow)
{
    shadow->round += shadow->round < UINT8_MAX;
}

uint64_t shadow_drop_unlisted(struct shadow *shadow)
{
    uint64_t missing = 0;
    for (size_t c = 0; c < shadow->count; c++) {
        struct chunk *chunk = shadow->chunks[c];
        for (unsigned w = 0; w < CHUNK_WORDS; w++) {
            uint64_t known = chunk->present[w] | chunk->zero[w];
            missing += (unsigned)__builtin_popcountll(chunk->listed[w] & ~known);
            shadow->pages -= (unsigned)__builtin_popcountll(chunk->present[w] & ~chunk->listed[w]);
            chunk->present[w] &= chunk->listed[w];
            chunk->zero[w] &= chunk->listed[w];
        }
    }
    return missing;
}

/* Lengthens a run into the pages of one chunk from page |first| on.  Whether it reached the end. */
static bool run_extend(struct shadow_run *run, const struct chunk *chunk, unsigned first)
{
    for (unsigned i = first; i < CHUNK_PAGES; i++) {
        uint64_t offset = (uint64_t)chunk->where[i] << PAGE_SHIFT;
        if (!bit_get(chunk->present, i) || bit_get(chunk->lazy, i) != run->lazy ||
            chunk->round[i] != run->round || offset != run->offset + run->pages * PAGE_BYTES)
            return false;
        run->pages++;
    }
    return true;
}

bool shadow_next_run(const struct shadow *shadow, uint64_t vaddr, struct shadow_run *ret)
{
    size_t at = shadow_seek(shadow, vaddr);
    unsigned first = 0;
    for (; at < shadow->count; at++, first = 0) {
        const struct chunk *chunk = shadow->chunks[at];
        if (chunk->vaddr < vaddr)
            first = (unsigned)((vaddr - chunk->vaddr + PAGE_BYTES - 1) >> PAGE_SHIFT);
        first = bit_next(chunk->present, first);
        if (first < CHUNK_PAGES)
            break;
    }
    if (at == shadow->count)
        return false;

    const struct chunk *chunk = shadow->chunks[at];
    struct shadow_run run = {
        .vaddr = chunk->vaddr + (uint64_t)first * PAGE_BYTES,
        .offset = (uint64_t)chunk->where[first] << PAGE_SHIFT,
        .lazy = bit_get(chunk->lazy, first),
        .round = chunk->round[first],
    };
    while (run_extend(&run, chunk, first) && ++at < shadow->count &&
           shadow->chunks[at]->vaddr == chunk->vaddr + CHUNK_BYTES) {
        chunk = shadow->chunks[at];
        first = 0;
    }
    *ret = run;
    return true;
}

bool shadow_next_zeros(const struct shadow *shadow, uint64_t vaddr, uint64_t *ret_vaddr,
                       uint64_t *ret_pages)
{
    for (size_t c = shadow_seek(shadow, vaddr); c < shadow->count; c++) {
        const struct chunk *chunk = shadow->chunks[c];
        unsigned first =
            vaddr > chunk->vaddr ? (unsigned)((vaddr - chunk->vaddr) >> PAGE_SHIFT) : 0;
        first = bit_next(chunk->zero, first);
        unsigned end = first;
        while (end < CHUNK_PAGES && bit_get(chunk->zero, end))
            end++;
        if (end == first)
            continue;
        *ret_vaddr = chunk->vaddr + (uint64_t)first * PAGE_BYTES;
        *ret_pages = end - first;
        return true;
    }
    return false;
}

int shadow_find(const struct shadow *shadow, uint64_t vaddr, uint64_t *ret_offset)
{
    size_t at = shadow_seek(shadow, vaddr);
    if (at == shadow->count || shadow->chunks[at]->vaddr > vaddr)
        return -ENODATA;
    const struct chunk *chunk = shadow->chunks[at];
    unsigned i = (unsigned)((vaddr - chunk->vaddr) >> PAGE_SHIFT);
    *ret_offset = (uint64_t)chunk->where[i] << PAGE_SHIFT;
    return bit_get(chunk->present, i) ? 1 : bit_get(chunk->zero, i) ? 0 : -ENODATA;
}

uint64_t shadow_pages(const struct shadow *shadow)
{
    return shadow->pages;
}

bool shadow_is_ascending(const struct shadow *shadow)
{
    struct shadow_run run;
    uint64_t offset = 0;
    for (uint64_t vaddr = 0; shadow_next_run(shadow, vaddr, &run);
         vaddr = run.vaddr + run.pages * PAGE_BYTES) {
        if (run.offset != offset)
            return false;
        offset += run.pages * PAGE_BYTES;
    }
    return offset == shadow->arena->filled;
}

enum { SORT_STEP = 8 << 20 };

/* Copies a range between two places of files, and frees it in the first. */
static int move_range(struct arena *from, uint64_t at, struct arena *to, uint64_t length)
{
    while (length > 0) {
        uint64_t step = MIN(length, SORT_STEP), offset;
        int r = arena_append(to, step, &offset);
        if (r < 0)
            return r;
        off_t in = (off_t)at, out = (off_t)offset;
        for (uint64_t left = step; left > 0;) {
            ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, left, 0);
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                return n < 0 ? -errno : -EIO;
            left -= (uint64_t)n;
        }
        if (fallocate(from->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
                      (off_t)step) < 0)
            return -errno;
        at += step;
        length -= step;
    }
    return 0;
}

/* The places of all pages in a file that holds them in ascending order. */
static void shadow_renumber(struct shadow *shadow)
{
    uint32_t next = 0;
    for (size_t c = 0; c < shadow->count; c++) {
        struct chunk *chunk = shadow->chunks[c];
        for (unsigned i = bit_next(chunk->present, 0); i < CHUNK_PAGES;
             i = bit_next(chunk->present, i + 1))
            chunk->where[i] = next++;
        memcpy(chunk->placed, chunk->present, sizeof(chunk->placed));
    }
}

int shadow_sort(struct shadow *shadow, int dirfd, const char *name)
{
    /* The new file is not charged: it grows as the old one shrinks. */
    struct budget free_of_charge = {.limit = UINT64_MAX};
    struct arena *old = shadow->arena, sorted;
    if (unlinkat(dirfd, name, 0) < 0)
        return -errno;
    int r = arena_create(&sorted, dirfd, name, &free_of_charge);
    if (r < 0)
        return r;
    struct shadow_run run;
    for (uint64_t vaddr = 0; r == 0 && shadow_next_run(shadow, vaddr, &run);
         vaddr = run.vaddr + run.pages * PAGE_BYTES)
        r = move_range(old, run.offset, &sorted, run.pages * PAGE_BYTES);
    if (r < 0) {
        arena_drop(&sorted);
        return r;
    }
    struct arena before = *old;
    *old = (struct arena){
        .budget = before.budget, .fd = sorted.fd, .filled = sorted.filled, .room = before.room};
    before.budget = &free_of_charge;
    arena_drop(&before);
    shadow_renumber(shadow);
    return 0;
}
