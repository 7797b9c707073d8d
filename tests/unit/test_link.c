/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "wire/link.h"

#define SILENCE_USEC (60 * USEC_PER_SEC)

/* ---- one side that notes down what its link tells it ---- */

struct record {
    struct frame frame;
    struct bytes payload;
};

struct side {
    struct link *link;
    unsigned ups, downs;
    char hostname[65];
    struct error err;
    struct record *records;
    size_t count, room;
    uint64_t bulk; /* bytes of data frames */
    size_t piece;  /* how much bulk_place() takes at once; 0: all */
    bool discard;  /* data frames are counted only */
    bool refuse;   /* control() fails */
    bool goodbye;  /* control() says goodbye */
    bool free_when_down;
    uint8_t buf[WIRE_BULK_MAX];
};

static struct record *side_record(struct side *side, const struct frame *frame)
{
    if (side->count == side->room) {
        side->room = MAX(16, 2 * side->room);
        side->records = realloc(side->records, side->room * sizeof(struct record));
        assert_non_null(side->records);
    }
    side->records[side->count] = (struct record){.frame = *frame};
    return &side->records[side->count++];
}

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)link;
    struct side *side = user;
    side->ups++;
    snprintf(side->hostname, sizeof(side->hostname), "%s", hello->hostname);
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    struct side *side = user;
    if (side->refuse)
        return error_set(err, FAILURE_PEER, "refused by the test");
    bytes_add(&side_record(side, frame)->payload, payload, frame->length);
    if (side->goodbye) {
        struct error reason;
        error_set(&reason, FAILURE_LIMIT, "enough of it");
        link_goodbye(link, &reason);
    }
    return 0;
}

static int on_bulk_place(struct link *link, const struct frame *frame, uint32_t done,
                         void **ret_place, size_t *ret_length, void *user, struct error *err)
{
    (void)link;
    (void)err;
    struct side *side = user;
    size_t rest = frame->length - done;
    *ret_place = side->buf + done;
    *ret_length = side->piece && side->piece < rest ? side->piece : rest;
    return 0;
}

static int on_bulk_landed(struct link *link, const struct frame *frame, uint32_t done,
                          const void *place, size_t length, void *user, struct error *err)
{
    (void)link;
    (void)err;
    struct side *side = user;
    assert_ptr_equal(place, side->buf + done);
    side->bulk += length;
    if (side->discard)
        return 0;
    if (done == 0)
        side_record(side, frame);
    bytes_add(&side->records[side->count - 1].payload, place, length);
    return 0;
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    struct side *side = user;
    assert_ptr_equal(link, side->link);
    side->downs++;
    side->err = *err;
    if (side->free_when_down)
        side->link = link_free(link);
}

static const struct link_ops ops = {
    .peer = SENT_BY_SOURCE | SENT_BY_CACHE,
    .up = on_up,
    .control = on_control,
    .bulk_place = on_bulk_place,
    .bulk_landed = on_bulk_landed,
    .down = on_down,
};

static struct side *side_new(sd_event *event, int fd, uint64_t silence_usec)
{
    struct side *side = calloc(1, sizeof(*side));
    assert_non_null(side);
    side->link = link_new(event, fd, silence_usec, &ops, side);
    assert_non_null(side->link);
    return side;
}

static void side_free(struct side *side)
{
    side->link = link_free(side->link);
    for (size_t i = 0; i < side->count; i++)
        bytes_free(&side->records[i].payload);
    free(side->records);
    free(side);
}

/* ---- two of them, or one and a socket ---- */

struct pair {
    sd_event *event;
    struct side *a, *b;
    int raw; /* instead of b */
};

static bool pair_up(void *user)
{
    struct pair *pair = user;
    return link_is_up(pair->a->link) && (!pair->b || link_is_up(pair->b->link));
}

static bool a_down(void *user)
{
    return ((struct pair *)user)->a->downs;
}

static bool b_down(void *user)
{
    return ((struct pair *)user)->b->downs;
}

static struct pair pair_new(uint64_t silence_usec)
{
    struct pair pair = {.raw = -EBADF};
    int fds[2];
    socket_pair(fds);
    assert_int_equal(sd_event_new(&pair.event), 0);
    pair.a = side_new(pair.event, fds[0], silence_usec);
    pair.b = side_new(pair.event, fds[1], silence_usec);
    return pair;
}

static struct pair pair_new_up(uint64_t silence_usec)
{
    struct pair pair = pair_new(silence_usec);
    run_until(pair.event, pair_up, &pair, 2000);
    return pair;
}

static struct pair pair_new_raw(uint64_t silence_usec)
{
    struct pair pair = {0};
    int fds[2];
    socket_pair(fds);
    assert_int_equal(sd_event_new(&pair.event), 0);
    pair.a = side_new(pair.event, fds[0], silence_usec);
    pair.raw = fds[1];
    return pair;
}

static void pair_send(struct pair *pair, struct bytes *bytes)
{
    assert_int_equal(send(pair->raw, bytes->at, bytes->length, MSG_NOSIGNAL), bytes->length);
    bytes_free(bytes);
}

static struct pair pair_new_raw_up(uint64_t silence_usec)
{
    struct pair pair = pair_new_raw(silence_usec);
    struct bytes greeting = {0};
    bytes_add_greeting(&greeting);
    pair_send(&pair, &greeting);
    run_until(pair.event, pair_up, &pair, 2000);
    return pair;
}

