/* SPDX-License-Identifier: Apache-2.0 */
/* A session over several connections: a sender with a criu made by hand, or a peer made by hand,
 * and a receiver with a store. */
#include "testing.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/io.h"
#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "migrate/receiver.h"
#include "migrate/sender.h"

#define SILENCE_USEC (60 * USEC_PER_SEC)

enum { SESSION = 5, TASK_7 = 7 << 8 | PAGE_SERVER_TASK };

/* One connection of the session; 0 is its link. */
struct connection {
    struct rig *rig;
    unsigned stream;
    struct link *out; /* of the sender; NULL: a peer by hand */
    int by_hand;
    struct link *in;
    bool down;
    struct error reason;
    size_t slowly; /* bytes that a relay in front of the receiver passes on at once; 0: none */
    int relay[2];
};

struct rig {
    sd_event *event;
    char *path;
    struct store *store;
    unsigned count;
    struct connection connections[WIRE_STREAMS_MAX];
    struct sender *sender;
    struct receiver *receiver;
    unsigned held, dropped;
    struct error drop_reason;
};

/* ---- the destination ---- */

static void on_held(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    assert_int_equal(snapshot->state, SNAPSHOT_HELD);
    ((struct rig *)user)->held++;
}

static void on_dropped(struct receiver *receiver, const char *id, const struct error *err,
                       void *user)
{
    (void)receiver;
    struct rig *rig = user;
    assert_null(store_find(rig->store, id));
    rig->drop_reason = *err;
    rig->dropped++;
}

static const struct receiver_ops receiver_ops = {.held = on_held, .dropped = on_dropped};

static void check_over(struct rig *rig)
{
    if (rig->receiver && receiver_is_over(rig->receiver))
        rig->receiver = receiver_free(rig->receiver);
}

static int no_session(struct error *err)
{
    return error_set(err, FAILURE_PEER, "there is no session any more");
}

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)link;
    (void)hello;
    (void)user;
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    struct connection *connection = user;
    struct rig *rig = connection->rig;
    if (frame->type == FRAME_SNAPSHOT_BEGIN) {
        rig->receiver =
            receiver_new(rig->store, link, "source", frame, payload, &receiver_ops, rig, err);
        return rig->receiver ? 0 : -1;
    }
    if (!rig->receiver)
        return no_session(err);
    int r = receiver_control(rig->receiver, connection->stream, frame, payload, err);
    check_over(rig);
    return r;
}

static int on_bulk_place(struct link *link, const struct frame *frame, uint32_t done,
                         void **ret_place, size_t *ret_length, void *user, struct error *err)
{
    (void)link;
    struct connection *connection = user;
    struct receiver *receiver = connection->rig->receiver;
    return receiver ? receiver_bulk_place(receiver, connection->stream, frame, done, ret_place,
                                          ret_length, err)
                    : no_session(err);
}

static int on_bulk_landed(struct link *link, const struct frame *frame, uint32_t done,
                          const void *place, size_t length, void *user, struct error *err)
{
    (void)link;
    struct connection *connection = user;
    struct receiver *receiver = connection->rig->receiver;
    return receiver
               ? receiver_bulk_landed(receiver, connection->stream, frame, done, place, length, err)
               : no_session(err);
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct connection *connection = user;
    struct rig *rig = connection->rig;
    connection->down = true;
    connection->reason = *err;
    if (rig->receiver && connection->stream > 0)
        receiver_stream_down(rig->receiver, connection->stream, err);
    else if (rig->receiver) {
        receiver_link_down(rig->receiver, err);
        rig->receiver = receiver_free(rig->receiver);
    }
    check_over(rig);
    connection->in = link_free(connection->in);
}

static const struct link_ops cache_ops = {
    .peer = SENT_BY_SOURCE,
    .up = on_up,
    .control = on_control,
    .bulk_place = on_bulk_place,
    .bulk_landed = on_bulk_landed,
    .down = on_down,
};

/* ---- the source ---- */

static int on_source_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                             void *user, struct error *err)
{
    (void)link;
    struct connection *connection = user;
    return sender_control(connection->rig->sender, frame, payload, err);
}

static void on_source_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    (void)err;
    (void)user;
}

static const struct link_ops source_ops = {
    .peer = SENT_BY_CACHE, .up = on_up, .control = on_source_control, .down = on_source_down};

static void on_changed(struct sender *sender, void *user)
{
    (void)sender;
    (void)user;
}

