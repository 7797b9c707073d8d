/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Pipes and FIFOs whose other end a process outside the tree has; a part of tree.c. */
#include "task/tree.h"

/* One that the tree has open, and for what.  Which it is, as fstat() tells. */
struct pipe_end {
    uint64_t device, inode;
    pid_t pid; /* the first that has it */
    bool reads, writes;
    bool outside; /* found by pipes_find_outside() */
};

struct pipes {
    struct pipe_end *list; /* owned by whoever made it */
    size_t count;
};

/* The one that it is, or NULL. */
struct pipe_end *pipes_find(const struct pipes *pipes, uint64_t device, uint64_t inode);

/*
 * Marks those of which the tree has one end only, and somebody else who can be seen has it open as
 * well.  Reads the descriptors of all processes, if there are any such.
 */
void pipes_find_outside(struct pipes *pipes, const struct tree *tree);
