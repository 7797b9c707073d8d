/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Asking the kernel about sockets, see sock_diag(7).  Any thread.
 */
#include <linux/netlink.h>
#include <stdint.h>

/* A socket to ask with, of the network namespace that this thread is in; or a negative errno. */
int diag_socket(void);

/*
 * The same of another network namespace, whose descriptor is borrowed: this thread goes there for a
 * moment.  It cannot but come back; in the wrong network it must not run on.
 */
int diag_socket_in(int netns);

/* The inode of the peer, in an answer about a UNIX socket; 0: it has none, or none was told of. */
uint32_t diag_unix_peer(const struct nlmsghdr *header);
