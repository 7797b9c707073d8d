/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What carries the bytes of a link: a connected stream socket as it is, or TLS on top of one
 * (wire/tls.h).
 *
 *   transport_start(), again and again until it is up ──▶ _read(), _write() ──▶ _end() ──▶ _free()
 *
 * Nothing blocks, and nothing is read ahead beyond the record that is under way.  What is called
 * for an error returns -1 with *err set (FAILURE_PEER unless said otherwise).
 */
#include <sys/uio.h>

#include "base/error.h"

struct transport;

struct transport_ops {
    /* Does what has to be done before the first byte.  1: it is up, 0: not yet, -1: *err. */
    int (*start)(struct transport *transport, struct error *err);

    /* Whether who is at the other end may be there; called when it has said the first thing.  1:
     * yes, 0: it is about to leave, -1: *err. */
    int (*check)(struct transport *transport, struct error *err);

    /* Whether the peer has proved that this name, or address, is its own. */
    bool (*is_peer)(const struct transport *transport, const char *name);

    /* Bytes that have landed in the pieces, in order; 0: none now; -1: *err. */
    ssize_t (*read)(struct transport *transport, const struct iovec *iov, size_t count,
                    struct error *err);

    /* Bytes that are taken from the pieces and need not be kept; 0: none now; -1: *err.  Without
     * any piece: what was taken and not sent goes on its way. */
    ssize_t (*write)(struct transport *transport, const struct iovec *iov, size_t count,
                     struct error *err);

    /* Events of the socket (EPOLLIN, EPOLLOUT) that it waits for by itself. */
    uint32_t (*wants)(const struct transport *transport);

    /* Whether there is something to read of which no event will tell. */
    bool (*holds)(const struct transport *transport);

    /* Bytes taken that have not reached the peer's host, or more. */
    uint64_t (*unsent)(const struct transport *transport);

    /* Says that nothing more comes, as far as that can be said at once. */
    void (*end)(struct transport *transport);

    /* Closes the socket too. */
    void (*free)(struct transport *transport);
};

/* Read by the link, written by the transport. */
struct transport {
    const struct transport_ops *ops;
    int fd;
    bool ended;          /* the peer has closed it: there is nobody to say anything to */
    uint64_t heard_usec; /* when the socket last gave a byte, and took one */
    uint64_t taken_usec;
    const char *kind; /* for people: "plain text", "TLS 1.3, ..." */
    bool exposed;     /* plain text, beyond this host; set by whoever made it */
    bool shared;      /* plain text, by a loopback that other users have too; set likewise */
    size_t ahead;     /* bytes of the socket that it may have taken and not given to anybody */
};

/* The socket as it is, which is taken over.  NULL: no memory, and it is closed. */
struct transport *transport_plain(int fd);

/* For other transports: recv() and sendmsg() on the socket, with the times noted.  -1: errno. */
ssize_t transport_socket_read(struct transport *transport, struct iovec *iov, size_t count);
ssize_t transport_socket_write(struct transport *transport, const struct iovec *iov, size_t count);
/* A socket that is closed with bytes in it is reset, and the peer may lose what it was told last:
 * no more is sent, and what is here is thrown away. */
void transport_socket_end(struct transport *transport);
/* Bytes in the socket that the peer's host has not acknowledged. */
uint64_t transport_socket_unsent(const struct transport *transport);

/* Takes NULL, returns NULL. */
static inline struct transport *transport_free(struct transport *transport)
{
    if (transport)
        transport->ops->free(transport);
    return NULL;
}