static const struct sender_ops sender_ops = {.changed = on_changed};

/* ---- between them ---- */

static int on_relay(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)events;
    struct connection *connection = user;
    static uint8_t buf[1 << 16];
    bool forth = fd == connection->relay[0];
    ssize_t n = recv(fd, buf, forth ? connection->slowly : sizeof(buf), MSG_DONTWAIT);
    if (n > 0) {
        assert_int_equal(send(connection->relay[forth], buf, (size_t)n, MSG_NOSIGNAL), n);
        return 0;
    }
    sd_event_source_set_enabled(source, SD_EVENT_OFF);
    return 0;
}

static void connect_streams(struct connection *connection, bool by_hand)
{
    struct rig *rig = connection->rig;
    int left[2], right[2];
    socket_pair(left);
    if (connection->slowly) {
        socket_pair(right);
        connection->relay[0] = left[1];
        connection->relay[1] = right[0];
        assert_true(sd_event_add_io(rig->event, NULL, left[1], EPOLLIN, on_relay, connection) >= 0);
        assert_true(sd_event_add_io(rig->event, NULL, right[0], EPOLLIN, on_relay, connection) >=
                    0);
        left[1] = right[1];
    }
    connection->by_hand = by_hand ? left[0] : -EBADF;
    if (!by_hand)
        connection->out = link_new(rig->event, left[0], SILENCE_USEC, &source_ops, connection);
    connection->in = link_new(rig->event, left[1], SILENCE_USEC, &cache_ops, connection);
    assert_true(connection->in && (by_hand || connection->out));
}

static struct rig *rig_new(unsigned count, bool by_hand, unsigned slow_stream)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct error err;
    assert_non_null(rig);
    rig->path = directory_make();
    rig->store = store_open(rig->path, MIB(64), &err);
    assert_non_null(rig->store);
    assert_true(sd_event_new(&rig->event) >= 0);
    rig->count = count;
    for (unsigned i = 0; i < count; i++) {
        rig->connections[i] = (struct connection){.rig = rig,
                                                  .stream = i,
                                                  .slowly = i == slow_stream ? 1500 : 0,
                                                  .relay = {-EBADF, -EBADF}};
        connect_streams(&rig->connections[i], by_hand);
    }
    return rig;
}

static void rig_free(struct rig *rig)
{
    sender_free(rig->sender);
    receiver_free(rig->receiver);
    for (unsigned i = 0; i < rig->count; i++) {
        link_free(rig->connections[i].out);
        link_free(rig->connections[i].in);
        close_fd(rig->connections[i].by_hand);
        close_fd(rig->connections[i].relay[0]);
        close_fd(rig->connections[i].relay[1]);
    }
    sd_event_unref(rig->event);
    while (store_first(rig->store))
        snapshot_remove(store_first(rig->store));
    assert_true(store_budget(rig->store)->used == 0);
    store_close(rig->store);
    directory_remove(rig->path);
    free(rig);
}

static bool rig_accepted(void *user)
{
    return sender_state(((struct rig *)user)->sender) == SENDER_SENDING;
}

static void rig_join(struct rig *rig, unsigned stream)
{
    struct error err;
    if (receiver_join(rig->receiver, stream, rig->connections[stream].in, &err) < 0)
        fail_msg("%s", err.text);
}

/* A sender with all its streams. */
static void rig_begin(struct rig *rig)
{
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = (char *)"test";
    begin.command = (char *)"a test";
    begin.streams = rig->count;
    settle(rig->event);
    rig->sender =
        sender_new(rig->event, rig->connections[0].out, SESSION, &begin, &sender_ops, rig);
    assert_non_null(rig->sender);
    run_until(rig->event, rig_accepted, rig, 3000);
    for (unsigned i = 1; i < rig->count; i++) {
        assert_non_null(sender_token(rig->sender));
        assert_true(receiver_has_token(rig->receiver, SESSION, sender_token(rig->sender)));
        rig_join(rig, i);
        sender_add_stream(rig->sender, rig->connections[i].out);
    }
}

static bool rig_acked(void *user)
{
    struct rig *rig = user;
    if (sender_state(rig->sender) == SENDER_FAILED)
        fail_msg("the sender failed: %s", sender_error(rig->sender)->text);
    return sender_state(rig->sender) == SENDER_ACKED;
}

/* ---- criu's pages ---- */

/* Runs of one page to some stretches, here and there, of two spaces, and each again and again. */
enum { PLACES = 64, ROUNDS = 12, LONG_PAGES = 2100 };

