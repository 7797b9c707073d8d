/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * criu dump on the source of a migration, from its start to its end: the process stands still
 * between the freeze and the answer to criu's post-dump hook.
 *
 *   freeze_begin() ─▶ criu freezes: frozen() ─▶ pages flow ─▶ held(): the hook asks
 *       ─▶ freeze_answer() ─▶ ended()
 *
 * On the loop's thread; the callbacks come from the loop.
 */
#include <systemd/sd-event.h>

#include "criu/dump.h"
#include "migrate/scan_table.h"
#include "task/task.h"

struct freeze;

struct freeze_ops {
    /* All tasks stand still, and criu begins to look at their memory; what it need not scan itself
     * may be added to the table.  Not called without the preloaded filter. */
    void (*frozen)(struct freeze *freeze, struct scan_table *table, void *user);
    /* Everything is written, the tasks stand still, the hook waits. */
    void (*held)(struct freeze *freeze, void *user);
    /* The hook has gone before it was answered: criu lets the tasks run on. */
    void (*hook_lost)(struct freeze *freeze, void *user);
    /* criu has ended; freeze->status is its exit status. */
    void (*ended)(struct freeze *freeze, void *user);
};

struct freeze {
    sd_event *event;
    const struct freeze_ops *ops;
    void *user;
    pid_t root;
    struct criu_dump dump;
    uint64_t token;
    char log[4096], socket_path[4096];

    pid_t criu; /* 0: not started, or ended and reaped */
    int criu_pidfd;
    int status;
    uint64_t frozen_usec;  /* when the root task was first seen to stand still; 0: not yet */
    uint64_t held_usec;    /* when everything had been dumped; 0: not yet */
    struct task_tree tree; /* once held */
    bool narrowed;         /* criu was shown less than there is */

    int hook_fd; /* that waits for an answer; -EBADF: none */
    pid_t hook_pid;
    sd_event_source *criu_io, *listener, *hook_io, *watch, *filter_io, *questions_io;
    char *hidden;
    int table_fd; /* what the scan filter is told; -EBADF: there is none */
};

struct freeze_request {
    pid_t pid;
    const char *criu;
    const char *workdir;   /* exists, and is this freeze's own: log, socket, what criu leaves */
    const char *journal;   /* for the hook */
    uint64_t silence_usec; /* after which the hook gives us up */
    char *const *options;  /* for criu; may be NULL */
    bool narrow;           /* criu is to dump only what the tracker has not seen */
    bool preload;          /* narrow: something may be preloaded into criu for that */
    const char *hidden;    /* narrow: and nothing of these tasks, "12,15"; NULL: there are none */
};

/* Opens sockets and starts criu.  The pages come out of freeze->dump.pages_peer_fd, which the
 * caller takes; when it closes that too early, criu fails and lets the process run on.  0, or -1
 * with *err set; freeze_close() is due either way. */
int freeze_begin(struct freeze *freeze, sd_event *event, const struct freeze_request *request,
                 const struct freeze_ops *ops, void *user, struct error *err);

/* Whether criu and the hook hold the tasks at this moment. */
bool freeze_holds(const struct freeze *freeze);

/* yes: criu ends the tasks; no: it lets them run on, and fails. */
void freeze_answer(struct freeze *freeze, bool yes, const char *text);

/* Keeps the hook waiting. */
void freeze_beat(struct freeze *freeze);

/* Kills criu and the hook: the kernel lets traced tasks run on. */
void freeze_kill(struct freeze *freeze);

/* Closes everything; a criu that still runs is killed and reaped. */
void freeze_close(struct freeze *freeze);
