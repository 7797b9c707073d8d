/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the source of a migration has decided: one small file per migration that is not settled,
 * WORKDIR/journal/ID, written anew before each step that depends on it.
 *
 *   OPEN    the destination may come to hold a copy; the source's process lives: if godwit dies
 *           here, that is the decision
 *   COMMIT  the source's tasks end; the copy at the destination is the process
 *   ABORT   the source's process runs on; the copy is void
 *
 * It is gone when the destination has acknowledged.  Files are replaced by rename and not synced to
 * disk: what they tell about does not survive this host's end either.
 */
#include "base/error.h"

enum journal_decision { JOURNAL_OPEN, JOURNAL_COMMIT, JOURNAL_ABORT };

struct journal_entry {
    char id[65];
    enum journal_decision decision;
    uint64_t nonce;
    pid_t pid;        /* of the root task */
    uint64_t started; /* task_started() of it: another process may have that pid one day */
    bool insecure;
    char target[1024];
    char command[64];
};

/* Writes it, atomically.  0, or a negative errno. */
int journal_write(int workdir, const struct journal_entry *entry);

/* 0, or a negative errno: -ENOENT, or -EBADMSG for what is no entry. */
int journal_read(int workdir, const char *id, struct journal_entry *ret);
void journal_remove(int workdir, const char *id);

/* Calls each() for every entry; what cannot be read is left out.  0, or a negative errno. */
int journal_list(int workdir, void (*each)(const struct journal_entry *entry, void *user),
                 void *user);

/* "open", "commit" or "abort". */
const char *journal_decision_name(enum journal_decision decision);

/* Path of an entry, for the hook (GODWIT_HOOK_JOURNAL). */
int journal_path(const char *workdir_path, const char *id, char *buf, size_t size);
