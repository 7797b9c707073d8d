/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The two ends of a TLS connection, each on a socket of its own, whose other end is in the hands of
 * the fuzzer. */
#include "wire/tls.h"

enum { SIDE_CLIENT = 1, SIDE_X509 = 2 }; /* bits of an input's mode */

struct side {
    struct transport *transport;
    int wire;  /* the other end of its socket */
    int state; /* what the last start() has returned */
};

/* What both ends have, by certificates or by a key that is shared: made once, and kept. */
const struct credentials *side_credentials(unsigned mode);

struct side side_open(const struct credentials *credentials, bool client);

/* Its handshake, as far as it gets with what has come. */
void side_go_on(struct side *side);

void side_close(struct side *side);
