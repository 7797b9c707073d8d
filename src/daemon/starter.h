/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An image-cache is two processes:
 *
 *   links, local clients ──▶ parser ── asks, fixed records ──▶ starter ──▶ criu, pager
 *                            no rights (confine.h)             root
 *
 * The parser is the daemon: what was started, what has the pid file and the lock, and what reads
 * every byte that others send.  The starter reads nothing but asks (ask.h), checks each against
 * what the operator has allowed, and does what needs root (restores.h, pre-flight's looks, the
 * mount). Neither lives without the other: when one is killed the other ends at once, as if killed
 * as well; criu, keepers and pagers live on.
 *
 * All calls are the parser's.  They wait for the answer; if the starter has died they do not
 * return.
 */
#include "base/log.h"
#include "daemon/ask.h"
#include "daemon/daemon.h"

struct starter;

struct starter_setup {
    const struct daemon_options *options;
    const struct logger *log;
    struct restores restores; /* its owner's part */
};

/* Forks the starter: the caller has one thread, and the signals of daemon_open() blocked.  NULL
 * with *err set. */
struct starter *starter_new(const struct starter_setup *setup, struct error *err);

/* Where struct tell comes, and the end of the starter. */
int starter_tells(const struct starter *starter);
/* Receives one.  0, or -EAGAIN. */
int starter_told(const struct starter *starter, struct tell *ret);

/* As in restores.h. */
int starter_start(struct starter *starter, const struct restore_order *order, struct error *err);
bool starter_go(struct starter *starter, const char *id, bool lazy);
void starter_leave(struct starter *starter, const char *id);
void starter_stop(struct starter *starter, const char *id);
void starter_remove(struct starter *starter, const char *id, bool keep_log);
void starter_clear_up(struct starter *starter);
int starter_look(struct starter *starter, const char *id, struct pager_view *ret);
void starter_release(struct starter *starter, const char *id);
void starter_stop_pager(struct starter *starter, const char *id);
int starter_root(struct starter *starter, const char *id, pid_t pid);
bool starter_root_lives(struct starter *starter, const char *id);
int starter_kill(struct starter *starter, const char *id);

/* Pre-flight's looks at this host. */
struct preflight_eyes starter_eyes(struct starter *starter);

/* The parent of a process, or 0. */
pid_t starter_parent(struct starter *starter, pid_t pid);

/* Makes room in a local client's socket for what is sent to it. */
void starter_make_room(struct starter *starter, int fd);

/* The log file, opened anew, or -EBADF. */
int starter_open_log(struct starter *starter);

/* The daemon is ready: systemd is told, and the starter leaves the terminal of a start with -d. */
void starter_ready(struct starter *starter);

/* Removes what an image-cache leaves in the file system (flags of ask.h: what there is besides its
 * sockets), the mount too if no snapshot is left, and ends the starter.  Takes NULL, returns NULL.
 */
struct starter *starter_end(struct starter *starter, uint32_t flags);

/* ---- the starter's own side ---- */

/* Serves until it is told to end, or the parser has gone. */
_Noreturn void starter_serve(const struct starter_setup *setup, int asks, int tells);
