/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Shared memory in rounds (task/shared.h); a part of rounds.c.
 *
 *   each round: every object is read, and sent are the pages that are not what was sent of them
 *   freeze:     criu dumps all of it over its page connection, and the page door sends what is not
 *               what was sent; of the rest only that it exists
 *
 * So whoever writes to it, by whatever mapping or system call, is found: the last word is what criu
 * has read.
 *
 * From one snapshot to the next, which is based on it, only what was sent is remembered, by hashes.
 * No object is held open meanwhile, for that would keep its memory.  It is known by its inode; and
 * if another has that number by then, its pages are compared like any.
 */
#include "migrate/doors.h"

struct shared;

/* NULL with errno set. */
struct shared *shared_new(void);
struct shared *shared_free(struct shared *shared);

/* The next snapshot is sent through this sender, which is there until shared_leave(); of the one
 * before everything has come. */
void shared_join(struct shared *shared, struct sender *sender);
void shared_leave(struct shared *shared);

/* A round begins: what the processes of the tree have mapped, one process after the other, and that
 * these were all.  What cannot be opened is left to criu.  0 or -ENOMEM. */
void shared_look_begin(struct shared *shared);
int shared_look(struct shared *shared, pid_t pid);
void shared_look_end(struct shared *shared);

/* The processes stand still: of each object there is what criu is going to tell, and no more. */
void shared_list(struct shared *shared);

/* What a stream has to send of this round.  1: it is in the batch; 0: there is no more; -EAGAIN: go
 * on in another turn of the loop.  *written grows by the pages that were not what was sent. */
int shared_fill(struct shared *shared, unsigned stream, struct link_batch *batch,
                uint64_t *written);