static void pair_free(struct pair *pair)
{
    side_free(pair->a);
    if (pair->b)
        side_free(pair->b);
    close_fd(pair->raw);
    sd_event_unref(pair->event);
}

/* ---- a source with memory of its own ---- */

struct source {
    struct link_source source;
    struct link *link;
    uint32_t item;
    unsigned turns; /* left; UINT_MAX: without end */
    size_t frame_bytes;
    unsigned frames;    /* a turn */
    bool in_scratch;    /* the payload is in the batch's buffer */
    bool control_first; /* a control frame is sent in each turn, before the data is added */
    bool remove_in_fill;
    uint64_t offset;
    uint8_t *memory;
    struct source *victim; /* removed and freed in the first turn */
};

static uint8_t pattern(uint32_t item, uint64_t offset)
{
    return (uint8_t)(item * 131 + offset * 7 + (offset >> 8));
}

static bool source_fill(struct link_source *link_source, struct link_batch *batch)
{
    struct source *source = (struct source *)link_source;
    assert_true((uintptr_t)batch->buf % PAGE_BYTES == 0);
    if (source->victim) {
        link_source_remove(&source->victim->source);
        free(source->victim->memory);
        free(source->victim);
        source->victim = NULL;
    }
    if (source->turns == 0)
        return false;
    if (source->control_first)
        link_send(source->link, FRAME_CHECK, 1, source->item, NULL);
    uint8_t *at = source->in_scratch ? batch->buf : source->memory;
    for (unsigned n = 0; n < source->frames; n++, at += source->frame_bytes) {
        struct frame frame = {
            .type = FRAME_IMAGE_DATA,
            .length = (uint32_t)source->frame_bytes,
            .session = 1,
            .item = source->item,
            .offset = source->offset,
        };
        for (size_t i = 0; i < source->frame_bytes; i++)
            at[i] = pattern(source->item, source->offset + i);
        assert_true(link_batch_add(batch, &frame, at));
        source->offset += source->frame_bytes;
    }
    if (source->remove_in_fill) {
        link_source_remove(&source->source);
        free(source->memory);
        source->memory = NULL;
        return false;
    }
    if (source->turns != UINT32_MAX)
        source->turns--;
    return source->turns > 0;
}

static struct source *source_new(struct link *link, uint32_t item, unsigned turns, unsigned frames,
                                 size_t frame_bytes)
{
    struct source *source = calloc(1, sizeof(*source));
    assert_non_null(source);
    *source = (struct source){
        .source.fill = source_fill,
        .link = link,
        .item = item,
        .turns = turns,
        .frames = frames,
        .frame_bytes = frame_bytes,
        .memory = malloc(frames * frame_bytes + 1),
    };
    assert_non_null(source->memory);
    return source;
}

static void source_free(struct source *source)
{
    link_source_remove(&source->source);
    free(source->memory);
    free(source);
}

static void check_pattern(const struct record *record)
{
    assert_int_equal(record->payload.length, record->frame.length);
    for (size_t i = 0; i < record->payload.length; i++) {
        if (record->payload.at[i] != pattern(record->frame.item, record->frame.offset + i))
            fail_msg("item %u differs at %llu", record->frame.item,
                     (unsigned long long)record->frame.offset + i);
    }
}

/* ---- the handshake ---- */

static void handshake(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    char hostname[65] = "";
    gethostname(hostname, sizeof(hostname) - 1);
    assert_string_equal(pair.a->hostname, hostname);
    assert_int_equal(pair.a->ups, 1);
    assert_int_equal(pair.b->ups, 1);
    settle(pair.event);
    assert_true(link_bytes_sent(pair.a->link) > WIRE_PREAMBLE_BYTES + WIRE_HEADER_BYTES);
    assert_true(link_bytes_sent(pair.a->link) == link_bytes_received(pair.b->link));
    assert_true(link_bytes_sent(pair.b->link) == link_bytes_received(pair.a->link));
    assert_int_equal(pair.a->downs + pair.b->downs, 0);
    pair_free(&pair);
}

/* Everything that has arrived at the raw end. */
static struct bytes drain(int fd)
{
    struct bytes all = {0};
    uint8_t buf[4096];
    ssize_t n;
    while ((n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0)
        bytes_add(&all, buf, (size_t)n);
    return all;
}

/* What a peer is told that says these bytes: the down() of this side, and a goodbye to that. */
static struct error refusal(struct bytes *said)
{
    struct pair pair = pair_new_raw(SILENCE_USEC);
    settle(pair.event);
    pair_send(&pair, said);
    run_until(pair.event, a_down, &pair, 2000);
    settle(pair.event);
    assert_int_equal(pair.a->downs, 1);
    struct error err = pair.a->err;

