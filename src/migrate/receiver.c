/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receiver.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/hidden.h"
#include "base/io.h"
#include "criu/cow_areas.h"
#include "criu/message_image.h"
#include "criu/process.h"
#include "migrate/image_check.h"
#include "migrate/receiver_parts.h"
#include "migrate/space_images.h"
#include "pager/map.h"
#include "pager/pager.h"
#include "store/chain.h"

enum {
    ITEMS_MAX = 100000,
    ITEM_CHARGE = 4 << 10, /* what an item costs besides its data */
};

/* ---- items ---- */

static struct item *item_free(struct item *item)
{
    if (!item)
        return NULL;
    arena_window_close(&item->window);
    arena_drop(&item->image);
    digest_drop(&item->digest);
    free(item->name);
    free(item);
    return NULL;
}

static struct space *space_free(struct space *space)
{
    if (!space)
        return NULL;
    space->shadow = shadow_free(space->shadow);
    arena_drop(&space->arena);
    free(space);
    return NULL;
}

void stream_map_one(struct receiver *receiver, struct stream *stream, struct item *item)
{
    if (stream == receiver->streams || stream->mapped == item)
        return;
    if (stream->mapped)
        arena_window_close(&stream->mapped->window);
    stream->mapped = item;
}

static void stream_free_items(struct stream *stream)
{
    if (stream->link)
        link_forget_place(stream->link);
    for (uint32_t i = 0; i < stream->count; i++)
        item_free(stream->items[i]);
    free(stream->items);
    stream->items = NULL;
    stream->mapped = NULL;
    stream->count = stream->room = stream->open = 0;
}

static void receiver_free_items(struct receiver *receiver)
{
    for (unsigned i = 0; i < receiver->stream_count; i++)
        stream_free_items(&receiver->streams[i]);
    for (uint32_t i = 0; i < receiver->space_count; i++)
        space_free(receiver->spaces[i]);
    free(receiver->spaces);
    receiver->spaces = NULL;
    receiver->space_count = receiver->space_room = 0;
}

struct arena *item_arena(struct item *item)
{
    return item->space ? &item->space->arena : &item->image;
}

static struct link *session_link(const struct receiver *receiver)
{
    return receiver->streams[0].link;
}

/* ---- refusing ---- */

static void receiver_drop(struct receiver *receiver, const struct error *err)
{
    if (!receiver->snapshot)
        return;
    receiver_free_items(receiver);
    receiver->snapshot = snapshot_remove(receiver->snapshot);
    receiver->ops->dropped(receiver, receiver->id, err, receiver->user);
}

void receiver_refuse(struct receiver *receiver, const struct error *err)
{
    if (receiver->refused)
        return;
    receiver->refused = true;
    receiver->over = receiver->streams[0].ended; /* else the source ends it */
    Godwit__Pb__Failure failure = failure_message(err);
    link_send(session_link(receiver), FRAME_SNAPSHOT_REFUSE, receiver->session, 0, &failure.base);
    receiver_drop(receiver, err);
}

void receiver_refuse_errno(struct receiver *receiver, int error_number, const char *what)
{
    struct error err;
    if (error_number == -EDQUOT) {
        const struct budget *budget = store_budget(receiver->snapshot->store);
        char used[24], limit[24];
        error_set(&err, FAILURE_LIMIT,
                  "snapshot %s: the image-cache is out of memory: %s in use of %s: free snapshots "
                  "there (godwit forget) or raise its --memory-limit",
                  receiver->id, format_bytes(budget->used, used),
                  format_bytes(budget->limit, limit));
    } else {
        bool memory = error_number == -ENOMEM || error_number == -ENOSPC;
        error_set_errno(&err, memory ? FAILURE_LIMIT : FAILURE_SYSTEM, error_number,
                        "snapshot %s: the image-cache could not store %s", receiver->id, what);
    }
    receiver_refuse(receiver, &err);
}

int receiver_broken(struct error *err, const struct frame *frame, const char *what)
{
    return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame: %s",
                     frame_name(frame->type), what);
}

int receiver_check_place(unsigned number, const struct frame *frame, struct error *err)
{
    const struct frame_rule *rule = frame_rule(frame->type);
    unsigned place = number == 0 ? ON_LINK : ON_DATA_CONNECTION;
    if (rule && rule->place & place)
        return 0;
    return receiver_broken(err, frame, number == 0 ? "not on a link" : "not on a data connection");
}

