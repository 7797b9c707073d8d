/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <stdio.h>
#include <xxhash.h>

#include "wire/target.h"

/* ---- frames ---- */

static const uint16_t types[] = {
    FRAME_HELLO,        FRAME_GOODBYE,         FRAME_HEARTBEAT,   FRAME_SNAPSHOT_BEGIN,
    FRAME_SNAPSHOT_END, FRAME_SNAPSHOT_ABORT,  FRAME_VERDICT,     FRAME_SNAPSHOT_ACCEPT,
    FRAME_SNAPSHOT_ACK, FRAME_SNAPSHOT_REFUSE, FRAME_VERDICT_ACK, FRAME_IMAGE_BEGIN,
    FRAME_IMAGE_DATA,   FRAME_IMAGE_END,       FRAME_SPACE_BEGIN, FRAME_PAGES,
    FRAME_SPACE_END,
};

static void frames_round_trip(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    uint8_t *payload = malloc(WIRE_CONTROL_MAX);
    assert_non_null(payload);
    for (size_t i = 0; i < WIRE_CONTROL_MAX; i++)
        payload[i] = (uint8_t)test_random(&seed);
    for (int i = 0; i < 3000; i++) {
        uint16_t type = types[test_random(&seed) % ARRAY_SIZE(types)];
        uint32_t limit = frame_is_bulk(type) ? WIRE_BULK_MAX : WIRE_CONTROL_MAX;
        struct frame frame = {
            .type = type,
            .flags = type == FRAME_PAGES ? (uint16_t)test_random(&seed) : 0,
            .length = (uint32_t)(1 + test_random(&seed) % limit),
            .session = (uint32_t)test_random(&seed),
            .item = (uint32_t)test_random(&seed),
            .offset = test_random(&seed),
        };
        uint8_t header[WIRE_HEADER_BYTES];
        struct frame back;
        struct error err;
        memset(header, 0xee, sizeof(header));
        frame_encode(&frame, payload, header);
        assert_int_equal(frame_decode(header, &back, &err), 0);
        if (!frame_is_bulk(type)) {
            assert_int_equal(frame_check(header, &back, payload, &err), 0);
            uint64_t bit = test_random(&seed) % (8 * frame.length);
            payload[bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert_int_equal(frame_check(header, &back, payload, &err), -EPROTO);
            assert_contains(err.text, "damaged");
        }
        assert_int_equal(back.type, frame.type);
        assert_int_equal(back.flags, frame.flags);
        assert_int_equal(back.length, frame.length);
        assert_int_equal(back.session, frame.session);
        assert_int_equal(back.item, frame.item);
        assert_true(back.offset == frame.offset);
    }
    free(payload);
}

/* The layout, byte by byte: another implementation relies on it. */
static void frame_layout(void **state)
{
    (void)state;
    static const uint8_t expected[24] = {
        211,  0,    1,    0,    0x00, 0x10, 0x00, 0x00, 0x04, 0x03, 0x02, 0x01,
        0x08, 0x07, 0x06, 0x05, 0x00, 0x70, 0x65, 0x43, 0xff, 0x7f, 0x00, 0x00,
    };
    struct frame frame = {
        .type = FRAME_PAGES,
        .flags = PAGES_LAZY,
        .length = PAGE_BYTES,
        .session = 0x01020304,
        .item = 0x05060708,
        .offset = 0x7fff43657000,
    };
    uint8_t header[WIRE_HEADER_BYTES];
    frame_encode(&frame, NULL, header);
    assert_memory_equal(header, expected, sizeof(expected));
    assert_true(get_le64(header + 24) == XXH3_64bits(header, 24));

    /* of a control frame the check covers the payload */
    frame = (struct frame){.type = FRAME_GOODBYE, .length = 5};
    frame_encode(&frame, "hello", header);
    assert_true(get_le64(header + 24) == XXH3_64bits_withSeed("hello", 5, XXH3_64bits(header, 24)));
    frame.length = 0;
    frame_encode(&frame, NULL, header);
    assert_true(get_le64(header + 24) == XXH3_64bits(header, 24));
}

/* Every bit of a data frame's header counts. */
static void frame_damaged(void **state)
{
    (void)state;
    static const uint16_t bulk[] = {FRAME_IMAGE_DATA, FRAME_PAGES};
    for (size_t t = 0; t < ARRAY_SIZE(bulk); t++) {
        struct frame frame = {.type = bulk[t], .length = 4096, .session = 1, .item = 2}, back;
        uint8_t header[WIRE_HEADER_BYTES];
        struct error err;
        frame_encode(&frame, NULL, header);
        assert_int_equal(frame_decode(header, &back, &err), 0);
        for (unsigned bit = 16; bit < 8 * WIRE_HEADER_BYTES; bit++) {
            header[bit / 8] ^= (uint8_t)(1 << bit % 8);
            back.type = 77;
            assert_int_equal(frame_decode(header, &back, &err), -EPROTO);
            assert_int_equal(err.code, FAILURE_PEER);
            assert_int_equal(back.type, 77);
            header[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    }
}

static void frame_flags(void **state)
{
    (void)state;
    for (size_t t = 0; t < ARRAY_SIZE(types); t++) {
        struct frame frame = {.type = types[t], .flags = 1, .length = 8}, back;
        uint8_t header[WIRE_HEADER_BYTES];
        struct error err;
        frame_encode(&frame, "12345678", header);
        assert_int_equal(frame_decode(header, &back, &err), types[t] == FRAME_PAGES ? 0 : -EPROTO);
    }
}

static void frame_limits(void **state)
{
    (void)state;
    static const uint8_t payload[WIRE_CONTROL_MAX];
    for (size_t t = 0; t < ARRAY_SIZE(types); t++) {
        uint32_t limit = frame_is_bulk(types[t]) ? WIRE_BULK_MAX : WIRE_CONTROL_MAX;
        struct frame frame = {.type = types[t], .length = limit}, back = {.type = 77};
        uint8_t header[WIRE_HEADER_BYTES];
        struct error err;
        frame_encode(&frame, payload, header);
        assert_int_equal(frame_decode(header, &back, &err), 0);
        static const uint32_t over[] = {1, 0x1000000, UINT32_MAX - WIRE_BULK_MAX};
        for (size_t i = 0; i < ARRAY_SIZE(over); i++) {
            frame.length = limit + over[i];
            put_le32(header + 4, frame.length);
            back.type = 77;
            assert_int_equal(frame_decode(header, &back, &err), -EPROTO);
            assert_int_equal(err.code, FAILURE_PEER);
            assert_int_equal(back.type, 77);
        }
        frame.length = 0;
        frame_encode(&frame, payload, header);
        assert_int_equal(frame_decode(header, &back, &err), frame_is_bulk(types[t]) ? -EPROTO : 0);
    }
}

static void frame_names(void **state)
{
    (void)state;
    for (size_t t = 0; t < ARRAY_SIZE(types); t++)
        assert_string_not_equal(frame_name(types[t]), "?");
    assert_string_equal(frame_name(0), "?");
    assert_string_equal(frame_name(UINT16_MAX), "?");
}

/* The table is sorted, and what is early or data is what the protocol says. */
static void frame_rules(void **state)
{
    (void)state;
    unsigned known = 0, last = 0;
    for (unsigned type = 0; type <= UINT16_MAX; type++) {
        const struct frame_rule *rule = frame_rule((uint16_t)type);
        if (!rule)
            continue;
        assert_int_equal(rule->type, type);
        assert_true(type > last || known == 0);
        assert_true(rule->sent_by && rule->place);
        assert_int_equal(rule->early, type == FRAME_HELLO || type == FRAME_GOODBYE);
        /* Nothing that changes a snapshot comes from an image-cache. */
        assert_true(type < 100 || type / 50 % 2 == (rule->sent_by == SENT_BY_CACHE) || type >= 200);
        assert_true(type < 200 || rule->sent_by == SENT_BY_SOURCE);
        last = type;
        known++;
    }
}

static void frames_that_may_not_come(void **state)
{
    (void)state;
    static const struct {
        struct frame frame;
        unsigned sent_by;
        bool early;
        const char *complaint;
    } cases[] = {
        {{.type = 77}, SENT_BY_SOURCE, false, "a frame of type 77"},
        {{.type = FRAME_PAGES}, SENT_BY_CACHE, false, "pages frame to a source"},
        {{.type = FRAME_PREPARED}, SENT_BY_SOURCE, false, "prepared frame to an image-cache"},
        {{.type = FRAME_PAGES}, SENT_BY_SOURCE, true, "pages frame before hello"},
        {{.type = FRAME_HEARTBEAT}, SENT_BY_CACHE, true, "heartbeat frame before hello"},
        {{.type = FRAME_HELLO, .length = WIRE_EARLY_MAX + 1}, SENT_BY_SOURCE, true, "4097 bytes"},
        {{.type = FRAME_GOODBYE, .length = WIRE_EARLY_MAX + 1}, SENT_BY_CACHE, true, "4097 bytes"},
        {{.type = FRAME_HELLO, .length = WIRE_EARLY_MAX}, SENT_BY_SOURCE, true, NULL},
        {{.type = FRAME_GOODBYE, .length = WIRE_CONTROL_MAX}, SENT_BY_CACHE, false, NULL},
        {{.type = FRAME_PAGES}, SENT_BY_SOURCE, false, NULL},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct error err = {0};
        int r = frame_may_come(&cases[i].frame, cases[i].sent_by, cases[i].early, &err);
        assert_int_equal(r, cases[i].complaint ? -1 : 0);
        if (cases[i].complaint)
            assert_contains(err.text, cases[i].complaint);
    }
}

static void preambles(void **state)
{
    (void)state;
    uint8_t preamble[WIRE_PREAMBLE_BYTES];
    struct error err;
    preamble_encode(preamble);
    assert_memory_equal(preamble, "godwit\r\n\1\0\1\0\0\0\0\0", 16);
    assert_int_equal(preamble_check(preamble, &err), 1);
    for (unsigned i = 0; i < 8; i++) {
        preamble[i] ^= 0x20;
        assert_int_equal(preamble_check(preamble, &err), -EPROTO);
        assert_contains(err.text, "not godwit");
        preamble[i] ^= 0x20;
    }
    put_le16(preamble + 10, 9); /* another minor number */
    assert_int_equal(preamble_check(preamble, &err), 9);
    static const uint16_t majors[] = {0, 2, 255, 256, UINT16_MAX};
    for (size_t i = 0; i < ARRAY_SIZE(majors); i++) {
        put_le16(preamble + 8, majors[i]);
        assert_int_equal(preamble_check(preamble, &err), -EPROTONOSUPPORT);
        char theirs[16];
        snprintf(theirs, sizeof(theirs), "%u.9 ", majors[i]);
        assert_contains(err.text, theirs);
        assert_contains(err.text, "this side 1.1");
    }
}

/* ---- names and ids ---- */

static char *repeat(char c, size_t length)
{
    char *text = malloc(length + 1);
    assert_non_null(text);
    memset(text, c, length);
    text[length] = '\0';
    return text;
}

static void image_names(void **state)
{
    (void)state;
    static const char *const good[] = {"core-1.img", "a", "...",  "..a",
                                       ".hidden",    " ", "a\\b", "\xc3\xa9"};
    static const char *const bad[] = {"", ".", "..", "/", "a/b", "../a", "/etc/passwd", "a/"};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(image_name_valid(good[i]));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(image_name_valid(bad[i]));
    _cleanup_free_ char *longest = repeat('n', 255), *longer = repeat('n', 256);
    assert_true(image_name_valid(longest));
    assert_false(image_name_valid(longer));
}

static void snapshot_ids(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "A-b_c.9", "2024-01-01", "-", "_", "a..b"};
    static const char *const bad[] = {"",    ".",   "..",  ".a",       "a/b", "a b",
                                      "a\n", "a%s", "a:b", "\xc3\xa9", "*"};
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_true(snapshot_id_valid(good[i]));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_false(snapshot_id_valid(bad[i]));
    _cleanup_free_ char *longest = repeat('i', 64), *longer = repeat('i', 65);
    assert_true(snapshot_id_valid(longest));
    assert_false(snapshot_id_valid(longer));
}

/* ---- messages ---- */

static const ProtobufCMessageDescriptor *const kinds[] = {
    &godwit__pb__hello__descriptor,          &godwit__pb__failure__descriptor,
    &godwit__pb__snapshot_begin__descriptor, &godwit__pb__image_begin__descriptor,
    &godwit__pb__space_begin__descriptor,    &godwit__pb__item_end__descriptor,
    &godwit__pb__snapshot_end__descriptor,   &godwit__pb__verdict__descriptor,
    &godwit__pb__verdict_ack__descriptor,
};

static void messages_empty(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        struct error err;
        _cleanup_message_ ProtobufCMessage *message = message_unpack(kinds[i], NULL, 0, &err);
        assert_non_null(message); /* proto3: all defaults */
    }
}

static void messages_malformed(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t length;
    } bad[] = {
        {"\x0a", 1}, /* a string without its length */
        {"\x0a\x05"
         "ab",
         4},                                                  /* a string cut short */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11}, /* of 2^64-1 bytes */
        {"\x0b", 1},                                          /* a group */
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11}, /* no tag */
        {"\x00\x00", 2},                                      /* field 0 */
        {"\x09\x01", 2},     /* eight bytes of which one is there */
        {"\x0d\x01\x02", 3}, /* four of which two are */
    };
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
            struct error err = {0};
            /* a copy of its exact size: reading beyond it is seen */
            uint8_t *exact = malloc(bad[i].length);
            assert_non_null(exact);
            memcpy(exact, bad[i].bytes, bad[i].length);
            ProtobufCMessage *message = message_unpack(kinds[k], exact, bad[i].length, &err);
            free(exact);
            if (message)
                fail_msg("%s took malformed bytes %zu", kinds[k]->short_name, i);
            assert_int_equal(err.code, FAILURE_PEER);
            assert_contains(err.text, kinds[k]->short_name);
        }
    }
}

