/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Control messages: protobuf bytes to a checked structure and back. */
#include "base/error.h"
#include "link.pb-c.h"

/*
 * Unpacks one message of the given kind; the caller frees it with
 * protobuf_c_message_free_unpacked().  Strings, at any depth, hold no control character and are at
 * most 4096 bytes; behind a NUL they are cut.  NULL with *err set when the bytes are not such a
 * message.
 */
ProtobufCMessage *message_unpack(const ProtobufCMessageDescriptor *kind, const uint8_t *bytes,
                                 size_t length, struct error *err);

static inline void message_freep(void *message)
{
    ProtobufCMessage *m = *(ProtobufCMessage **)message;
    if (m)
        protobuf_c_message_free_unpacked(m, NULL);
}

#define _cleanup_message_ _cleanup_(message_freep)

/* error <-> Failure; a failure's text borrows from err.  An error has a text, whatever the peer
 * said. */
Godwit__Pb__Failure failure_message(const struct error *err);
void failure_to_error(const Godwit__Pb__Failure *failure, struct error *ret);

/* The same for a failure that has to have a reason: `otherwise` where it tells none. */
void failure_to_reason(const Godwit__Pb__Failure *failure, const char *otherwise,
                       struct error *ret);
