/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What `criu restore` takes for inherited: a private mapping of a child that lies where its parent
 * has one, of the same length and the same file, is not mapped but got by fork() (CRIU criu/mem.c,
 * check_cow_vmas(), up to 4.2).  The offset in the file is not compared, so a child that has
 * another part of the file there is given its parent's.
 */
#include "base/error.h"
#include "criu.pb-c.h"

struct pstree_task {
    uint32_t pid, ppid; /* as the tasks see them; of the root's parent 0 */
};

/*
 * Whether all tasks get their own parts of files back; |dirfd| is a directory of images, which
 * nobody is trusted to have written, and may be without pstree.img (pre-dump).  0, or -1 with *err
 * set.
 */
int cow_areas_check(int dirfd, struct error *err);

/* Reads a pstree image.  0 and the tasks by parent, to be freed, or a negative errno (-EBADMSG: it
 * is none, or has a task twice). */
int cow_areas_parse_tree(const uint8_t *bytes, size_t length, struct pstree_task **ret,
                         size_t *ret_count);

/* The first mapping of the child that criu takes for its parent's and that is another part of the
 * file; borrowed from |child|, NULL: none. */
const Godwit__Pb__CriuVma *cow_areas_find_other_part(const Godwit__Pb__CriuMm *child,
                                                     const Godwit__Pb__CriuMm *parent);
