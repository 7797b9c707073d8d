/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Pagemap images (CRIU images/pagemap.proto): which pages a pages-N.img holds, in its order. */
#include "base/error.h"

struct pagemap_run {
    uint64_t vaddr;
    uint64_t pages;
    uint32_t flags; /* PAGEMAP_* */
};

struct pagemap_writer;

/*
 * Writes a pagemap image in a form that 4.1 and 4.2 both read.  The descriptor is borrowed; NULL
 * with errno set.  pagemap_finish() frees the writer, and tells of an error in any call before it
 * by a negative errno.
 */
struct pagemap_writer *pagemap_begin(int fd, uint32_t pages_id);
void pagemap_add(struct pagemap_writer *writer, const struct pagemap_run *run);
int pagemap_finish(struct pagemap_writer *writer);

struct pagemap_reader {
    const uint8_t *bytes;
    size_t length, at;
    uint64_t last_end;
    bool wide; /* an entry has its count where only 4.2 reads it */
};

/*
 * Reads a pagemap image from memory, which is borrowed, and which nobody is trusted to have
 * written: every run is non-empty, page-aligned, below 2^57 and above the one before.
 * begin: 0 with *ret_pages_id, or -EPROTO.  next: 1 and a run, 0 at the end, -EPROTO with *err.
 */
int pagemap_read_begin(struct pagemap_reader *reader, const uint8_t *bytes, size_t length,
                       uint32_t *ret_pages_id, struct error *err);
int pagemap_read_next(struct pagemap_reader *reader, struct pagemap_run *ret, struct error *err);
