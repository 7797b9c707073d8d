/* SPDX-License-Identifier: Apache-2.0 */
/* Sender and receiver, a link between them, a hand-made criu on one side, a store on the other. */
#include "testing.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/io.h"
#include "criu.pb-c.h"
#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "migrate/receiver.h"
#include "migrate/sender.h"

#define SILENCE_USEC (60 * USEC_PER_SEC)

enum { RECEIVERS = 4 };

struct rig {
    sd_event *event;
    char *path;
    struct store *store;

    struct link *proxy, *cache;
    struct sender *sender;
    struct receiver *receivers[RECEIVERS];
    unsigned up, held, dropped, proxy_down, cache_down;
    struct error drop_reason, cache_reason, proxy_reason;
    struct bytes *captured; /* what the proxy says, if wanted */
    int relay[2];           /* in the middle, if there is a relay */
    size_t relay_step;      /* bytes at once; 0: many */
    int flip_run;           /* flips a bit behind that many 0xa5 in a row; 0: none */
    int seen_run;
    bool discard; /* the cache keeps nothing and checks what it hears */
    struct digest digest;
    uint64_t landed;
};

/* ---- the proxy's end ---- */

static void on_proxy_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)link;
    (void)hello;
    ((struct rig *)user)->up++;
}

static int on_proxy_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                            void *user, struct error *err)
{
    (void)link;
    return sender_control(((struct rig *)user)->sender, frame, payload, err);
}

static void on_proxy_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct rig *rig = user;
    rig->proxy_down++;
    rig->proxy_reason = *err;
    if (rig->sender)
        sender_link_down(rig->sender, err);
}

static const struct link_ops proxy_ops = {
    .peer = SENT_BY_CACHE, .up = on_proxy_up, .control = on_proxy_control, .down = on_proxy_down};

static void on_changed(struct sender *sender, void *user)
{
    (void)sender;
    (void)user;
}

static const struct sender_ops sender_ops = {.changed = on_changed};

/* ---- the cache's end ---- */

static void on_held(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    struct rig *rig = user;
    assert_int_equal(snapshot->state, SNAPSHOT_HELD);
    rig->held++;
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

static struct receiver **rig_find(struct rig *rig, uint32_t session)
{
    for (unsigned i = 0; i < RECEIVERS; i++) {
        if (rig->receivers[i] && receiver_session(rig->receivers[i]) == session)
            return &rig->receivers[i];
    }
    return NULL;
}

/* A cache that keeps nothing: one image, whose data has to follow one another. */
static int discard_control(struct rig *rig, struct link *link, const struct frame *frame,
                           const uint8_t *payload)
{
    struct error err;
    switch (frame->type) {
    case FRAME_SNAPSHOT_BEGIN:
        link_send(link, FRAME_SNAPSHOT_ACCEPT, frame->session, 0, NULL);
        break;
    case FRAME_IMAGE_BEGIN:
        assert_int_equal(digest_begin(&rig->digest), 0);
        break;
    case FRAME_IMAGE_END: {
        _cleanup_message_ ProtobufCMessage *message =
            message_unpack(&godwit__pb__item_end__descriptor, payload, frame->length, &err);
        assert_non_null(message);
        const Godwit__Pb__ItemEnd *end = (const Godwit__Pb__ItemEnd *)message;
        uint8_t digest[DIGEST_BYTES];
        digest_end(&rig->digest, digest);
        assert_true(end->bytes == rig->landed);
        assert_int_equal(end->digest.len, DIGEST_BYTES);
        assert_memory_equal(end->digest.data, digest, DIGEST_BYTES);
        break;
    }
    case FRAME_SNAPSHOT_END:
        link_send(link, FRAME_SNAPSHOT_ACK, frame->session, 0, NULL);
        break;
    default:
        fail_msg("an unexpected %s frame", frame_name(frame->type));
    }
    return 0;
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    struct rig *rig = user;
    if (rig->discard)
        return discard_control(rig, link, frame, payload);
    struct receiver **at = rig_find(rig, frame->session);
    if (frame->type == FRAME_SNAPSHOT_BEGIN) {
        assert_null(at);
        for (at = rig->receivers; *at; at++)
            assert_true(at < rig->receivers + RECEIVERS - 1);
        *at = receiver_new(rig->store, link, "source", frame, payload, &receiver_ops, rig, err);
        return *at ? 0 : -1;
    }
    if (!at)
        return error_set(err, FAILURE_PEER, "no such session");
    int r = receiver_control(*at, 0, frame, payload, err);
    if (r >= 0 && receiver_is_over(*at))
        *at = receiver_free(*at);
    return r;
}

static int on_bulk_place(struct link *link, const struct frame *frame, uint32_t done,
                         void **ret_place, size_t *ret_length, void *user, struct error *err)
{
    (void)link;
    static uint8_t buf[WIRE_BULK_MAX];
    struct rig *rig = user;
    if (rig->discard) {
        assert_true(frame->offset + done == rig->landed);
        *ret_place = buf;
        *ret_length = frame->length - done;
        return 0;
    }
    struct receiver **at = rig_find(rig, frame->session);
    return at ? receiver_bulk_place(*at, 0, frame, done, ret_place, ret_length, err)
              : error_set(err, FAILURE_PEER, "no such session");
}

static int on_bulk_landed(struct link *link, const struct frame *frame, uint32_t done,
                          const void *place, size_t length, void *user, struct error *err)
{
    (void)link;
    struct rig *rig = user;
    if (rig->discard) {
        digest_bytes(&rig->digest, place, length);
        rig->landed += length;
        return 0;
    }
    struct receiver **at = rig_find(rig, frame->session);
    assert_non_null(at);
    int r = receiver_bulk_landed(*at, 0, frame, done, place, length, err);
    rig->landed += length;
    return r;
}

static void on_cache_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct rig *rig = user;
    rig->cache_down++;
    rig->cache_reason = *err;
    for (unsigned i = 0; i < RECEIVERS; i++) {
        if (!rig->receivers[i])
            continue;
        receiver_link_down(rig->receivers[i], err);
        rig->receivers[i] = receiver_free(rig->receivers[i]);
    }
}

static const struct link_ops cache_ops = {
    .peer = SENT_BY_SOURCE,
    .up = on_proxy_up,
    .control = on_control,
    .bulk_place = on_bulk_place,
    .bulk_landed = on_bulk_landed,
    .down = on_cache_down,
};

/* ---- between them ---- */

