/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * TCP by host and port, IPv4 and IPv6.  What travels is the memory of processes: addresses beyond
 * loopback need credentials for TLS, or somebody who says that they do not.
 */
#include "wire/credentials.h"
#include "wire/transport.h"

enum { TCP_LISTENERS_MAX = 8 };

/* Listens on every address of the host (non-blocking sockets).  The number of sockets in fds, or -1
 * with *err set. */
int tcp_listen(const char *host, const char *port, const struct protection *protection,
               int fds[TCP_LISTENERS_MAX], struct error *err);

/*
 * What carries a link over a connected socket, which is taken over: TLS if it goes beyond this host
 * and there are credentials, else plain; the latter too for what is no TCP.  Plain on loopback the
 * other end has to be root's or this user's, unless insecure.  peer: as for
 * transport_tls().  NULL: no memory.
 */
struct transport *tcp_transport(int fd, const struct protection *protection, const char *peer);

/* The address of the other end, for people; "" if there is none. */
enum { TCP_NAME_BYTES = 64 };
void tcp_peer_name(int fd, char name[TCP_NAME_BYTES]);

/* Whether the host's addresses are allowed: 0, or -1 with *err set (FAILURE_USAGE: they are not;
 * else they cannot be told). */
int tcp_check(const char *host, const char *port, const struct protection *protection,
              struct error *err);

struct tcp_dial {
    struct addrinfo *addresses, *next;
};

/*
 * Begins to connect to the first, or goes on with the next, address of the host.  A non-blocking
 * socket whose connection is under way (writable when decided: SO_ERROR tells), or -1 with *err
 * set: there is no address left, or none is allowed.  tcp_dial_end() is due in any case.
 */
int tcp_dial_begin(struct tcp_dial *dial, const char *host, const char *port,
                   const struct protection *protection, struct error *err);
int tcp_dial_next(struct tcp_dial *dial, struct error *err);
void tcp_dial_end(struct tcp_dial *dial);
