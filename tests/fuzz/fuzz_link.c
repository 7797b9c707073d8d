/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte of mode, then the bytes of a peer to a cache: link, receiver, store.
 *   bit 0   the harness says preamble and hello, the input begins behind them
 *   bit 1   checks of frames are mended, so that what is behind them is reached
 *   bit 2   digests and sums of items are mended too
 *   bit 3   a small memory limit
 *   bit 4   in pieces, of 7 bytes, of 8 and so on
 * The highest byte of a session's number is that of the stream over which the frame is said to have
 * come; each joins when it is first named, and the first of them is lost when the link is.
 */
#include "fuzz.h"

#include <string.h>

#include "base/digest.h"
#include "canned.h"
#include "criu/allow.h"
#include "migrate/receiver.h"
#include "store/chain.h"
#include "unit/peer.h"

enum {
    MODE_GREETED = 1,
    MODE_CHECKS = 2,
    MODE_DIGESTS = 4,
    MODE_SMALL = 8,
    MODE_PIECES = 16,
    ITEMS = 64, /* whose digests are mended */
    SESSIONS = 4,
    STREAM_SHIFT = 24,
};

struct item {
    struct digest digest;
    uint64_t bytes;
};

/* What came over one stream of session 1. */
struct stream {
    struct item items[ITEMS];
    uint64_t bytes;
    uint32_t images, spaces;
};

struct cache {
    unsigned mode;
    struct store *store;
    struct receiver *receivers[SESSIONS];
    bool joined[SESSIONS][WIRE_STREAMS_MAX];
    bool down;
    struct stream streams[WIRE_STREAMS_MAX];
};

/* Takes the stream out of the session's number. */
static unsigned take_stream(struct frame *frame)
{
    unsigned stream = (frame->session >> STREAM_SHIFT) % WIRE_STREAMS_MAX;
    frame->session &= (1u << STREAM_SHIFT) - 1;
    return stream;
}

/* ---- mending ---- */

static struct item *stream_item(struct stream *stream, const struct frame *frame)
{
    struct item *item = &stream->items[frame->item % ITEMS];
    if (!item->digest.state)
        must(digest_begin(&item->digest) == 0);
    return item;
}

static bool was_listed(const struct frame *frame, const uint8_t *payload)
{
    struct error err;
    ProtobufCMessage *message =
        message_unpack(&godwit__pb__item_end__descriptor, payload, frame->length, &err);
    bool listed = message && ((Godwit__Pb__ItemEnd *)message)->listed;
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
    return listed;
}

/* Another payload for a control frame of a session, with sums that agree. */
static const uint8_t *mend(const struct cache *cache, struct stream *stream, struct frame *frame,
                           const uint8_t *payload, uint8_t mended[256])
{
    uint8_t digest[DIGEST_BYTES];
    Godwit__Pb__ItemEnd item_end = GODWIT__PB__ITEM_END__INIT;
    Godwit__Pb__SnapshotEnd end = GODWIT__PB__SNAPSHOT_END__INIT;
    const ProtobufCMessage *message = NULL;
    if (!(cache->mode & MODE_DIGESTS) || frame->session != 1)
        return payload;
    stream->images += frame->type == FRAME_IMAGE_BEGIN;
    stream->spaces += frame->type == FRAME_SPACE_BEGIN;
    if (frame->type == FRAME_IMAGE_END || frame->type == FRAME_SPACE_END) {
        struct item *item = stream_item(stream, frame);
        item_end.bytes = item->bytes;
        stream->bytes += item->bytes;
        digest_end(&item->digest, digest);
        *item = (struct item){0};
        item_end.digest = (ProtobufCBinaryData){sizeof(digest), digest};
        item_end.listed = was_listed(frame, payload);
        message = &item_end.base;
    } else if (frame->type == FRAME_SNAPSHOT_END) {
        end.images = stream->images;
        end.spaces = stream->spaces;
        end.bytes = stream->bytes;
        message = &end.base;
        stream->images = stream->spaces = 0; /* another may follow in the same session */
        stream->bytes = 0;
    }
    if (!message)
        return payload;
    frame->length = (uint32_t)protobuf_c_message_pack(message, mended);
    return mended;
}

