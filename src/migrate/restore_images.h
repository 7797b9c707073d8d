/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What criu restores a process from whose pages lie here and there in a file that its snapshot
 * shares with others: a directory of images, most of them links, in which the task lacks the memory
 * that need not be there when it is built.  godwit-hook writes that, from where it lies, when criu
 * asks whether the task may run (criu/hook_memory.h): that is less work than reading is for criu.
 */

/*
 * Makes the directory |path|, relative to images/ of a snapshot and beside it, in place of what a
 * restore has left that was killed.  1; 0: there is none, for it is not that kind of process: with
 * one task, and little memory that criu has to write itself; or a negative errno.
 */
int restore_images_make(int images, int memory, const char *path);

/* Removes what restore_images_make(), and criu, have left there. */
void restore_images_remove(int images, const char *path);