static void relay_damage(struct rig *rig, uint8_t *buf, size_t length)
{
    for (size_t i = 0; i < length && rig->flip_run; i++) {
        rig->seen_run = buf[i] == 0xa5 ? rig->seen_run + 1 : 0;
        if (rig->seen_run == rig->flip_run) {
            buf[i] ^= 0x10;
            rig->flip_run = 0;
        }
    }
}

static int on_relay(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)events;
    struct rig *rig = user;
    static uint8_t buf[1 << 16];
    bool forth = fd == rig->relay[0];
    ssize_t n = recv(fd, buf, rig->relay_step ? rig->relay_step : sizeof(buf), MSG_DONTWAIT);
    if (n <= 0) {
        sd_event_source_set_enabled(source, SD_EVENT_OFF);
        shutdown(rig->relay[forth], SHUT_WR);
        return 0;
    }
    if (forth) {
        relay_damage(rig, buf, (size_t)n);
        if (rig->captured)
            bytes_add(rig->captured, buf, (size_t)n);
    }
    /* the reader is this very thread, so the sockets are roomy enough for all that is said */
    ssize_t m = send(rig->relay[forth], buf, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    assert_true(m == n || errno == EPIPE);
    return 0;
}

static void roomy(int fd)
{
    int size = 64 << 20;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

static bool rig_up(void *user)
{
    return ((struct rig *)user)->up == 2;
}

static struct rig *rig_new(uint64_t limit, bool relayed, size_t relay_step)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct error err;
    assert_non_null(rig);
    rig->path = directory_make();
    rig->store = store_open(rig->path, limit, &err);
    assert_non_null(rig->store);
    assert_true(sd_event_new(&rig->event) >= 0);
    int left[2], right[2];
    socket_pair(left);
    rig->relay[0] = rig->relay[1] = -EBADF;
    if (relayed) {
        socket_pair(right);
        rig->relay[0] = left[1];
        rig->relay[1] = right[1];
        rig->relay_step = relay_step;
        roomy(left[1]);
        roomy(right[1]);
        sd_event_add_io(rig->event, NULL, left[1], EPOLLIN, on_relay, rig);
        sd_event_add_io(rig->event, NULL, right[1], EPOLLIN, on_relay, rig);
        left[1] = right[0];
    }
    rig->proxy = link_new(rig->event, left[0], SILENCE_USEC, &proxy_ops, rig);
    rig->cache = link_new(rig->event, left[1], SILENCE_USEC, &cache_ops, rig);
    assert_true(rig->proxy && rig->cache);
    return rig;
}

static void rig_begin(struct rig *rig, uint32_t session, const char *id)
{
    run_until(rig->event, rig_up, rig, 3000);
    rig->sender = sender_free(rig->sender);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = (char *)id;
    begin.pid = 42;
    begin.command = (char *)"a test";
    rig->sender = sender_new(rig->event, rig->proxy, session, &begin, &sender_ops, rig);
    assert_non_null(rig->sender);
}

static struct rig *rig_new_begun(uint64_t limit)
{
    struct rig *rig = rig_new(limit, false, 0);
    rig_begin(rig, 1, "test");
    return rig;
}

static bool rig_acked(void *user)
{
    struct rig *rig = user;
    if (sender_state(rig->sender) == SENDER_FAILED)
        fail_msg("the sender failed: %s", sender_error(rig->sender)->text);
    return sender_state(rig->sender) == SENDER_ACKED;
}

static bool rig_failed(void *user)
{
    struct rig *rig = user;
    assert_int_not_equal(sender_state(rig->sender), SENDER_ACKED);
    return sender_state(rig->sender) == SENDER_FAILED;
}

static void rig_free_receivers(struct rig *rig)
{
    for (unsigned i = 0; i < RECEIVERS; i++)
        receiver_free(TAKE_PTR(rig->receivers[i]));
}

/* All budgets are back at zero when the snapshots are gone. */
static void rig_free(struct rig *rig)
{
    sender_free(rig->sender);
    rig_free_receivers(rig);
    link_free(rig->proxy);
    link_free(rig->cache);
    close_fd(rig->relay[0]);
    close_fd(rig->relay[1]);
    sd_event_unref(rig->event);
    while (store_first(rig->store))
        snapshot_remove(store_first(rig->store));
    assert_true(store_budget(rig->store)->used == 0);
    store_close(rig->store);
    directory_remove(rig->path);
    free(rig);
}

static struct bytes image_of(struct rig *rig, const char *id, const char *name)
{
    struct snapshot *snapshot = store_find(rig->store, id);
    assert_non_null(snapshot);
    int fd = openat(snapshot->imagefd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail_msg("%s: there is no such image", name);
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    struct bytes bytes = {0};
    if (st.st_size > 0) {
        uint8_t *copy = malloc((size_t)st.st_size);
        assert_non_null(copy);
        assert_int_equal(read_all(fd, copy, (size_t)st.st_size), 0);
        bytes_add(&bytes, copy, (size_t)st.st_size);
        free(copy);
    }
    close(fd);
    return bytes;
}

static void expect_image(struct rig *rig, const char *name, const void *expected, size_t length)
{
    struct bytes bytes = image_of(rig, "test", name);
    assert_int_equal(bytes.length, length);
    if (length > 0)
        assert_memory_equal(bytes.at, expected, length);
    bytes_free(&bytes);
}

/* ---- pipes ---- */

/* Opens an image; the write end is for the caller. */
static int open_image(struct rig *rig, const char *name)
{
    int fds[2];
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(sender_open_pipe(rig->sender, name, fds[0]), 0);
    return fds[1];
}

static void write_image(struct rig *rig, const char *name, const void *bytes, size_t length)
{
    int fd = open_image(rig, name);
    assert_int_equal(write_all(fd, bytes, length), 0);
    close(fd);
}

static void images_through_pipes(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    char longest[256];
    memset(longest, 'n', 255);
    longest[255] = '\0';
    write_image(rig, "empty.img", "", 0);
    write_image(rig, longest, "long", 4);
    write_image(rig, "core-1.img", "core", 4);
    assert_false(sender_has_inventory(rig->sender));
    write_image(rig, "inventory.img", "i", 1);
    assert_true(sender_has_inventory(rig->sender));
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    assert_int_equal(rig->held, 1);
    assert_int_equal(rig->dropped, 0);
    assert_true(sender_bytes(rig->sender) == 9);
    struct snapshot *snapshot = store_find(rig->store, "test");
    assert_int_equal(snapshot->images, 4);
    assert_true(snapshot->bytes == 9);
    assert_int_equal(snapshot->pid, 42);
    assert_string_equal(snapshot->host, "source");
    assert_string_equal(snapshot->command, "a test");
    expect_image(rig, "empty.img", "", 0);
    expect_image(rig, longest, "long", 4);
    expect_image(rig, "core-1.img", "core", 4);
    rig_free(rig);
}

static void names_that_are_none(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    char longer[257];
    memset(longer, 'n', 256);
    longer[256] = '\0';
    const char *const bad[] = {"", ".", "..", "a/b", longer};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        int fds[2];
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        assert_int_equal(sender_open_pipe(rig->sender, bad[i], fds[0]), -EINVAL);
        assert_int_equal(fcntl(fds[0], F_GETFD), -1); /* taken over all the same */
        close(fds[1]);
    }
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    rig_free(rig);
}