/* ---- the beginning ---- */

/* The snapshot that this one is based on, which is asked for again with each space: it may be
 * forgotten meanwhile.  NULL with *err set. */
static struct snapshot *receiver_parent(const struct receiver *receiver, struct store *store,
                                        struct error *err)
{
    struct snapshot *parent = store_find(store, receiver->parent);
    if (parent && parent->state != SNAPSHOT_RECEIVING && parent->chain && !parent->moved &&
        parent->nonce == receiver->parent_nonce)
        return parent;
    error_set(err, FAILURE_NOT_FOUND,
              "snapshot %s: its parent %s is not there: the image-cache has no such snapshot%s",
              receiver->id, receiver->parent,
              parent ? " that another can be based on" : " (any more)");
    return NULL;
}

static int receiver_join_chain(struct receiver *receiver, struct store *store,
                               const Godwit__Pb__SnapshotBegin *begin, struct error *err)
{
    struct snapshot *snapshot = receiver->snapshot;
    const struct snapshot *parent = NULL;
    if (begin->restore)
        return error_set(err, FAILURE_USAGE, "snapshot %s: a migration is based on nothing",
                         begin->id);
    if (*begin->parent) {
        receiver->parent = strdup(begin->parent);
        receiver->parent_nonce = begin->parent_nonce;
        free(snapshot->parent);
        snapshot->parent = strdup(begin->parent);
        if (!receiver->parent || !snapshot->parent)
            return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "snapshot %s", begin->id);
        parent = receiver_parent(receiver, store, err);
        if (!parent)
            return -1;
    }
    snapshot->pre_dump = begin->pre_dump;
    int r = chain_join(snapshot, parent);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "snapshot %s", begin->id) : 0;
}

static int receiver_create_snapshot(struct receiver *receiver, struct store *store,
                                    const char *host, const Godwit__Pb__SnapshotBegin *begin,
                                    struct error *err)
{
    if (!snapshot_id_valid(begin->id))
        return error_set(err, FAILURE_USAGE,
                         "snapshot id: 1 to %d letters, digits, dots, dashes and underscores, not "
                         "beginning with a dot",
                         WIRE_ID_MAX);
    if (begin->restore && !receiver->ops->admit)
        return error_set(err, FAILURE_REFUSED, "no restores are started here");
    if (begin->restore && receiver->ops->admit(begin, receiver->user, err) < 0)
        return -1;
    if (begin->streams > WIRE_STREAMS_MAX)
        return error_set(err, FAILURE_USAGE, "%u streams; the image-cache there takes %d",
                         begin->streams, WIRE_STREAMS_MAX);
    struct snapshot *snapshot = snapshot_create(store, begin->id, err);
    if (!snapshot)
        return -1;
    receiver->snapshot = snapshot;
    snapshot->origin = session_link(receiver);
    snapshot->pid = begin->pid;
    snapshot->nonce = begin->nonce;
    free(snapshot->command);
    free(snapshot->host);
    snapshot->command = strdup(begin->command);
    snapshot->host = strdup(host);
    if (!snapshot->command || !snapshot->host)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "snapshot %s", begin->id);
    if ((*begin->parent || begin->pre_dump) && receiver_join_chain(receiver, store, begin, err) < 0)
        return -1;
    snapshot->restore = begin->restore;
    snapshot->lazy = begin->restore && begin->lazy && pager_is_possible();
    if (begin->n_options > 0 && criu_check_options(begin->options, begin->n_options, err) < 0)
        return -1;
    int r = snapshot_set_options(snapshot, begin->options, begin->n_options);
    return r < 0 ? error_set_errno(err, FAILURE_USAGE, r, "options for criu") : 0;
}

/* The accept tells the token if there are streams to come. */
static int receiver_accept(struct receiver *receiver, uint32_t streams, struct error *err)
{
    Godwit__Pb__SnapshotAccept accept = GODWIT__PB__SNAPSHOT_ACCEPT__INIT;
    if (streams > 1) {
        if (getrandom(receiver->token, WIRE_TOKEN_BYTES, 0) != WIRE_TOKEN_BYTES)
            return error_set_errno(err, FAILURE_SYSTEM, errno, "a token");
        receiver->stream_count = streams;
        accept.token = (ProtobufCBinaryData){WIRE_TOKEN_BYTES, receiver->token};
    }
    link_send(session_link(receiver), FRAME_SNAPSHOT_ACCEPT, receiver->session, 0,
              streams > 1 ? &accept.base : NULL);
    return 0;
}

