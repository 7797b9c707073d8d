/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The ioctls PAGEMAP_SCAN of /proc/PID/pagemap, and PROCMAP_QUERY of /proc/PID/maps, as linux/fs.h
 * has them from 6.7 and 6.11 on. */
#include <stdint.h>
#include <sys/ioctl.h>

struct page_region {
    uint64_t start, end, categories;
};

struct pagemap_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct pagemap_scan)

struct map_query {
    uint64_t size, flags, address, start, end, vma_flags, page_bytes, offset, inode;
    uint32_t dev_major, dev_minor, name_size, build_id_size;
    uint64_t name, build_id;
};

#define MAP_QUERY _IOWR('f', 17, struct map_query)