static void an_empty_snapshot(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(1));
    sender_finish(rig->sender); /* before the cache has accepted it */
    run_until(rig->event, rig_acked, rig, 3000);
    assert_int_equal(rig->held, 1);
    rig_free(rig);
}

/* A pipe that stays silent holds up its snapshot and nothing else. */
static void a_silent_pipe(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    int silent = open_image(rig, "silent.img");
    write_image(rig, "core-1.img", "core", 4);
    sender_finish(rig->sender);
    run_for(rig->event, 50);
    assert_int_equal(sender_state(rig->sender), SENDER_SENDING);
    assert_int_equal(rig->landed, 4);
    assert_int_equal(write_all(silent, "x", 1), 0);
    run_for(rig->event, 20);
    assert_int_equal(rig->landed, 5); /* bytes leave while criu writes */
    close(silent);
    run_until(rig->event, rig_acked, rig, 3000);
    expect_image(rig, "silent.img", "x", 1);
    rig_free(rig);
}

/* What nobody read when the sender goes: criu feels it as a broken pipe. */
static void an_unread_pipe(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    int fd = open_image(rig, "core-1.img");
    assert_int_equal(write_all(fd, "core", 4), 0);
    struct error err;
    error_set(&err, FAILURE_CRIU, "given up");
    sender_fail(rig->sender, &err);
    assert_int_equal(write_all(fd, "more", 4), -EPIPE);
    settle(rig->event);
    assert_int_equal(rig->dropped, 1);
    assert_contains(rig->drop_reason.text, "given up");
    assert_null(store_first(rig->store));
    close(fd);
    rig_free(rig);
}

static void two_thousand_pipes(void **state)
{
    (void)state;
    enum { MANY = 2000 };
    raise_nofile_limit();
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 3 * MANY + 100)
        test_skip("too few descriptors are allowed for 2,000 pipes at once");
    struct rig *rig = rig_new_begun(MIB(512));
    int *fds = calloc(MANY, sizeof(int));
    assert_non_null(fds);
    char name[32], text[64];
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof(name), "image-%d.img", i);
        fds[i] = open_image(rig, name);
    }
    settle(rig->event);
    for (int part = 0; part < 2; part++) {
        for (int i = 0; i < MANY; i++) {
            int n = snprintf(text, sizeof(text), "%d of image %d;", part, i * 7);
            assert_int_equal(write_all(fds[i], text, (size_t)n), 0);
        }
        settle(rig->event);
    }
    for (int i = 0; i < MANY; i++)
        close(fds[i]);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 10000);
    for (int i = 0; i < MANY; i++) {
        int n = snprintf(text, sizeof(text), "0 of image %d;1 of image %d;", i * 7, i * 7);
        snprintf(name, sizeof(name), "image-%d.img", i);
        expect_image(rig, name, text, (size_t)n);
    }
    free(fds);
    rig_free(rig);
}

/* ---- a directory ---- */

static int make_directory(const char *path, const char *name)
{
    char full[512];
    snprintf(full, sizeof(full), "%s/%s", path, name);
    assert_int_equal(mkdir(full, 0700), 0);
    int fd = open(full, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void images_of_a_directory(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(64));
    char *path = directory_make();
    int dirfd = make_directory(path, "images");
    uint64_t seed = test_seed();
    static uint8_t large[3 << 20];
    for (size_t i = 0; i < sizeof(large); i++)
        large[i] = (uint8_t)test_random(&seed);
    for (int i = 0; i < 50; i++) {
        char name[32];
        snprintf(name, sizeof(name), "image-%d", i);
        int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_int_equal(write_all(fd, large, (size_t)i * i * 1200), 0);
        close(fd);
    }
    assert_int_equal(mkdirat(dirfd, "no-image", 0700), 0);
    assert_int_equal(symlinkat("/etc/passwd", dirfd, "no-image-either"), 0);
    assert_int_equal(sender_open_directory(rig->sender, dirfd), 0);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 10000);
    assert_int_equal(store_find(rig->store, "test")->images, 50);
    for (int i = 0; i < 50; i++) {
        char name[32];
        snprintf(name, sizeof(name), "image-%d", i);
        expect_image(rig, name, large, (size_t)i * i * 1200);
    }
    directory_remove(path);
    rig_free(rig);
}

/* To a cache that discards it: the memory of this machine is not the question here (an arena above
 * 4 GiB is in test_store.c). */
static void an_image_above_four_gib(void **state)
{
    (void)state;
    struct rig *rig = rig_new(MIB(1), false, 0);
    rig->discard = true;
    rig_begin(rig, 1, "test");
    char *path = directory_make();
    int dirfd = make_directory(path, "images");
    int fd = openat(dirfd, "big.img", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, (off_t)GIB(4)), 0);
    assert_int_equal(pwrite(fd, "the end", 7, (off_t)GIB(4) + 5000), 7);
    close(fd);
    assert_int_equal(sender_open_directory(rig->sender, dirfd), 0);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 50000);
    assert_true(rig->landed == GIB(4) + 5007);
    assert_true(sender_bytes(rig->sender) == GIB(4) + 5007);
    directory_remove(path);
    rig_free(rig);
}

/* ---- the page door: a criu by hand ---- */

struct criu {
    int fd;
    unsigned form;
    bool parent_first;
    bool close;
    int failures;
};

static void criu_request(struct criu *criu, uint16_t command, uint16_t flags, uint64_t pages,
                         uint64_t vaddr, uint64_t object)
{
    uint8_t header[32] = {0};
    unsigned at = criu->form == 32 ? 16 : 8;
    put_le32(header, command | (uint32_t)flags << 16);
    put_le32(header + (criu->form == 32 ? 8 : 4), (uint32_t)pages);
    put_le64(header + at, vaddr);
    put_le64(header + at + 8, object);
    criu->failures += write_all(criu->fd, header, criu->form) < 0;
}

