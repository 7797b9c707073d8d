/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the restores of migrations take of root: criu under its keeper, the pager, the directory
 * that both work in, and the end of a process whose memory is lost.  Everything goes by the
 * snapshot's id; what it means for the snapshot is incoming.c's to know.
 *
 *   WORKDIR/incoming-ID/restore.log, stats-restore, lazy-pages.socket   criu's
 *                       fill                                            the pager's state
 *                       root        which process criu has built: its root's pid, and its start
 */
#include <sys/types.h>

#include "base/error.h"
#include "pager/pager.h"
#include "wire/frame.h"

/* A keeper that lives, and what it is for. */
struct restore {
    struct restore *next;
    char id[WIRE_ID_MAX + 1];
    uint64_t token; /* of criu's hook */
    pid_t keeper;
    int pidfd;   /* readable when the keeper has ended: restores_reap() is due */
    int gate_fd; /* criu has been started ahead, and goes on at a byte over this; -EBADF */
};

struct restores {
    /* Set by the owner, borrowed. */
    int workdir, store; /* directories */
    const char *workdir_path, *store_path;
    const char *criu;               /* NULL: there is none */
    const struct error *criu_error; /* and why */
    uint64_t silence_usec;          /* of the hook's daemon */
    /* Its own. */
    struct restore *first;
};

struct restore_order {
    const char *id;
    uint64_t token;
    bool lazy;            /* with a pager */
    bool ahead;           /* criu waits for restores_go() */
    char *const *options; /* for criu, ended by NULL; NULL: none */
};

struct restore_end {
    int status;       /* of the keeper, as waitpid() tells it */
    struct error err; /* why criu failed, if the keeper ended with a status that is not 0 */
};

/* Starts the pager, if it is wanted, and criu.  For a caller with one thread.  0, or -1 with *err
 * set and no criu at work; a pager may be. */
int restores_start(struct restores *restores, const struct restore_order *order, struct error *err);

/* Lets a criu that was started ahead do its work.  False: there is none, or no pager (any more). */
bool restores_go(struct restores *restores, const char *id, bool lazy);

/* Ends a criu that was started ahead, and its pager, waits for that, and removes the directory. */
void restores_leave(struct restores *restores, const char *id);

/* Has the keeper kill criu, and what that has built unless it runs. */
void restores_stop(struct restores *restores, const char *id);

/* Takes the end of a keeper, whose struct is freed. */
void restores_reap(struct restores *restores, struct restore *restore, struct restore_end *ret);

/* Removes the directory; keep_log: criu's log stays, for whoever wants to know why. */
void restores_remove(const struct restores *restores, const char *id, bool keep_log);

/* Removes the directories of snapshots that are not in the store. */
void restores_clear_up(const struct restores *restores);

/* As pager/pager.h has them. */
int restores_look(const struct restores *restores, const char *id, struct pager_view *ret);
void restores_release(const struct restores *restores, const char *id);
void restores_stop_pager(const struct restores *restores, const char *id);

/*
 * criu says that this is the root of what it has built: that is written down, if it is a descendant
 * of the snapshot's keeper, or has been written down before.  0, or a negative errno (-ESRCH: it is
 * neither).
 */
int restores_root(const struct restores *restores, const char *id, pid_t pid);

/* Whether that process is there. */
bool restores_root_lives(const struct restores *restores, const char *id);

/* Kills that process, and all of its tree, if what it lacks has been lost with the pager.  0, or a
 * negative errno (-EPERM: it has not; -ESRCH: there is none). */
int restores_kill(const struct restores *restores, const char *id);

/* Whether what is missing will not come any more.  view: as restores_look() told. */
bool restores_is_lost(const struct pager_view *view);
