/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte of mode, then harm to what one side says to the other in a handshake of both: two
 * bytes where, one what is turned there, again and again.
 *   bit 0   to what comes to the client
 *   bit 1   by certificates, else by a pre-shared key
 */
#include "fuzz.h"

#include <string.h>
#include <sys/socket.h>

#include "sides.h"

enum { FLIGHT_BYTES = 1 << 16 };

/* What it has to say to somebody who is there and who has not shown who he is. */
static void read_from(struct side *side)
{
    uint8_t bytes[4096];
    struct error err = {0};
    struct iovec iov = {bytes, sizeof(bytes)};
    ssize_t n = side->transport->ops->read(side->transport, &iov, 1, &err);
    must(n >= 0 || (err.code == FAILURE_PEER && err.text[0]));
}

struct harm {
    const uint8_t *at;
    size_t count;    /* of three bytes each */
    uint64_t passed; /* bytes in this direction */
};

/* Carries what there is from one side to the other.  Whether there was anything. */
static bool carry(const struct side *from, const struct side *to, struct harm *harm)
{
    static uint8_t flight[FLIGHT_BYTES];
    ssize_t n = recv(from->wire, flight, sizeof(flight), MSG_DONTWAIT);
    if (n <= 0)
        return false;
    for (size_t i = 0; i < harm->count; i++) {
        uint64_t where = (uint64_t)(harm->at[3 * i] | harm->at[3 * i + 1] << 8);
        if (where >= harm->passed && where - harm->passed < (uint64_t)n)
            flight[where - harm->passed] ^= harm->at[3 * i + 2];
    }
    harm->passed += (uint64_t)n;
    return send(to->wire, flight, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) > 0;
}

/* Whether any of the bytes that have passed were changed in the end. */
static bool is_harmed(const struct harm *harm)
{
    for (size_t i = 0; i < harm->count; i++) {
        uint8_t turned = 0;
        for (size_t k = 0; k < harm->count; k++)
            turned ^= memcmp(harm->at + 3 * i, harm->at + 3 * k, 2) == 0 ? harm->at[3 * k + 2] : 0;
        if (turned && (uint64_t)(harm->at[3 * i] | harm->at[3 * i + 1] << 8) < harm->passed)
            return true;
    }
    return false;
}

static void man_in_the_middle(const struct credentials *credentials, bool at_client,
                              const uint8_t *data, size_t size)
{
    struct side client = side_open(credentials, true), server = side_open(credentials, false);
    struct harm none = {0}, harm = {.at = data, .count = MIN(size / 3, (size_t)64)};
    bool more = true;
    for (int i = 0; more && i < 64; i++) {
        side_go_on(&client);
        more = carry(&client, &server, at_client ? &none : &harm);
        side_go_on(&server);
        more |= carry(&server, &client, at_client ? &harm : &none);
    }
    if (client.state > 0)
        read_from(&client);
    if (server.state > 0)
        read_from(&server);
    /* In TLS 1.3 the client ends first: of harm to its last words the server alone knows. */
    bool both = client.state > 0 && server.state > 0;
    must(is_harmed(&harm) || both);
    side_close(&client);
    side_close(&server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    man_in_the_middle(side_credentials(data[0]), data[0] & SIDE_CLIENT, data + 1, size - 1);
    return 0;
}