static void criu_answer(struct criu *criu, size_t length)
{
    uint8_t answer[4] = {1, 1, 1, 1};
    criu->failures += read_all(criu->fd, answer, length) < 0;
    for (size_t i = 0; i < length; i++)
        criu->failures += answer[i] != 0;
}

enum { TASK_7 = 7 << 8 | PAGE_SERVER_TASK, SHARED_9 = 9 << 8 | PAGE_SERVER_SHARED, LONG_RUN = 700 };

static void fill_page(uint8_t page[PAGE_BYTES], uint64_t vaddr, unsigned round)
{
    for (unsigned i = 0; i < PAGE_BYTES; i += 8)
        put_le64(page + i, vaddr * 31 + i + round * 77777);
}

static void criu_pages(struct criu *criu, uint64_t object, uint64_t vaddr, unsigned pages,
                       uint16_t flags, unsigned round)
{
    criu_request(criu, PAGE_SERVER_ADD, flags, pages, vaddr, object);
    for (unsigned i = 0; i < pages; i++) {
        uint8_t page[PAGE_BYTES];
        fill_page(page, vaddr + (uint64_t)i * PAGE_BYTES, round);
        criu->failures += write_all(criu->fd, page, sizeof(page)) < 0;
    }
}

static void *criu_main(void *user)
{
    struct criu *criu = user;
    if (criu->parent_first) {
        criu_request(criu, PAGE_SERVER_PARENT, 0, 0, 0, TASK_7);
        criu_answer(criu, 4);
    }
    criu_request(criu, PAGE_SERVER_OPEN, 0, 0, 0, TASK_7);
    criu_answer(criu, 1);
    criu_pages(criu, TASK_7, 0x10000, 3, PAGEMAP_PRESENT, 0);
    criu_pages(criu, TASK_7, 0x7f0000000000, LONG_RUN, PAGEMAP_PRESENT, 0);
    for (unsigned i = 0; i < 300; i++) /* more runs than a batch has frames */
        criu_pages(criu, TASK_7, 0x7f1000000000 + i * 2ull * PAGE_BYTES, 1,
                   PAGEMAP_PRESENT | PAGEMAP_LAZY, 0);
    criu_request(criu, PAGE_SERVER_OPEN, 0, 0, 0, SHARED_9);
    criu_answer(criu, 1);
    criu_pages(criu, SHARED_9, 0x5000, 2, PAGEMAP_PRESENT, 0);
    criu_pages(criu, SHARED_9, 0x1000, 1, PAGEMAP_PRESENT, 0); /* descending */
    criu_pages(criu, TASK_7, 0x11000, 1, PAGEMAP_PRESENT, 1);  /* once more: the newest wins */
    if (criu->close) {
        criu_request(criu, PAGE_SERVER_CLOSE, 0, 0, 0, 0);
        criu_answer(criu, 4);
    }
    close(criu->fd);
    return NULL;
}

struct expected_run {
    uint64_t vaddr, pages;
    uint32_t flags;
};

/* The pagemap names the pages image, and both together are what criu sent. */
static void expect_pages(struct rig *rig, const char *name, const struct expected_run *expected,
                         size_t count)
{
    struct bytes map = image_of(rig, "test", name);
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t id;
    char pages_name[32];
    assert_int_equal(pagemap_read_begin(&reader, map.at, map.length, &id, &err), 0);
    snprintf(pages_name, sizeof(pages_name), "pages-%u.img", id);
    struct bytes pages = image_of(rig, "test", pages_name);
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(pagemap_read_next(&reader, &run, &err), 1);
        assert_true(run.vaddr == expected[i].vaddr && run.pages == expected[i].pages);
        assert_int_equal(run.flags, expected[i].flags);
        for (uint64_t p = 0; p < run.pages; p++, at += PAGE_BYTES) {
            uint64_t vaddr = run.vaddr + p * PAGE_BYTES;
            uint8_t page[PAGE_BYTES];
            fill_page(page, vaddr, vaddr == 0x11000);
            assert_true(at + PAGE_BYTES <= pages.length);
            assert_memory_equal(page, pages.at + at, PAGE_BYTES);
        }
    }
    assert_int_equal(pagemap_read_next(&reader, &run, &err), 0);
    assert_int_equal(at, pages.length);
    bytes_free(&map);
    bytes_free(&pages);
}

static void expect_all_pages(struct rig *rig)
{
    static struct expected_run task[302] = {
        {0x10000, 3, PAGEMAP_PRESENT},
        {0x7f0000000000, LONG_RUN, PAGEMAP_PRESENT},
    };
    for (unsigned i = 0; i < 300; i++)
        task[2 + i] = (struct expected_run){0x7f1000000000 + i * 2ull * PAGE_BYTES, 1,
                                            PAGEMAP_PRESENT | PAGEMAP_LAZY};
    static const struct expected_run shared[] = {{0x1000, 1, PAGEMAP_PRESENT},
                                                 {0x5000, 2, PAGEMAP_PRESENT}};
    expect_pages(rig, "pagemap-7.img", task, ARRAY_SIZE(task));
    expect_pages(rig, "pagemap-shmem-9.img", shared, ARRAY_SIZE(shared));
}

static pthread_t criu_begin(struct rig *rig, struct criu *criu)
{
    int fds[2];
    pthread_t thread;
    socket_pair(fds);
    criu->fd = fds[1];
    assert_int_equal(sender_open_page_door(rig->sender, fds[0], NULL, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, criu_main, criu), 0);
    return thread;
}

static void pages_of_criu(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 4; way++) {
        struct rig *rig = rig_new_begun(MIB(64));
        struct criu criu = {.form = way & 1 ? 32 : 24, .parent_first = way & 2, .close = true};
        pthread_t thread = criu_begin(rig, &criu);
        write_image(rig, "core-7.img", "core", 4);
        sender_finish(rig->sender);
        run_until(rig->event, rig_acked, rig, 10000);
        pthread_join(thread, NULL);
        assert_int_equal(criu.failures, 0);
        expect_all_pages(rig);
        expect_image(rig, "core-7.img", "core", 4);
        rig_free(rig);
    }
}

