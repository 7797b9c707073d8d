/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the sockets of a tree are connected to; a part of tree.c. */
#include "task/tree.h"

/* Sockets by inode.  Sorted with sockets_sort() before anything is looked for. */
struct socket_owner {
    uint64_t inode;
    pid_t pid;
};

struct sockets {
    struct socket_owner *list; /* owned by whoever made it */
    size_t count;
};

void sockets_sort(struct sockets *sockets);

/* Called for each trait found; what is borrowed. */
typedef void (*socket_trait_cb)(void *user, enum tree_trait_kind kind, pid_t pid, uint64_t number,
                                const char *what);

/*
 * Looks for connections, in the network namespace that this process is in.  unix: 0, or a negative
 * errno when the kernel does not tell of them.
 */
void sockets_look_tcp(const struct sockets *sockets, pid_t pid, socket_trait_cb found, void *user);
int sockets_look_unix(const struct sockets *sockets, pid_t pid, socket_trait_cb found, void *user);