struct receiver *receiver_new(struct store *store, struct link *link, const char *host,
                              const struct frame *frame, const uint8_t *payload,
                              const struct receiver_ops *ops, void *user, struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__snapshot_begin__descriptor, payload, frame->length, err);
    if (!message)
        return NULL;
    const Godwit__Pb__SnapshotBegin *begin = (const Godwit__Pb__SnapshotBegin *)message;
    struct receiver *receiver = calloc(1, sizeof(*receiver));
    if (!receiver)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a snapshot"), NULL;
    *receiver = (struct receiver){
        .streams = {{.link = link, .joined = true}},
        .stream_count = 1,
        .session = frame->session,
        .ops = ops,
        .user = user,
        .id = strdup(begin->id),
    };
    receiver->sink = hidden_alloc(SINK_BYTES);
    if (!receiver->id || !receiver->sink) {
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a snapshot");
        return receiver_free(receiver);
    }
    struct error reason;
    if (receiver_create_snapshot(receiver, store, host, begin, &reason) < 0 ||
        receiver_accept(receiver, begin->streams, &reason) < 0)
        receiver_refuse(receiver, &reason);
    return receiver;
}

struct receiver *receiver_free(struct receiver *receiver)
{
    if (!receiver)
        return NULL;
    receiver_free_items(receiver);
    snapshot_remove(receiver->snapshot);
    free(receiver->id);
    free(receiver->parent);
    for (unsigned i = 0; i < receiver->stream_count; i++)
        free(receiver->streams[i].list);
    hidden_free(receiver->sink, SINK_BYTES);
    free(receiver);
    return NULL;
}

uint32_t receiver_session(const struct receiver *receiver)
{
    return receiver->session;
}

bool receiver_is_over(const struct receiver *receiver)
{
    return receiver->over;
}

void receiver_link_down(struct receiver *receiver, const struct error *err)
{
    receiver_drop(receiver, err);
}

/* ---- streams ---- */

bool receiver_has_token(const struct receiver *receiver, uint32_t session,
                        const uint8_t token[WIRE_TOKEN_BYTES])
{
    volatile uint8_t differ = 0; /* no early end: it would tell how much was right */
    for (size_t i = 0; i < WIRE_TOKEN_BYTES; i++)
        differ |= receiver->token[i] ^ token[i];
    return differ == 0 && receiver->session == session && receiver->stream_count > 1 &&
           !receiver->refused;
}

int receiver_join(struct receiver *receiver, unsigned stream, struct link *link, struct error *err)
{
    if (stream == 0 || stream >= receiver->stream_count || receiver->streams[stream].joined)
        return error_set(err, FAILURE_PEER,
                         "snapshot %s: data connection %u is there already, or one too many",
                         receiver->id, stream);
    receiver->streams[stream].link = link;
    receiver->streams[stream].joined = true;
    return 0;
}

void receiver_stream_down(struct receiver *receiver, unsigned stream, const struct error *err)
{
    struct stream *gone = &receiver->streams[stream];
    gone->link = NULL;
    if (gone->ended || receiver->over)
        return;
    struct error lost;
    error_set(&lost, FAILURE_PEER, "snapshot %s: data connection %u: %s", receiver->id, stream,
              err->text);
    receiver_refuse(receiver, &lost);
}

/* ---- items begin ---- */

static int stream_add(struct stream *stream, const struct frame *frame, struct item **ret,
                      struct error *err)
{
    if (frame->item != stream->count + 1 || stream->count == ITEMS_MAX)
        return receiver_broken(err, frame, "item numbers go up by one, and not without end");
    if (stream->count == stream->room) {
        uint32_t room = MAX(64, 2 * stream->room);
        struct item **grown = realloc(stream->items, room * sizeof(struct item *));
        if (!grown)
            return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a snapshot");
        stream->items = grown;
        stream->room = room;
    }
    struct item *item = calloc(1, sizeof(*item));
    if (!item || digest_begin(&item->digest) < 0) {
        free(item);
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a snapshot");
    }
    stream->items[stream->count++] = item;
    stream->open++;
    *ret = item;
    return 0;
}

/* Charges the snapshot for more than its arenas; it gives that back when it is removed. */
static int receiver_charge(struct receiver *receiver, uint64_t bytes)
{
    int r = budget_charge(store_budget(receiver->snapshot->store), bytes);
    if (r == 0)
        receiver->snapshot->charge += bytes;
    return r;
}

