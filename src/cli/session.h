/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What `godwit dump --remote` and `godwit restore --remote` have in common: a request to a daemon,
 * a criu to run and to watch, progress for people, and an end that both sides agree on.
 */
#include <limits.h>

#include "daemon/daemon.h"

struct session {
    char *workdir_path; /* absolute */
    int workdir;        /* descriptor */
    int daemon;         /* the local socket */
    const char *daemon_name;
    uint64_t silence_usec; /* a daemon that says nothing for so long is dead */
    bool progress;         /* show it on standard error */
    bool progress_shown;
    uint64_t bytes;     /* told by the daemon last */
    char directory[96]; /* of criu's log and leavings, in the work-dir; empty: none */
    char log[4096];     /* absolute */
};

/*
 * Opens the work-dir and connects to the daemon.  *path must be what the user gave; session_close()
 * is due either way.
 */
int session_open(struct session *session, const char *workdir, const char *socket_name,
                 const char *daemon_name, struct error *err);
void session_close(struct session *session);

/* Waits for the next packet that is no progress.  0, or -1 with *err set: the daemon's own failure,
 * its silence, or its end. */
int session_next(struct session *session, struct local_packet *ret, struct error *err);

/* The same for a packet of one kind. */
int session_expect(struct session *session, uint32_t kind, struct local_packet *ret,
                   struct error *err);

/* A snapshot of the image-cache that this session may use. */
struct session_snapshot {
    char id[128], images[PATH_MAX]; /* the directory, absolute */
    char memory[PATH_MAX];          /* where its pages are to be put together from; "": nowhere */
    bool moved;                     /* by moving */
    bool streamed;                  /* or nothing is put together: criu --stream */
    uint64_t token;                 /* for the hook */
};

/* Asks for one, and waits for it.  0, or -1 with *err set. */
int session_open_snapshot(struct session *session, const Godwit__Pb__RestoreOpen *open,
                          struct session_snapshot *ret, struct error *err);

/* Makes WORKDIR/prefix-ID for criu's log and what else criu leaves in its work-dir. */
int session_make_directory(struct session *session, const char *prefix, const char *id,
                           const char *log, struct error *err);

/* Removes it if all went well; else it stays, and with it the log. */
void session_remove_directory(struct session *session);

/* A criu to watch. */
struct session_run {
    pid_t criu;
    int criu_pidfd;
    /* Has to make criu end, or to know that it ends by itself.  Whether a criu that does not may be
     * killed. */
    bool (*give_up)(void *user, bool by_user);
    void (*done)(void *user); /* the daemon said LOCAL_DONE; may be NULL */
    void *user;
    int status;                  /* out: exit status of criu */
    enum failure daemon_failure; /* out: what the daemon's last word was */
};

/*
 * Waits for criu to end and for the daemon's last word (LOCAL_DONE or LOCAL_FAILURE), in whatever
 * order.  When the daemon fails, falls silent or goes while criu works, or the user interrupts,
 * give_up() is called once, and a criu that does not end soon after it is killed.  0 if the
 * daemon said LOCAL_DONE, or -1 with *err set.
 */
int session_run(struct session *session, struct session_run *run, struct error *err);