    struct bytes heard = drain(pair.raw);
    bool goodbye = false;
    for (size_t at = WIRE_PREAMBLE_BYTES; at + WIRE_HEADER_BYTES <= heard.length;) {
        struct frame frame;
        struct error broken;
        assert_int_equal(frame_decode(heard.at + at, &frame, &broken), 0);
        at += WIRE_HEADER_BYTES;
        assert_true(at + frame.length <= heard.length);
        if (frame.type == FRAME_GOODBYE) {
            _cleanup_message_ ProtobufCMessage *message = message_unpack(
                &godwit__pb__failure__descriptor, heard.at + at, frame.length, &broken);
            assert_non_null(message);
            const Godwit__Pb__Failure *failure = (const Godwit__Pb__Failure *)message;
            assert_string_equal(failure->text, err.text);
            assert_int_equal(failure->code, err.code);
            goodbye = true;
        }
        at += frame.length;
    }
    assert_true(goodbye);
    bytes_free(&heard);
    pair_free(&pair);
    return err;
}

static void other_major(void **state)
{
    (void)state;
    struct bytes said = {0};
    bytes_add_preamble(&said, 3, 4);
    struct error err = refusal(&said);
    assert_int_equal(err.code, FAILURE_PEER);
    assert_contains(err.text, "3.4");
    assert_contains(err.text, "this side 1.1");
}

static void not_godwit(void **state)
{
    (void)state;
    struct bytes said = {0};
    bytes_add(&said, "GET / HTTP/1.1\r\nHost: x\r\n\r\n", 27);
    struct error err = refusal(&said);
    assert_contains(err.text, "not godwit");
}

static struct error refusal_of_hello(const Godwit__Pb__Hello *hello)
{
    struct bytes said = {0};
    bytes_add_preamble(&said, WIRE_MAJOR, 77);
    bytes_add_message(&said, FRAME_HELLO, 0, 0, &hello->base);
    return refusal(&said);
}

static void other_machine(void **state)
{
    (void)state;
    Godwit__Pb__Hello hello = GODWIT__PB__HELLO__INIT;
    hello.hostname = (char *)"big-iron";
    hello.machine = (char *)"s390x";
    hello.page_bytes = PAGE_BYTES;
    struct error err = refusal_of_hello(&hello);
    assert_contains(err.text, "s390x");
    assert_contains(err.text, "big-iron");
    hello.page_bytes = 65536;
    err = refusal_of_hello(&hello);
    assert_contains(err.text, "65536");
}

static void out_of_turn(void **state)
{
    (void)state;
    static const struct frame heartbeat = {.type = FRAME_HEARTBEAT},
                              data = {.type = FRAME_IMAGE_DATA, .length = 3},
                              hello = {.type = FRAME_HELLO},
                              reserved = {.type = FRAME_HEARTBEAT, .flags = 1};
    struct bytes said = {0};
    bytes_add_preamble(&said, WIRE_MAJOR, WIRE_MINOR);
    bytes_add_frame(&said, &heartbeat, NULL);
    assert_contains(refusal(&said).text, "heartbeat frame before hello");

    bytes_add_preamble(&said, WIRE_MAJOR, WIRE_MINOR);
    bytes_add_frame(&said, &data, "abc");
    assert_contains(refusal(&said).text, "frame before hello");

    bytes_add_greeting(&said);
    bytes_add_frame(&said, &hello, NULL);
    assert_contains(refusal(&said).text, "second hello");

    bytes_add_greeting(&said);
    bytes_add_frame(&said, &reserved, NULL);
    assert_contains(refusal(&said).text, "flags");

    bytes_add_greeting(&said);
    uint8_t header[WIRE_HEADER_BYTES] = {0};
    put_le16(header, FRAME_SNAPSHOT_BEGIN);
    put_le32(header + 4, WIRE_CONTROL_MAX + 1);
    bytes_add(&said, header, sizeof(header));
    assert_contains(refusal(&said).text, "65537 bytes, at most 65536");
}

/* A bit that turns on the way is no other name: every bit of a control frame is checked. */
static void damaged_control(void **state)
{
    (void)state;
    struct bytes greeting = {0};
    bytes_add_greeting(&greeting);
    size_t begin = greeting.length;
    Godwit__Pb__ImageBegin image = GODWIT__PB__IMAGE_BEGIN__INIT;
    image.name = (char *)"a";
    bytes_add_message(&greeting, FRAME_IMAGE_BEGIN, 1, 1, &image.base);
    for (size_t bit = 8 * begin; bit < 8 * greeting.length; bit++) {
        size_t byte = bit / 8 - begin;
        if (byte >= 4 && byte < 8)
            continue; /* the length: the link waits for more, or has the wrong payload */
        struct bytes said = {0};
        bytes_add(&said, greeting.at, greeting.length);
        said.at[bit / 8] ^= (uint8_t)(1 << bit % 8);
        struct error err = refusal(&said);
        assert_int_equal(err.code, FAILURE_PEER);
    }
    bytes_free(&greeting);
}

static void refused_by_the_owner(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    pair.b->refuse = true;
    link_send(pair.a->link, FRAME_CHECK, 1, 2, NULL);
    run_until(pair.event, a_down, &pair, 2000);
    assert_contains(pair.b->err.text, "refused by the test");
    assert_contains(pair.a->err.text, "refused by the test");
    pair_free(&pair);
}

/* ---- the end ---- */

/* Why a peer left must arrive even though it has closed its socket when that is read. */
static void goodbye_tells_why(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct error reason;
    error_set(&reason, FAILURE_LIMIT, "no room for more");
    link_goodbye(pair.a->link, &reason);
    run_until(pair.event, b_down, &pair, 2000);
    run_until(pair.event, a_down, &pair, 2000);
    assert_string_equal(pair.b->err.text, "no room for more");
    assert_int_equal(pair.b->err.code, FAILURE_LIMIT);
    assert_string_equal(pair.a->err.text, "no room for more");
    pair_free(&pair);

    pair = pair_new_up(SILENCE_USEC);
    reason = (struct error){.code = FAILURE_LIMIT};
    link_goodbye(pair.a->link, &reason);
    run_until(pair.event, b_down, &pair, 2000);
    assert_string_equal(pair.b->err.text, "no reason was given");
    pair_free(&pair);

    pair = pair_new_up(SILENCE_USEC);
    reason = (struct error){.code = FAILURE_NONE};
    link_goodbye(pair.a->link, &reason);
    run_until(pair.event, b_down, &pair, 2000);
    assert_int_equal(pair.b->err.code, FAILURE_NONE);
    pair_free(&pair);
}

static void goodbye_from_control(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    pair.b->goodbye = true;
    pair.a->free_when_down = pair.b->free_when_down = true;
    for (int i = 0; i < 3; i++)
        link_send(pair.a->link, FRAME_CHECK, 1, 2, NULL);
    run_until(pair.event, b_down, &pair, 2000);
    run_until(pair.event, a_down, &pair, 2000);
    assert_int_equal(pair.b->count, 1); /* nothing more is delivered after it */
    assert_string_equal(pair.a->err.text, "enough of it");
    settle(pair.event);
    assert_int_equal(pair.a->downs, 1);
    assert_int_equal(pair.b->downs, 1);
    pair_free(&pair);
}

static void nothing_after_down(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(SILENCE_USEC);
    struct source *source = source_new(pair.a->link, 1, 1, 1, 100);
    struct error err;
    error_set(&err, FAILURE_PEER, "over");
    link_goodbye(pair.a->link, &err);
    assert_false(link_is_up(pair.a->link));
    link_send(pair.a->link, FRAME_CHECK, 1, 2, NULL);
    link_source_ready(pair.a->link, &source->source);
    link_goodbye(pair.a->link, &err);
    run_until(pair.event, a_down, &pair, 2000);
    assert_int_equal(source->turns, 1);
    source_free(source);
    pair_free(&pair);
}

/* A conversation with everything in it, as it goes over the wire. */
static struct bytes conversation(size_t ends[16], size_t *ret_count)
{
    struct bytes bytes = {0};
    Godwit__Pb__ImageBegin begin = GODWIT__PB__IMAGE_BEGIN__INIT;
    begin.name = (char *)"core-1.img";
    uint8_t data[300];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = pattern(1, i);
    size_t n = 0;
    bytes_add_greeting(&bytes);
    bytes_add_message(&bytes, FRAME_HEARTBEAT, 0, 0, NULL);
    bytes_add_message(&bytes, FRAME_IMAGE_BEGIN, 1, 1, &begin.base);
    ends[n++] = bytes.length;
    struct frame frame = {
        .type = FRAME_IMAGE_DATA, .session = 1, .item = 1, .length = sizeof(data)};
    bytes_add_frame(&bytes, &frame, data);
    ends[n++] = bytes.length;
    bytes_add_message(&bytes, FRAME_IMAGE_END, 1, 1, NULL);
    ends[n++] = bytes.length;
    bytes_add_message(&bytes, FRAME_HEARTBEAT, 0, 0, NULL);
    *ret_count = n;
    return bytes;
}

static void closing_at_every_byte(void **state)
{
    (void)state;
    size_t ends[16], frames;
    struct bytes whole = conversation(ends, &frames);
    for (size_t cut = 0; cut <= whole.length; cut++) {
        struct pair pair = pair_new_raw(SILENCE_USEC);
        settle(pair.event);
        struct bytes part = {0};
        bytes_add(&part, whole.at, cut);
        if (cut > 0)
            pair_send(&pair, &part);
        pair.raw = close_fd(pair.raw);
        run_until(pair.event, a_down, &pair, 2000);
        assert_int_equal(pair.a->downs, 1);
        assert_int_equal(pair.a->err.code, FAILURE_PEER);
        assert_true(pair.a->err.text[0]);
        size_t complete = 0;
        while (complete < frames && ends[complete] <= cut)
            complete++;
        /* a piece of the data may have landed */
        bool piece = complete == 1 && pair.a->bulk > 0;
        assert_int_equal(pair.a->count, complete + piece);
        assert_true(pair.a->bulk <= 300);
        pair_free(&pair);
    }
    bytes_free(&whole);
}

/* The same with the end of the peer's stream only, which leaves nothing to fail for the answer. */
static void half_closing_tells_so(void **state)
{
    (void)state;
    size_t ends[16], frames;
    struct bytes whole = conversation(ends, &frames);
    for (size_t cut = 0; cut <= whole.length; cut += 13) {
        struct pair pair = pair_new_raw(SILENCE_USEC);
        struct bytes part = {0};
        bytes_add(&part, whole.at, cut);
        if (cut > 0)
            pair_send(&pair, &part);
        shutdown(pair.raw, SHUT_WR);
        run_until(pair.event, a_down, &pair, 2000);
        assert_string_equal(pair.a->err.text, "the peer closed the connection");
        pair_free(&pair);
    }
    bytes_free(&whole);
}

static void closing_tells_so(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(SILENCE_USEC);
    struct bytes heard = drain(pair.raw);
    bytes_free(&heard);
    pair.raw = close_fd(pair.raw);
    run_until(pair.event, a_down, &pair, 2000);
    assert_string_equal(pair.a->err.text, "the peer closed the connection");
    pair_free(&pair);
}

static void free_at_any_time(void **state)
{
    (void)state;
    for (unsigned steps = 0; steps < 12; steps++) {
        struct pair pair = pair_new(SILENCE_USEC);
        struct source *source = source_new(pair.a->link, 1, 5, 2, 100);
        link_source_ready(pair.a->link, &source->source);
        for (unsigned i = 0; i < steps; i++)
            sd_event_run(pair.event, 0);
        source_free(source);
        pair.a->link = link_free(pair.a->link);
        run_until(pair.event, b_down, &pair, 2000);
        assert_int_equal(pair.a->downs, 0);
        pair_free(&pair);
    }
    assert_null(link_free(NULL));
}

/* ---- in pieces ---- */

struct relay {
    int from, to;
    size_t step;
};

static int relay_move(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)events;
    struct relay *relay = user;
    uint8_t buf[64];
    ssize_t n = recv(fd, buf, relay->step, MSG_DONTWAIT);
    if (n > 0)
        assert_int_equal(send(relay->to, buf, (size_t)n, MSG_NOSIGNAL), n);
    else if (n == 0)
        sd_event_source_set_enabled(source, SD_EVENT_OFF);
    return 0;
}

