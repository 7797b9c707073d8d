/* SPDX-License-Identifier: Apache-2.0 */
#include "task/page_hashes.h"

#include <string.h>
#include <sys/random.h>

#include "base/digest.h"

enum { CHUNK_PAGES = 512 };

struct hash_chunk {
    uint64_t start;
    uint64_t *hashes;                /* CHUNK_PAGES of them; see hash_of() */
    uint64_t told[CHUNK_PAGES / 64]; /* a bit each: see page_hashes_tell() */
    bool used;                       /* since page_hashes_begin() */
};

void page_hashes_begin(struct page_hashes *hashes)
{
    size_t kept = 0;
    for (size_t i = 0; i < hashes->count; i++) {
        struct hash_chunk *chunk = &hashes->chunks[i];
        if (!chunk->used) {
            free(chunk->hashes);
            continue;
        }
        chunk->used = false;
        hashes->chunks[kept++] = *chunk;
    }
    hashes->count = kept;
    hashes->last = 0;
    while (hashes->seed == 0 && getrandom(&hashes->seed, sizeof(hashes->seed), 0) < 0)
        hashes->seed = now_usec();
}

/* Where the chunk is, or belongs. */
static size_t find_place(const struct page_hashes *hashes, uint64_t start)
{
    size_t low = 0, high = hashes->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (hashes->chunks[middle].start < start)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool has_chunk(const struct page_hashes *hashes, size_t at, uint64_t start)
{
    return at < hashes->count && hashes->chunks[at].start == start;
}

static struct hash_chunk *add_chunk(struct page_hashes *hashes, size_t at, uint64_t start)
{
    if (hashes->count == hashes->room) {
        size_t room = MAX(64, 2 * hashes->room);
        struct hash_chunk *grown = realloc(hashes->chunks, room * sizeof(*grown));
        if (!grown)
            return NULL;
        hashes->chunks = grown;
        hashes->room = room;
    }
    struct hash_chunk chunk = {.start = start, .hashes = calloc(CHUNK_PAGES, sizeof(uint64_t))};
    if (!chunk.hashes)
        return NULL;
    memmove(hashes->chunks + at + 1, hashes->chunks + at,
            (hashes->count - at) * sizeof(*hashes->chunks));
    hashes->chunks[at] = chunk;
    hashes->count++;
    return &hashes->chunks[at];
}

static struct hash_chunk *get_chunk(struct page_hashes *hashes, uint64_t start)
{
    if (!has_chunk(hashes, hashes->last, start))
        hashes->last = find_place(hashes, start);
    if (has_chunk(hashes, hashes->last, start))
        return &hashes->chunks[hashes->last];
    return add_chunk(hashes, hashes->last, start);
}

/* 0 is for those that were not sent. */
static uint64_t hash_of(const struct page_hashes *hashes, bool anonymous, const void *page)
{
    uint64_t hash = XXH3_64bits_withSeed(page, PAGE_BYTES, hashes->seed + anonymous);
    return hash + (hash == 0);
}

bool page_hashes_same(const struct page_hashes *hashes, uint64_t vaddr, bool anonymous,
                      const void *page)
{
    uint64_t number = vaddr / PAGE_BYTES % CHUNK_PAGES, start = vaddr - number * PAGE_BYTES;
    size_t at = find_place(hashes, start);
    return has_chunk(hashes, at, start) &&
           hashes->chunks[at].hashes[number] == hash_of(hashes, anonymous, page);
}

void page_hashes_tell(struct page_hashes *hashes, uint64_t vaddr)
{
    uint64_t number = vaddr / PAGE_BYTES % CHUNK_PAGES, start = vaddr - number * PAGE_BYTES;
    size_t at = find_place(hashes, start);
    if (has_chunk(hashes, at, start))
        hashes->chunks[at].told[number / 64] |= 1ull << number % 64;
}

void page_hashes_keep_told(struct page_hashes *hashes)
{
    for (size_t i = 0; i < hashes->count; i++) {
        struct hash_chunk *chunk = &hashes->chunks[i];
        for (size_t page = 0; page < CHUNK_PAGES; page++) {
            if (!(chunk->told[page / 64] >> page % 64 & 1))
                chunk->hashes[page] = 0;
        }
        memset(chunk->told, 0, sizeof(chunk->told));
    }
}

bool page_hashes_note(struct page_hashes *hashes, uint64_t vaddr, bool anonymous, const void *page)
{
    uint64_t number = vaddr / PAGE_BYTES % CHUNK_PAGES;
    struct hash_chunk *chunk = get_chunk(hashes, vaddr - number * PAGE_BYTES);
    if (!chunk)
        return true;
    uint64_t hash = hash_of(hashes, anonymous, page);
    bool differs = chunk->hashes[number] != hash;
    chunk->hashes[number] = hash;
    chunk->used = true;
    return differs;
}

void page_hashes_free(struct page_hashes *hashes)
{
    for (size_t i = 0; i < hashes->count; i++)
        free(hashes->chunks[i].hashes);
    free(hashes->chunks);
    *hashes = (struct page_hashes){0};
}
