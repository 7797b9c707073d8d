/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Having a running process execute system calls of ours, without writing to its code.
 *
 * One of its threads is stopped by ptrace, its registers are pointed at a syscall instruction that
 * is there already (in the vdso), and are put back afterwards.  Nothing of it can be seen from
 * inside: signals that come meanwhile are delivered afterwards, and a system call that was under
 * way goes on as after any stop.  Other threads run on.
 */
#include <sys/types.h>

#include "base/error.h"
#include "task/helper.h"

/*
 * A userfaultfd of the memory of process |pid|, made in it, taken over, and closed there again in
 * the same stop.  UFFDIO_API is still to be called.  The descriptor (close-on-exec, non-blocking),
 * and in *ret_stopped_nsec how long the thread stood still; or -1 with *err set: the process cannot
 * be stopped now (it is traced, stopped, or waits in vfork), has gone (FAILURE_NOT_FOUND), or may
 * not make a userfaultfd.
 *
 * x86-64 only.  Takes some 0.3 ms, at most a second.
 */
int task_take_userfaultfd(pid_t pid, const struct task_helpers *helpers, uint64_t *ret_stopped_nsec,
                          struct error *err);

/* What a helper does. */
void task_help_userfaultfd(pid_t pid, int socket);
