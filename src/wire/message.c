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

static bool strings_sane(const ProtobufCMessage *message);

/* One value of a field: a string, a message, or what needs no look. */
static bool value_sane(const ProtobufCFieldDescriptor *field, const void *value)
{
    const void *pointer = *(void *const *)value;
    if (!pointer)
        return true;
    return field->type == PROTOBUF_C_TYPE_STRING ? string_sane(pointer) : strings_sane(pointer);
}

static bool strings_sane(const ProtobufCMessage *message)
{
    const ProtobufCMessageDescriptor *kind = message->descriptor;
    const uint8_t *base = (const uint8_t *)message;
    for (unsigned i = 0; i < kind->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &kind->fields[i];
        if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        bool repeated = field->label == PROTOBUF_C_LABEL_REPEATED;
        size_t count = repeated ? *(const size_t *)(base + field->quantifier_offset) : 1;
        const uint8_t *values =
            repeated ? *(const uint8_t *const *)(base + field->offset) : base + field->offset;
        for (size_t k = 0; k < count; k++) {
            if (!value_sane(field, values + k * sizeof(void *)))
                return false;
        }
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
        error_set(ret, failure_from_wire(failure->code), "%s",
                  failure->text[0] ? failure->text : "no reason was given");
}

void failure_to_reason(const Godwit__Pb__Failure *failure, const char *otherwise, struct error *ret)
{
    if (failure->code == FAILURE_NONE || !failure->text[0])
        error_set(ret, FAILURE_PEER, "%s", otherwise);
    else
        failure_to_error(failure, ret);
}
