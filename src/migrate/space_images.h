/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What criu restore and the pager read of a space that is whole, written afresh from its shadow:
 *
 *   eager   pagemap-ID.img, pages-N.img: the arena itself, put into order if need be
 *   lazy    pagemap-ID.img, pages-N.img: what criu wants at once, taken out of the arena
 *           fill-ID.map: where in the arena, space-N, the pager finds the rest
 */
#include "store/shadow.h"

struct space_images {
    int imagefd; /* directory of images */
    struct budget *budget;
    uint64_t *charge; /* grows by what the files that are written here are charged with */
    bool shared;      /* memory of several tasks */
    uint64_t id;      /* pid of the task, or number of the object */
    uint32_t pages_id;
    struct arena *arena;
    struct shadow *shadow;
};

/* What of that criu reads of a snapshot whose pages are put together later (store/chain.h): the
 * pagemap.  0, or a negative errno. */
int space_images_write_pagemap(const struct space_images *images);

/* lazy: only for a task whose mm image is in the directory already.  0, or a negative errno. */
int space_images_write(const struct space_images *images, bool lazy);
