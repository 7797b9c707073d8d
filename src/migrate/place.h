/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A migration's place in the work-dir of its source:
 *
 *   migrate-PID.lock   held by the program that moves that process; gone with it, however it ends
 *   migrate-PID-XXXXXX/  criu's work-dir: log, the hook's socket
 *
 * A program that was killed leaves both; whoever comes next clears them up.
 */
#include <limits.h>

#include "base/error.h"

struct place {
    int workdir, lock;
    char *workdir_path; /* absolute */
    char lock_name[48], directory[96];
    char path[PATH_MAX]; /* of the directory; empty: none */
};

/* clang-format off */
#define PLACE_CLOSED {.workdir = -EBADF, .lock = -EBADF}
/* clang-format on */

/* Opens the work-dir, making it if missing, and clears up what the dead have left there.  0, or -1
 * with *err set; place_close() is due either way. */
int place_open(struct place *place, const char *workdir, struct error *err);

/* The same for an open work-dir. */
void place_clear_up(int workdir);

/* Locks the process: one migration at a time.  0, or -1 with *err set (FAILURE_BUSY). */
int place_lock(struct place *place, pid_t pid, struct error *err);

/* Makes the directory, for the migration of that id.  0, or -1 with *err set. */
int place_make_directory(struct place *place, const char *id, struct error *err);

/* Removes what is there, but for criu's log if that is wanted. */
void place_close(struct place *place, bool keep_log);
