/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An image of a snapshot on its way into a pipe, where criu reads it, with no copy in between: a
 * file, or, of a snapshot that shares memory with others, the pages of a space, in the order of
 * their addresses and straight from where they lie.
 */
#include "store/space_map.h"
#include "store/store.h"

enum { FEED_BYTES = 1 << 20 }; /* at once, at most: room in a pipe for so much pays */

struct feed {
    int file;             /* -EBADF: closed */
    struct space_map map; /* of a space; of a file zeroed */
    struct space_map_cursor cursor;
    uint8_t *arena; /* mapped */
};

/* Opens an image by its name, which is a valid one.  0; -ENOENT: the snapshot has no such image; or
 * another negative errno. */
int feed_open(struct feed *feed, const struct snapshot *snapshot, const char *name);
void feed_close(struct feed *feed); /* also one that is closed */

/* Puts the next piece into a pipe, without waiting.  Bytes; 0 at the end; -EAGAIN: there is no
 * room; -EPIPE: nobody reads; or another negative errno: the image cannot be read. */
ssize_t feed_some(struct feed *feed, int pipe);
