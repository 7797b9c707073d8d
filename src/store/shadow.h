/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A shadow: the picture of one task's memory, or of one shared-memory object, by address.
 *
 *   address space     chunk (2 MiB)          chunk                    chunk
 *                   ┌─────────────────┐    ┌─────────────────┐
 *   present         │ 1 1 1 0 0 1 ... │    │ 1 1 1 1 1 1 ... │      (no pages: no chunk)
 *   where           │ 0 1 2 - - 3 ... │    │ 4 5 6 7 8 9 ... │
 *                   └────┬────────────┘    └────┬────────────┘
 *   arena           [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ] ...           one file, pages in order of
 * arrival
 *
 * A page that arrives again lands on its old place: the newest wins, nothing is chained, and any
 * number of rounds costs the memory of one.  A chunk costs 2.8 KiB besides its pages, however few.
 *
 * Of a page that has come without its content it is known that it is full of zeros, and it takes no
 * room.  In the end a source may list the pages that exist: what is here and not listed is dropped.
 *
 * Why "where" and not a 2 MiB slot with each page at its own offset (the first plan): CRIU sends
 * pages in ascending order, so the arena of an ordinary dump *is* the pages image that
 * `criu restore` wants, with no second copy; and sparse chunks cost nothing.  Runs that came
 * together still lie together, for the pager as well as for the socket.
 */
#include "store/arena.h"

enum {
    CHUNK_PAGES = 512,
    CHUNK_WORDS = CHUNK_PAGES / 64,
};

/* Pages that follow one another in the address space and in the arena. */
struct shadow_run {
    uint64_t vaddr;
    uint64_t pages;
    uint64_t offset; /* bytes into the arena */
    bool lazy;
    uint8_t round; /* in which it came last */
};

/* What is said of pages that arrive. */
enum {
    SHADOW_LAZY = 1,   /* a lazy restore may leave them for later */
    SHADOW_LISTED = 2, /* they exist in the end */
};

struct shadow;

/* The arena is borrowed and must outlive the shadow.  NULL with errno set. */
struct shadow *shadow_new(struct arena *arena);
struct shadow *shadow_free(struct shadow *shadow);

/*
 * Finds or makes the place of |pages| pages at vaddr (page-aligned, below 2^57) and says where the
 * first of them are: *ret holds as many of them as lie together, at least one.  Pages new to the
 * shadow are appended to the arena.  0, -EDQUOT over the budget, -EINVAL for an address that no
 * task can have, or another negative errno.
 */
int shadow_place(struct shadow *shadow, uint64_t vaddr, uint64_t pages, unsigned flags,
                 struct shadow_run *ret);

/*
 * Takes pages over that lie in the arena already, as what an earlier snapshot has: they are as if
 * they had arrived, but one that arrives again gets a place of its own, and the old one is left
 * alone.  0, -EDQUOT, -EINVAL, or another negative errno.
 */
int shadow_inherit(struct shadow *shadow, const struct shadow_run *run);

/* Pages that are full of zeros from now on, and pages that exist in the end.  Errors as above; some
 * may have been taken then. */
int shadow_zero(struct shadow *shadow, uint64_t vaddr, uint64_t pages);
int shadow_list(struct shadow *shadow, uint64_t vaddr, uint64_t pages);

/* What comes from now on is of a later round.  Behind round 255 all are of that. */
void shadow_end_round(struct shadow *shadow);

/* Drops the pages that are not listed.  How many pages are listed of which nothing is known. */
uint64_t shadow_drop_unlisted(struct shadow *shadow);

/*
 * The first run at or above vaddr: pages present, in ascending order, of one kind and round and
 * together in the arena.  False when there is none.
 */
bool shadow_next_run(const struct shadow *shadow, uint64_t vaddr, struct shadow_run *ret);

/* The first run at or above vaddr of pages that are known to be full of zeros.  False when there is
 * none. */
bool shadow_next_zeros(const struct shadow *shadow, uint64_t vaddr, uint64_t *ret_vaddr,
                       uint64_t *ret_pages);

/* What is known of one page: 1 and its place in the arena, 0: it is full of zeros, -ENODATA:
 * nothing. */
int shadow_find(const struct shadow *shadow, uint64_t vaddr, uint64_t *ret_offset);

/* Number of pages present. */
uint64_t shadow_pages(const struct shadow *shadow);

/* Whether the arena holds the pages in ascending order, so that it can serve as a pages image. */
bool shadow_is_ascending(const struct shadow *shadow);

/*
 * Puts the pages into ascending order by copying them into a new file that takes the place of
 * `name`, the arena's, in dirfd.  What has been copied is given back at once, so that both files
 * together take little more than one.  0, or a negative errno.
 */
int shadow_sort(struct shadow *shadow, int dirfd, const char *name);
