/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What scan_filter.c does within criu, done from outside: for a criu into which nothing can be
 * preloaded.  By a seccomp filter on itself criu's scans for pages (PAGEMAP_SCAN, and reading
 * pagemaps where tasks are hidden) become questions to godwit, which answers them in criu's place.
 *
 * Who is under a seccomp filter may not suspend that of another (ptrace(2),
 * PTRACE_O_SUSPEND_SECCOMP), which criu does with tasks that have one: such trees cannot be dumped
 * this way.
 *
 * Linux 5.5 (SECCOMP_USER_NOTIF_FLAG_CONTINUE).
 */
#include <stdbool.h>

/*
 * In criu's process, before it is executed: all questions go to whoever takes the other end of
 * |socket|, from now on and for good.  hides: reading of pagemaps too.  When nobody has the
 * questions any more, the calls fail with ENOSYS.  0, or a negative errno and nothing has changed.
 */
int scan_questions_offer(int socket, bool hides);

/* Waits for that.  A descriptor that can be read when there is a question, to be closed; or a
 * negative errno: there will be none. */
int scan_questions_take(int socket);

/*
 * Answers one question.  hidden: tasks of which criu is shown nothing, "12,15", or NULL.  1: criu
 * was shown less than there is; 0: it was not, or has gone meanwhile; or a negative errno: criu has
 * ended.
 */
int scan_questions_answer(int questions, const char *hidden);