struct criu {
    int fd, failures;
};

static uint64_t place_of(unsigned i)
{
    return 0x10000000 + (uint64_t)i * 0x51000; /* several in some stretches, not all of them */
}

static void fill_page(uint8_t page[PAGE_BYTES], uint64_t object, uint64_t vaddr, unsigned round)
{
    for (unsigned i = 0; i < PAGE_BYTES; i += 8)
        put_le64(page + i, vaddr * 31 + object + i + round * 77777);
}

static void criu_request(struct criu *criu, uint16_t command, uint64_t pages, uint64_t vaddr,
                         uint64_t object)
{
    uint8_t header[32] = {0};
    put_le32(header, command | (command == PAGE_SERVER_ADD ? PAGEMAP_PRESENT << 16 : 0));
    put_le32(header + 8, (uint32_t)pages);
    put_le64(header + 16, vaddr);
    put_le64(header + 24, object);
    criu->failures += write_all(criu->fd, header, sizeof(header)) < 0;
}

static void criu_pages(struct criu *criu, uint64_t object, uint64_t vaddr, unsigned pages,
                       unsigned round)
{
    criu_request(criu, PAGE_SERVER_ADD, pages, vaddr, object);
    for (unsigned i = 0; i < pages; i++) {
        uint8_t page[PAGE_BYTES];
        fill_page(page, object, vaddr + (uint64_t)i * PAGE_BYTES, round);
        criu->failures += write_all(criu->fd, page, sizeof(page)) < 0;
    }
}

static void criu_answer(struct criu *criu, size_t length)
{
    uint8_t answer[4];
    criu->failures += read_all(criu->fd, answer, length) < 0;
}

enum { SHARED_9 = 9 << 8 | PAGE_SERVER_SHARED };

static void *criu_main(void *user)
{
    struct criu *criu = user;
    criu_request(criu, PAGE_SERVER_OPEN, 0, 0, TASK_7);
    criu_answer(criu, 1);
    criu_pages(criu, TASK_7, place_of(PLACES) + 0x5000, LONG_PAGES, 1);
    criu_request(criu, PAGE_SERVER_OPEN, 0, 0, SHARED_9);
    criu_answer(criu, 1);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        for (unsigned i = 0; i < PLACES; i++)
            criu_pages(criu, i % 3 ? TASK_7 : SHARED_9, place_of(i), 1, round);
    }
    criu_request(criu, PAGE_SERVER_CLOSE, 0, 0, 0);
    criu_answer(criu, 4);
    close(criu->fd);
    return NULL;
}

static int open_image(struct rig *rig, const char *name)
{
    struct snapshot *snapshot = store_find(rig->store, "test");
    assert_non_null(snapshot);
    int fd = openat(snapshot->imagefd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail_msg("%s: there is no such image", name);
    return fd;
}

/* Every page of a pagemap and its pages is the newest; how many there are. */
static unsigned check_pages(struct rig *rig, const char *name, uint64_t object)
{
    uint8_t map[1 << 16], page[PAGE_BYTES], expected[PAGE_BYTES];
    int fd = open_image(rig, name);
    ssize_t length = read(fd, map, sizeof(map));
    close(fd);
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t id;
    char pages_name[32];
    assert_int_equal(pagemap_read_begin(&reader, map, (size_t)length, &id, &err), 0);
    snprintf(pages_name, sizeof(pages_name), "pages-%u.img", id);
    fd = open_image(rig, pages_name);
    unsigned pages = 0;
    while (pagemap_read_next(&reader, &run, &err) == 1) {
        for (uint64_t i = 0; i < run.pages; i++, pages++) {
            uint64_t vaddr = run.vaddr + i * PAGE_BYTES;
            fill_page(expected, object, vaddr, vaddr > place_of(PLACES) ? 1 : ROUNDS);
            assert_int_equal(read(fd, page, sizeof(page)), sizeof(page));
            assert_memory_equal(page, expected, sizeof(page));
        }
    }
    close(fd);
    return pages;
}

static void move_pages(unsigned count, unsigned slow_stream)
{
    struct rig *rig = rig_new(count, false, slow_stream);
    rig_begin(rig);
    int fds[2];
    pthread_t thread;
    socket_pair(fds);
    struct criu criu = {.fd = fds[1]};
    assert_int_equal(sender_open_page_door(rig->sender, fds[0], NULL, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, criu_main, &criu), 0);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 20000);
    pthread_join(thread, NULL);
    assert_int_equal(criu.failures, 0);
    assert_int_equal(rig->held, 1);
    assert_null(rig->receiver);
    unsigned shared = (PLACES + 2) / 3;
    assert_int_equal(check_pages(rig, "pagemap-7.img", TASK_7), PLACES - shared + LONG_PAGES);
    assert_int_equal(check_pages(rig, "pagemap-shmem-9.img", SHARED_9), shared);
    uint64_t bytes = (ROUNDS * (uint64_t)PLACES + LONG_PAGES) * PAGE_BYTES;
    assert_true(sender_bytes(rig->sender) == bytes);
    assert_true(store_find(rig->store, "test")->bytes == bytes);
    for (unsigned i = 0; i < count; i++) /* each has had its part */
        assert_true(link_bytes_sent(rig->connections[i].out) > LONG_PAGES * PAGE_BYTES / 64);
    rig_free(rig);
}

