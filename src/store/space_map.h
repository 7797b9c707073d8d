/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A shadow written down: where in an arena the pages of a task, or of a shared object, are.
 *
 *   header   whose memory it is, how many entries
 *   entry    address and kind │ pages │ where in the arena, in pages      16 bytes each, ascending
 *
 * Native byte order: the files never leave the host.
 */
#include "store/shadow.h"

#define SPACE_MAP_MAGIC "godwitS\1"

struct space_map_header {
    char magic[8];
    uint32_t shared; /* 1: a shared object, 0: a task */
    uint32_t zero;
    uint64_t id;
    uint64_t count; /* of entries */
};

/* In the low bits of an entry's address. */
enum {
    SPACE_MAP_LAZY = 1,
    SPACE_MAP_ZERO = 2, /* full of zeros, and nowhere */
};

struct space_map_entry {
    uint64_t place; /* address, and SPACE_MAP_* */
    uint32_t pages;
    uint32_t where; /* page of the arena */
};

struct space_map {
    const struct space_map_entry *entries; /* mapped from the file */
    uint64_t count;
    uint64_t pages; /* of all entries that are somewhere */
    uint64_t end;   /* pages that the arena must have */
    uint64_t id;
    bool shared;
};

/* Whether an entry's pages are somewhere. */
static inline bool space_map_has_pages(const struct space_map_entry *entry)
{
    return !(entry->place & SPACE_MAP_ZERO);
}

/* Writes a map to the file `name`; one that is there is overwritten.  0, or a negative errno. */
int space_map_write(const struct shadow *shadow, bool shared, uint64_t id, int dirfd,
                    const char *name);

/* Looks at every entry of a map in memory.  0 and *ret, which points into it, or -EPROTO. */
int space_map_check(const void *bytes, size_t length, struct space_map *ret);

/* Maps and checks a file.  0, or a negative errno. */
int space_map_open(struct space_map *map, int dirfd, const char *name);
void space_map_close(struct space_map *map); /* also one that was never opened but zeroed */

/* Gives a new shadow all that the map tells of.  0, or a negative errno. */
int space_map_inherit(const struct space_map *map, struct shadow *shadow);

/* A place in the order of addresses; zeroed, the beginning. */
struct space_map_cursor {
    uint64_t entry;
    uint32_t done; /* pages of it */
};

/* The next pages that lie together in the arena (|where|, |pages|), at most that many; the cursor
 * goes behind them.  False at the end. */
bool space_map_take(const struct space_map *map, struct space_map_cursor *cursor, uint64_t most,
                    struct space_map_entry *ret);

/* Goes past that many pages. */
void space_map_skip(const struct space_map *map, struct space_map_cursor *cursor, uint64_t pages);

/* Maps the arena's file, to be read; by munmap() of map->end pages.  0, -EPROTO: it is shorter than
 * the map says; or another negative errno. */
int space_map_arena(const struct space_map *map, int file, uint8_t **ret);

/* Writes all pages, in the order of their addresses, from the arena's file to another, which is
 * empty.  0, or a negative errno. */
int space_map_copy(const struct space_map *map, int from, int to);

enum { SPACE_MAP_STEP = 2048 }; /* pages */

/*
 * The same, by steps, of an arena that nobody else has pages of: what has been written is given
 * back in its file, with what is nobody's in between.  How many steps have been done is noted in a
 * third file, empty at first, when their pages are in the other and before they are given back:
 * whoever is killed at any moment has lost nothing, and the next one goes on.  One at a time; 0, or
 * a negative errno.
 */
int space_map_move(const struct space_map *map, int from, int to, int progress);
