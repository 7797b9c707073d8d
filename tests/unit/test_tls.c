/* SPDX-License-Identifier: Apache-2.0 */
/* TLS under a link, and the credentials for it. */
#include "testing.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/io.h"
#include "wire/keygen.h"
#include "wire/link.h"
#include "wire/tls.h"

enum {
    BULK_BYTES = 300000, /* of one data frame: several records */
};

#define SILENCE_USEC (60 * USEC_PER_SEC)
#define PATIENCE_USEC (10 * USEC_PER_SEC)

/* ---- credentials, made once ---- */

static struct {
    char *dir;
    struct credentials *ours, *theirs, *foreign, *psk, *other_psk;
} made;

static const char *in_dir(const char *name)
{
    static char path[16][256];
    static unsigned next;
    char *at = path[next++ % ARRAY_SIZE(path)];
    snprintf(at, sizeof(path[0]), "%s/%s", made.dir, name);
    return at;
}

static struct credentials *load_host(const char *ca, const char *host)
{
    char cert[300], key[300];
    snprintf(cert, sizeof(cert), "%s/cert.pem", in_dir(host));
    snprintf(key, sizeof(key), "%s/key.pem", in_dir(host));
    struct credential_files files = {.cacert = in_dir(ca), .cert = cert, .key = key};
    struct credentials *credentials = NULL;
    struct error err = {0};
    if (credentials_load(&files, &credentials, &err) < 0)
        fail_msg("%s", err.text);
    return credentials;
}

static struct credentials *load_psk(const char *name)
{
    struct credential_files files = {.psk = in_dir(name)};
    struct credentials *credentials = NULL;
    struct error err = {0};
    assert_int_equal(keygen_psk(files.psk, &err), 0);
    assert_int_equal(credentials_load(&files, &credentials, &err), 0);
    return credentials;
}

static int make_credentials(void **state)
{
    (void)state;
    made.dir = directory_make();
    struct error err = {0};
    char *hosts[] = {(char *)"client", (char *)"server,10.0.0.2,fd00::2", NULL};
    char *others[] = {(char *)"stranger", NULL};
    if (keygen_hosts(in_dir("ca"), hosts, &err) < 0 ||
        keygen_hosts(in_dir("ca2"), others, &err) < 0)
        return -1;
    made.ours = load_host("ca/cacert.pem", "ca/client");
    made.theirs = load_host("ca/cacert.pem", "ca/server");
    made.foreign = load_host("ca/cacert.pem", "ca2/stranger");
    made.psk = load_psk("psk");
    made.other_psk = load_psk("psk2");
    return 0;
}

static int drop_credentials(void **state)
{
    (void)state;
    credentials_free(made.ours);
    credentials_free(made.theirs);
    credentials_free(made.foreign);
    credentials_free(made.psk);
    credentials_free(made.other_psk);
    directory_remove(made.dir);
    return 0;
}

/* ---- two links, and somebody between them ---- */

struct side {
    struct link *link;
    struct link_source source;
    unsigned ups, downs, frames;
    bool has_data;
    struct error err;
    uint64_t bulk;
    uint8_t *out, in[BULK_BYTES];
};

/* Passes bytes on, in pieces, and does harm at one place of one direction. */
struct way {
    int from, to;
    size_t piece;
    uint64_t passed;
    uint64_t flip_at, cut_at, stall_at; /* UINT64_MAX: never */
};

struct rig {
    sd_event *event;
    struct side *client, *server;
    struct way up, down;
};

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)hello;
    struct side *side = user;
    side->ups++;
    assert_true(strncmp(link_transport(link)->kind, "TLS 1.3", 7) == 0);
    assert_false(link_transport(link)->exposed);
    if (side->has_data)
        link_source_ready(link, &side->source);
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    (void)frame;
    (void)payload;
    (void)err;
    ((struct side *)user)->frames++;
    return 0;
}

static int on_place(struct link *link, const struct frame *frame, uint32_t done, void **ret_place,
                    size_t *ret_length, void *user, struct error *err)
{
    (void)link;
    (void)err;
    struct side *side = user;
    *ret_place = side->in + done;
    *ret_length = frame->length - done;
    return 0;
}