static void pages_over_streams(void **state)
{
    (void)state;
    static const unsigned counts[] = {1, 2, 3, 8};
    for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
        move_pages(counts[i], WIRE_STREAMS_MAX);
}

/* One of them is far behind the others: what is newest stays so. */
static void pages_over_a_slow_stream(void **state)
{
    (void)state;
    for (unsigned slow = 0; slow < 3; slow++)
        move_pages(3, slow);
}

/* ---- tokens ---- */

static void tokens(void **state)
{
    (void)state;
    struct rig *rig = rig_new(3, false, WIRE_STREAMS_MAX);
    rig_begin(rig);
    uint8_t token[WIRE_TOKEN_BYTES];
    memcpy(token, sender_token(rig->sender), sizeof(token));
    for (unsigned bit = 0; bit < 8 * sizeof(token); bit++) {
        token[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_false(receiver_has_token(rig->receiver, SESSION, token));
        token[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    assert_true(receiver_has_token(rig->receiver, SESSION, token));
    assert_false(receiver_has_token(rig->receiver, SESSION + 1, token));
    static const unsigned wrong[] = {0, 1, 2, 3, WIRE_STREAMS_MAX, UINT32_MAX}; /* 1, 2: again */
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct error err;
        assert_int_equal(receiver_join(rig->receiver, wrong[i], rig->connections[1].in, &err), -1);
        assert_contains(err.text, "there already, or one too many");
    }
    /* what was refused has harmed nobody */
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    rig_free(rig);
}

/* A session with its link alone has no token, not even that of zeros. */
static void no_token(void **state)
{
    (void)state;
    static const uint8_t zeros[WIRE_TOKEN_BYTES];
    struct rig *rig = rig_new(1, false, WIRE_STREAMS_MAX);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = begin.command = (char *)"test";
    settle(rig->event);
    rig->sender =
        sender_new(rig->event, rig->connections[0].out, SESSION, &begin, &sender_ops, rig);
    run_until(rig->event, rig_accepted, rig, 3000);
    assert_null(sender_token(rig->sender));
    assert_false(receiver_has_token(rig->receiver, SESSION, zeros));
    rig_free(rig);
}

/* ---- a peer by hand ---- */

static void say(struct rig *rig, unsigned stream, struct bytes *bytes)
{
    assert_int_equal(send(rig->connections[stream].by_hand, bytes->at, bytes->length, MSG_NOSIGNAL),
                     bytes->length);
    settle(rig->event);
    bytes_free(bytes);
}

static void say_message(struct rig *rig, unsigned stream, uint16_t type, uint32_t item,
                        const ProtobufCMessage *message)
{
    struct bytes bytes = {0};
    bytes_add_message(&bytes, type, SESSION, item, message);
    say(rig, stream, &bytes);
}

static void say_space(struct rig *rig, unsigned stream, uint64_t id)
{
    Godwit__Pb__SpaceBegin begin = GODWIT__PB__SPACE_BEGIN__INIT;
    begin.kind = GODWIT__PB__SPACE_BEGIN__KIND__TASK;
    begin.id = id;
    say_message(rig, stream, FRAME_SPACE_BEGIN, 1, &begin.base);
}

static void say_end(struct rig *rig, unsigned stream, uint32_t spaces)
{
    Godwit__Pb__SnapshotEnd end = GODWIT__PB__SNAPSHOT_END__INIT;
    end.spaces = spaces;
    say_message(rig, stream, FRAME_SNAPSHOT_END, 0, &end.base);
}

/* A space of which nothing came over this stream. */
static void say_empty_space(struct rig *rig, unsigned stream)
{
    uint8_t nothing[DIGEST_BYTES];
    struct digest digest;
    assert_int_equal(digest_begin(&digest), 0);
    digest_end(&digest, nothing);
    Godwit__Pb__ItemEnd end = GODWIT__PB__ITEM_END__INIT;
    end.digest = (ProtobufCBinaryData){sizeof(nothing), nothing};
    say_space(rig, stream, 7);
    say_message(rig, stream, FRAME_SPACE_END, 1, &end.base);
}

static struct rig *rig_by_hand(unsigned count, unsigned joined)
{
    struct rig *rig = rig_new(count, true, WIRE_STREAMS_MAX);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = begin.command = (char *)"test";
    begin.streams = count;
    for (unsigned i = 0; i < count; i++) {
        struct bytes greeting = {0};
        bytes_add_greeting(&greeting);
        say(rig, i, &greeting);
    }
    say_message(rig, 0, FRAME_SNAPSHOT_BEGIN, 0, &begin.base);
    for (unsigned i = 1; i < joined; i++)
        rig_join(rig, i);
    return rig;
}

/* In whatever order they come to their ends, the last one's is that of the snapshot. */
static void ends_in_any_order(void **state)
{
    (void)state;
    for (unsigned first = 0; first < 3; first++) {
        struct rig *rig = rig_by_hand(3, 3);
        for (unsigned i = 0; i < 3; i++) {
            unsigned stream = (first + i) % 3;
            assert_int_equal(rig->held, 0);
            say_empty_space(rig, stream);
            say_message(rig, stream, FRAME_ROUND_END, 0, NULL);
            say_end(rig, stream, 1);
        }
        assert_int_equal(rig->held, 1);
        assert_int_equal(rig->dropped, 0);
        rig_free(rig);
    }
}

/* One that is lost before its end is the end of the snapshot; behind it, it is no matter. */
static void lost_streams(void **state)
{
    (void)state;
    struct rig *rig = rig_by_hand(2, 2);
    say_space(rig, 1, 7);
    rig->connections[1].by_hand = close_fd(rig->connections[1].by_hand);
    settle(rig->event);
    assert_int_equal(rig->dropped, 1);
    assert_contains(rig->drop_reason.text, "data connection 1: ");
    assert_false(rig->connections[0].down);
    rig_free(rig);

    rig = rig_by_hand(2, 2);
    say_empty_space(rig, 1);
    say_end(rig, 1, 1);
    rig->connections[1].by_hand = close_fd(rig->connections[1].by_hand);
    settle(rig->event);
    say_empty_space(rig, 0);
    say_end(rig, 0, 1);
    assert_int_equal(rig->held, 1);
    rig_free(rig);

    /* the session's link has said all, and waits for one that is lost */
    rig = rig_by_hand(2, 2);
    say_empty_space(rig, 0);
    say_end(rig, 0, 1);
    assert_int_equal(rig->held + rig->dropped, 0);
    rig->connections[1].by_hand = close_fd(rig->connections[1].by_hand);
    settle(rig->event);
    assert_int_equal(rig->dropped, 1);
    assert_null(rig->receiver);
    rig_free(rig);
}

static void add_half_a_page(struct bytes *bytes, uint32_t item, uint64_t vaddr)
{
    static const uint8_t page[PAGE_BYTES];
    struct frame frame = {FRAME_PAGES, 0, PAGE_BYTES, SESSION, item, vaddr};
    bytes_add_frame(bytes, &frame, page);
    bytes->length -= PAGE_BYTES / 2;
}

/* The snapshot is refused, or over, while a page is on its way into its memory. */
static void refused_in_the_midst(void **state)
{
    (void)state;
    for (unsigned how = 0; how < 3; how++) {
        struct rig *rig = rig_by_hand(3, 3);
        struct bytes half = {0}, rest = {0};
        static const uint8_t zeros[PAGE_BYTES / 2];
        say_space(rig, 1, 7);
        add_half_a_page(&half, 1, 0x1000);
        say(rig, 1, &half);
        if (how == 0) { /* refused */
            rig->connections[2].by_hand = close_fd(rig->connections[2].by_hand);
        } else if (how == 1) { /* given up by the source */
            Godwit__Pb__Failure failure = GODWIT__PB__FAILURE__INIT;
            failure.text = (char *)"enough";
            say_message(rig, 0, FRAME_SNAPSHOT_ABORT, 0, &failure.base);
        } else { /* its link is lost */
            rig->connections[0].by_hand = close_fd(rig->connections[0].by_hand);
        }
        settle(rig->event);
        assert_int_equal(rig->dropped, 1);
        assert_int_equal(rig->receiver != NULL, how == 0);
        bytes_add(&rest, zeros, sizeof(zeros));
        say(rig, 1, &rest);
        assert_int_equal(rig->connections[1].down, how > 0);
        rig_free(rig);
    }
}

/* Who breaks the protocol on a data connection loses it, and with it the snapshot; not the link. */
static void broken_protocol(void **state)
{
    (void)state;
    static const struct {
        uint16_t type;
        const char *complaint;
    } cases[] = {
        {FRAME_IMAGE_BEGIN, "not on a data connection"},
        {FRAME_IMAGE_END, "not on a data connection"},
        {FRAME_SNAPSHOT_ABORT, "not on a data connection"},
        {FRAME_VERDICT, "not on a data connection"},
        {FRAME_STREAM_JOIN, "not on a data connection"},
        {FRAME_SPACE_BEGIN, "no known kind"},
        {FRAME_SPACE_END, "no such item"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct rig *rig = rig_by_hand(2, 2);
        say_message(rig, 1, cases[i].type, 1, NULL);
        assert_true(rig->connections[1].down && !rig->connections[0].down);
        assert_contains(rig->connections[1].reason.text, cases[i].complaint);
        assert_int_equal(rig->dropped, 1);
        assert_contains(rig->drop_reason.text, cases[i].complaint);
        rig_free(rig);
    }
}

static void expect_broken(struct rig *rig, unsigned stream, const char *complaint)
{
    assert_true(rig->connections[stream].down);
    assert_contains(rig->connections[stream].reason.text, complaint);
    assert_int_equal(rig->held, 0);
    assert_int_equal(rig->dropped, 1);
    rig_free(rig);
}

static void broken_order(void **state)
{
    (void)state;
    struct rig *rig = rig_by_hand(2, 2); /* another space */
    say_space(rig, 1, 7);
    say_space(rig, 0, 8);
    expect_broken(rig, 0, "the same spaces");

    rig = rig_by_hand(2, 2); /* sums that are wrong */
    say_empty_space(rig, 1);
    say_end(rig, 1, 2);
    expect_broken(rig, 1, "does not sum up");

    rig = rig_by_hand(2, 2); /* behind its end, when nobody needs it any more */
    say_end(rig, 1, 0);
    say_space(rig, 1, 7);
    assert_true(rig->connections[1].down);
    assert_contains(rig->connections[1].reason.text, "behind its end");
    say_end(rig, 0, 0);
    assert_int_equal(rig->held, 1);
    rig_free(rig);

    rig = rig_by_hand(3, 2); /* one has not come */
    say_end(rig, 1, 0);
    expect_broken(rig, 1, "not all data connections have come");

    rig = rig_by_hand(2, 2); /* memory of which the session knows nothing */
    say_empty_space(rig, 1);
    say_end(rig, 1, 1);
    say_end(rig, 0, 0);
    assert_int_equal(rig->dropped, 1);
    assert_contains(rig->drop_reason.text, "did not begin");
    assert_null(rig->receiver);
    rig_free(rig);
}

static void too_many_streams(void **state)
{
    (void)state;
    struct rig *rig = rig_new(1, false, WIRE_STREAMS_MAX);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = begin.command = (char *)"test";
    begin.streams = WIRE_STREAMS_MAX + 1;
    settle(rig->event);
    rig->sender =
        sender_new(rig->event, rig->connections[0].out, SESSION, &begin, &sender_ops, rig);
    settle(rig->event);
    assert_int_equal(sender_state(rig->sender), SENDER_FAILED);
    assert_contains(sender_error(rig->sender)->text, "17 streams");
    rig_free(rig);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_over_streams),
        cmocka_unit_test(pages_over_a_slow_stream),
        cmocka_unit_test(tokens),
        cmocka_unit_test(no_token),
        cmocka_unit_test(ends_in_any_order),
        cmocka_unit_test(lost_streams),
        cmocka_unit_test(refused_in_the_midst),
        cmocka_unit_test(broken_protocol),
        cmocka_unit_test(broken_order),
        cmocka_unit_test(too_many_streams),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
