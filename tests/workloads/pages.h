/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that knows its own content.  A page's content follows from (seed, region, page index, page
 * version); the versions are kept apart from the pages, and their sum apart from both, so that a
 * page that stayed old, came twice, came to another address or was lost is seen.
 */
#pragma once

#include "workload.h"

#define PAGE 4096
#define PAGE_WORDS (PAGE / 8)

struct region {
    const char *name;
    unsigned char *base;
    size_t pages;
    bool writable;
    bool zero_born; /* version 0 is a page of zeroes; otherwise it has content too */
    uint64_t seed;
    uint32_t *version; /* per page */
    uint64_t written;  /* sum of the versions */
};

static inline void region_init(struct region *r, const char *name, void *base, size_t pages)
{
    uint64_t seed = 0x60d317;

    if (base == MAP_FAILED)
        die(name);
    for (const char *c = name; *c; c++)
        seed = mix(seed ^ (uint64_t)*c);
    *r = (struct region){.name = name,
                         .base = base,
                         .pages = pages,
                         .writable = true,
                         .zero_born = true,
                         .seed = seed};
    r->version = mmap(NULL, pages * sizeof(*r->version), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (r->version == MAP_FAILED)
        die(name);
}

static inline uint64_t page_key(const struct region *r, size_t page)
{
    return mix(r->seed ^ mix(page ^ (uint64_t)r->version[page] << 40));
}

static inline void page_fill(uint64_t *words, uint64_t key)
{
    for (size_t i = 0; i < PAGE_WORDS; i++)
        words[i] = (key += 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;
}

static inline void region_write(struct region *r, size_t page)
{
    r->version[page]++;
    r->written++;
    page_fill((uint64_t *)(r->base + page * PAGE), page_key(r, page));
}

static inline void region_write_each(struct region *r, size_t first, size_t step)
{
    for (size_t page = first; page < r->pages; page += step)
        region_write(r, page);
}

static inline bool page_holds(const struct region *r, size_t page)
{
    const uint64_t *words = (const uint64_t *)(r->base + page * PAGE);
    uint64_t key = page_key(r, page), wrong = 0;
    bool zero = r->zero_born && r->version[page] == 0;

    for (size_t i = 0; i < PAGE_WORDS; i++) {
        uint64_t want = (key += 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;

        wrong |= words[i] ^ (zero ? 0 : want);
    }
    return wrong == 0;
}

/* Whether there is memory behind the page; to read it would put some there. */
static inline bool page_exists(const struct region *r, size_t page, int pagemap)
{
    uint64_t entry;
    uint64_t at = ((uintptr_t)r->base / PAGE + page) * sizeof(entry);

    if (pread(pagemap, &entry, sizeof(entry), (off_t)at) != sizeof(entry))
        die("/proc/self/pagemap");
    return entry >> 62; /* present or swapped */
}

/* Number of pages that are not what they must be; *ret_first is the first of them. */
static inline size_t region_verify(const struct region *r, size_t *ret_first)
{
    uint64_t written = 0;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    size_t bad = 0;

    for (size_t page = 0; page < r->pages; page++) {
        written += r->version[page];
        if (r->zero_born && r->version[page] == 0 && !page_exists(r, page, pagemap))
            continue; /* never touched, and a check must leave it so */
        if (page_holds(r, page))
            continue;
        if (bad++ == 0)
            *ret_first = page;
    }
    close(pagemap);
    if (written != r->written && bad++ == 0)
        *ret_first = r->pages;
    return bad;
}

/* Checks all regions and writes "ok ROUND" or "bad ROUND ..." to the file. */
static inline void regions_report(const struct region *r, size_t n, const char *out, unsigned round)
{
    for (size_t i = 0; i < n; i++) {
        size_t first = 0, bad = region_verify(&r[i], &first);

        if (bad == 0)
            continue;
        report(out, "bad %u %s: %zu of %zu pages, first %zu version %u", round, r[i].name, bad,
               r[i].pages, first, first < r[i].pages ? r[i].version[first] : 0);
        return;
    }
    report(out, "ok %u", round);
}
