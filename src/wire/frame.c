/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frame.h"

#include <ctype.h>
#include <string.h>
#include <xxhash.h>

enum { CHECKED_BYTES = 24 }; /* of the header, in front of the check */

static const uint8_t magic[8] = {'g', 'o', 'd', 'w', 'i', 't', '\r', '\n'};

enum {
    ALWAYS = SENT_BY_SOURCE | SENT_BY_CACHE,
    ANYWHERE = ON_LINK | ON_DATA_CONNECTION,
};

/* Sorted by type. */
static const struct frame_rule rules[] = {
    /* type, name, who sends it, where, early, bulk */
    {FRAME_HELLO, "hello", ALWAYS, ANYWHERE, true, false},
    {FRAME_GOODBYE, "goodbye", ALWAYS, ANYWHERE, true, false},
    {FRAME_HEARTBEAT, "heartbeat", ALWAYS, ANYWHERE, false, false},
    {FRAME_SNAPSHOT_BEGIN, "snapshot-begin", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_SNAPSHOT_END, "snapshot-end", SENT_BY_SOURCE, ANYWHERE, false, false},
    {FRAME_SNAPSHOT_ABORT, "snapshot-abort", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_VERDICT, "verdict", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_FREEZING, "freezing", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_CHECK, "check", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_SETTLED, "settled", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_STREAM_JOIN, "stream-join", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_SNAPSHOT_ACCEPT, "snapshot-accept", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_SNAPSHOT_ACK, "snapshot-ack", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_SNAPSHOT_REFUSE, "snapshot-refuse", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_VERDICT_ACK, "verdict-ack", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_CHECKED, "checked", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_PREPARED, "prepared", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_RESTORED, "restored", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_RESTORE_FAILED, "restore-failed", SENT_BY_CACHE, ON_LINK, false, false},
    {FRAME_STREAM_JOINED, "stream-joined", SENT_BY_CACHE, ON_DATA_CONNECTION, false, false},
    {FRAME_IMAGE_BEGIN, "image-begin", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_IMAGE_DATA, "image-data", SENT_BY_SOURCE, ON_LINK, false, true},
    {FRAME_IMAGE_END, "image-end", SENT_BY_SOURCE, ON_LINK, false, false},
    {FRAME_SPACE_BEGIN, "space-begin", SENT_BY_SOURCE, ANYWHERE, false, false},
    {FRAME_PAGES, "pages", SENT_BY_SOURCE, ANYWHERE, false, true},
    {FRAME_SPACE_END, "space-end", SENT_BY_SOURCE, ANYWHERE, false, false},
    {FRAME_PAGE_RUNS, "page-runs", SENT_BY_SOURCE, ANYWHERE, false, true},
    {FRAME_PAGE_SUMS, "page-sums", SENT_BY_SOURCE, ANYWHERE, false, true},
    {FRAME_ROUND_END, "round-end", SENT_BY_SOURCE, ANYWHERE, false, false},
};

static int compare_types(const void *type, const void *rule)
{
    return (int)*(const uint16_t *)type - (int)((const struct frame_rule *)rule)->type;
}

const struct frame_rule *frame_rule(uint16_t type)
{
    return bsearch(&type, rules, ARRAY_SIZE(rules), sizeof(rules[0]), compare_types);
}

const char *frame_name(uint16_t type)
{
    const struct frame_rule *rule = frame_rule(type);
    return rule ? rule->name : "?";
}

bool frame_is_bulk(uint16_t type)
{
    const struct frame_rule *rule = frame_rule(type);
    return rule && rule->bulk;
}

int frame_may_come(const struct frame *frame, unsigned sent_by, bool early, struct error *err)
{
    const struct frame_rule *rule = frame_rule(frame->type);
    if (!rule)
        return error_set(err, FAILURE_PEER, "the peer broke the protocol: a frame of type %u",
                         frame->type);
    if (!(rule->sent_by & sent_by))
        return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame to %s",
                         rule->name, sent_by == SENT_BY_CACHE ? "a source" : "an image-cache");
    if (early && !rule->early)
        return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame before hello",
                         rule->name);
    if (early && frame->length > WIRE_EARLY_MAX)
        return error_set(err, FAILURE_PEER,
                         "the peer broke the protocol: %s frame of %u bytes before hello, at "
                         "most %u",
                         rule->name, frame->length, WIRE_EARLY_MAX);
    return 0;
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
    return minor;
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