static int on_landed(struct link *link, const struct frame *frame, uint32_t done, const void *place,
                     size_t length, void *user, struct error *err)
{
    (void)link;
    (void)frame;
    (void)done;
    (void)place;
    (void)err;
    ((struct side *)user)->bulk += length;
    return 0;
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct side *side = user;
    side->downs++;
    side->err = *err;
    side->link = link_free(side->link);
}

static const struct link_ops ops = {.peer = SENT_BY_SOURCE | SENT_BY_CACHE,
                                    .up = on_up,
                                    .control = on_control,
                                    .bulk_place = on_place,
                                    .bulk_landed = on_landed,
                                    .down = on_down};

/* One large frame and a small one. */
static bool fill(struct link_source *source, struct link_batch *batch)
{
    struct side *side = (struct side *)((char *)source - offsetof(struct side, source));
    struct frame frame = {.type = FRAME_IMAGE_DATA, .session = 1, .item = 1, .length = BULK_BYTES};
    assert_true(link_batch_add(batch, &frame, side->out));
    frame.length = 3;
    assert_true(link_batch_add(batch, &frame, side->out));
    link_send(side->link, FRAME_CHECK, 1, 1, NULL);
    return false;
}

static struct side *side_new(sd_event *event, int fd, const struct credentials *credentials,
                             const char *peer, uint64_t silence_usec)
{
    struct side *side = calloc(1, sizeof(*side));
    assert_non_null(side);
    side->out = malloc(BULK_BYTES);
    assert_non_null(side->out);
    for (size_t i = 0; i < BULK_BYTES; i++)
        side->out[i] = (uint8_t)(i * 7 + (i >> 8));
    side->source.fill = fill;
    side->has_data = peer;
    assert_int_equal(set_nonblocking(fd, true), 0);
    struct transport *transport =
        credentials ? transport_tls(fd, credentials, peer) : transport_plain(fd);
    side->link = link_new_on(event, transport, silence_usec, &ops, side);
    assert_non_null(side->link);
    return side;
}

static void side_free(struct side *side)
{
    link_source_remove(&side->source);
    link_free(side->link);
    free(side->out);
    free(side);
}

static void way_end(struct way *way)
{
    shutdown(way->to, SHUT_WR);
    way->from = -EBADF;
}