/* ---- the cache ---- */

static void on_held(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    (void)user;
    must(snapshot->state == (snapshot->pre_dump ? SNAPSHOT_PRE_DUMPED : SNAPSHOT_HELD));
}

static void on_dropped(struct receiver *receiver, const char *id, const struct error *err,
                       void *user)
{
    (void)receiver;
    must(id && err);
    struct cache *cache = user;
    must(!store_find(cache->store, id));
}

static int on_admit(const Godwit__Pb__SnapshotBegin *begin, void *user, struct error *err)
{
    (void)user;
    return criu_allow(NULL, begin->options, begin->n_options, err);
}

static void on_freezing(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    (void)user;
    must(snapshot->restore && snapshot->state == SNAPSHOT_RECEIVING);
}

static const struct receiver_ops receiver_ops = {
    .admit = on_admit, .freezing = on_freezing, .held = on_held, .dropped = on_dropped};

static struct receiver **cache_find(struct cache *cache, uint32_t session)
{
    for (unsigned i = 0; i < SESSIONS; i++) {
        if (cache->receivers[i] && receiver_session(cache->receivers[i]) == session)
            return &cache->receivers[i];
    }
    return NULL;
}

/* The session of a frame, which its stream has joined; NULL with *err. */
static struct receiver **cache_find_joined(struct cache *cache, struct link *link, uint32_t session,
                                           unsigned stream, struct error *err)
{
    struct receiver **at = cache_find(cache, session);
    error_set(err, FAILURE_PEER, "no such session");
    if (!at || stream == 0)
        return at;
    bool *joined = &cache->joined[at - cache->receivers][stream];
    if (!*joined && receiver_join(*at, stream, link, err) < 0)
        return NULL;
    *joined = true;
    return at;
}

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)link;
    (void)user;
    must(hello->page_bytes == PAGE_BYTES);
}

static int cache_begin(struct cache *cache, struct link *link, const struct frame *frame,
                       const uint8_t *payload, struct error *err)
{
    for (unsigned i = 0; i < SESSIONS; i++) {
        if (cache->receivers[i])
            continue;
        cache->receivers[i] = receiver_new(cache->store, link, "elsewhere", frame, payload,
                                           &receiver_ops, cache, err);
        return cache->receivers[i] ? 0 : -1;
    }
    return error_set(err, FAILURE_PEER, "too many");
}

static int on_control(struct link *link, const struct frame *original, const uint8_t *payload,
                      void *user, struct error *err)
{
    struct cache *cache = user;
    uint8_t mended[256];
    struct frame frame = *original;
    unsigned stream = take_stream(&frame);
    payload = mend(cache, &cache->streams[stream], &frame, payload, mended);
    if (frame.type == FRAME_SNAPSHOT_BEGIN && !cache_find(cache, frame.session))
        return cache_begin(cache, link, &frame, payload, err);
    struct receiver **at = cache_find_joined(cache, link, frame.session, stream, err);
    if (!at)
        return -1;
    int r = receiver_control(*at, stream, &frame, payload, err);
    if (r >= 0 && receiver_is_over(*at)) {
        memset(cache->joined[at - cache->receivers], 0, sizeof(cache->joined[0]));
        *at = receiver_free(*at);
    }
    return r;
}

static int on_bulk_place(struct link *link, const struct frame *original, uint32_t done,
                         void **ret_place, size_t *ret_length, void *user, struct error *err)
{
    struct cache *cache = user;
    struct frame frame = *original;
    unsigned stream = take_stream(&frame);
    struct receiver **at = cache_find_joined(cache, link, frame.session, stream, err);
    if (!at)
        return -1;
    if (frame.session == 1 && done == 0 && frame.type != FRAME_IMAGE_DATA)
        digest_place(&stream_item(&cache->streams[stream], &frame)->digest,
                     frame.type == FRAME_PAGES ? frame.offset : frame.flags, frame.length);
    int r = receiver_bulk_place(*at, stream, &frame, done, ret_place, ret_length, err);
    if (r >= 0)
        must(*ret_length > 0 && *ret_length <= frame.length - done);
    return r;
}