static void pages_one_byte_at_a_time(void **state)
{
    (void)state;
    struct rig *rig = rig_new(MIB(64), true, 1);
    rig_begin(rig, 1, "test");
    write_image(rig, "core-7.img", "core", 4);
    int fds[2];
    socket_pair(fds);
    assert_int_equal(sender_open_page_door(rig->sender, fds[0], NULL, NULL), 0);
    struct criu criu = {.fd = fds[1], .form = 24};
    criu_request(&criu, PAGE_SERVER_OPEN, 0, 0, 0, SHARED_9);
    criu_pages(&criu, SHARED_9, 0x5000, 2, PAGEMAP_PRESENT, 0);
    criu_pages(&criu, SHARED_9, 0x1000, 1, PAGEMAP_PRESENT, 0);
    criu_request(&criu, PAGE_SERVER_CLOSE, 0, 0, 0, 0);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 20000);
    static const struct expected_run shared[] = {{0x1000, 1, PAGEMAP_PRESENT},
                                                 {0x5000, 2, PAGEMAP_PRESENT}};
    expect_pages(rig, "pagemap-shmem-9.img", shared, ARRAY_SIZE(shared));
    close(fds[1]);
    rig_free(rig);
}

static void criu_that_breaks_off(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(64));
    struct criu criu = {.form = 32};
    pthread_t thread = criu_begin(rig, &criu);
    sender_finish(rig->sender);
    run_until(rig->event, rig_failed, rig, 10000);
    pthread_join(thread, NULL);
    assert_int_equal(sender_error(rig->sender)->code, FAILURE_CRIU);
    settle(rig->event);
    assert_int_equal(rig->dropped, 1);
    assert_null(store_first(rig->store));
    assert_true(link_is_up(rig->proxy) && link_is_up(rig->cache));
    rig_free(rig);
}

/* Requests that criu does not make end its dump, and never the link. */
static void criu_gone_mad(void **state)
{
    (void)state;
    static const struct {
        uint16_t command, flags;
        uint64_t pages, vaddr, object;
    } mad[] = {
        {PAGE_SERVER_ADD, PAGEMAP_PRESENT, 1, 0x1000, 77 << 8 | 1}, /* never opened */
        {PAGE_SERVER_ADD, PAGEMAP_PARENT, 1, 0x1000, TASK_7},       /* no parent was promised */
        {PAGE_SERVER_ADD, 0, 1, 0x1000, TASK_7},
        {PAGE_SERVER_ADD, PAGEMAP_PRESENT, 0, 0x1000, TASK_7},
        {PAGE_SERVER_ADD, PAGEMAP_PRESENT, 1, 0x1001, TASK_7},
        {PAGE_SERVER_ADD, PAGEMAP_PRESENT, 1, 1ull << 57, TASK_7},
        {99, 0, 0, 0, TASK_7},
    };
    for (size_t i = 0; i < ARRAY_SIZE(mad); i++) {
        struct rig *rig = rig_new_begun(MIB(64));
        int fds[2];
        socket_pair(fds);
        assert_int_equal(sender_open_page_door(rig->sender, fds[0], NULL, NULL), 0);
        struct criu criu = {.fd = fds[1], .form = 32};
        criu_request(&criu, PAGE_SERVER_OPEN, 0, 0, 0, TASK_7);
        criu_request(&criu, mad[i].command, mad[i].flags, mad[i].pages, mad[i].vaddr,
                     mad[i].object);
        run_until(rig->event, rig_failed, rig, 3000);
        assert_int_equal(sender_error(rig->sender)->code, FAILURE_CRIU);
        settle(rig->event);
        assert_int_equal(rig->dropped, 1);
        assert_int_equal(rig->cache_down + rig->proxy_down, 0);
        close(fds[1]);
        rig_free(rig);
    }
}

/* ---- refusals ---- */

static void over_budget(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(2));
    int fd = open_image(rig, "large.img");
    set_nonblocking(fd, true);
    static char block[1 << 16];
    for (int i = 0; i < 1000 && sender_state(rig->sender) != SENDER_FAILED; i++) {
        if (write(fd, block, sizeof(block)) < 0)
            assert_true(errno == EAGAIN || errno == EPIPE);
        settle(rig->event);
    }
    run_until(rig->event, rig_failed, rig, 3000);
    assert_int_equal(sender_error(rig->sender)->code, FAILURE_LIMIT);
    assert_contains(sender_error(rig->sender)->text, "--memory-limit");
    assert_contains(sender_error(rig->sender)->text, "of 2.0 MiB");
    settle(rig->event);
    close(fd);
    assert_int_equal(rig->dropped, 1);
    assert_null(store_first(rig->store));
    assert_true(store_budget(rig->store)->used == 0);

    /* the link lives on, and the next one fits */
    rig_begin(rig, 2, "test");
    write_image(rig, "core-1.img", "core", 4);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    expect_image(rig, "core-1.img", "core", 4);
    rig_free(rig);
}

static void pages_over_budget(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(1));
    struct criu criu = {.form = 24, .close = true};
    pthread_t thread = criu_begin(rig, &criu);
    sender_finish(rig->sender);
    run_until(rig->event, rig_failed, rig, 5000);
    pthread_join(thread, NULL);
    assert_true(criu.failures > 0);
    assert_int_equal(sender_error(rig->sender)->code, FAILURE_LIMIT);
    settle(rig->event);
    assert_true(store_budget(rig->store)->used == 0);
    assert_true(link_is_up(rig->proxy));
    rig_free(rig);
}

static void damage_on_the_way(void **state)
{
    (void)state;
    struct rig *rig = rig_new(MIB(16), true, 0);
    rig->flip_run = 1000;
    rig_begin(rig, 1, "test");
    uint8_t data[20000];
    memset(data, 0xa5, sizeof(data));
    write_image(rig, "core-1.img", data, sizeof(data));
    sender_finish(rig->sender);
    run_until(rig->event, rig_failed, rig, 3000);
    assert_int_equal(rig->flip_run, 0);
    assert_contains(sender_error(rig->sender)->text, "core-1.img arrived damaged");
    settle(rig->event);
    assert_int_equal(rig->dropped, 1);
    assert_int_equal(rig->held, 0);
    assert_null(store_first(rig->store));
    rig_free(rig);
}

