/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Giving up what reading the bytes of others does not take.  Afterwards the parser of an
 * image-cache
 *
 *  - has a directory for its root, and sees nothing else of the file system (a mount namespace of
 *    its own, in which there is nothing else);
 *  - has no capability and can get none, by executing a program neither (no_new_privs);
 *  - may make the system calls of a list, and is killed by the kernel for any other: it cannot
 *    execute, fork, trace, signal, mount, or open a socket but the one that asks whose another is;
 *    memory that it may write it cannot execute.
 *
 * It stays user 0: a connection belongs to who accepts it, and by that both ends of loopback know
 * one another (wire/owner.h); its files are those that criu and the next image-cache read.  What
 * user 0 may do without capabilities, to others of its own, takes system calls that are not on the
 * list, or files that are not in sight.
 */
#include "base/error.h"

/*
 * For a process with one thread that is root.  path: the directory, which is a mount point; *fd: a
 * descriptor of it, which is replaced, for what was opened before leads out of any root.  Other
 * descriptors of directories are closed.  0, or -1 with *err set, and then the process is to end.
 */
int confine_cache(const char *path, int *fd, struct error *err);

/*
 * The parser of an image-proxy, which looks into processes, keeps the capabilities for that, and
 * sees all files.  It has a list of system calls as well: it cannot do what the other cannot, and
 * besides cannot open or make a file to write to it, nor write into a process.  What may call
 * anything at all, such as the resolving of names, is the helper's; so a list will do.  The caller
 * has one thread, and need not be root.
 */
int confine_proxy(struct error *err);

/* The helper of an image-proxy keeps the capabilities for what it does; no filter. */
int confine_helper(struct error *err);
