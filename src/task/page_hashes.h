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
void page_hashes_free(struct page_hashes *hashes);
