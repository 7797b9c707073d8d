/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Where in a task's memory `criu restore --lazy-pages` leaves missing pages to a userfaultfd: told
 * by the task's mm image, which is what criu itself goes by (CRIU criu/include/vma.h,
 * vma_entry_can_be_lazy()).
 *
 * Stacks are left out, although criu would take them: what a thread needs first is better there
 * before it runs.
 */
#include <sys/types.h>

#include "base/error.h"

struct lazy_area {
    uint64_t start, end;
};

struct lazy_areas {
    struct lazy_area *list; /* ascending */
    size_t count;
};

/* Reads mm-ID.img in a directory of images, which nobody is trusted to have written.  0, to be
 * freed, or a negative errno (-ENOENT: there is none; -EBADMSG: it is none). */
int lazy_areas_read(int dirfd, uint64_t id, struct lazy_areas *ret);

/* The same from memory. */
int lazy_areas_parse(const uint8_t *bytes, size_t length, struct lazy_areas *ret);
void lazy_areas_free(struct lazy_areas *areas);

/* Whether the address lies in one; *ret_next: the address at which that changes. */
bool lazy_areas_have(const struct lazy_areas *areas, uint64_t vaddr, uint64_t *ret_next);
