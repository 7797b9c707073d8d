/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What was sent of every page, as 64 bits of XXH3: a page that has the same again need not be sent.
 *
 *   address space     chunk (2 MiB)      chunk
 *   hashes          │ h h - - h h ...│ │ - - h ...      │      8 bytes per page of a chunk
 *
 * The hashes begin with a random number, so that nobody prepares two pages that look alike.  Any
 * one thread.
 */
#include "base/util.h"

struct hash_chunk;

struct page_hashes {
    struct hash_chunk *chunks; /* ascending */
    size_t count, room, last;  /* last: where the latest page was */
    uint64_t seed;
};

/* Its chunks of which no page was noted since the last call are forgotten: nothing is there any
 * more. */
void page_hashes_begin(struct page_hashes *hashes);

/*
 * Notes that a page is sent.  Whether it has to be: false when it is as it was, in an area of the
 * same sort, for zeros are sent in another way where the memory is anonymous.  Where there is no
 * memory to note it, true.
 */
bool page_hashes_note(struct page_hashes *hashes, uint64_t vaddr, bool anonymous, const void *page);

/* Whether a page is what was noted of it; notes nothing. */
bool page_hashes_same(const struct page_hashes *hashes, uint64_t vaddr, bool anonymous,
                      const void *page);

/*
 * Of a snapshot that has no more pages than were told to exist, and is going to be a parent: notes
 * that a page was told, which has been noted as it is there; and, when all were, forgets the
 * others, for they are not in it.
 */
void page_hashes_tell(struct page_hashes *hashes, uint64_t vaddr);
void page_hashes_keep_told(struct page_hashes *hashes);

void page_hashes_free(struct page_hashes *hashes);
