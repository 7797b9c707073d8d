/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of churn share: the face that it shows, its dice, and its slices of memory.
 *
 *   slice  │ pages of the address space that one thread does everything to
 *   page[] │ one record each: what it is, and what every byte of it must be
 *   sum    │ over page[], kept apart from it, so that a lost record is seen like a lost page
 */
#pragma once

#include "pages.h"

enum { SLOTS = 32 };

/* The file: in no dump, so it also shows a process that went back in time, or runs twice. */
struct face {
    char state[16];   /* "starting", "running", "ended", "corrupt" */
    uint64_t counter; /* of all steps; up to pid as counter.c has it */
    uint64_t beat;
    uint64_t longest_gap;
    uint64_t pid;
    uint64_t seed;
    uint64_t wanted;   /* raised by whoever wants everything checked; */
    uint64_t answered; /* this is what it was when all had been checked */
    uint64_t forks, execs, written;
    uint64_t told;    /* pid of the process that found something wrong */
    uint64_t refused; /* times that mremap() said EFAULT: an area was no longer one mapping */
    char text[512];
    struct slot {
        uint64_t steps;
        uint64_t answered;
    } slot[SLOTS];
};

extern struct face *face;

/* Tells the first thing that is wrong, and ends the process. */
__attribute__((format(printf, 1, 2))) _Noreturn void wrong(const char *format, ...);

struct dice {
    uint64_t state;
};

static inline uint64_t roll(struct dice *d, uint64_t sides)
{
    d->state += 0x9e3779b97f4a7c15;
    return mix(d->state) % sides;
}

/* Whether the words are those of page_fill(), or zeroes for key 0; word number but is not looked
 * at. */
static inline bool page_is(const uint64_t *words, uint64_t key, size_t but)
{
    uint64_t differ = 0;

    for (size_t i = 0; i < PAGE_WORDS; i++) {
        uint64_t want = key ? (key + (i + 1) * 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9 : 0;

        differ |= i == but ? 0 : words[i] ^ want;
    }
    return differ == 0;
}

enum kind { HOLE, ANON, SHARED, FILE_PRIVATE, MEMFD_PRIVATE, KINDS };

struct page {
    uint64_t key;    /* what fills it; 0: zeroes */
    uint64_t was;    /* what filled it before: a stale page is told from a damaged one */
    uint32_t poke;   /* of the one word that was written later; 0: none was */
    uint32_t area;   /* consecutive pages of one area lie in one mapping */
    uint32_t origin; /* page of the file, for what is private of a file */
    uint8_t kind;
    uint8_t prot;
    bool maybe; /* after MADV_FREE: it is this, or zeroes */
    bool spare;
};

struct backing {
    int fd;
    size_t pages;
    uint64_t seed;
};

struct slice {
    unsigned char *base;
    size_t pages, mapped;
    struct page *page;
    uint64_t sum, seed;
    uint64_t writes; /* numbers the contents, so that no two are alike */
    uint32_t areas;
    size_t most; /* pages that are chosen at a time; 0: as the dice fall */
    bool heap;
    const struct backing *file, *memfd;
};

/* A slice at a fixed address, or what brk() gives; all holes. */
void slice_init(struct slice *s, uintptr_t base, size_t pages, uint64_t seed);
void slice_init_heap(struct slice *s, size_t pages, uint64_t seed);

/* Fills a file for slice_map_file() and slice_map_memfd(). */
void backing_fill(struct backing *b, int fd, size_t pages, uint64_t seed);

/* Maps all of it and writes most. */
void slice_fill(struct slice *s, struct dice *d);

/* Looks at some pages, or at all and at the records; wrong() if one is. */
void slice_check(struct slice *s, size_t first, size_t count);
void slice_check_records(const struct slice *s);

/* What a child has of it after a fork; it writes other contents than its parent. */
void slice_inherit(struct slice *s, uint64_t seed);

/* Things to do to it.  Each returns the bytes that it wrote; those looked at count an eighth. */
size_t slice_write(struct slice *s, struct dice *d);
size_t slice_poke(struct slice *s, struct dice *d);
size_t slice_zero(struct slice *s, struct dice *d);
size_t slice_look(struct slice *s, struct dice *d);
size_t slice_map(struct slice *s, struct dice *d);
size_t slice_map_huge(struct slice *s, struct dice *d);
size_t slice_map_shared(struct slice *s, struct dice *d);
size_t slice_map_file(struct slice *s, struct dice *d);
size_t slice_map_memfd(struct slice *s, struct dice *d);
size_t slice_unmap(struct slice *s, struct dice *d);
size_t slice_move(struct slice *s, struct dice *d);
size_t slice_leave(struct slice *s, struct dice *d);
size_t slice_grow(struct slice *s, struct dice *d);
size_t slice_shrink(struct slice *s, struct dice *d);
size_t slice_protect(struct slice *s, struct dice *d);
size_t slice_discard(struct slice *s, struct dice *d);
size_t slice_free(struct slice *s, struct dice *d);
size_t slice_remove(struct slice *s, struct dice *d);
size_t slice_brk(struct slice *s, struct dice *d);
