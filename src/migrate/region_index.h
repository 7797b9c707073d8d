/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Where in a file the pages of a task, or of a shared object, of a snapshot lie: in pages-N.img in
 * the order of the pagemap, or, if it shares memory with other snapshots, in space-N as its map
 * tells.  So any region is read by itself, and nothing to be skipped.
 */
#include "base/error.h"

struct region {
    uint64_t vaddr;
    uint64_t pages;
    uint64_t offset; /* in the file */
    bool lazy;       /* criu may leave it to a userfaultfd */
};

struct region_index {
    int file;
    uint32_t pages_id;   /* N */
    struct region *list; /* ascending by address */
    size_t count;
};

/* By the directories images/ and memory/ of a snapshot (-EBADF: it has none).  0; -ENOENT: it has
 * no such task or object; or another negative errno. */
int region_index_open(struct region_index *index, int imagefd, int memoryfd, bool shared,
                      uint64_t id);
void region_index_close(struct region_index *index);

/* The pages from an address on that lie together in the file, at most that many: 0, the page is not
 * there, or how many, and *ret_offset. */
uint64_t region_index_find(const struct region_index *index, uint64_t vaddr, uint64_t most,
                           uint64_t *ret_offset);
