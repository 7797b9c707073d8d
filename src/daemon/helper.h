/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An image-proxy is two processes:
 *
 *   link, criu, local clients ──▶ parser ── asks, fixed records ──▶ helper ──▶ children
 *                                 looks into processes              ptrace, connect
 *
 * The parser is the daemon: what was started, what has the pid file and the lock, and what reads
 * every byte that others send.  It may look into processes, and change nothing (confine.h).  The
 * helper does what changes something: a child of it each time makes a userfaultfd in a process,
 * stops one, or clears its soft-dirty bits (task/helper.h), or connects to the image-cache of the
 * command line (dial_help()).  It is under no seccomp filter, for the kernel lets nobody who is
 * suspend that of another.
 *
 * Neither lives without the other.  All calls are the parser's; they wait for the answer, and if
 * the helper has died they do not return.
 */
#include "daemon/daemon.h"
#include "task/helper.h"

struct helper;

struct helper_setup {
    const struct daemon *daemon;
    const struct target *target; /* where children connect to; outlives it, as the daemon does */
    void (*remove)(const struct daemon *daemon); /* the daemon's sockets, at the end */
};

/* Forks the helper: the caller has one thread, and the signals of daemon_open() blocked.  NULL with
 * *err set. */
struct helper *helper_new(const struct helper_setup *setup, struct error *err);

/* Becomes readable when the helper has died. */
int helper_fd(const struct helper *helper);
/* It has: ends this process too. */
_Noreturn void helper_lost(const struct helper *helper, int error_number);

const struct task_helpers *helper_tasks(const struct helper *helper);
const struct dialler *helper_dialler(const struct helper *helper);

/* As socket_peer_inode(), which goes to the network namespace of the socket. */
int helper_peer_inode(const struct helper *helper, int fd, uint64_t *ret);

/* As those of starter.h. */
void helper_make_room(const struct helper *helper, int fd);
int helper_open_log(const struct helper *helper);
void helper_ready(const struct helper *helper);

/* Removes what an image-proxy leaves in the file system, and ends the helper.  Takes NULL, returns
 * NULL. */
struct helper *helper_end(struct helper *helper);
