/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A snapshot as ordinary images of criu, in a directory of a disk: what `criu restore -D`, crit and
 * `criu page-server` know, with all pages in it and no parents.
 */
#include <stdbool.h>

/*
 * Writes what lies in the directories images/ and memory/ of a snapshot (store/store.h; memory:
 * -EBADF when it shares memory with no other) into |to|, an empty directory, and has the disk have
 * it.  A restore of the snapshot may be at work meanwhile.  Of a pre-dump there are no images but
 * of its memory.  With |moved| a restore was broken off that had begun to move the pages: they are
 * put together in images/ first; -EBUSY: one is at it.  0, or another negative errno: what has been
 * written is not whole then.
 */
int plain_images_write(int images, int memory, bool moved, int to);

/* Copies one file of images/ to the directory whose descriptor |to_fd| points to, unless it is
 * there. 0, or a negative errno. */
int plain_image_copy(int from, const char *name, void *to_fd);

/* Removes what has been written.  0, or a negative errno. */
int plain_images_remove(int to);
