/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/message.h"

#include <string.h>

enum { STRING_MAX = 4096 };

/* Strings of a peer end up in logs, on terminals and as names: nothing but printable text. */
static bool string_sane(const char *s)
{
    size_t n = 0;
    for (; s[n]; n++) {
        if (n >= STRING_MAX || (unsigned char)s[n] < 0x20 || s[n] == 0x7f)
            return false;
    }
    return true;
}

static bool strings_sane(const ProtobufCMessage *message)
{
    const ProtobufCMessageDescriptor *kind = message->descriptor;
    for (unsigned i = 0; i < kind->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &kind->fields[i];
        if (field->type != PROTOBUF_C_TYPE_STRING)
            continue;
        const char *s = *(char *const *)((const uint8_t *)message + field->offset);
        if (s && !string_sane(s))
            return false;
    }
    return true;
}

ProtobufCMessage *message_unpack(const ProtobufCMessageDescriptor *kind, const uint8_t *bytes,
                                 size_t length, struct error *err)
{
    ProtobufCMessage *message = protobuf_c_message_unpack(kind, NULL, length, bytes);
    if (message && strings_sane(message))
        return message;
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
    error_set(err, FAILURE_PEER, "the peer broke the protocol: malformed %s message",
              kind->short_name);
    return NULL;
}

Godwit__Pb__Failure failure_message(const struct error *err)
{
    Godwit__Pb__Failure failure = GODWIT__PB__FAILURE__INIT;
    failure.code = err->code;
    failure.text = (char *)err->text;
    return failure;
}

void failure_to_error(const Godwit__Pb__Failure *failure, struct error *ret)
{
    if (failure->code == FAILURE_NONE)
        *ret = (struct error){.code = FAILURE_NONE};
    else
        error_set(ret, failure_from_wire(failure->code), "%s", failure->text);
}

void failure_to_reason(const Godwit__Pb__Failure *failure, const char *otherwise, struct error *ret)
{
    failure_to_error(failure, ret);
    if (ret->code == FAILURE_NONE || !ret->text[0])
        error_set(ret, FAILURE_PEER, "%s", otherwise);
}