static void ids_that_cannot_be(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "..", "a/b", ".hidden", "a b"};
    struct rig *rig = rig_new(MIB(16), false, 0);
    for (uint32_t i = 0; i < ARRAY_SIZE(bad); i++) {
        rig_begin(rig, i + 1, bad[i]);
        write_image(rig, "core-1.img", "core", 4);
        sender_finish(rig->sender);
        run_until(rig->event, rig_failed, rig, 3000);
        assert_int_equal(sender_error(rig->sender)->code, FAILURE_USAGE);
        settle(rig->event);
    }
    rig_begin(rig, 100, "test");
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    rig_begin(rig, 101, "test"); /* is there already */
    run_until(rig->event, rig_failed, rig, 3000);
    assert_int_equal(sender_error(rig->sender)->code, FAILURE_BUSY);
    assert_non_null(store_find(rig->store, "test"));
    assert_int_equal(rig->dropped, 0);
    rig_free(rig);
}

static void images_of_one_name(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    write_image(rig, "core-1.img", "core", 4);
    write_image(rig, "core-1.img", "core", 4);
    sender_finish(rig->sender);
    run_until(rig->event, rig_failed, rig, 3000);
    assert_contains(sender_error(rig->sender)->text, "core-1.img");
    settle(rig->event);
    assert_int_equal(rig->dropped, 1);
    rig_free(rig);
}