static int take_image_begin(struct receiver *receiver, struct stream *stream,
                            const struct frame *frame, const ProtobufCMessage *message,
                            struct error *err)
{
    const Godwit__Pb__ImageBegin *begin = (const Godwit__Pb__ImageBegin *)message;
    if (!image_name_valid(begin->name))
        return receiver_broken(err, frame, "not a name of an image");
    if (receiver->snapshot->chain && strncmp(begin->name, "pages-", 6) == 0)
        return receiver_broken(err, frame, "pages of a snapshot that shares memory");
    struct item *item;
    if (stream_add(stream, frame, &item, err) < 0)
        return -1;
    stream->images++;
    item->name = strdup(begin->name);
    int r = item->name ? receiver_charge(receiver, ITEM_CHARGE) : -ENOMEM;
    if (r == 0)
        r = arena_create(&item->image, receiver->snapshot->imagefd, item->name,
                         store_budget(receiver->snapshot->store));
    if (r < 0)
        receiver_refuse_errno(receiver, r, begin->name);
    return 0;
}

/* Memory that is filled in later is not what criu reads: that is taken out of it in the end. */
static bool is_lazy(const struct receiver *receiver, const struct space *space)
{
    return receiver->snapshot->lazy && space->kind == GODWIT__PB__SPACE_BEGIN__KIND__TASK;
}

static void arena_name(const struct receiver *receiver, const struct space *space, char name[32])
{
    if (is_lazy(receiver, space))
        fill_space_name(name, 32, space->pages_id);
    else
        snprintf(name, 32, "pages-%u.img", space->pages_id);
}

static int space_create(struct receiver *receiver, struct space *space)
{
    char name[32];
    arena_name(receiver, space, name);
    int r = arena_create(&space->arena, receiver->snapshot->imagefd, name,
                         store_budget(receiver->snapshot->store));
    if (r == 0 && !(space->shadow = shadow_new(&space->arena)))
        r = -ENOMEM;
    return r;
}

/* In a chain.  0, also when that refuses the snapshot, or a negative errno. */
static int space_join(struct receiver *receiver, struct space *space, bool based)
{
    struct snapshot *snapshot = receiver->snapshot, *parent = NULL;
    struct error err;
    if (based && !(parent = receiver_parent(receiver, snapshot->store, &err))) {
        receiver_refuse(receiver, &err);
        return 0;
    }
    bool shared = space->kind == GODWIT__PB__SPACE_BEGIN__KIND__SHARED;
    int r = chain_open_space(snapshot, parent, shared, space->id, &space->arena, &space->shadow);
    if (r != -ENODATA && r != -EBUSY)
        return r;
    error_set(&err, r == -EBUSY ? FAILURE_BUSY : FAILURE_PEER, "snapshot %s: its parent %s %s %llu",
              receiver->id, receiver->parent,
              r == -EBUSY ? "is just being extended with what another has of task"
                          : "has no memory of task",
              (unsigned long long)space->id);
    receiver_refuse(receiver, &err);
    return 0;
}

/* The next space, which no stream has begun before.  0, also when that refuses the snapshot, or a
 * negative errno. */
static int receiver_add_space(struct receiver *receiver, const Godwit__Pb__SpaceBegin *begin)
{
    if (receiver->space_count == receiver->space_room) {
        uint32_t room = MAX(16, 2 * receiver->space_room);
        struct space **grown = realloc(receiver->spaces, room * sizeof(struct space *));
        if (!grown)
            return -ENOMEM;
        receiver->spaces = grown;
        receiver->space_room = room;
    }
    struct space *space = calloc(1, sizeof(*space));
    if (!space)
        return -ENOMEM;
    receiver->spaces[receiver->space_count++] = space;
    space->kind = begin->kind;
    space->id = begin->id;
    space->pages_id = receiver->space_count;
    return receiver->snapshot->chain ? space_join(receiver, space, begin->based)
                                     : space_create(receiver, space);
}