struct expected {
    struct side *side;
    uint64_t bulk;
    size_t count;
};

static bool arrived(void *user)
{
    const struct expected *expected = user;
    return expected->side->bulk == expected->bulk && expected->side->count == expected->count;
}

static void one_byte_at_a_time(void **state)
{
    (void)state;
    int left[2], right[2];
    socket_pair(left);
    socket_pair(right);
    struct pair pair = {.raw = -EBADF};
    assert_int_equal(sd_event_new(&pair.event), 0);
    pair.a = side_new(pair.event, left[0], SILENCE_USEC);
    pair.b = side_new(pair.event, right[0], SILENCE_USEC);
    pair.a->piece = 7;
    struct relay there = {left[1], right[1], 1}, back = {right[1], left[1], 1};
    sd_event_add_io(pair.event, NULL, left[1], EPOLLIN, relay_move, &there);
    sd_event_add_io(pair.event, NULL, right[1], EPOLLIN, relay_move, &back);
    run_until(pair.event, pair_up, &pair, 5000);

    struct source *a = source_new(pair.a->link, 1, 2, 3, 700);
    struct source *b = source_new(pair.b->link, 2, 3, 1, 901);
    a->control_first = b->control_first = true;
    link_source_ready(pair.a->link, &a->source);
    link_source_ready(pair.b->link, &b->source);
    struct expected at_b = {pair.b, 4200, 6 + 2}, at_a = {pair.a, 2703, 3 + 3};
    run_until(pair.event, arrived, &at_b, 5000);
    run_until(pair.event, arrived, &at_a, 5000);
    for (size_t i = 0; i < pair.a->count; i++)
        check_pattern(&pair.a->records[i]);
    for (size_t i = 0; i < pair.b->count; i++)
        check_pattern(&pair.b->records[i]);
    source_free(a);
    source_free(b);
    pair_free(&pair);
    close(left[1]);
    close(right[1]);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

static void signals_all_the_time(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct sigaction action = {.sa_handler = on_alarm}, old; /* without SA_RESTART */
    struct itimerval storm = {{0, 100}, {0, 100}}, calm = {0};
    sigaction(SIGALRM, &action, &old);
    setitimer(ITIMER_REAL, &storm, NULL);
    struct source *source = source_new(pair.a->link, 1, 64, 4, 100000);
    link_source_ready(pair.a->link, &source->source);
    struct expected all = {pair.b, 64 * 4 * 100000, 64 * 4};
    run_until(pair.event, arrived, &all, 20000);
    setitimer(ITIMER_REAL, &calm, NULL);
    sigaction(SIGALRM, &old, NULL);
    for (size_t i = 0; i < pair.b->count; i++)
        check_pattern(&pair.b->records[i]);
    source_free(source);
    pair_free(&pair);
}

/* What came together with the end of a turn is not left lying until the next event. */
static void read_ahead_is_not_forgotten(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(SILENCE_USEC);
    int size = 48 << 20;
    if (setsockopt(pair.raw, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0) {
        pair_free(&pair);
        test_skip("a socket with a large buffer needs root");
    }
    pair.a->discard = true;
    uint8_t *data = calloc(1, WIRE_BULK_MAX);
    assert_non_null(data);
    /* more data than two turns take, in every position of their border */
    for (unsigned frames = 6; frames < 20; frames++) {
        struct bytes bytes = {0};
        struct frame frame = {.type = FRAME_IMAGE_DATA, .length = WIRE_BULK_MAX};
        for (unsigned i = 0; i < frames; i++)
            bytes_add_frame(&bytes, &frame, data);
        frame = (struct frame){.type = FRAME_CHECK, .item = frames};
        bytes_add_frame(&bytes, &frame, NULL);
        pair.a->bulk = 0;
        struct expected all = {pair.a, (uint64_t)frames * WIRE_BULK_MAX, pair.a->count + 1};
        pair_send(&pair, &bytes);
        run_until(pair.event, arrived, &all, 3000);
    }
    free(data);
    pair_free(&pair);
}

/* ---- silence ---- */

static void silence_in_the_handshake(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw(100 * USEC_PER_MSEC);
    run_until(pair.event, a_down, &pair, 2000);
    assert_contains(pair.a->err.text, "did not finish the handshake within 0.1 s");
    pair_free(&pair);
}

static void silence_afterwards(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(100 * USEC_PER_MSEC);
    uint64_t began = now_usec();
    run_until(pair.event, a_down, &pair, 2000);
    assert_true(now_usec() - began > 90 * USEC_PER_MSEC);
    assert_contains(pair.a->err.text, "silent for 0.1 s");
    pair_free(&pair);
}

/* Two ends of a connection over loopback: what only TCP has, SO_RCVLOWAT for one. */
static void tcp_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fds[1], (struct sockaddr *)&address, sizeof(address)), 0);
    fds[0] = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_true(fds[0] >= 0);
    close_fd(listener);
}