static bool name_taken(const char *name, size_t length)
{
    uint8_t *payload = malloc(length + 8);
    size_t n = 0;
    assert_non_null(payload);
    payload[n++] = 0x0a;
    if (length >= 128)
        payload[n++] = (uint8_t)(length | 0x80);
    payload[n++] = (uint8_t)(length >= 128 ? length >> 7 : length);
    memcpy(payload + n, name, length);
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__image_begin__descriptor, payload, n + length, &err);
    free(payload);
    return message;
}

static void messages_strings(void **state)
{
    (void)state;
    for (int c = 1; c < 256; c++) {
        char text[] = {'a', (char)c, 'b'};
        assert_int_equal(name_taken(text, sizeof(text)), c >= 0x20 && c != 0x7f);
    }
    _cleanup_free_ char *longest = repeat('n', 4096), *longer = repeat('n', 4097);
    assert_true(name_taken(longest, 4096));
    assert_false(name_taken(longer, 4097));
}

/* Strings in lists, and in messages in messages. */
static void messages_deep_strings(void **state)
{
    (void)state;
    uint8_t options[] = {7 << 3 | 2, 1, 'a', 7 << 3 | 2, 1, 'b'};
    uint8_t nested[] = {1 << 3 | 2, 5, 4 << 3 | 2, 3, 't', 'x', 't'};
    struct error err;
    for (unsigned bad = 0; bad < 2; bad++) {
        options[5] = bad ? '\n' : 'b';
        nested[5] = bad ? 0x1b : 'x';
        _cleanup_message_ ProtobufCMessage *a =
            message_unpack(&godwit__pb__facts__descriptor, options, sizeof(options), &err);
        _cleanup_message_ ProtobufCMessage *b =
            message_unpack(&godwit__pb__findings__descriptor, nested, sizeof(nested), &err);
        assert_int_equal(a == NULL, bad);
        assert_int_equal(b == NULL, bad);
    }
}

