/* SPDX-License-Identifier: Apache-2.0 */
/* Input: one byte that chooses the kind of message, then its bytes. */
#include "fuzz.h"

#include <string.h>

#include "local.pb-c.h"
#include "wire/message.h"

static const ProtobufCMessageDescriptor *const kinds[] = {
    &godwit__pb__hello__descriptor,           &godwit__pb__failure__descriptor,
    &godwit__pb__snapshot_begin__descriptor,  &godwit__pb__image_begin__descriptor,
    &godwit__pb__space_begin__descriptor,     &godwit__pb__item_end__descriptor,
    &godwit__pb__snapshot_end__descriptor,    &godwit__pb__verdict__descriptor,
    &godwit__pb__verdict_ack__descriptor,     &godwit__pb__dump_open__descriptor,
    &godwit__pb__dump_opened__descriptor,     &godwit__pb__progress__descriptor,
    &godwit__pb__exited__descriptor,          &godwit__pb__restore_open__descriptor,
    &godwit__pb__restore_ready__descriptor,   &godwit__pb__forget__descriptor,
    &godwit__pb__status__descriptor,          &godwit__pb__status_snapshot__descriptor,
    &godwit__pb__facts__descriptor,           &godwit__pb__findings__descriptor,
    &godwit__pb__standing__descriptor,        &godwit__pb__resolve__descriptor,
    &godwit__pb__snapshot_accept__descriptor, &godwit__pb__stream_join__descriptor,
    &godwit__pb__spool_write__descriptor,     &godwit__pb__spool_published__descriptor,
};

static void check_string(const char *s)
{
    must(s && strlen(s) <= 4096);
    for (; *s; s++)
        must((unsigned char)*s >= 0x20 && *s != 0x7f);
}

/* Checks the strings of a message and of those inside it; true if any of them has unknown fields.
 */
static bool look_through(const ProtobufCMessage *message)
{
    const ProtobufCMessageDescriptor *kind = message->descriptor;
    bool unknown = message->n_unknown_fields > 0;
    for (unsigned i = 0; i < kind->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &kind->fields[i];
        if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        const uint8_t *base = (const uint8_t *)message;
        void *const *values = (void *const *)(base + field->offset);
        size_t count = 1;
        if (field->label == PROTOBUF_C_LABEL_REPEATED) {
            count = *(const size_t *)(base + field->quantifier_offset);
            values = *(void *const *const *)values;
        }
        for (size_t k = 0; k < count; k++) {
            if (field->type == PROTOBUF_C_TYPE_STRING)
                check_string(values[k]);
            else if (values[k])
                unknown |= look_through(values[k]);
        }
    }
    return unknown;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const ProtobufCMessageDescriptor *kind = kinds[data[0] % ARRAY_SIZE(kinds)];
    struct error err = {0};
    ProtobufCMessage *message = message_unpack(kind, data + 1, size - 1, &err);
    if (!message) {
        must(err.code == FAILURE_PEER && err.text[0]);
        return 0;
    }
    bool unknown = look_through(message);
    if (kind == &godwit__pb__failure__descriptor) {
        failure_to_error((const Godwit__Pb__Failure *)message, &err);
        must(err.code <= FAILURE_LAST && strlen(err.text) < sizeof(err.text));
    }
    if (unknown) { /* these do not survive repacking, and nobody reads them */
        protobuf_c_message_free_unpacked(message, NULL);
        return 0;
    }
    /* What was taken can be said again, and means the same. */
    size_t length = protobuf_c_message_get_packed_size(message), again_length;
    uint8_t *packed = malloc(length + 1), *again_packed;
    must(packed && protobuf_c_message_pack(message, packed) == length);
    ProtobufCMessage *again = message_unpack(kind, packed, length, &err);
    must(again);
    again_length = protobuf_c_message_get_packed_size(again);
    again_packed = malloc(again_length + 1);
    must(again_length == length && again_packed);
    protobuf_c_message_pack(again, again_packed);
    must(memcmp(packed, again_packed, length) == 0);
    free(packed);
    free(again_packed);
    protobuf_c_message_free_unpacked(message, NULL);
    protobuf_c_message_free_unpacked(again, NULL);
    return 0;
}