/* A peer that is in the midst of a frame and sends a byte now and then is slow, and not silent. */
static void slow_data_is_no_silence(void **state)
{
    (void)state;
    struct pair pair = {0};
    int fds[2];
    tcp_pair(fds);
    assert_int_equal(sd_event_new(&pair.event), 0);
    pair.a = side_new(pair.event, fds[0], 300000);
    pair.raw = fds[1];
    struct bytes bytes = {0};
    bytes_add_greeting(&bytes);
    pair_send(&pair, &bytes);
    run_until(pair.event, pair_up, &pair, 2000);

    struct frame frame = {.type = FRAME_PAGES, .length = WIRE_BULK_MAX, .session = 1, .item = 1};
    uint8_t header[WIRE_HEADER_BYTES];
    frame_encode(&frame, NULL, header);
    assert_int_equal(send(pair.raw, header, sizeof(header), 0), sizeof(header));
    for (unsigned i = 0; i < 50; i++) {
        assert_int_equal(send(pair.raw, "x", 1, MSG_NOSIGNAL), 1);
        run_for(pair.event, 20);
    }
    assert_int_equal(pair.a->downs, 0);
    assert_true(link_is_up(pair.a->link));
    pair_free(&pair);
}

/* Two links with nothing to say keep one another alive. */
static void heartbeats(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(200 * USEC_PER_MSEC);
    run_for(pair.event, 700);
    assert_int_equal(pair.a->downs + pair.b->downs, 0);
    pair_free(&pair);
}