static void way_move(struct way *way)
{
    uint8_t buf[32768];
    size_t piece = MIN(way->piece, sizeof(buf));
    if (way->from < 0 || way->passed >= way->stall_at)
        return;
    if (way->passed < way->cut_at)
        piece = MIN(piece, way->cut_at - way->passed);
    if (piece == 0 || way->passed >= way->cut_at) {
        way_end(way);
        return;
    }
    ssize_t n = recv(way->from, buf, piece, MSG_DONTWAIT);
    if (n == 0)
        way_end(way);
    if (n <= 0)
        return;
    if (way->flip_at >= way->passed && way->flip_at < way->passed + (uint64_t)n)
        buf[way->flip_at - way->passed] ^= 1;
    way->passed += (uint64_t)n;
    for (ssize_t done = 0; done < n;) {
        ssize_t m = send(way->to, buf + done, (size_t)(n - done), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (m < 0 && errno != EAGAIN)
            return; /* nobody is there any more */
        done += m > 0 ? m : 0;
        if (m < 0)
            usleep(100);
    }
}

static struct rig rig_new_silence(const struct credentials *client, const char *name,
                                  const struct credentials *server, uint64_t client_silence_usec,
                                  uint64_t silence_usec)
{
    struct rig rig = {0};
    int left[2], right[2];
    socket_pair(left);
    socket_pair(right);
    assert_int_equal(sd_event_new(&rig.event), 0);
    rig.up = (struct way){.from = left[1],
                          .to = right[1],
                          .piece = 32768,
                          .flip_at = UINT64_MAX,
                          .cut_at = UINT64_MAX,
                          .stall_at = UINT64_MAX};
    rig.down = rig.up;
    rig.down.from = right[1];
    rig.down.to = left[1];
    rig.client = side_new(rig.event, left[0], client, name, client_silence_usec);
    rig.server = side_new(rig.event, right[0], server, NULL, silence_usec);
    return rig;
}

static struct rig rig_new(const struct credentials *client, const char *name,
                          const struct credentials *server)
{
    return rig_new_silence(client, name, server, SILENCE_USEC, SILENCE_USEC);
}

static void rig_free(struct rig *rig)
{
    int left = rig->down.to, right = rig->up.to;
    side_free(rig->client);
    side_free(rig->server);
    close_fd(left);
    close_fd(right);
    sd_event_unref(rig->event);
}

static void rig_run(struct rig *rig, bool (*done)(const struct rig *rig))
{
    uint64_t end = now_usec() + PATIENCE_USEC;
    while (!done(rig) && now_usec() < end) {
        way_move(&rig->up);
        way_move(&rig->down);
        sd_event_run(rig->event, 0);
    }
    assert_true(done(rig));
}

static bool both_up(const struct rig *rig)
{
    return rig->client->ups && rig->server->ups;
}

static bool all_is_there(const struct rig *rig)
{
    return rig->server->bulk == BULK_BYTES + 3 && rig->server->frames == 1;
}

static bool both_down(const struct rig *rig)
{
    return rig->client->downs && rig->server->downs;
}

static bool server_down(const struct rig *rig)
{
    return rig->server->downs;
}

static bool one_down(const struct rig *rig)
{
    return rig->client->downs || rig->server->downs;
}

static bool down_or_there(const struct rig *rig)
{
    return one_down(rig) || all_is_there(rig);
}

/* ---- what works ---- */

static void carries(const struct credentials *client, const struct credentials *server,
                    const char *name, size_t piece)
{
    struct rig rig = rig_new(client, name, server);
    rig.up.piece = rig.down.piece = piece;
    rig_run(&rig, all_is_there);
    assert_memory_equal(rig.server->in + 3, rig.client->out + 3, BULK_BYTES - 3);
    assert_int_equal(rig.client->ups + rig.server->ups, 2);
    assert_int_equal(rig.client->downs + rig.server->downs, 0);
    /* What was queued is what has arrived, and more has gone over the wire. */
    assert_int_equal(link_position(rig.client->link), link_bytes_received(rig.server->link));
    assert_int_equal(link_delivered(rig.client->link), link_position(rig.client->link));
    assert_true(rig.up.passed > link_bytes_sent(rig.client->link));
    struct error nothing = {0};
    link_goodbye(rig.client->link, &nothing);
    rig_run(&rig, both_down);
    assert_int_equal(rig.server->err.code, FAILURE_NONE);
    rig_free(&rig);
}

static void by_certificates(void **state)
{
    (void)state;
    carries(made.ours, made.theirs, "server", 32768);
    carries(made.ours, made.theirs, "10.0.0.2", 4096);
    carries(made.ours, made.theirs, "fd00::2", 1000);
}

static void by_psk(void **state)
{
    (void)state;
    carries(made.psk, made.psk, "whatever", 32768);
}

static void one_byte_at_a_time(void **state)
{
    (void)state;
    struct rig rig = rig_new(made.ours, "server", made.theirs);
    rig.client->has_data = false;
    rig.up.piece = rig.down.piece = 1;
    rig_run(&rig, both_up);
    rig_free(&rig);
    carries(made.psk, made.psk, "whatever", 7);
}

/* ---- who is refused ---- */

static void refused(const struct credentials *client, const char *name,
                    const struct credentials *server, const char *client_says,
                    const char *server_says)
{
    struct rig rig = rig_new(client, name, server);
    rig_run(&rig, both_down);
    assert_contains(rig.client->err.text, client_says);
    assert_contains(rig.server->err.text, server_says);
    assert_int_equal(rig.client->err.code, FAILURE_PEER);
    assert_int_equal(rig.server->ups + rig.client->ups, 0);
    assert_int_equal(rig.server->bulk + rig.server->frames, 0);
    rig_free(&rig);
}

static void others_are_refused(void **state)
{
    (void)state;
    refused(made.ours, "elsewhere", made.theirs, "for another name", "another name");
    refused(made.ours, "10.0.0.3", made.theirs, "for another name", "another name");
    refused(made.foreign, "server", made.theirs, "another authority", "another authority");
    refused(made.ours, "stranger", made.foreign, "another authority", "another authority");
    refused(made.psk, "server", made.other_psk, "another pre-shared key", "another pre-shared key");
    refused(made.psk, "server", made.theirs, "same kind", "same kind");
    refused(made.ours, "server", made.psk, "same kind", "same kind");
    refused(NULL, "server", made.theirs, "the peer speaks TLS", "the peer speaks plain text");
    refused(made.ours, "server", NULL, "the peer speaks plain text", "the peer speaks TLS");
}

/* ---- what comes to harm on the way ---- */

/* Where bytes of the link begin, behind the handshake. */
static void handshake_bytes(uint64_t *up, uint64_t *down)
{
    struct rig rig = rig_new(made.ours, "server", made.theirs);
    rig.client->has_data = false;
    rig_run(&rig, both_up);
    *up = rig.up.passed;
    *down = rig.down.passed;
    rig_free(&rig);
}

static void cut_anywhere(void **state)
{
    (void)state;
    uint64_t up, down;
    handshake_bytes(&up, &down);
    for (uint64_t cut = 0; cut < up + 40000; cut += cut < up ? 29 : 3001) {
        struct rig rig = rig_new(made.ours, "server", made.theirs);
        rig.up.cut_at = cut;
        rig_run(&rig, server_down);
        assert_int_equal(rig.server->err.code, FAILURE_PEER);
        assert_true(rig.server->bulk < BULK_BYTES);
        assert_true(strstr(rig.server->err.text, "cut") || strstr(rig.server->err.text, "closed") ||
                    strstr(rig.server->err.text, "TLS"));
        rig_free(&rig);
    }
}

static void flipped_anywhere(void **state)
{
    (void)state;
    uint64_t up, down;
    handshake_bytes(&up, &down);
    for (uint64_t at = 0; at < up + 60000; at += at < up ? 31 : 4999) {
        struct rig rig = rig_new_silence(made.ours, "server", made.theirs, 200 * USEC_PER_MSEC,
                                         200 * USEC_PER_MSEC);
        rig.up.flip_at = at;
        rig_run(&rig, down_or_there);
        /* The version in the head of a record that is not encrypted is nobody's. */
        assert_true(at < up || !all_is_there(&rig));
        if (!all_is_there(&rig))
            rig_run(&rig, both_down);
        /* Of what was changed nothing has been handed on. */
        for (uint64_t i = 0; i < MIN(rig.server->bulk, BULK_BYTES); i++)
            assert_int_equal(rig.server->in[i], rig.client->out[i]);
        if (at > up + 20000)
            assert_true(strstr(rig.server->err.text, "integrity") ||
                        strstr(rig.server->err.text, "TLS"));
        rig_free(&rig);
    }
}

static void payload_flipped(void **state)
{
    (void)state;
    uint64_t up, down;
    handshake_bytes(&up, &down);
    struct rig rig = rig_new(made.ours, "server", made.theirs);
    rig.up.flip_at = up + 50000;
    rig_run(&rig, both_down);
    assert_contains(rig.server->err.text, "integrity error");
    assert_contains(rig.client->err.text, "changed on the way");
    rig_free(&rig);
}

static void stalled_handshake(void **state)
{
    (void)state;
    uint64_t soon = 100 * USEC_PER_MSEC, began = now_usec();
    struct rig rig = rig_new_silence(made.ours, "server", made.theirs, SILENCE_USEC, soon);
    rig.up.stall_at = 20;
    rig_run(&rig, both_down);
    assert_contains(rig.server->err.text, "did not finish the handshake");
    rig_free(&rig);
    rig = rig_new_silence(made.ours, "server", made.theirs, soon, SILENCE_USEC);
    rig.down.stall_at = 20;
    rig_run(&rig, both_down);
    assert_contains(rig.client->err.text, "did not finish the handshake");
    rig_free(&rig);
    assert_true(now_usec() - began < 4 * USEC_PER_SEC);
}

/* A record takes longer than the peer may be silent: its bytes are signs of life all the same. */
static void slow_record_is_no_silence(void **state)
{
    (void)state;
    struct rig rig =
        rig_new_silence(made.ours, "server", made.theirs, SILENCE_USEC, 300 * USEC_PER_MSEC);
    rig_run(&rig, both_up);
    rig.up.piece = 1000;
    uint64_t began = now_usec();
    while (now_usec() - began < USEC_PER_SEC) {
        way_move(&rig.up);
        for (unsigned i = 0; i < 5; i++) {
            way_move(&rig.down);
            sd_event_run(rig.event, 10000);
        }
    }
    assert_int_equal(rig.client->downs + rig.server->downs, 0);
    assert_true(rig.server->bulk < 2 * 16384);
    rig_free(&rig);
}

/* Says bytes to a server; what it says of them. */
static struct error told(const void *bytes, size_t length, bool end)
{
    sd_event *event;
    int fds[2];
    socket_pair(fds);
    assert_int_equal(sd_event_new(&event), 0);
    struct side *side = side_new(event, fds[0], made.theirs, NULL, 100 * USEC_PER_MSEC);
    size_t sent = 0;
    for (unsigned i = 0; i < 1000 && !side->downs; i++) {
        ssize_t n =
            send(fds[1], (const char *)bytes + sent, length - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        sent += n > 0 ? (size_t)n : 0;
        if (sent == length && end)
            shutdown(fds[1], SHUT_WR);
        sd_event_run(event, 1000);
    }
    assert_int_equal(side->downs, 1);
    struct error err = side->err;
    side_free(side);
    close_fd(fds[1]);
    sd_event_unref(event);
    return err;
}

static void garbage(void **state)
{
    (void)state;
    uint8_t bytes[5000];
    uint64_t seed = test_seed();
    for (unsigned i = 0; i < 300; i++) {
        size_t length = 1 + test_random(&seed) % sizeof(bytes);
        for (size_t k = 0; k < length; k++)
            bytes[k] = (uint8_t)test_random(&seed);
        if (i % 2) { /* the head of a record, and a length that may be more than it may be */
            bytes[0] = (uint8_t)(20 + test_random(&seed) % 5);
            bytes[1] = bytes[2] = 3;
        }
        struct error err = told(bytes, length, true);
        assert_int_equal(err.code, FAILURE_PEER);
        assert_true(err.text[0]);
    }
    /* A record of 64 KiB, and the first MiB of a handshake message of 16. */
    static const uint8_t long_record[] = {22, 3, 3, 0xff, 0xff, 1, 0, 0, 0};
    struct error err = told(long_record, sizeof(long_record), false);
    assert_contains(err.text, "TLS");
    enum { RECORDS = 64, RECORD = 16384 + 5 };
    uint8_t *long_message = calloc(RECORDS, RECORD);
    assert_non_null(long_message);
    for (unsigned i = 0; i < RECORDS; i++)
        memcpy(long_message + i * RECORD, (uint8_t[]){22, 3, 3, 0x40, 0}, 5);
    memcpy(long_message + 5, (uint8_t[]){1, 0xff, 0xff, 0xff}, 4);
    err = told(long_message, (size_t)RECORDS * RECORD, false);
    assert_contains(err.text, "handshake"); /* GnuTLS waits for more, and keeps nothing of it */
    free(long_message);
}

/* The end of the stream without the word that says so may be anybody's. */
static void end_without_notice(void **state)
{
    (void)state;
    struct rig rig = rig_new(made.ours, "server", made.theirs);
    rig_run(&rig, all_is_there);
    shutdown(rig.up.to, SHUT_WR);
    rig.up.from = -EBADF;
    rig_run(&rig, server_down);
    assert_string_equal(rig.server->err.text, "TLS: the connection was cut");
    assert_int_equal(rig.server->err.code, FAILURE_PEER);
    rig_free(&rig);
}

/* ---- a client by hand ---- */

struct hand {
    sd_event *event;
    struct side *server;
    gnutls_session_t session;
    gnutls_priority_t priority;
    int fd;
};

/* Asks GnuTLS for something until it has been done, and lets the server answer meanwhile. */
#define HAND_DO(hand, call)                                                                        \
    do {                                                                                           \
        ssize_t _r;                                                                                \
        while ((_r = (call)) == GNUTLS_E_AGAIN && !(hand)->server->downs)                          \
            sd_event_run((hand)->event, 1000);                                                     \
        if (_r < 0 && !(hand)->server->downs)                                                      \
            fail_msg(#call ": %s", gnutls_strerror((int)_r));                                      \
    } while (0)

static bool hand_up(void *user)
{
    return ((struct hand *)user)->server->ups;
}

static bool hand_down(void *user)
{
    return ((struct hand *)user)->server->downs;
}

static struct hand hand_new(void)
{
    struct hand hand = {0};
    int fds[2];
    socket_pair(fds);
    assert_int_equal(sd_event_new(&hand.event), 0);
    hand.server = side_new(hand.event, fds[0], made.psk, NULL, SILENCE_USEC);
    hand.fd = fds[1];
    assert_int_equal(set_nonblocking(hand.fd, true), 0);
    assert_int_equal(gnutls_init(&hand.session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL),
                     0);
    assert_int_equal(gnutls_priority_init(&hand.priority,
                                          "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK", NULL),
                     0);
    gnutls_priority_set(hand.session, hand.priority);
    gnutls_credentials_set(hand.session, GNUTLS_CRD_PSK, made.psk->psk_client);
    gnutls_transport_set_int(hand.session, hand.fd);
    HAND_DO(&hand, gnutls_handshake(hand.session));
    struct bytes greeting = {0};
    bytes_add_greeting(&greeting);
    HAND_DO(&hand, gnutls_record_send(hand.session, greeting.at, greeting.length));
    bytes_free(&greeting);
    run_until(hand.event, hand_up, &hand, 5000);
    return hand;
}

static void hand_free(struct hand *hand)
{
    side_free(hand->server);
    gnutls_deinit(hand->session);
    gnutls_priority_deinit(hand->priority);
    close_fd(hand->fd);
    sd_event_unref(hand->event);
}

static bool hand_heard(void *user)
{
    return ((struct hand *)user)->server->frames >= 2;
}

/* Keys are renewed in the midst of a connection, and not without end. */
static void renewed_keys(void **state)
{
    (void)state;
    struct hand hand = hand_new();
    struct bytes frame = {0};
    bytes_add_message(&frame, FRAME_CHECK, 1, 1, NULL);
    for (unsigned i = 0; i < 2; i++) {
        HAND_DO(&hand, gnutls_record_send(hand.session, frame.at, frame.length));
        HAND_DO(&hand, gnutls_session_key_update(hand.session, GNUTLS_KU_PEER));
    }
    run_until(hand.event, hand_heard, &hand, 5000);
    assert_int_equal(hand.server->downs, 0);
    for (unsigned i = 0; i < 1000 && !hand.server->downs; i++) {
        gnutls_session_key_update(hand.session, 0); /* until nobody is there to take it */
        sd_event_run(hand.event, 0);
    }
    run_until(hand.event, hand_down, &hand, 5000);
    assert_contains(hand.server->err.text, "TLS");
    bytes_free(&frame);
    hand_free(&hand);
}

/* Heads of records that no record has, and one that begins another handshake, behind a good one. */
static void records_that_are_none(void **state)
{
    (void)state;
    static const uint8_t heads[][9] = {
        {23, 3, 3, 0xff, 0xff, 1, 2, 3, 4}, {23, 3, 3, 0x41, 0x20, 1, 2, 3, 4},
        {22, 3, 3, 0, 4, 1, 0, 0, 0},       {23, 3, 3, 0, 4, 1, 2, 3, 4},
        {99, 3, 3, 0, 4, 1, 2, 3, 4},       {21, 3, 3, 0, 2, 2, 10, 0, 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(heads); i++) {
        struct hand hand = hand_new();
        assert_int_equal(send(hand.fd, heads[i], sizeof(heads[i]), MSG_NOSIGNAL), sizeof(heads[i]));
        shutdown(hand.fd, SHUT_WR);
        run_until(hand.event, hand_down, &hand, 5000);
        assert_contains(hand.server->err.text, "TLS");
        assert_int_equal(hand.server->frames + hand.server->bulk, 0);
        hand_free(&hand);
    }
}

/* ---- files ---- */

static void write_file(const char *path, const char *text, mode_t mode)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
}

static void load_fails(const struct credential_files *files, const char *text)
{
    struct credentials *credentials = NULL;
    struct error err = {0};
    assert_int_equal(credentials_load(files, &credentials, &err), -1);
    assert_null(credentials);
    assert_int_equal(err.code, FAILURE_USAGE);
    assert_contains(err.text, text);
    assert_null(strchr(err.text, '\n'));
}

#define HEX32 "0123456789abcdef0123456789ABCDEF"

static void bad_keys(void **state)
{
    (void)state;
    struct credential_files files = {.psk = in_dir("bad")};
    char huge[2 * PSK_BYTES_MAX + 3];
    memset(huge, 'a', sizeof(huge) - 1);
    huge[sizeof(huge) - 1] = '\0';
    load_fails(&files, "No such file");
    write_file(files.psk, HEX32 HEX32 "\n", 0640);
    load_fails(&files, "chmod 600");
    write_file(files.psk, HEX32 HEX32 "\n", 0604);
    load_fails(&files, "chmod 600");
    write_file(files.psk, HEX32 HEX32 "x", 0600);
    load_fails(&files, "no pre-shared key");
    write_file(files.psk, HEX32 HEX32 "1", 0600);
    load_fails(&files, "no pre-shared key");
    write_file(files.psk, huge, 0600);
    load_fails(&files, "no pre-shared key");
    write_file(files.psk, HEX32, 0600);
    load_fails(&files, "has 16 bytes and needs at least 32");
    write_file(files.psk, "", 0600);
    load_fails(&files, "has 0 bytes");
    files.cert = in_dir("ca/client/cert.pem");
    load_fails(&files, "not both");
    files = (struct credential_files){.psk = made.dir};
    load_fails(&files, "a file of at most");
}

static void bad_certificates(void **state)
{
    (void)state;
    struct credential_files files = {.cacert = in_dir("ca/cacert.pem"),
                                     .cert = in_dir("ca/client/cert.pem"),
                                     .key = strdup(in_dir("ca/server/key.pem"))};
    char *key = (char *)files.key;
    load_fails(&files, "is not the key of");
    write_file(in_dir("open.pem"), "x", 0644);
    files.key = in_dir("open.pem");
    load_fails(&files, "chmod 600");
    files.key = in_dir("ca/client/key.pem");
    files.cacert = in_dir("open.pem");
    load_fails(&files, "open.pem");
    files.cacert = in_dir("ca/cacert.pem");
    files.cacrl = in_dir("open.pem");
    load_fails(&files, "open.pem");
    free(key);
}

static void nothing_is_written_over(void **state)
{
    (void)state;
    struct error err = {0};
    char *hosts[] = {(char *)"more", NULL}, *again[] = {(char *)"third", (char *)"client", NULL};
    assert_int_equal(keygen_hosts(in_dir("ca"), hosts, &err), 0);
    struct credentials *more = load_host("ca/cacert.pem", "ca/more");
    carries(more, made.theirs, "server", 32768);
    credentials_free(more);
    assert_int_equal(keygen_hosts(in_dir("ca"), again, &err), -1);
    assert_int_equal(err.code, FAILURE_BUSY);
    assert_contains(err.text, "ca/client is there already");
    assert_int_equal(access(in_dir("ca/third"), F_OK), -1); /* all are looked at before */
    assert_int_equal(keygen_psk(in_dir("psk"), &err), -1);
    assert_int_equal(err.code, FAILURE_BUSY);
    struct stat st;
    assert_int_equal(stat(in_dir("ca/client/key.pem"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(in_dir("ca/client"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    static const char *const names[] = {"", "../x", "a/b", ".x", "-x", "a,", "a,,b", "a b", "a\n"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char *bad[] = {(char *)names[i], NULL};
        assert_int_equal(keygen_hosts(in_dir("ca3"), bad, &err), -1);
        assert_int_equal(err.code, FAILURE_USAGE);
    }
    assert_int_equal(access(in_dir("ca3/cacert.pem"), F_OK), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_certificates),
        cmocka_unit_test(by_psk),
        cmocka_unit_test(one_byte_at_a_time),
        cmocka_unit_test(others_are_refused),
        cmocka_unit_test(cut_anywhere),
        cmocka_unit_test(flipped_anywhere),
        cmocka_unit_test(payload_flipped),
        cmocka_unit_test(stalled_handshake),
        cmocka_unit_test(slow_record_is_no_silence),
        cmocka_unit_test(garbage),
        cmocka_unit_test(end_without_notice),
        cmocka_unit_test(renewed_keys),
        cmocka_unit_test(records_that_are_none),
        cmocka_unit_test(bad_keys),
        cmocka_unit_test(bad_certificates),
        cmocka_unit_test(nothing_is_written_over),
    };
    return test_exit(cmocka_run_group_tests(tests, make_credentials, drop_credentials));
}