/* Every string field of every kind is looked at. */
static void messages_every_string(void **state)
{
    (void)state;
    for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
        for (unsigned f = 0; f < kinds[k]->n_fields; f++) {
            if (kinds[k]->fields[f].type != PROTOBUF_C_TYPE_STRING)
                continue;
            uint8_t payload[] = {(uint8_t)(kinds[k]->fields[f].id << 3 | 2), 2, 'a', 0x1b};
            struct error err;
            assert_null(message_unpack(kinds[k], payload, sizeof(payload), &err));
            payload[3] = 'b';
            _cleanup_message_ ProtobufCMessage *message =
                message_unpack(kinds[k], payload, sizeof(payload), &err);
            assert_non_null(message);
        }
    }
}

static void target_is(const char *text, enum target_kind kind, const char *host, const char *port,
                      const char *rest)
{
    struct target target;
    struct error err;
    assert_int_equal(target_parse(text, &target, &err), 0);
    assert_int_equal(target.kind, kind);
    const char *want[] = {host, port, rest}, *got[] = {target.host, target.port, target.rest};
    for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
        assert_int_equal(want[i] == NULL, got[i] == NULL);
        if (want[i])
            assert_string_equal(got[i], want[i]);
    }
    target_free(&target);
}

static void targets(void **state)
{
    (void)state;
    target_is("other", TARGET_TCP, "other", "9996", NULL);
    target_is("other:80", TARGET_TCP, "other", "80", NULL);
    target_is("10.0.0.2:9997", TARGET_TCP, "10.0.0.2", "9997", NULL);
    target_is("fd77::2", TARGET_TCP, "fd77::2", "9996", NULL);
    target_is("[fd77::2]", TARGET_TCP, "fd77::2", "9996", NULL);
    target_is("[fd77::2]:80", TARGET_TCP, "fd77::2", "80", NULL);
    target_is("unix:/run/a b:c", TARGET_UNIX, NULL, NULL, "/run/a b:c");
    target_is("exec:nc -U 'x:1'", TARGET_EXEC, NULL, NULL, "nc -U 'x:1'");
    target_is("ssh://other", TARGET_SSH, "other", NULL, NULL);
    target_is("ssh://root@other:2222", TARGET_SSH, "root@other", "2222", NULL);
    static const char *const bad[] = {
        "",          "unix:",         "exec:",        "ssh://",
        "other:",    "other:x",       "other:0",      "other:65536",
        "[fd77::2",  "[fd77::2]80",   "-oProxy=x",    "ssh://-oProxyCommand=x",
        "ssh://a/b", "http://other/", "[fd77::2]x:80"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct target target;
        struct error err = {0};
        if (target_parse(bad[i], &target, &err) == 0)
            fail_msg("\"%s\" is taken for a target", bad[i]);
        assert_int_equal(err.code, FAILURE_USAGE);
        target_free(&target);
    }
}