static int say_heartbeat(sd_event_source *source, uint64_t usec, void *user)
{
    (void)usec;
    uint8_t header[WIRE_HEADER_BYTES];
    frame_encode(&(struct frame){.type = FRAME_HEARTBEAT}, NULL, header);
    (void)!send(*(int *)user, header, sizeof(header), MSG_NOSIGNAL | MSG_DONTWAIT);
    sd_event_source_set_time_relative(source, 20 * USEC_PER_MSEC);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* It lives, it speaks, and it takes nothing. */
static void a_peer_that_stops_reading(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(150 * USEC_PER_MSEC);
    sd_event_add_time_relative(pair.event, NULL, CLOCK_MONOTONIC, 0, 1, say_heartbeat, &pair.raw);
    struct source *source = source_new(pair.a->link, 1, UINT32_MAX, 1, 50000);
    link_source_ready(pair.a->link, &source->source);
    uint64_t began = now_usec();
    run_until(pair.event, a_down, &pair, 3000);
    assert_true(now_usec() - began > 140 * USEC_PER_MSEC);
    assert_contains(pair.a->err.text, "taken nothing for 0.15 s");
    assert_true(source->offset < MIB(4)); /* and nothing was drawn for it that long */
    source_free(source);
    pair_free(&pair);
}

static void a_queue_has_an_end(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(SILENCE_USEC);
    Godwit__Pb__Verdict verdict = GODWIT__PB__VERDICT__INIT;
    char text[60000];
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    verdict.text = text;
    for (int i = 0; i < 100; i++)
        link_send(pair.a->link, FRAME_VERDICT, 0, 0, &verdict.base);
    assert_true(link_is_up(pair.a->link));
    for (int i = 0; i < 100; i++)
        link_send(pair.a->link, FRAME_VERDICT, 0, 0, &verdict.base);
    assert_false(link_is_up(pair.a->link));
    run_until(pair.event, a_down, &pair, 2000);
    assert_contains(pair.a->err.text, "queueing for the peer");
    pair_free(&pair);
}

static void a_message_has_a_limit(void **state)
{
    (void)state;
    struct pair pair = pair_new_raw_up(SILENCE_USEC);
    Godwit__Pb__Verdict verdict = GODWIT__PB__VERDICT__INIT;
    static char text[WIRE_CONTROL_MAX + 1];
    memset(text, 'x', sizeof(text) - 1);
    verdict.text = text;
    link_send(pair.a->link, FRAME_VERDICT, 0, 0, &verdict.base);
    assert_false(link_is_up(pair.a->link));
    run_until(pair.event, a_down, &pair, 2000);
    pair_free(&pair);
}

/* ---- order ---- */

static void control_and_data(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct source *source = source_new(pair.a->link, 5, 2, 2, 100);
    source->control_first = true; /* sent in the turn, and still behind its data */
    link_source_ready(pair.a->link, &source->source);
    link_send(pair.a->link, FRAME_SETTLED, 1, 9, NULL); /* before data that has not been drawn */
    struct expected all = {pair.b, 400, 1 + 2 * 3};
    run_until(pair.event, arrived, &all, 2000);
    static const uint16_t order[] = {FRAME_SETTLED, FRAME_IMAGE_DATA, FRAME_IMAGE_DATA,
                                     FRAME_CHECK,   FRAME_IMAGE_DATA, FRAME_IMAGE_DATA,
                                     FRAME_CHECK};
    for (size_t i = 0; i < ARRAY_SIZE(order); i++)
        assert_int_equal(pair.b->records[i].frame.type, order[i]);
    source_free(source);
    pair_free(&pair);
}

static void batches_have_limits(void **state)
{
    (void)state;
    struct link_batch *batch = calloc(1, sizeof(*batch));
    assert_non_null(batch);
    struct frame frame = {.type = FRAME_IMAGE_DATA, .length = LINK_BATCH_BYTES - 10};
    assert_true(link_batch_add(batch, &frame, NULL));
    frame.length = 11;
    assert_false(link_batch_add(batch, &frame, NULL));
    frame.length = 10;
    assert_true(link_batch_add(batch, &frame, NULL));
    frame.length = 0;
    for (unsigned i = 2; i < LINK_BATCH_FRAMES; i++)
        assert_true(link_batch_add(batch, &frame, NULL));
    assert_false(link_batch_add(batch, &frame, NULL));
    assert_int_equal(batch->frames, LINK_BATCH_FRAMES);
    free(batch);
}

/* ---- sources come and go ---- */

static bool something_left(void *user)
{
    return link_bytes_sent(((struct pair *)user)->a->link) > KIB(100);
}

/* Reads at the raw end while the loop runs, and checks every data frame of the item. */
static uint64_t read_and_check(struct pair *pair, uint32_t item, uint64_t need)
{
    struct bytes heard = {0};
    size_t at = 0;
    uint64_t data = 0;
    bool greeted = false;
    for (uint64_t end = now_usec() + 3 * USEC_PER_SEC; data < need && now_usec() < end;) {
        struct bytes more = drain(pair->raw);
        bytes_add(&heard, more.at, more.length);
        bytes_free(&more);
        assert_true(sd_event_run(pair->event, 0) >= 0);
        if (!greeted && heard.length >= WIRE_PREAMBLE_BYTES) {
            at = WIRE_PREAMBLE_BYTES;
            greeted = true;
        }
        struct frame frame;
        struct error err;
        while (greeted && heard.length - at >= WIRE_HEADER_BYTES) {
            assert_int_equal(frame_decode(heard.at + at, &frame, &err), 0);
            if (heard.length - at < WIRE_HEADER_BYTES + frame.length)
                break;
            if (frame.type == FRAME_IMAGE_DATA && frame.item == item) {
                struct record record = {frame,
                                        {heard.at + at + WIRE_HEADER_BYTES, frame.length, 0}};
                check_pattern(&record);
                data += frame.length;
            }
            at += WIRE_HEADER_BYTES + frame.length;
        }
    }
    bytes_free(&heard);
    return data;
}

/*
 * Its batch is half on its way when a source goes and its memory is freed: the bytes that were
 * announced go out as they were.
 */
static void removed_in_flight(void **state)
{
    (void)state;
    for (unsigned frames = 1; frames <= 16; frames *= 4) {
        for (int scratch = 0; scratch < 2; scratch++) {
            struct pair pair = pair_new_raw_up(SILENCE_USEC);
            size_t each = LINK_BATCH_BYTES / frames;
            struct source *source = source_new(pair.a->link, 1, UINT32_MAX, frames, each);
            source->in_scratch = scratch;
            link_source_ready(pair.a->link, &source->source);
            run_until(pair.event, something_left, &pair, 2000);
            settle(pair.event);
            assert_int_equal(source->offset, LINK_BATCH_BYTES); /* one batch, not yet out */
            assert_true(link_bytes_sent(pair.a->link) < LINK_BATCH_BYTES);
            memset(source->memory, scratch ? 0 : pattern(1, 0), 1);
            source_free(source);
            assert_int_equal(read_and_check(&pair, 1, LINK_BATCH_BYTES), LINK_BATCH_BYTES);
            link_send(pair.a->link, FRAME_CHECK, 1, 1, NULL);
            assert_true(link_is_up(pair.a->link));
            pair_free(&pair);
        }
    }
}

static void removed_in_its_own_turn(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct source *source = source_new(pair.a->link, 1, 3, 2, 1000);
    source->remove_in_fill = true;
    source->control_first = true;
    link_source_ready(pair.a->link, &source->source);
    struct expected one = {pair.b, 0, 1};
    run_until(pair.event, arrived, &one, 2000);
    settle(pair.event);
    assert_true(pair.b->bulk == 0); /* what it gave in that turn is not sent */
    source_free(source);
    pair_free(&pair);
}

static void removed_in_another_turn(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct source *first = source_new(pair.a->link, 1, 3, 2, 1000);
    first->victim = source_new(pair.a->link, 2, 3, 2, 1000);
    link_source_ready(pair.a->link, &first->source);
    link_source_ready(pair.a->link, &first->victim->source);
    struct expected all = {pair.b, 6000, 6};
    run_until(pair.event, arrived, &all, 2000);
    settle(pair.event);
    assert_int_equal(pair.b->count, 6);
    source_free(first);
    pair_free(&pair);
}

static void ready_again_and_again(void **state)
{
    (void)state;
    struct pair pair = pair_new(SILENCE_USEC);
    struct source *source = source_new(pair.a->link, 1, 2, 1, 10);
    link_source_ready(pair.a->link, &source->source); /* before the handshake, and twice */
    link_source_ready(pair.a->link, &source->source);
    struct expected all = {pair.b, 20, 2};
    run_until(pair.event, arrived, &all, 2000);
    link_source_remove(&source->source);
    link_source_remove(&source->source);
    source->turns = 1;
    link_source_ready(pair.a->link, &source->source);
    all = (struct expected){pair.b, 30, 3};
    run_until(pair.event, arrived, &all, 2000);
    source_free(source);
    pair_free(&pair);
}

enum { MANY = 2000 };

static void two_thousand_sources(void **state)
{
    (void)state;
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct source **sources = calloc(MANY, sizeof(struct source *));
    assert_non_null(sources);
    for (uint32_t i = 0; i < MANY; i++) {
        sources[i] = source_new(pair.a->link, i, 3, 1, 100 + i % 50);
        link_source_ready(pair.a->link, &sources[i]->source);
    }
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < MANY; i++)
        bytes += 3 * (100 + i % 50);
    struct expected all = {pair.b, bytes, 3 * MANY};
    run_until(pair.event, arrived, &all, 10000);
    /* in turn: nobody waits for another's second batch */
    for (uint32_t i = 0; i < 3 * MANY; i++) {
        assert_int_equal(pair.b->records[i].frame.item, i % MANY);
        check_pattern(&pair.b->records[i]);
    }
    for (uint32_t i = 0; i < MANY; i++)
        source_free(sources[i]);
    free(sources);
    pair_free(&pair);
}

