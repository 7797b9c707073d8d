/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a restored task still lacks, and where it lies.  In the snapshot's directory of images:
 *
 *   space-N        pages, on tmpfs, in any order
 *   fill-PID.map   header, entries: addresses of the task and their places in one space-N
 *
 * Native byte order: the files never leave the host.
 */
#include <stdio.h>

#include "base/error.h"

#define FILL_MAP_MAGIC "godwitF\1"
#define FILL_VADDR_END (1ull << 57)

enum { FILL_NAME_BYTES = 32 };

struct fill_map_header {
    char magic[8];
    uint32_t space; /* N of space-N */
    uint32_t zero;
    uint64_t count; /* of entries */
    uint64_t zero2;
};

/* Ascending by vaddr, not overlapping. */
struct fill_map_entry {
    uint64_t vaddr;
    uint64_t pages;
    uint64_t offset; /* bytes, in space-N */
    uint64_t round;  /* larger: written later */
};

/* PID as criu hands the task over: its pid in its own namespace.  False if size is too small. */
bool fill_map_name(char *buf, size_t size, int32_t pid);
bool fill_space_name(char *buf, size_t size, uint32_t space);

struct fill_map_writer {
    FILE *file;
    struct fill_map_header header;
    uint64_t last_end;
    int error;
};

/*
 * Writes fill-PID.map; one that is there is replaced.  begin: 0, or a negative errno.  finish frees
 * the writer and tells of an error in any call before it; -EINVAL is an entry out of order.
 */
int fill_map_begin(struct fill_map_writer *writer, int imagefd, int32_t pid, uint32_t space);
void fill_map_add(struct fill_map_writer *writer, const struct fill_map_entry *entry);
int fill_map_finish(struct fill_map_writer *writer);

struct fill_map {
    const struct fill_map_entry *entries; /* mapped from the file */
    uint64_t count;
    uint64_t pages; /* of all entries */
    uint64_t end;   /* bytes that space-N must have */
    uint32_t space;
};

/* Looks at every entry of a map in memory.  0 and *ret, which points into it, or -EPROTO with
 * *err. */
int fill_map_check(const void *bytes, size_t length, struct fill_map *ret, struct error *err);

/* Maps and checks an open file, which may be closed then.  0, or a negative errno with *err. */
int fill_map_open(struct fill_map *map, int fd, struct error *err);
void fill_map_close(struct fill_map *map); /* also one that was never opened but zeroed */

/* Index of the first entry that ends above the address; count if there is none. */
uint64_t fill_map_above(const struct fill_map *map, uint64_t vaddr);
