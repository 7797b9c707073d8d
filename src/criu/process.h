/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Finding, judging and starting criu. */
#include <sys/types.h>

#include "base/error.h"

/*
 * The criu to use: `chosen` (--criu), else $GODWIT_CRIU, else `criu` in PATH, else the one that
 * scripts/setup unpacked; 4.1 or newer (proved by running it).  A path to be freed, or NULL with
 * *err set.
 */
char *criu_find(const char *chosen, struct error *err);

/* Path of godwit-hook: $GODWIT_HOOK, else beside this program, else where it is installed.  0, or
 * -1 with *err set. */
int criu_find_hook(char *buf, size_t size, struct error *err);

/* The same of godwit-scan-filter.so (criu/scan_filter.c), $GODWIT_SCAN_FILTER.  Also -1 where its
 * path cannot be preloaded: one with blanks or colons. */
int criu_find_scan_filter(char *buf, size_t size, struct error *err);

/* Whether something can be preloaded into this program: it is not a static one, as far as can be
 * seen from outside. */
bool criu_can_be_preloaded(const char *path);

/* "4.2.1"; what a longer version has behind that is cut off. */
enum { CRIU_VERSION_BYTES = 32 };

/*
 * The version that a criu tells of itself, proved by running it; it must be 4.1 or newer.  0, or -1
 * with *err set.
 */
int criu_version(const char *path, char ret[CRIU_VERSION_BYTES], struct error *err);

/*
 * Below 0, 0 or above 0 as the first of two such versions is older than the second, as new or
 * newer. What comes behind major and minor does not count; what is no version is older than all.
 */
int criu_version_compare(const char *a, const char *b);

/*
 * Runs `criu check`: whether this kernel has what CRIU needs, and lets it use that.  Takes some 100
 * ms, at most 10 seconds; what it has started has ended then as well.  0, or -1 with *err set
 * (FAILURE_CRIU: it says no; FAILURE_SYSTEM: it could not be asked, or was killed).
 */
int criu_check_kernel(const char *path, struct error *err);

/*
 * Whether an option that the user passes on to criu is one that godwit must own; then a line about
 * it in *err (FAILURE_USAGE) and -1.
 */
int criu_check_options(char *const *args, size_t count, struct error *err);

/* The length of a list that ends with NULL, or is NULL. */
size_t criu_count_options(char *const *args);

/* A growing argument list; strings are copied.  Out of memory ends the program: it is a command's.
 */
struct criu_args {
    char **list; /* ends with NULL */
    size_t count;
};
void criu_args_add(struct criu_args *args, const char *format, ...) _printf_(2, 3);
void criu_args_add_all(struct criu_args *args, char *const *list);
void criu_args_free(struct criu_args *args);

struct criu_spawn {
    const int *keep; /* descriptors that criu inherits */
    size_t keep_count;
    const char *hook_workdir; /* NULL: no hook environment */
    uint64_t hook_token;
    uint64_t hook_silence_usec;
    const char *hook_journal; /* NULL: none */
    const char *hook_memory;  /* NULL: criu reads all of it */
    const char *scan_filter;  /* to be preloaded; NULL: none */
    /* Inherited as those above, see criu/scan_filter.h.  table: -EBADF, there is none. */
    int scan_filter_fd, scan_filter_table;
    const char *scan_filter_hidden; /* tasks that it shows nothing of, "12,15"; NULL: none */
    int *ret_questions;    /* see criu/scan_questions.h, -EBADF: there are none; NULL: not wanted */
    bool ignore_interrupt; /* Ctrl-C is for godwit, which tells criu in its own way */
    int gate_fd;           /* see criu_start_kept(); -EBADF: criu does not wait */
};

/* Starts it; a child of the caller.  pid and *ret_pidfd, or -1 with *err set. */
pid_t criu_start(const struct criu_args *args, const struct criu_spawn *how, int *ret_pidfd,
                 struct error *err);

/*
 * The same under a keeper, a process between the caller and criu that survives the caller: when
 * criu fails or is killed before its pre-resume hook, the keeper kills what criu had built, and
 * then ends with criu's exit status; otherwise with 0.  What criu restored well outlives it, as a
 * child of init.  SIGTERM to the keeper kills criu; when the keeper is killed itself, criu works
 * on. criu inherits no descriptor.  pid of the keeper and *ret_pidfd, or -1 with *err set.  The
 * caller has one thread.
 *
 * With gate_fd, the end of a pipe to read from, and CRIU_GATE_OPTION among its arguments criu is
 * got ready ahead: it waits at the beginning of its work for a byte.  When the pipe comes to its
 * end first, because whoever was to write has died, criu is killed; it has done nothing by then.
 */
enum { CRIU_GATE_FD = 4 };
#define CRIU_GATE_OPTION "--config=/proc/self/fd/4"
pid_t criu_start_kept(const struct criu_args *args, const struct criu_spawn *how, int *ret_pidfd,
                      struct error *err);

/* Kills and reaps all children of this process, and what becomes its child by that (it is their
 * subreaper). */
void criu_kill_children(void);

/* Exit status from a wait status: 128 + signal when killed. */
int criu_exit_status(int wait_status);

/* The signal that such a status tells of, or 0: criu itself ends with 1 or 255 when it fails. */
int criu_killed_by(int exit_status);

/* Why a criu failed, in words: the first error of its log, and where that is. */
void criu_explain(const char *what, int exit_status, const char *log, struct error *ret);

/* The first line of a log that tells of an error, without its time stamp; false when there is none.
 * Lines that CRIU logs as errors on success as well are passed over. */
bool criu_first_error(const char *log, char *buf, size_t size);