static int take_space_begin(struct receiver *receiver, struct stream *stream,
                            const struct frame *frame, const ProtobufCMessage *message,
                            struct error *err)
{
    const Godwit__Pb__SpaceBegin *begin = (const Godwit__Pb__SpaceBegin *)message;
    if (begin->kind != GODWIT__PB__SPACE_BEGIN__KIND__TASK &&
        begin->kind != GODWIT__PB__SPACE_BEGIN__KIND__SHARED)
        return receiver_broken(err, frame, "a space of no known kind");
    if (begin->based && !receiver->parent)
        return receiver_broken(err, frame, "based on nothing");
    struct item *item;
    if (stream_add(stream, frame, &item, err) < 0)
        return -1;
    uint32_t index = stream->spaces++;
    int r = receiver_charge(receiver, ITEM_CHARGE);
    if (r == 0 && index == receiver->space_count)
        r = receiver_add_space(receiver, begin);
    if (r < 0) {
        receiver_refuse_errno(receiver, r, "pages");
        return 0;
    }
    if (receiver->refused)
        return 0;
    item->space = receiver->spaces[index];
    if (item->space->kind != begin->kind || item->space->id != begin->id)
        return receiver_broken(err, frame, "every stream begins the same spaces");
    return 0;
}

/* ---- items end ---- */

/* In a chain: a pagemap, unless it is of no use to criu; and where the pages are. */
static int space_end_joined(struct receiver *receiver, struct space *space,
                            const struct space_images *images)
{
    struct snapshot *snapshot = receiver->snapshot;
    int r = snapshot->pre_dump ? 0 : space_images_write_pagemap(images);
    return r < 0 ? r
                 : chain_close_space(snapshot, space->pages_id, images->shared, space->id,
                                     &space->arena, &space->shadow);
}

/* A space is whole: its arena becomes the pages image or what is filled in, its shadow the pagemap.
 */
