/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Looking at files that somebody else named or wrote, without any effect on them.  Any thread. */
#include <sys/stat.h>

#include "base/util.h"

/*
 * Opens a regular file of a file system for reading, or a directory as a place (O_PATH), by an
 * absolute path below our root directory.  What is anything else is never opened, so that no FIFO
 * blocks, no device acts, no terminal becomes ours; the kernel's own files (/proc, /sys) are
 * refused, and so are ways through /proc/PID/fd and the like.  Blocks as long as the file system
 * takes.
 *
 * The descriptor and *ret, or a negative errno: -EINVAL for a path that is not absolute, -EBADF for
 * what is neither a regular file nor a directory.
 */
int file_open(const char *path, struct stat *ret);

enum { BUILD_ID_MAX = 64 }; /* those of today's linkers have 8, 16 or 20 bytes */

/*
 * The build id of an ELF file (NT_GNU_BUILD_ID of its PT_NOTE segments), whose bytes nobody is
 * trusted to have written; what is read is bounded.  Its length in bytes, 0 when there is none or
 * the file is not ELF.
 */
size_t file_build_id(int fd, uint8_t ret[BUILD_ID_MAX]);
