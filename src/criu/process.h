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

/*
 * Whether an option that the user passes on to criu is one that godwit must own; then a line about
 * it in *err (FAILURE_USAGE) and -1.  args ends with NULL.
 */
int criu_check_options(char *const *args, struct error *err);

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
    bool ignore_interrupt; /* Ctrl-C is for godwit, which tells criu in its own way */
};

/* Starts it; a child of the caller.  pid and *ret_pidfd, or -1 with *err set. */
pid_t criu_start(const struct criu_args *args, const struct criu_spawn *how, int *ret_pidfd,
                 struct error *err);

/* Exit status from a wait status: 128 + signal when killed. */
int criu_exit_status(int wait_status);

/* The signal that such a status tells of, or 0: criu itself ends with 1 or 255 when it fails. */
int criu_killed_by(int exit_status);

/* The first line of a log that tells of an error, without its time stamp; false when there is none.
 * Lines that CRIU logs as errors on success as well are passed over. */
bool criu_first_error(const char *log, char *buf, size_t size);