static int receiver_write_space(struct receiver *receiver, struct space *space)
{
    uint64_t missing = space->listed ? shadow_drop_unlisted(space->shadow) : 0;
    char image[40];
    snprintf(image, sizeof(image), "mm-%llu.img", (unsigned long long)space->id);
    bool lost = space->kind == GODWIT__PB__SPACE_BEGIN__KIND__TASK && space->listed &&
                shadow_pages(space->shadow) == 0 &&
                faccessat(receiver->snapshot->imagefd, image, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    if (missing > 0 || lost) {
        struct error err;
        if (lost)
            error_set(&err, FAILURE_PEER, "snapshot %s: task %llu was killed while it stood still",
                      receiver->id, (unsigned long long)space->id);
        else
            error_set(&err, FAILURE_PEER, "snapshot %s: %llu pages of task %llu have not come",
                      receiver->id, (unsigned long long)missing, (unsigned long long)space->id);
        receiver_refuse(receiver, &err);
        return 0;
    }
    struct space_images images = {
        .imagefd = receiver->snapshot->imagefd,
        .budget = store_budget(receiver->snapshot->store),
        .charge = &receiver->snapshot->charge,
        .shared = space->kind == GODWIT__PB__SPACE_BEGIN__KIND__SHARED,
        .id = space->id,
        .pages_id = space->pages_id,
        .arena = &space->arena,
        .shadow = space->shadow,
    };
    int r = receiver->snapshot->chain ? space_end_joined(receiver, space, &images)
                                      : space_images_write(&images, is_lazy(receiver, space));
    space->shadow = shadow_free(space->shadow);
    return r;
}

/* No stream will bring more of it. */
static void receiver_end_space(struct receiver *receiver, struct space *space)
{
    int r = receiver_write_space(receiver, space);
    if (receiver->refused)
        return; /* and the space is gone */
    if (r == 0)
        r = arena_hand_over(&space->arena, &receiver->snapshot->charge);
    if (r < 0)
        receiver_refuse_errno(receiver, r, "pages");
}

static int item_check_end(struct receiver *receiver, struct item *item, const struct frame *frame,
                          const Godwit__Pb__ItemEnd *end, struct error *err)
{
    if (end->digest.len != DIGEST_BYTES)
        return receiver_broken(err, frame, "a digest has 16 bytes");
    uint8_t digest[DIGEST_BYTES];
    digest_end(&item->digest, digest);
    if (end->bytes != item->bytes || memcmp(digest, end->digest.data, DIGEST_BYTES) != 0) {
        struct error damage;
        error_set(&damage, FAILURE_PEER, "snapshot %s: %s arrived damaged: %llu of %llu bytes%s",
                  receiver->id, item->space ? "memory" : item->name,
                  (unsigned long long)item->bytes, (unsigned long long)end->bytes,
                  end->bytes == item->bytes ? ", another digest" : "");
        receiver_refuse(receiver, &damage);
    }
    return 0;
}

static int take_item_end(struct receiver *receiver, struct stream *stream,
                         const struct frame *frame, const ProtobufCMessage *message,
                         struct error *err)
{
    const Godwit__Pb__ItemEnd *end = (const Godwit__Pb__ItemEnd *)message;
    struct item *item = receiver_item(stream, frame, frame->type == FRAME_SPACE_END, err);
    if (!item || item_check_end(receiver, item, frame, end, err) < 0)
        return -1;
    if (receiver->refused)
        return 0;
    item->ended = true;
    stream->open--;
    stream->bytes += item->bytes;
    arena_window_close(&item->window);
    if (!item->space) {
        int r = arena_hand_over(&item->image, &receiver->snapshot->charge);
        if (r < 0)
            receiver_refuse_errno(receiver, r, item->name);
        return 0;
    }
    if (stream == receiver->streams)
        item->space->listed = end->listed;
    if (receiver->stream_count == 1)
        receiver_end_space(receiver, item->space);
    return 0;
}

/* ---- the end of the snapshot ---- */

static bool is_pagemap_name(const char *name)
{
    return strncmp(name, "pagemap-", 8) == 0;
}

static int receiver_look_at_images(const struct receiver *receiver, struct error *err)
{
    const struct stream *stream = &receiver->streams[0];
    int imagefd = receiver->snapshot->imagefd;
    uint64_t largest = 0;
    for (uint32_t i = 0; i < stream->count; i++) {
        const struct item *item = stream->items[i];
        if (!item->space && is_pagemap_name(item->name) &&
            image_check_pagemap(imagefd, item->name, err) < 0)
            return -1;
        if (!item->space && strncmp(item->name, "mm-", 3) == 0)
            largest = MAX(largest, item->bytes);
    }
    /* Of a parent and a child are there at once. */
    uint64_t bytes = 2 * MESSAGE_IMAGE_FACTOR * largest;
    struct budget *budget = store_budget(receiver->snapshot->store);
    if (budget_charge(budget, bytes) < 0)
        return error_set(err, FAILURE_LIMIT, "no memory to look at an image of %llu bytes",
                         (unsigned long long)largest);
    int r = cow_areas_check(imagefd, err);
    budget_refund(budget, bytes);
    return r;
}

/* That criu failed is said of the source's own, which is heard of there. */
static int receiver_check_images(const struct receiver *receiver, struct error *err)
{
    if (receiver_look_at_images(receiver, err) == 0)
        return 0;
    if (err->code != FAILURE_LIMIT)
        err->code = FAILURE_REFUSED;
    return error_prefix(err, "snapshot %s", receiver->id);
}

/* Every stream has come to its end. */
static int receiver_check_whole(struct receiver *receiver, struct error *err)
{
    if (receiver->streams[0].spaces != receiver->space_count)
        return error_set(err, FAILURE_PEER, "snapshot %s: memory of what the source did not begin",
                         receiver->id);
    for (uint32_t i = 0; i < receiver->space_count && receiver->stream_count > 1; i++) {
        receiver_end_space(receiver, receiver->spaces[i]);
        if (receiver->refused)
            return 0;
    }
    return receiver_check_images(receiver, err);
}

static void receiver_hold(struct receiver *receiver)
{
    struct error reason;
    receiver->over = true; /* whatever comes of it */
    if (receiver_check_whole(receiver, &reason) < 0)
        receiver_refuse(receiver, &reason);
    if (receiver->refused)
        return;
    struct snapshot *snapshot = receiver->snapshot;
    snapshot->images = receiver->streams[0].images;
    snapshot->bytes = 0;
    for (unsigned i = 0; i < receiver->stream_count; i++)
        snapshot->bytes += receiver->streams[i].bytes;
    int r = snapshot_set_state(snapshot, snapshot->pre_dump ? SNAPSHOT_PRE_DUMPED : SNAPSHOT_HELD);
    if (r < 0) {
        receiver_refuse_errno(receiver, r, "its state");
        return;
    }
    receiver->snapshot = NULL;
    receiver_free_items(receiver);
    link_send(session_link(receiver), FRAME_SNAPSHOT_ACK, receiver->session, 0, NULL);
    receiver->ops->held(receiver, snapshot, receiver->user);
}

static int take_snapshot_end(struct receiver *receiver, struct stream *stream,
                             const struct frame *frame, const ProtobufCMessage *message,
                             struct error *err)
{
    const Godwit__Pb__SnapshotEnd *end = (const Godwit__Pb__SnapshotEnd *)message;
    if (stream->open > 0 || end->images != stream->images || end->spaces != stream->spaces ||
        end->bytes != stream->bytes)
        return receiver_broken(err, frame, "it does not sum up what was sent");
    unsigned joined = 0, ended = 1;
    for (unsigned i = 0; i < receiver->stream_count; i++) {
        joined += receiver->streams[i].joined;
        ended += receiver->streams[i].ended;
    }
    if (joined < receiver->stream_count)
        return receiver_broken(err, frame, "not all data connections have come");
    stream->ended = true;
    if (ended == receiver->stream_count)
        receiver_hold(receiver);
    return 0;
}

static int take_snapshot_abort(struct receiver *receiver, struct stream *stream,
                               const struct frame *frame, const ProtobufCMessage *message,
                               struct error *err)
{
    (void)stream;
    (void)frame;
    (void)err;
    struct error reason;
    failure_to_error((const Godwit__Pb__Failure *)message, &reason);
    receiver->over = true;
    receiver_drop(receiver, &reason);
    return 0;
}

/* A stream that is ahead brings pages that count as of the round before, until the last has come
 * to its end. */
static int take_round_end(struct receiver *receiver, struct stream *stream,
                          const struct frame *frame, const ProtobufCMessage *message,
                          struct error *err)
{
    (void)frame;
    (void)message;
    (void)err;
    stream->rounds++;
    for (unsigned i = 0; i < receiver->stream_count; i++) {
        if (receiver->streams[i].rounds == receiver->rounds)
            return 0;
    }
    receiver->rounds++;
    for (uint32_t i = 0; i < receiver->space_count; i++) {
        if (receiver->spaces[i]->shadow)
            shadow_end_round(receiver->spaces[i]->shadow);
    }
    return 0;
}

static int take_freezing(struct receiver *receiver, struct stream *stream,
                         const struct frame *frame, const ProtobufCMessage *message,
                         struct error *err)
{
    (void)stream;
    (void)message;
    if (receiver->freezing)
        return receiver_broken(err, frame, "a second time");
    receiver->freezing = true;
    if (receiver->snapshot->restore)
        receiver->ops->freezing(receiver, receiver->snapshot, receiver->user);
    return 0;
}

static const struct {
    uint16_t type;
    const ProtobufCMessageDescriptor *message; /* NULL: it has no payload */
    int (*take)(struct receiver *receiver, struct stream *stream, const struct frame *frame,
                const ProtobufCMessage *message, struct error *err);
    bool ends_session; /* on its own link */
} takes[] = {
    {FRAME_IMAGE_BEGIN, &godwit__pb__image_begin__descriptor, take_image_begin, false},
    {FRAME_IMAGE_END, &godwit__pb__item_end__descriptor, take_item_end, false},
    {FRAME_SPACE_BEGIN, &godwit__pb__space_begin__descriptor, take_space_begin, false},
    {FRAME_SPACE_END, &godwit__pb__item_end__descriptor, take_item_end, false},
    {FRAME_ROUND_END, NULL, take_round_end, false},
    {FRAME_FREEZING, NULL, take_freezing, false},
    {FRAME_SNAPSHOT_END, &godwit__pb__snapshot_end__descriptor, take_snapshot_end, true},
    {FRAME_SNAPSHOT_ABORT, &godwit__pb__failure__descriptor, take_snapshot_abort, true},
};

int receiver_control(struct receiver *receiver, unsigned number, const struct frame *frame,
                     const uint8_t *payload, struct error *err)
{
    struct stream *stream = &receiver->streams[number];
    if (receiver_check_place(number, frame, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_SIZE(takes); i++) {
        if (takes[i].type != frame->type)
            continue;
        _cleanup_message_ ProtobufCMessage *message = NULL;
        if (takes[i].message)
            message = message_unpack(takes[i].message, payload, frame->length, err);
        if (takes[i].message && !message)
            return -1;
        if (receiver->refused) {
            receiver->over |= takes[i].ends_session && number == 0;
            return 0;
        }
        if (stream->ended)
            return receiver_broken(err, frame, "behind its end");
        return takes[i].take(receiver, stream, frame, message, err);
    }
    return receiver_broken(err, frame, "not in a snapshot");
}
