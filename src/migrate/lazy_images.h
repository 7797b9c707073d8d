/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A snapshot as `criu dump --lazy-pages` leaves it: all images, but of the memory only what criu
 * restore --lazy-pages wants at once.  The rest is listed, and asked for when the process runs; or
 * it is somebody else's to bring.
 */
#include "criu/pagemap.h"
#include "migrate/region_index.h"

/* As plain_images_write(); -ENOENT: of a pre-dump there are no images. */
int lazy_images_write(int images, int memory, bool moved, int to);

/* How it is to be divided. */
struct lazy_split {
    bool outside;     /* the rest is written from outside (criu/lazy_areas.h) */
    uint64_t at_once; /* pages that there is room for in it */
    /* Takes what is not wanted at once, in the order of addresses.  0, or a negative errno. */
    int (*take)(struct lazy_split *split, const struct region_index *index,
                const struct region *region, struct pagemap_writer *pagemap);
    /* Brings an image that is not memory; |to_fd| points to the descriptor of the directory. */
    int (*bring)(int images, const char *name, void *to_fd);
};

/* Fills the empty directory |to|.  0; -E2BIG: more is wanted at once than there is room for; or
 * another negative errno. */
int lazy_images_split(int images, int memory, int to, struct lazy_split *split);
