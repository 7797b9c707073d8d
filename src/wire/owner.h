/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Whose the other end of a connection within this host is.  Loopback belongs to every user of
 * the host, and what goes over a link is the memory of processes, or an order to start some as
 * root.
 */
#include <sys/types.h>

#include "base/error.h"

/*
 * The user to whom the socket at the other end of a TCP connection belongs.  0, or a negative
 * errno: -ENOENT nobody has it, or nobody has accepted the connection yet.  Good once the other end
 * has said something.
 */
int tcp_owner(int fd, uid_t *ret);

/*
 * The inode of the socket at the other end of such a connection, or of a UNIX one: by that it is
 * found among the descriptors of whoever has it.  For UNIX wants CAP_NET_ADMIN, and this thread
 * enters the other's network namespace for a moment.  0, or a negative errno: -ENOENT nobody has
 * it, or nobody has accepted the connection yet.
 */
int socket_peer_inode(int fd, uint64_t *ret);

/* 1 if the other end is root's or this user's, 0 if nobody has it (any more), else -1 with *err set
 * (FAILURE_PEER). */
int tcp_check_owner(int fd, struct error *err);

/* 0 if who listens on the UNIX socket that this one is connected to was root or this user, else -1
 * with *err set (FAILURE_PEER). */
int unix_check_owner(int fd, struct error *err);
