/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What `criu restore --lazy-pages` says to lazy-pages.socket in its work-dir (CRIU criu/uffd.c):
 * for each task, in any order, its process id as the images have it and its userfaultfd; at the end
 * that all have been handed over.
 */
#include <stdint.h>

enum lazy_handover { LAZY_NOTHING, LAZY_TASK, LAZY_FINISHED, LAZY_GONE };

/*
 * Reads the next message from a blocking stream socket.  LAZY_TASK: *ret_uffd is the caller's.
 * LAZY_NOTHING: a task without memory, a zombie.  LAZY_GONE: criu has closed it before the end, or
 * says what nobody understands.
 */
enum lazy_handover lazy_take(int fd, uint32_t *ret_pid, int *ret_uffd);
