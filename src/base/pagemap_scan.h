/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The ioctl PAGEMAP_SCAN of /proc/PID/pagemap, as linux/fs.h has it from 6.7 on. */
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
