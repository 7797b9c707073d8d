/* SPDX-License-Identifier: Apache-2.0 */
#include "task/sockets.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>

#include "base/diag.h"

static int compare(const void *a, const void *b)
{
    const struct socket_owner *left = a, *right = b;
    return left->inode < right->inode ? -1 : left->inode > right->inode;
}

void sockets_sort(struct sockets *sockets)
{
    if (sockets->count > 0)
        qsort(sockets->list, sockets->count, sizeof(*sockets->list), compare);
}

static const struct socket_owner *find(const struct sockets *sockets, uint64_t inode)
{
    const struct socket_owner key = {.inode = inode};
    return bsearch(&key, sockets->list, sockets->count, sizeof(key), compare);
}

/* ---- TCP ---- */

static void look_tcp_table(const struct sockets *sockets, FILE *table, socket_trait_cb found,
                           void *user)
{
    char line[512], what[64];
    unsigned from, to, connection;
    unsigned long long inode;
    while (fgets(line, sizeof(line), table)) {
        if (sscanf(line, " %*u: %*[^:]:%x %*[^:]:%x %x %*s %*s %*s %*u %*u %llu", &from, &to,
                   &connection, &inode) != 4 ||
            connection == TCP_LISTEN || connection == TCP_CLOSE)
            continue;
        const struct socket_owner *owner = find(sockets, inode);
        if (!owner)
            continue;
        snprintf(what, sizeof(what), "a TCP connection, port %u to port %u", from, to);
        found(user, TREE_TCP, owner->pid, inode, what);
    }
}

void sockets_look_tcp(const struct sockets *sockets, pid_t pid, socket_trait_cb found, void *user)
{
    static const char *const tables[] = {"tcp", "tcp6"};
    for (size_t i = 0; i < ARRAY_SIZE(tables) && sockets->count > 0; i++) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/net/%s", pid, tables[i]);
        FILE *table = fopen(path, "re");
        if (!table)
            continue;
        look_tcp_table(sockets, table, found, user);
        fclose(table);
    }
}

/* ---- UNIX ---- */

static int diag_socket_of(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
    _cleanup_close_ int there = open(path, O_RDONLY | O_CLOEXEC);
    return there < 0 ? -errno : diag_socket_in(there);
}

static int diag_ask(int fd)
{
    const struct {
        struct nlmsghdr header;
        struct unix_diag_req ask;
    } request = {
        .header = {.nlmsg_len = sizeof(request),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
        .ask = {.sdiag_family = AF_UNIX, .udiag_states = UINT32_MAX, .udiag_show = UDIAG_SHOW_PEER},
    };
    return send(fd, &request, sizeof(request), 0) < 0 ? -errno : 0;
}

/*
 * No peer: not connected, or not accepted yet.  A peer in the tree is dumped with it.
 */
static void look_unix_socket(const struct sockets *sockets, const struct nlmsghdr *header,
                             socket_trait_cb found, void *user)
{
    const struct unix_diag_msg *told = NLMSG_DATA(header);
    uint32_t peer = diag_unix_peer(header);
    const struct socket_owner *owner = peer ? find(sockets, told->udiag_ino) : NULL;
    if (!owner || find(sockets, peer))
        return;
    bool datagrams = told->udiag_type == SOCK_DGRAM;
    char what[64];
    snprintf(what, sizeof(what), "a UNIX %s socket, unix[%u]", datagrams ? "datagram" : "stream",
             told->udiag_ino);
    found(user, datagrams ? TREE_UNIX_DGRAM : TREE_UNIX_STREAM, owner->pid, told->udiag_ino, what);
}

int sockets_look_unix(const struct sockets *sockets, pid_t pid, socket_trait_cb found, void *user)
{
    char buf[32 << 10] __attribute__((aligned(NLMSG_ALIGNTO)));
    if (sockets->count == 0)
        return 0;
    _cleanup_close_ int fd = diag_socket_of(pid);
    if (fd < 0)
        return fd;
    int r = diag_ask(fd);
    while (r == 0) {
        ssize_t n = recv(fd, buf, sizeof(buf), 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        size_t left = (size_t)n;
        const struct nlmsghdr *header = (const struct nlmsghdr *)buf;
        for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
            if (header->nlmsg_type == NLMSG_DONE)
                return 0;
            if (header->nlmsg_type == NLMSG_ERROR)
                return -EOPNOTSUPP;
            look_unix_socket(sockets, header, found, user);
        }
    }
    return r;
}
