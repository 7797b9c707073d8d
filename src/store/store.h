/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The store of an image-cache: snapshots under one directory on a tmpfs of its own.
 *
 *   WORKDIR/images/                tmpfs with huge pages, mounted by the cache
 *       ID/about                   the state, for a cache that comes after this one
 *       ID/images/core-1.img       what `criu restore -D` reads
 *       ID/images/pages-1.img      the arena of a shadow
 *       ID/memory/                 instead, of a snapshot that shares memory with others: chain.h
 *
 * The files are memory, never disk; they outlive a cache that is killed, because after the
 * acknowledgement they may be the only copy of the process.
 *
 *   RECEIVING ──▶ HELD ──▶ READY ──▶ RESTORING ──▶ STARTED ──▶ gone, or READY again if kept
 *       │         │  │       ▲ ▲           │             │
 *       ▼         ▼  ▼       │ └───────────┘             └─▶ READY if criu failed and says so
 *      gone    gone  DOUBT ──┘
 *
 * A snapshot that came by a migration (`restore`) goes another way, and waits for nobody to ask:
 *
 *   RECEIVING ──▶ HELD ──▶ RESTORING ──▶ PREPARED ──▶ STARTED ──▶ RESTORED (filling) ──▶ gone
 *                  ▲            │            │           │
 *                  └────────────┴────────────┘           └─▶ READY: it could not be started
 *
 * HELD becomes DOUBT when the link is lost: until the source tells that its process has ended (or
 * an operator does) a restore might run it twice.  STARTED whose restore vanished without a word
 * stays STARTED for the same reason.
 *
 * Single-threaded: all calls are made on the loop's thread of the daemon that owns it.
 */
#include <sys/types.h>

#include "store/shadow.h"

enum snapshot_state {
    SNAPSHOT_RECEIVING, /* not whole; lost with the link */
    SNAPSHOT_HELD,      /* whole and acknowledged; whether the source's process has ended is open */
    SNAPSHOT_READY,     /* may be restored */
    SNAPSHOT_RESTORING, /* criu restore is at work, nothing runs yet */
    SNAPSHOT_PREPARED,  /* built and standing still; whether it may run is the source's to say */
    SNAPSHOT_STARTED,   /* it was allowed to run: a copy runs here, or may run */
    SNAPSHOT_RESTORED, /* it runs here; its memory is still coming, or the source has not settled */
    SNAPSHOT_DOUBT,    /* held, and nobody tells whether the source's copy still runs */
    SNAPSHOT_PRE_DUMPED, /* memory of a process that runs on: for those that are based on it */
};

/* Of an image-cache that writes snapshots to a disk as well (daemon/spool.h). */
enum snapshot_spool {
    SPOOL_NONE,    /* that has not come up, or there is no spool */
    SPOOL_WAITING, /* it has to be written */
    SPOOL_WRITING,
    SPOOL_WRITTEN, /* which is written down here, too */
    SPOOL_FAILED,  /* until the next image-cache tries again */
};

struct store;

struct snapshot {
    struct store *store;
    struct snapshot *next;
    char *id;
    enum snapshot_state state;
    enum snapshot_state fallback; /* while RESTORING or STARTED: what it is if that fails */
    bool revoked;                 /* while RESTORING: the source says that its process runs on */
    bool kept;                    /* restored before, and kept: no longer handed out unless named */
    int dirfd;                    /* of ID/ */
    int imagefd;                  /* of ID/images/ */
    uint64_t chain;               /* with whom it shares memory (store/chain.h); 0: nobody */
    bool pre_dump;                /* it is going to be PRE_DUMPED */
    int memoryfd;                 /* of a chain: of ID/memory/ */
    ino_t *files;                 /* of space-1 and so on there */
    uint32_t space_count;         /* how many */
    uint64_t flat_bytes;          /* charged for copies of its pages, put together for criu */
    bool moved;                   /* instead, the pages are on their way there, or have arrived */
    enum snapshot_spool spool;
    char *spool_error;  /* why that has failed; or NULL */
    bool spent;         /* its process runs here, and only the spool wants it still */
    char *parent;       /* what it was based on, for people; "": nothing */
    bool restore;       /* by a migration: restored without being asked for */
    bool lazy;          /* and it starts before its memory is filled in (src/pager) */
    bool filling;       /* RESTORED: it runs, and the pager is at work; not written down */
    bool settled;       /* RESTORED: the source knows */
    bool told_prepared; /* and the source may have heard that it is prepared */
    char **options;     /* for that criu restore, ended by NULL; NULL: none */
    uint64_t token;     /* of that restore's hook */
    uint64_t nonce;     /* the source's: tells snapshots of one id apart */
    uint64_t bytes;
    uint32_t images;
    uint32_t pid; /* of the root task on the source; 0: not known */
    char *command;
    char *host;
    uint64_t created_usec; /* CLOCK_MONOTONIC */
    uint64_t charge;       /* bytes of the budget that its files hold */
    const void *origin;    /* whose it is while RECEIVING or HELD: compared, never followed */
};

/* Calls each() for every snapshot of a store that no image-cache has open, and changes nothing. The
 * snapshot is valid during the call. */
void store_peek(const char *path, void (*each)(const struct snapshot *snapshot, void *user),
                void *user);

/* Makes the directory of a store, with a tmpfs of its own there.  A descriptor of it, or -1 with
 * *err set. */
int store_mount(const char *path, struct error *err);

/* Takes that back, if nothing is in it. */
void store_unmount(const char *path, int dirfd);

/*
 * Opens the store in the directory `path`, which is made if missing.  Whole snapshots that an
 * earlier cache left are taken over, anything else there is removed.  NULL with *err set.
 */
struct store *store_open(const char *path, uint64_t limit_bytes, struct error *err);

/* The same with the open directory, which is the store's from now on; |path| is what it is called
 * by others. */
struct store *store_open_at(const char *path, int dirfd, uint64_t limit_bytes, struct error *err);

/* Closes it.  The files stay for the next cache. */
struct store *store_close(struct store *store);

struct budget *store_budget(struct store *store);
struct snapshot *store_first(struct store *store);
struct snapshot *store_find(struct store *store, const char *id);

/* Makes an empty snapshot that is RECEIVING.  NULL with *err set (FAILURE_BUSY: the id is taken).
 */
struct snapshot *snapshot_create(struct store *store, const char *id, struct error *err);

/* Changes the state and writes it down, where it must outlive this process.  0, or negative errno.
 */
int snapshot_set_state(struct snapshot *snapshot, enum snapshot_state state);

/* Sets the options from `count` strings, which are copied.  0, or a negative errno (-E2BIG: more
 * than can be written down). */
int snapshot_set_options(struct snapshot *snapshot, char *const *options, size_t count);

/* Removes the images, and gives back what they were charged with; the state stays. */
void snapshot_remove_images(struct snapshot *snapshot);

/* Removes the snapshot and its files, even while somebody has their directory open, and gives
 * its charge back.  Takes NULL, returns NULL. */
struct snapshot *snapshot_remove(struct snapshot *snapshot);

/* Absolute path of one of its directories, "images" or "memory".  0, or -ENAMETOOLONG. */
int snapshot_path(const struct snapshot *snapshot, const char *which, char *buf, size_t size);

const char *snapshot_state_name(enum snapshot_state state);

/* Whether it has to stay, for it is not in the spool yet. */
bool snapshot_spools(const struct snapshot *snapshot);

/* The state as it is shown: what is RESTORED may still be filling. */
const char *snapshot_shown_state(const struct snapshot *snapshot);