static void sources_at_random(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    struct pair pair = pair_new_up(SILENCE_USEC);
    struct source *sources[40] = {0};
    for (int i = 0; i < 3000; i++) {
        struct source **at = &sources[test_random(&seed) % ARRAY_SIZE(sources)];
        switch (test_random(&seed) % 5) {
        case 0:
            if (*at)
                source_free(*at);
            *at = NULL;
            break;
        case 1:
        case 2:
            if (!*at)
                *at = source_new(pair.a->link, (uint32_t)i, 1 + test_random(&seed) % 3,
                                 1 + test_random(&seed) % 5, 1 + test_random(&seed) % 20000);
            link_source_ready(pair.a->link, &(*at)->source);
            break;
        case 3:
            link_send(pair.a->link, FRAME_CHECK, 1, 0, NULL);
            break;
        default:
            assert_true(sd_event_run(pair.event, 0) >= 0);
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(sources); i++) {
        if (sources[i])
            source_free(sources[i]);
    }
    settle(pair.event);
    assert_int_equal(pair.a->downs + pair.b->downs, 0);
    for (size_t i = 0; i < pair.b->count; i++)
        check_pattern(&pair.b->records[i]);
    assert_true(pair.b->count > 100);
    pair_free(&pair);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handshake),
        cmocka_unit_test(other_major),
        cmocka_unit_test(not_godwit),
        cmocka_unit_test(other_machine),
        cmocka_unit_test(out_of_turn),
        cmocka_unit_test(damaged_control),
        cmocka_unit_test(refused_by_the_owner),
        cmocka_unit_test(goodbye_tells_why),
        cmocka_unit_test(goodbye_from_control),
        cmocka_unit_test(nothing_after_down),
        cmocka_unit_test(closing_at_every_byte),
        cmocka_unit_test(half_closing_tells_so),
        cmocka_unit_test(closing_tells_so),
        cmocka_unit_test(free_at_any_time),
        cmocka_unit_test(one_byte_at_a_time),
        cmocka_unit_test(signals_all_the_time),
        cmocka_unit_test(read_ahead_is_not_forgotten),
        cmocka_unit_test(silence_in_the_handshake),
        cmocka_unit_test(silence_afterwards),
        cmocka_unit_test(slow_data_is_no_silence),
        cmocka_unit_test(heartbeats),
        cmocka_unit_test(a_peer_that_stops_reading),
        cmocka_unit_test(a_queue_has_an_end),
        cmocka_unit_test(a_message_has_a_limit),
        cmocka_unit_test(control_and_data),
        cmocka_unit_test(batches_have_limits),
        cmocka_unit_test(removed_in_flight),
        cmocka_unit_test(removed_in_its_own_turn),
        cmocka_unit_test(removed_in_another_turn),
        cmocka_unit_test(ready_again_and_again),
        cmocka_unit_test(two_thousand_sources),
        cmocka_unit_test(sources_at_random),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
