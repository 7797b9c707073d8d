/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * TCP by host and port, IPv4 and IPv6.  What travels is the memory of processes, and this transport
 * has neither authentication nor encryption: addresses beyond loopback need `insecure`.
 */
#include "base/error.h"

enum { TCP_LISTENERS_MAX = 8 };

/* Listens on every address of the host (non-blocking sockets).  The number of sockets in fds, or -1
 * with *err set. */
int tcp_listen(const char *host, const char *port, bool insecure, int fds[TCP_LISTENERS_MAX],
               struct error *err);

struct tcp_dial {
    struct addrinfo *addresses, *next;
};

/*
 * Begins to connect to the first, or goes on with the next, address of the host.  A non-blocking
 * socket whose connection is under way (writable when decided: SO_ERROR tells), or -1 with *err
 * set: there is no address left, or none is allowed.  tcp_dial_end() is due in any case.
 */
int tcp_dial_begin(struct tcp_dial *dial, const char *host, const char *port, bool insecure,
                   struct error *err);
int tcp_dial_next(struct tcp_dial *dial, struct error *err);
void tcp_dial_end(struct tcp_dial *dial);