static int on_bulk_landed(struct link *link, const struct frame *original, uint32_t done,
                          const void *place, size_t length, void *user, struct error *err)
{
    struct cache *cache = user;
    struct frame frame = *original;
    unsigned stream = take_stream(&frame);
    struct receiver **at = cache_find_joined(cache, link, frame.session, stream, err);
    must(at);
    if (frame.session == 1) {
        struct item *item = stream_item(&cache->streams[stream], &frame);
        digest_bytes(&item->digest, place, length);
        item->bytes += length;
    }
    return receiver_bulk_landed(*at, stream, &frame, done, place, length, err);
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct cache *cache = user;
    must(!cache->down);
    must(err->code == FAILURE_NONE || err->text[0]);
    cache->down = true;
    for (unsigned i = 0; i < SESSIONS; i++) {
        if (cache->receivers[i] && cache->joined[i][1])
            receiver_stream_down(cache->receivers[i], 1, err);
        if (cache->receivers[i])
            receiver_link_down(cache->receivers[i], err);
    }
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_SOURCE,
    .up = on_up,
    .control = on_control,
    .bulk_place = on_bulk_place,
    .bulk_landed = on_bulk_landed,
    .down = on_down,
};

/* ---- the peer ---- */

static void say(struct canned *canned, size_t step, const struct cache *cache)
{
    for (; !canned_is_empty(canned) && !cache->down; step++) {
        canned_give(canned, step);
        must(sd_event_run(canned_loop(), 0) >= 0);
    }
    canned_end(canned);
    for (int i = 0; i < 1000 && !cache->down; i++)
        must(sd_event_run(canned_loop(), 0) >= 0);
    must(cache->down);
}

static char *directory;
static struct store *store; /* of all inputs: each leaves it empty */

static void remove_store(void)
{
    store_close(store);
    directory_remove(directory);
}

static struct store *open_store(uint64_t limit)
{
    struct error err;
    if (!store) {
        directory = directory_make();
        store = store_open(directory, limit, &err);
        must(store);
        atexit(remove_store);
    }
    store_budget(store)->limit = limit;
    return store;
}

/* After the link is gone there are whole snapshots and nothing else, and the sums are right. */
static void empty_store(void)
{
    uint64_t charge = 0;
    for (struct snapshot *s = store_first(store); s; s = s->next) {
        must(s->state == SNAPSHOT_HELD || s->state == SNAPSHOT_PRE_DUMPED);
        charge += s->charge;
    }
    must(store_budget(store)->used == charge + chains_bytes(store));
    while (store_first(store))
        snapshot_remove(store_first(store));
    must(store_budget(store)->used == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    unsigned mode = data[0];
    struct bytes bytes = {0};
    if (mode & MODE_GREETED)
        bytes_add_greeting(&bytes);
    size_t begin = mode & MODE_GREETED ? bytes.length : WIRE_PREAMBLE_BYTES;
    bytes_add(&bytes, data + 1, size - 1);
    if (mode & MODE_CHECKS && bytes.length > begin)
        bytes_mend_checks(&bytes, begin);

    struct cache cache = {.mode = mode, .store = open_store(mode & MODE_SMALL ? 100000 : MIB(16))};
    struct canned canned;
    struct link *link = link_new_on(canned_loop(), canned_open(&canned, bytes.at, bytes.length),
                                    3600 * USEC_PER_SEC, &link_ops, &cache);
    must(link);
    say(&canned, mode & MODE_PIECES ? 7 : SIZE_MAX, &cache);
    for (unsigned i = 0; i < SESSIONS; i++)
        receiver_free(cache.receivers[i]);
    for (unsigned i = 0; i < WIRE_STREAMS_MAX * ITEMS; i++) {
        struct item *item = &cache.streams[i / ITEMS].items[i % ITEMS];
        if (item->digest.state)
            digest_drop(&item->digest);
    }
    link_free(link);
    empty_store();
    bytes_free(&bytes);
    return 0;
}
