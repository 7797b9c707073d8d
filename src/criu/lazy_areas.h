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

/*
 * Reads mm-ID.img in a directory of images, which nobody is trusted to have written.  |outside|:
 * for one who writes to the memory from outside when the task has been built, without a
 * userfaultfd. What the task itself may not write to is left out then, and what the kernel writes
 * to for each thread as soon as that is there (rseq).  0, to be freed, or a negative errno
 * (-ENOENT: there is none; -EBADMSG: it is none).
 */
int lazy_areas_read(int dirfd, uint64_t id, bool outside, struct lazy_areas *ret);

/* The same from memory, which tells of no threads. */
int lazy_areas_parse(const uint8_t *bytes, size_t length, bool outside, struct lazy_areas *ret);

/*
 * The pages that the kernel writes to for the threads of all tasks, whenever it lets them run
 * (rseq(2)), as the core images in a directory tell: ascending, and none twice.  As
 * lazy_areas_read(); without a core image there are none.
 */
int lazy_areas_read_rseq(int dirfd, struct lazy_areas *ret);

/* Takes out what lies in others, which are ascending, and none twice.  0, or -ENOMEM. */
int lazy_areas_cut(struct lazy_areas *areas, const struct lazy_areas *others);
void lazy_areas_free(struct lazy_areas *areas);

/* Whether the address lies in one; *ret_next: the address at which that changes. */
bool lazy_areas_have(const struct lazy_areas *areas, uint64_t vaddr, uint64_t *ret_next);
