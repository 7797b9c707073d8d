/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frame.h"

#include <ctype.h>
#include <string.h>
#include <xxhash.h>

enum { CHECKED_BYTES = 24 }; /* of the header, in front of the check */

static const uint8_t magic[8] = {'g', 'o', 'd', 'w', 'i', 't', '\r', '\n'};

static const struct {
    uint16_t type;
    const char *name;
} names[] = {
    {FRAME_HELLO, "hello"},
    {FRAME_GOODBYE, "goodbye"},
    {FRAME_HEARTBEAT, "heartbeat"},
    {FRAME_SNAPSHOT_BEGIN, "snapshot-begin"},
    {FRAME_SNAPSHOT_END, "snapshot-end"},
    {FRAME_SNAPSHOT_ABORT, "snapshot-abort"},
    {FRAME_VERDICT, "verdict"},
    {FRAME_SNAPSHOT_ACCEPT, "snapshot-accept"},
    {FRAME_SNAPSHOT_ACK, "snapshot-ack"},
    {FRAME_SNAPSHOT_REFUSE, "snapshot-refuse"},
    {FRAME_VERDICT_ACK, "verdict-ack"},
    {FRAME_CHECK, "check"},
    {FRAME_SETTLED, "settled"},
    {FRAME_STREAM_JOIN, "stream-join"},
    {FRAME_CHECKED, "checked"},
    {FRAME_PREPARED, "prepared"},
    {FRAME_RESTORED, "restored"},
    {FRAME_RESTORE_FAILED, "restore-failed"},
    {FRAME_STREAM_JOINED, "stream-joined"},
    {FRAME_IMAGE_BEGIN, "image-begin"},
    {FRAME_IMAGE_DATA, "image-data"},
    {FRAME_IMAGE_END, "image-end"},
    {FRAME_SPACE_BEGIN, "space-begin"},
    {FRAME_PAGES, "pages"},
    {FRAME_SPACE_END, "space-end"},
    {FRAME_PAGE_RUNS, "page-runs"},
    {FRAME_PAGE_SUMS, "page-sums"},
    {FRAME_ROUND_END, "round-end"},
};

const char *frame_name(uint16_t type)
{
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (names[i].type == type)
            return names[i].name;
    }
    return "?";
}

/* What the check field has to be. */
static uint64_t frame_sum(const uint8_t *header, const struct frame *frame, const void *payload)
{
    if (frame_is_bulk(frame->type) || frame->length == 0)
        return XXH3_64bits(header, CHECKED_BYTES);
    return XXH3_64bits_withSeed(payload, frame->length, XXH3_64bits(header, CHECKED_BYTES));
}

int frame_check(const uint8_t header[WIRE_HEADER_BYTES], const struct frame *frame,
                const void *payload, struct error *err)
{
    if (get_le64(header + CHECKED_BYTES) != frame_sum(header, frame, payload)) {
        error_set(err, FAILURE_PEER, "a %s frame arrived damaged", frame_name(frame->type));
        return -EPROTO;
    }
    return 0;
}

void frame_encode(const struct frame *frame, const void *payload, uint8_t out[WIRE_HEADER_BYTES])
{
    put_le16(out, frame->type);
    put_le16(out + 2, frame->flags);
    put_le32(out + 4, frame->length);
    put_le32(out + 8, frame->session);
    put_le32(out + 12, frame->item);
    put_le64(out + 16, frame->offset);
    put_le64(out + CHECKED_BYTES, frame_sum(out, frame, payload));
}

int frame_decode(const uint8_t in[WIRE_HEADER_BYTES], struct frame *ret, struct error *err)
{
    struct frame frame = {
        .type = get_le16(in),
        .flags = get_le16(in + 2),
        .length = get_le32(in + 4),
        .session = get_le32(in + 8),
        .item = get_le32(in + 12),
        .offset = get_le64(in + 16),
    };
    uint32_t limit = frame_is_bulk(frame.type) ? WIRE_BULK_MAX : WIRE_CONTROL_MAX;
    if (frame.length > limit) {
        error_set(err, FAILURE_PEER,
                  "the peer broke the protocol: %s frame of %u bytes, at most %u",
                  frame_name(frame.type), frame.length, limit);
        return -EPROTO;
    }
    if (frame.flags != 0 && frame.type != FRAME_PAGES && frame.type != FRAME_PAGE_RUNS) {
        error_set(err, FAILURE_PEER, "the peer broke the protocol: flags in a %s frame",
                  frame_name(frame.type));
        return -EPROTO;
    }
    if (frame_is_bulk(frame.type) && frame.length == 0) {
        error_set(err, FAILURE_PEER, "the peer broke the protocol: an empty %s frame",
                  frame_name(frame.type));
        return -EPROTO;
    }
    if (frame_is_bulk(frame.type) && frame_check(in, &frame, NULL, err) < 0)
        return -EPROTO;
    *ret = frame;
    return 0;
}

void preamble_encode(uint8_t out[WIRE_PREAMBLE_BYTES])
{
    memcpy(out, magic, sizeof(magic));
    put_le16(out + 8, WIRE_MAJOR);
    put_le16(out + 10, WIRE_MINOR);
    put_le32(out + 12, 0);
}

bool preamble_is_tls(uint8_t first, struct error *err)
{
    enum { RECORD_ALERT = 21, RECORD_HANDSHAKE = 22 };
    if (first != RECORD_ALERT && first != RECORD_HANDSHAKE)
        return false;
    error_set(err, FAILURE_PEER,
              "the peer speaks TLS and this side plain text: give both the same credentials "
              "(godwit keygen), or both --insecure");
    return true;
}

int preamble_check(const uint8_t in[WIRE_PREAMBLE_BYTES], struct error *err)
{
    if (memcmp(in, magic, sizeof(magic)) != 0) {
        error_set(err, FAILURE_PEER, "the peer is not godwit: its first bytes are something else");
        return -EPROTO;
    }
    uint16_t major = get_le16(in + 8), minor = get_le16(in + 10);
    if (major != WIRE_MAJOR) {
        error_set(
            err, FAILURE_PEER,
            "the peer speaks protocol %u.%u and this side %u.%u: use one release of godwit on "
            "both hosts",
            major, minor, WIRE_MAJOR, WIRE_MINOR);
        return -EPROTONOSUPPORT;
    }
    return 0;
}

bool snapshot_id_valid(const char *id)
{
    size_t len = strlen(id);
    if (len == 0 || len > WIRE_ID_MAX || id[0] == '.')
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)id[i];
        if (!isalnum(c) && c != '.' && c != '_' && c != '-')
            return false;
    }
    return true;
}

bool image_name_valid(const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < len; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return false;
    }
    return len > 0 && len <= WIRE_NAME_MAX && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}