static void failures(void **state)
{
    (void)state;
    struct error err, back;
    error_set(&err, FAILURE_LIMIT, "out of %s", "memory");
    Godwit__Pb__Failure failure = failure_message(&err);
    failure_to_error(&failure, &back);
    assert_int_equal(back.code, FAILURE_LIMIT);
    assert_string_equal(back.text, "out of memory");
    failure.code = 4711;
    failure_to_error(&failure, &back);
    assert_int_equal(back.code, FAILURE_PEER);
    failure.code = FAILURE_NONE;
    failure_to_error(&failure, &back);
    assert_int_equal(back.code, FAILURE_NONE);
    assert_string_equal(back.text, "");
    /* a text with the look of a format is text */
    failure.code = FAILURE_PEER;
    failure.text = (char *)"%s%n%s";
    failure_to_error(&failure, &back);
    assert_string_equal(back.text, "%s%n%s");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_round_trip),
        cmocka_unit_test(frame_layout),
        cmocka_unit_test(frame_damaged),
        cmocka_unit_test(frame_flags),
        cmocka_unit_test(frame_limits),
        cmocka_unit_test(frame_names),
        cmocka_unit_test(frame_rules),
        cmocka_unit_test(frames_that_may_not_come),
        cmocka_unit_test(preambles),
        cmocka_unit_test(image_names),
        cmocka_unit_test(snapshot_ids),
        cmocka_unit_test(messages_empty),
        cmocka_unit_test(messages_malformed),
        cmocka_unit_test(messages_strings),
        cmocka_unit_test(messages_every_string),
        cmocka_unit_test(messages_deep_strings),
        cmocka_unit_test(targets),
        cmocka_unit_test(failures),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
