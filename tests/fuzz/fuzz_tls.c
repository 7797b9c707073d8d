/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte of mode, then the bytes that a peer says before it is known who it is.
 *   bit 0   this side is the client
 *   bit 1   by certificates, else by a pre-shared key
 */
#include "fuzz.h"

#include <sys/socket.h>

#include "sides.h"

enum { FLIGHT_BYTES = 1 << 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct side side = side_open(side_credentials(data[0]), data[0] & SIDE_CLIENT);
    if (size > 1)
        must(send(side.wire, data + 1, MIN(size - 1, (size_t)FLIGHT_BYTES), MSG_NOSIGNAL) > 0);
    shutdown(side.wire, SHUT_WR);
    side_go_on(&side);
    /* Nobody gets through without the key. */
    must(side.state <= 0);
    side_close(&side);
    return 0;
}
