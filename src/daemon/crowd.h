/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Who waits at an image-cache's door: connections that have not shown yet who they are.  There is
 * room for CROWD_MAX of them, whatever else it serves, and when that is full one has to go: the
 * oldest of those from the network that has sent the most.  So one who comes again and again pushes
 * out himself, and nobody keeps others out by waiting.
 */
#include "base/util.h"

enum { CROWD_MAX = 64, CROWD_NETWORK_BYTES = 16 };

struct stranger {
    uint8_t network[CROWD_NETWORK_BYTES]; /* as stranger_network() tells it */
    uint64_t since_usec;
};

/* The network that the other end of a socket is in: an IPv4 address, or the first half of one of
 * IPv6; zeros for what has none. */
void stranger_network(int fd, uint8_t ret[CROWD_NETWORK_BYTES]);

/* Index of the one that has to go; count is not 0. */
size_t crowd_choose(const struct stranger *crowd, size_t count);