/* Pages that came as plain images have to agree with their pagemap. */
static void plain_pages(void **state)
{
    (void)state;
    static const struct {
        struct pagemap_run run;
        size_t pages;
        const char *complaint; /* NULL: none */
    } cases[] = {
        {{0x1000, 2, PAGEMAP_PRESENT}, 2, NULL},
        {{0x1000, 2, PAGEMAP_PRESENT}, 1, "has 4096 bytes and its pagemap 2 pages"},
        {{0x1000, 2, PAGEMAP_PRESENT}, 3, "pagemap 2 pages"},
        {{0x1000, 2, PAGEMAP_PARENT}, 0, "parent"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct rig *rig = rig_new_begun(MIB(16));
        uint8_t pages[3 * PAGE_BYTES] = {0};
        write_image(rig, "pages-5.img", pages, cases[i].pages * PAGE_BYTES);
        int fd = open_image(rig, "pagemap-1.img");
        struct pagemap_writer *writer = pagemap_begin(fd, 5);
        pagemap_add(writer, &cases[i].run);
        assert_int_equal(pagemap_finish(writer), 0);
        close(fd);
        sender_finish(rig->sender);
        run_until(rig->event, cases[i].complaint ? rig_failed : rig_acked, rig, 3000);
        if (cases[i].complaint) {
            assert_contains(sender_error(rig->sender)->text, cases[i].complaint);
            assert_contains(sender_error(rig->sender)->text, "pagemap-1.img");
            assert_int_equal(sender_error(rig->sender)->code, FAILURE_REFUSED);
        }
        rig_free(rig);
    }
}

static void add_prefixed(struct bytes *bytes, const ProtobufCMessage *message)
{
    uint8_t packed[64], length[4];
    size_t size = protobuf_c_message_pack(message, packed);
    put_le32(length, (uint32_t)size);
    bytes_add(bytes, length, sizeof(length));
    bytes_add(bytes, packed, size);
}

/* As criu 4.2 writes it: the count where 4.1 does not look. */
static struct bytes wide_pagemap(uint32_t pages_id, uint64_t vaddr, uint64_t pages)
{
    struct bytes bytes = {0};
    uint8_t magic[8];
    put_le32(magic, 0x54564319);
    put_le32(magic + 4, 0x56084025);
    bytes_add(&bytes, magic, sizeof(magic));
    Godwit__Pb__CriuPagemapHead head = GODWIT__PB__CRIU_PAGEMAP_HEAD__INIT;
    head.pages_id = pages_id;
    add_prefixed(&bytes, &head.base);
    Godwit__Pb__CriuPagemapEntry entry = GODWIT__PB__CRIU_PAGEMAP_ENTRY__INIT;
    entry.vaddr = vaddr;
    entry.has_flags = entry.has_nr_pages = true;
    entry.flags = PAGEMAP_PRESENT | PAGEMAP_LAZY;
    entry.nr_pages = pages;
    add_prefixed(&bytes, &entry.base);
    return bytes;
}

/* A pagemap that only criu 4.2 can read is stored as one that 4.1 reads too. */
static void pagemaps_of_another_release(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    uint8_t pages[2 * PAGE_BYTES] = {0}, stored[256];
    struct bytes wide = wide_pagemap(5, 0x1000, 2);
    write_image(rig, "pages-5.img", pages, sizeof(pages));
    write_image(rig, "pagemap-1.img", wide.at, wide.length);
    bytes_free(&wide);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    int fd = openat(store_first(rig->store)->imagefd, "pagemap-1.img", O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, stored, sizeof(stored));
    close(fd);
    assert_true(length > 0);
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t pages_id;
    assert_int_equal(pagemap_read_begin(&reader, stored, (size_t)length, &pages_id, &err), 0);
    assert_int_equal(pages_id, 5);
    assert_int_equal(pagemap_read_next(&reader, &run, &err), 1);
    assert_true(run.vaddr == 0x1000 && run.pages == 2);
    assert_int_equal(run.flags, PAGEMAP_PRESENT | PAGEMAP_LAZY);
    assert_int_equal(pagemap_read_next(&reader, &run, &err), 0);
    assert_false(reader.wide);
    rig_free(rig);
}

/* ---- a source that breaks the protocol loses its link ---- */

static struct error cache_refusal(const struct bytes *said)
{
    struct rig *rig = calloc(1, sizeof(*rig));
    struct error err;
    int fds[2];
    assert_non_null(rig);
    rig->path = directory_make();
    rig->relay[0] = rig->relay[1] = -EBADF;
    rig->store = store_open(rig->path, MIB(1), &err);
    assert_true(sd_event_new(&rig->event) >= 0);
    socket_pair(fds);
    rig->cache = link_new(rig->event, fds[1], SILENCE_USEC, &cache_ops, rig);
    struct bytes all = {0};
    bytes_add_greeting(&all);
    bytes_add(&all, said->at, said->length);
    assert_int_equal(send(fds[0], all.at, all.length, 0), all.length);
    settle(rig->event);
    assert_int_equal(rig->cache_down, 1);
    assert_null(store_first(rig->store));
    assert_true(store_budget(rig->store)->used == 0);
    err = rig->cache_reason;
    bytes_free(&all);
    close(fds[0]);
    rig_free(rig);
    return err;
}

static void begin_by_hand(struct bytes *bytes)
{
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = (char *)"test";
    bytes_add_message(bytes, FRAME_SNAPSHOT_BEGIN, 1, 0, &begin.base);
}

static void add_item(struct bytes *bytes, uint32_t item, bool is_space, const char *name)
{
    Godwit__Pb__ImageBegin image = GODWIT__PB__IMAGE_BEGIN__INIT;
    Godwit__Pb__SpaceBegin space = GODWIT__PB__SPACE_BEGIN__INIT;
    image.name = (char *)name;
    space.kind = GODWIT__PB__SPACE_BEGIN__KIND__TASK;
    space.id = 7;
    bytes_add_message(bytes, is_space ? FRAME_SPACE_BEGIN : FRAME_IMAGE_BEGIN, 1, item,
                      is_space ? &space.base : &image.base);
}

static void broken_protocol(void **state)
{
    (void)state;
    static const uint8_t page[2 * PAGE_BYTES];
    static const struct {
        bool space;
        struct frame frame; /* behind item 1 */
        const char *complaint;
    } frames[] = {
        {false, {FRAME_IMAGE_DATA, 0, 4, 1, 2, 0}, "no such item"},
        {false, {FRAME_IMAGE_DATA, 0, 4, 1, 0, 0}, "no such item"},
        {false, {FRAME_IMAGE_DATA, 0, 4, 1, UINT32_MAX, 0}, "no such item"},
        {false, {FRAME_IMAGE_DATA, 0, 4, 1, 1, 1}, "from its beginning"},
        {false, {FRAME_IMAGE_DATA, 0, 4, 1, 1, UINT64_MAX}, "from its beginning"},
        {false, {FRAME_PAGES, 0, 4096, 1, 1, 0}, "no such item"},
        {true, {FRAME_IMAGE_DATA, 0, 4096, 1, 1, 0}, "no such item"},
        {true, {FRAME_PAGES, 0, 4095, 1, 1, 0}, "not whole pages"},
        {true, {FRAME_PAGES, 0, 4096, 1, 1, 1}, "not whole pages"},
        {true, {FRAME_PAGES, 4, 4096, 1, 1, 0}, "not whole pages"},
        {false, {FRAME_PAGE_RUNS, RUNS_ZERO, 16, 1, 1, 0}, "no such item"},
        {true, {FRAME_PAGE_RUNS, RUNS_ZERO, 15, 1, 1, 0}, "not runs of pages"},
        {true, {FRAME_PAGE_RUNS, RUNS_ZERO, 16, 1, 1, 4096}, "no such item"},
        {true, {FRAME_PAGE_RUNS, 0, 16, 1, 1, 0}, "not runs of pages"},
        {true, {FRAME_PAGE_RUNS, RUNS_ZERO | RUNS_EXIST, 16, 1, 1, 0}, "not runs of pages"},
        {true, {FRAME_PAGE_RUNS, 8, 16, 1, 1, 0}, "not runs of pages"},
        {true, {FRAME_PAGE_RUNS, RUNS_COPY, 16, 1, 1, 0}, "no such item"},
        {true, {FRAME_PAGE_RUNS, RUNS_COPY, 16, 1, 1, 1}, "no such item"},
        {true, {FRAME_PAGE_RUNS, RUNS_COPY, 16, 1, 1, 2}, "no such item"},
        {true, {FRAME_PAGE_RUNS, RUNS_COPY, 16, 1, 1, UINT64_MAX}, "no such item"},
        {true, {FRAME_PAGE_RUNS, RUNS_ZERO, 16, 1, 1, 0}, "no task has such an address"},
        {true, {FRAME_PAGE_RUNS, RUNS_EXIST, 4096, 1, 1, 0}, "no task has such an address"},
        {true, {FRAME_PAGES, 0, 4096, 1, 1, 1ull << 57}, "no task has such an address"},
        {true, {FRAME_PAGES, 0, 8192, 1, 1, (1ull << 57) - 4096}, "no task has such an address"},
        {true, {FRAME_PAGES, 0, 8192, 1, 1, UINT64_MAX - 4095}, "no task has such an address"},
        {false, {FRAME_SNAPSHOT_END, 0, 0, 1, 0, 0}, "does not sum up"},
        {false, {FRAME_IMAGE_BEGIN, 0, 0, 1, 3, 0}, "not a name"},
        {false, {FRAME_IMAGE_END, 0, 0, 1, 1, 0}, "16 bytes"},
        {false, {FRAME_SPACE_BEGIN, 0, 0, 1, 2, 0}, "no known kind"},
        {false, {FRAME_SNAPSHOT_ACK, 0, 0, 1, 0, 0}, "to an image-cache"},
        {false, {9999, 0, 0, 1, 0, 0}, "a frame of type 9999"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(frames); i++) {
        struct bytes bytes = {0};
        begin_by_hand(&bytes);
        add_item(&bytes, 1, frames[i].space, "core-1.img");
        bytes_add_frame(&bytes, &frames[i].frame, page);
        struct error err = cache_refusal(&bytes);
        assert_contains(err.text, frames[i].complaint);
        assert_int_equal(err.code, FAILURE_PEER);
        bytes_free(&bytes);
    }
    static const struct {
        uint32_t item;
        const char *name, *complaint;
    } begins[] = {
        {2, "a", "go up by one"},     {0, "a", "go up by one"}, {1, "..", "not a name"},
        {1, "../../a", "not a name"}, {1, "", "not a name"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(begins); i++) {
        struct bytes bytes = {0};
        begin_by_hand(&bytes);
        add_item(&bytes, begins[i].item, false, begins[i].name);
        assert_contains(cache_refusal(&bytes).text, begins[i].complaint);
        bytes_free(&bytes);
    }
}

/* ---- what is based on another ---- */

static void chain_by_hand(struct bytes *bytes, const char *image)
{
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = (char *)"test";
    begin.pre_dump = true;
    bytes_add_message(bytes, FRAME_SNAPSHOT_BEGIN, 1, 0, &begin.base);
    add_item(bytes, 1, false, image);
}

static void based_by_hand(struct bytes *bytes)
{
    Godwit__Pb__SpaceBegin space = GODWIT__PB__SPACE_BEGIN__INIT;
    space.kind = GODWIT__PB__SPACE_BEGIN__KIND__TASK;
    space.based = true;
    begin_by_hand(bytes);
    bytes_add_message(bytes, FRAME_SPACE_BEGIN, 1, 1, &space.base);
}

static void based_on_nothing(void **state)
{
    (void)state;
    struct bytes bytes = {0};
    based_by_hand(&bytes);
    assert_contains(cache_refusal(&bytes).text, "based on nothing");
    bytes_free(&bytes);
    chain_by_hand(&bytes, "pages-1.img");
    assert_contains(cache_refusal(&bytes).text, "shares memory");
    bytes_free(&bytes);
}

/* Told at once, before anything of the snapshot has been sent. */
static void parents_that_are_not_there(void **state)
{
    (void)state;
    struct rig *rig = rig_new(MIB(16), false, 0);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    rig_begin(rig, 1, "plain");
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    static const char *const parents[] = {"nobody", "plain", "child"};
    for (uint32_t i = 0; i < ARRAY_SIZE(parents); i++) {
        sender_free(rig->sender);
        begin.id = (char *)"child";
        begin.parent = (char *)parents[i];
        rig->sender = sender_new(rig->event, rig->proxy, i + 2, &begin, &sender_ops, rig);
        run_until(rig->event, rig_failed, rig, 3000);
        assert_int_equal(sender_error(rig->sender)->code, FAILURE_NOT_FOUND);
        assert_contains(sender_error(rig->sender)->text, parents[i]);
        settle(rig->event);
    }
    assert_null(store_find(rig->store, "child"));
    rig_free(rig);
}

/* ---- the link breaks at every byte ---- */

static struct bytes capture_conversation(void)
{
    struct rig *rig = rig_new(MIB(16), true, 0);
    struct bytes captured = {0};
    rig->captured = &captured;
    rig_begin(rig, 1, "test");
    int fds[2];
    socket_pair(fds);
    assert_int_equal(sender_open_page_door(rig->sender, fds[0], NULL, NULL), 0);
    struct criu criu = {.fd = fds[1], .form = 32};
    criu_request(&criu, PAGE_SERVER_OPEN, 0, 0, 0, TASK_7);
    criu_pages(&criu, TASK_7, 0x1000, 1, PAGEMAP_PRESENT, 0);
    criu_request(&criu, PAGE_SERVER_CLOSE, 0, 0, 0, 0);
    write_image(rig, "core-7.img", "core", 4);
    write_image(rig, "empty.img", "", 0);
    sender_finish(rig->sender);
    run_until(rig->event, rig_acked, rig, 3000);
    close(fds[1]);
    rig_free(rig);
    return captured;
}

/* Where the payload of the pages frame is. */
static size_t find_pages(const struct bytes *bytes)
{
    for (size_t at = WIRE_PREAMBLE_BYTES; at + WIRE_HEADER_BYTES <= bytes->length;) {
        struct frame frame;
        struct error err;
        assert_int_equal(frame_decode(bytes->at + at, &frame, &err), 0);
        at += WIRE_HEADER_BYTES;
        if (frame.type == FRAME_PAGES)
            return at;
        at += frame.length;
    }
    fail_msg("no pages in the conversation");
    return 0;
}

static void link_breaks_at_every_byte(void **state)
{
    (void)state;
    struct bytes whole = capture_conversation();
    assert_true(whole.length > 4096 && whole.length < 8000);
    char *path = directory_make();
    size_t pages = find_pages(&whole);
    unsigned held = 0, dropped = 0;
    for (size_t cut = 0; cut <= whole.length; cut++) {
        if (cut > pages + 2 && cut < pages + PAGE_BYTES - 2 && cut % 397)
            continue; /* inside the page: nothing new */
        struct rig rig = {.path = path, .relay = {-EBADF, -EBADF}};
        struct error err;
        int fds[2];
        rig.store = store_open(path, MIB(16), &err);
        assert_true(sd_event_new(&rig.event) >= 0);
        socket_pair(fds);
        rig.cache = link_new(rig.event, fds[1], SILENCE_USEC, &cache_ops, &rig);
        if (cut > 0)
            assert_int_equal(send(fds[0], whole.at, cut, 0), cut);
        close(fds[0]);
        for (int i = 0; i < 100 && !rig.cache_down; i++)
            sd_event_run(rig.event, 100);
        assert_int_equal(rig.cache_down, 1);
        assert_true(rig.held + rig.dropped <= 1);
        assert_int_equal(rig.held, cut == whole.length);
        assert_int_equal(store_first(rig.store) != NULL, rig.held);
        held += rig.held;
        dropped += rig.dropped;
        if (rig.held)
            snapshot_remove(store_first(rig.store));
        assert_true(store_budget(rig.store)->used == 0);
        link_free(rig.cache);
        sd_event_unref(rig.event);
        store_close(rig.store);
    }
    assert_int_equal(held, 1);
    assert_true(dropped > 200);
    directory_remove(path);
    bytes_free(&whole);
}

static void link_breaks_at_the_source(void **state)
{
    (void)state;
    struct rig *rig = rig_new_begun(MIB(16));
    int fd = open_image(rig, "core-1.img");
    assert_int_equal(write_all(fd, "core", 4), 0);
    settle(rig->event);
    rig_free_receivers(rig);
    rig->cache = link_free(rig->cache);
    run_until(rig->event, rig_failed, rig, 3000);
    assert_int_equal(sender_error(rig->sender)->code, FAILURE_PEER);
    assert_int_equal(write_all(fd, "more", 4), -EPIPE);
    close(fd);
    rig_free(rig);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images_through_pipes),
        cmocka_unit_test(names_that_are_none),
        cmocka_unit_test(an_empty_snapshot),
        cmocka_unit_test(a_silent_pipe),
        cmocka_unit_test(an_unread_pipe),
        cmocka_unit_test(two_thousand_pipes),
        cmocka_unit_test(images_of_a_directory),
        cmocka_unit_test(an_image_above_four_gib),
        cmocka_unit_test(pages_of_criu),
        cmocka_unit_test(pages_one_byte_at_a_time),
        cmocka_unit_test(criu_that_breaks_off),
        cmocka_unit_test(criu_gone_mad),
        cmocka_unit_test(over_budget),
        cmocka_unit_test(pages_over_budget),
        cmocka_unit_test(damage_on_the_way),
        cmocka_unit_test(ids_that_cannot_be),
        cmocka_unit_test(images_of_one_name),
        cmocka_unit_test(plain_pages),
        cmocka_unit_test(pagemaps_of_another_release),
        cmocka_unit_test(broken_protocol),
        cmocka_unit_test(based_on_nothing),
        cmocka_unit_test(parents_that_are_not_there),
        cmocka_unit_test(link_breaks_at_every_byte),
        cmocka_unit_test(link_breaks_at_the_source),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
