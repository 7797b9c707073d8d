/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/receiver.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/digest.h"
#include "base/hidden.h"
#include "base/io.h"
#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "criu/process.h"
#include "migrate/space_images.h"
#include "pager/map.h"
#include "pager/pager.h"
#include "store/chain.h"

enum {
    ITEMS_MAX = 100000,
    ITEM_CHARGE = 4 << 10, /* what an item costs besides its data */
    SINK_BYTES = 64 << 10, /* where what is not wanted any more lands */
};

#define PAGEMAP_IMAGE_MAX MIB(64) /* some three million runs */

/* Memory by address, whatever stream it comes over. */
struct space {
    Godwit__Pb__SpaceBegin__Kind kind;
    uint64_t id;
    uint32_t pages_id; /* N of pages-N.img */
    bool listed;
    struct arena arena;
    struct shadow *shadow;
};

/* What comes under one item number of one stream. */
struct item {
    bool ended;
    struct space *space; /* NULL: it is an image */
    char *name;          /* of an image */
    struct arena image;
    struct arena_window window; /* into the arena of either */
    struct shadow_run run;      /* of a space: where the bytes now arriving belong */
    uint64_t append_at;         /* of an image: the same */
    uint64_t bytes;
    struct digest digest;
};

/* One of the session's connections. */
struct stream {
    struct link *link; /* NULL: it has not come, or is gone */
    bool joined, ended;
    struct item **items; /* items[number - 1] */
    uint32_t count, room, open, images, spaces;
    uint64_t bytes, rounds;
    struct item *mapped; /* of a data connection: the one item whose window is open */
    uint8_t *list;       /* a frame of runs or digests that is arriving: one at a time */
};

struct receiver {
    uint32_t session;
    char *id;
    struct snapshot *snapshot; /* NULL once refused or held */
    char *parent;              /* id of what it is based on; NULL: nothing */
    uint64_t parent_nonce;
    bool refused, over, freezing;
    const struct receiver_ops *ops;
    void *user;

    struct stream streams[WIRE_STREAMS_MAX]; /* the first is the session's link */
    unsigned stream_count;
    uint8_t token[WIRE_TOKEN_BYTES]; /* for the others */

    /* Every stream begins the spaces in this order; the first that comes to one makes it. */
    struct space **spaces;
    uint32_t space_count, space_room;
    uint64_t rounds; /* that have ended on all streams */
    uint8_t *sink;
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

/* Of many tasks over many connections the windows would be more than a process may map; and a data
 * connection brings one task after the other. */
static void stream_map_one(struct receiver *receiver, struct stream *stream, struct item *item)
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

static struct arena *item_arena(struct item *item)
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

static void receiver_refuse(struct receiver *receiver, const struct error *err)
{
    if (receiver->refused)
        return;
    receiver->refused = true;
    receiver->over = receiver->streams[0].ended; /* else the source ends it */
    Godwit__Pb__Failure failure = failure_message(err);
    link_send(session_link(receiver), FRAME_SNAPSHOT_REFUSE, receiver->session, 0, &failure.base);
    receiver_drop(receiver, err);
}

/* Refuses for a reason that a system call gave. */
static void receiver_refuse_errno(struct receiver *receiver, int error_number, const char *what)
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

static int broken(struct error *err, const struct frame *frame, const char *what)
{
    return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame: %s",
                     frame_name(frame->type), what);
}

static int check_place(unsigned number, const struct frame *frame, struct error *err)
{
    const struct frame_rule *rule = frame_rule(frame->type);
    unsigned place = number == 0 ? ON_LINK : ON_DATA_CONNECTION;
    if (rule && rule->place & place)
        return 0;
    return broken(err, frame, number == 0 ? "not on a link" : "not on a data connection");
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
        return broken(err, frame, "item numbers go up by one, and not without end");
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
        return broken(err, frame, "not a name of an image");
    if (receiver->snapshot->chain && strncmp(begin->name, "pages-", 6) == 0)
        return broken(err, frame, "pages of a snapshot that shares memory");
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
        return broken(err, frame, "a space of no known kind");
    if (begin->based && !receiver->parent)
        return broken(err, frame, "based on nothing");
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
        return broken(err, frame, "every stream begins the same spaces");
    return 0;
}

/* ---- data ---- */

static struct item *stream_item(const struct stream *stream, const struct frame *frame,
                                bool is_space, struct error *err)
{
    struct item *item =
        frame->item >= 1 && frame->item <= stream->count ? stream->items[frame->item - 1] : NULL;
    if (!item || item->ended || (item->space != NULL) != is_space) {
        broken(err, frame, "no such item is open");
        return NULL;
    }
    return item;
}

static int image_frame_begin(struct receiver *receiver, struct item *item,
                             const struct frame *frame, struct error *err)
{
    if (frame->offset != item->bytes)
        return broken(err, frame, "an image is sent from its beginning to its end");
    int r = arena_append(&item->image, frame->length, &item->append_at);
    if (r < 0)
        receiver_refuse_errno(receiver, r, item->name);
    return 0;
}

static int pages_frame_begin(struct item *item, const struct frame *frame, struct error *err)
{
    if (frame->length == 0 || frame->length % PAGE_BYTES || frame->offset % PAGE_BYTES ||
        frame->flags & ~(PAGES_LAZY | PAGES_EXIST))
        return broken(err, frame, "not whole pages");
    digest_place(&item->digest, frame->offset, frame->length);
    item->run = (struct shadow_run){.vaddr = frame->offset};
    return 0;
}

/* Where byte |done| of a pages frame lies in the arena; refuses the snapshot if there is no room.
 */
static int pages_at(struct receiver *receiver, struct item *item, const struct frame *frame,
                    uint32_t done, uint64_t *ret_offset, size_t *ret_length, struct error *err)
{
    uint64_t vaddr = frame->offset + done;
    if (vaddr >= item->run.vaddr + item->run.pages * PAGE_BYTES) {
        unsigned flags = (frame->flags & PAGES_LAZY ? SHADOW_LAZY : 0) |
                         (frame->flags & PAGES_EXIST ? SHADOW_LISTED : 0);
        int r = shadow_place(item->space->shadow, vaddr, (frame->length - done) / PAGE_BYTES, flags,
                             &item->run);
        if (r == -EINVAL)
            return broken(err, frame, "no task has such an address");
        if (r < 0) {
            receiver_refuse_errno(receiver, r, "pages");
            return 0;
        }
    }
    *ret_offset = item->run.offset + (vaddr - item->run.vaddr);
    *ret_length = item->run.vaddr + item->run.pages * PAGE_BYTES - vaddr;
    return 0;
}

static void sink(struct receiver *receiver, const struct frame *frame, uint32_t done,
                 void **ret_place, size_t *ret_length)
{
    *ret_place = receiver->sink;
    *ret_length = MIN(SINK_BYTES, frame->length - done);
}

static bool is_list(const struct frame *frame)
{
    return frame->type == FRAME_PAGE_RUNS || frame->type == FRAME_PAGE_SUMS;
}

/* What is copied from: another open space. */
static struct item *copied_item(const struct stream *stream, const struct item *item,
                                const struct frame *frame)
{
    if (frame->offset == 0 || frame->offset > stream->count)
        return NULL;
    struct item *from = stream->items[frame->offset - 1];
    return from != item && from->space && !from->ended ? from : NULL;
}

static int list_frame_begin(struct stream *stream, struct item *item, const struct frame *frame,
                            struct error *err)
{
    bool runs = frame->type == FRAME_PAGE_RUNS, copies = runs && frame->flags == RUNS_COPY;
    if (frame->length % (runs ? WIRE_RUN_BYTES : WIRE_SUM_BYTES) ||
        (runs && !copies && frame->flags != RUNS_ZERO && frame->flags != RUNS_EXIST))
        return broken(err, frame, "not runs of pages");
    if (copies ? !copied_item(stream, item, frame) : frame->offset != 0)
        return broken(err, frame, "no such item is open");
    if (!stream->list)
        stream->list = malloc(WIRE_BULK_MAX);
    if (!stream->list)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a snapshot");
    digest_place(&item->digest, frame->flags, frame->length);
    return 0;
}

/* 0; -ENODATA when it is not there; or another negative errno. */
static int copy_page(struct item *from, struct item *to, uint64_t vaddr)
{
    uint64_t offset;
    struct shadow_run run;
    void *source, *place;
    size_t length = PAGE_BYTES;
    int r = shadow_find(from->space->shadow, vaddr, &offset);
    if (r <= 0)
        return r < 0 ? r : shadow_zero(to->space->shadow, vaddr, 1);
    r = arena_at(item_arena(from), &from->window, offset, &source, &length);
    if (r == 0)
        r = shadow_place(to->space->shadow, vaddr, 1, SHADOW_LAZY, &run);
    if (r == 0)
        r = arena_at(item_arena(to), &to->window, run.offset, &place, &length);
    if (r == 0)
        memcpy(place, source, PAGE_BYTES);
    return r;
}

static int copy_pages(struct item *from, struct item *to, uint64_t vaddr, uint64_t pages)
{
    int r = vaddr % PAGE_BYTES || pages == 0 ? -EINVAL : 0;
    for (uint64_t i = 0; i < pages && r == 0; i++)
        r = copy_page(from, to, vaddr + i * PAGE_BYTES);
    return r;
}

static int take_run(const struct stream *stream, struct item *item, const struct frame *frame,
                    uint64_t vaddr, uint64_t pages)
{
    switch (frame->flags) {
    case RUNS_ZERO:
        return shadow_zero(item->space->shadow, vaddr, pages);
    case RUNS_EXIST:
        return shadow_list(item->space->shadow, vaddr, pages);
    default:
        return copy_pages(copied_item(stream, item, frame), item, vaddr, pages);
    }
}

static int take_page_runs(struct receiver *receiver, const struct stream *stream, struct item *item,
                          const struct frame *frame, struct error *err)
{
    uint64_t left = WIRE_LIST_PAGES_MAX;
    for (uint32_t at = 0; at < frame->length; at += WIRE_RUN_BYTES) {
        uint64_t vaddr = get_le64(stream->list + at), pages = get_le64(stream->list + at + 8);
        if (pages > left)
            return broken(err, frame, "too many pages in one list");
        left -= pages;
        int r = take_run(stream, item, frame, vaddr, pages);
        if (r == -EINVAL)
            return broken(err, frame, "no task has such an address");
        if (r == -ENODATA)
            return broken(err, frame, "a copy of what has not come");
        if (r < 0) {
            receiver_refuse_errno(receiver, r, "pages");
            return 0;
        }
    }
    if (frame->flags == RUNS_COPY && stream != receiver->streams)
        arena_window_close(&copied_item(stream, item, frame)->window);
    return 0;
}

/* Adds a page as it is here.  0; -ENODATA: it is not here; or another negative errno. */
static int sum_page(struct item *item, uint64_t vaddr, struct digest *digest)
{
    static const uint8_t zeros[PAGE_BYTES];
    uint64_t offset;
    void *place = NULL;
    size_t length = PAGE_BYTES;
    int r = shadow_find(item->space->shadow, vaddr, &offset);
    if (r == 1)
        r = arena_at(item_arena(item), &item->window, offset, &place, &length);
    if (r == 0)
        digest_bytes(digest, place ? place : zeros, PAGE_BYTES);
    return r;
}

/* 1: they are what the digest says, 0: they are not, or a negative errno. */
static int check_sum(struct item *item, uint64_t vaddr, uint64_t pages, const uint8_t *expected)
{
    uint8_t is[DIGEST_BYTES];
    struct digest digest;
    int r = digest_begin(&digest);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < pages && r == 0; i++)
        r = sum_page(item, vaddr + i * PAGE_BYTES, &digest);
    digest_end(&digest, is);
    return r == -ENODATA ? 0 : r < 0 ? r : memcmp(is, expected, DIGEST_BYTES) == 0;
}

static int take_page_sums(struct receiver *receiver, const struct stream *stream, struct item *item,
                          const struct frame *frame, struct error *err)
{
    uint64_t left = WIRE_LIST_PAGES_MAX;
    for (uint32_t at = 0; at < frame->length; at += WIRE_SUM_BYTES) {
        const uint8_t *sum = stream->list + at;
        uint64_t vaddr = get_le64(sum), pages = get_le64(sum + 8);
        if (pages > left)
            return broken(err, frame, "too many pages in one list");
        left -= pages;
        if (pages == 0 || pages > WIRE_SUM_PAGES_MAX || vaddr % PAGE_BYTES)
            return broken(err, frame, "not runs of pages");
        int r = check_sum(item, vaddr, pages, sum + WIRE_RUN_BYTES);
        if (r == 1)
            continue;
        struct error wrong;
        error_set(&wrong, FAILURE_PEER,
                  "snapshot %s: task %llu: %llu pages at %#llx are not what they are at the source",
                  receiver->id, (unsigned long long)item->space->id, (unsigned long long)pages,
                  (unsigned long long)vaddr);
        if (r == 0)
            receiver_refuse(receiver, &wrong);
        else
            receiver_refuse_errno(receiver, r, "what is to be compared");
        return 0;
    }
    return 0;
}

int receiver_bulk_place(struct receiver *receiver, unsigned number, const struct frame *frame,
                        uint32_t done, void **ret_place, size_t *ret_length, struct error *err)
{
    if (receiver->refused) {
        sink(receiver, frame, done, ret_place, ret_length);
        return 0;
    }
    if (check_place(number, frame, err) < 0)
        return -1;
    struct stream *stream = &receiver->streams[number];
    bool is_space = frame->type != FRAME_IMAGE_DATA;
    struct item *item = stream_item(stream, frame, is_space, err);
    if (!item)
        return -1;
    stream_map_one(receiver, stream, item);
    if (is_list(frame)) {
        if (done == 0 && list_frame_begin(stream, item, frame, err) < 0)
            return -1;
        *ret_place = stream->list + done;
        *ret_length = frame->length - done;
        return 0;
    }
    if (done == 0 && (is_space ? pages_frame_begin(item, frame, err)
                               : image_frame_begin(receiver, item, frame, err)) < 0)
        return -1;

    /* A refusal on the way frees the item: then the rest of the frame is swallowed. */
    uint64_t offset = 0;
    size_t length = frame->length - done;
    if (is_space && pages_at(receiver, item, frame, done, &offset, &length, err) < 0)
        return -1;
    if (!is_space && !receiver->refused)
        offset = item->append_at + done;
    if (!receiver->refused) {
        int r = arena_at(item_arena(item), &item->window, offset, ret_place, &length);
        *ret_length = length;
        if (r == 0)
            return 0;
        receiver_refuse_errno(receiver, r, is_space ? "pages" : item->name);
    }
    sink(receiver, frame, done, ret_place, ret_length);
    return 0;
}

int receiver_bulk_landed(struct receiver *receiver, unsigned number, const struct frame *frame,
                         uint32_t done, const void *place, size_t length, struct error *err)
{
    if (receiver->refused)
        return 0;
    struct stream *stream = &receiver->streams[number];
    struct item *item = stream_item(stream, frame, frame->type != FRAME_IMAGE_DATA, err);
    if (!item)
        return -1;
    digest_bytes(&item->digest, place, length);
    item->bytes += length;
    if (!is_list(frame) || done + length < frame->length)
        return 0;
    return frame->type == FRAME_PAGE_RUNS ? take_page_runs(receiver, stream, item, frame, err)
                                          : take_page_sums(receiver, stream, item, frame, err);
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
        return broken(err, frame, "a digest has 16 bytes");
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
    struct item *item = stream_item(stream, frame, frame->type == FRAME_SPACE_END, err);
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

/* Number of pages in a pages image, by its length. */
static int check_pages(int imagefd, uint32_t pages_id, uint64_t present, struct error *err)
{
    char name[32];
    struct stat st = {0};
    snprintf(name, sizeof(name), "pages-%u.img", pages_id);
    if (fstatat(imagefd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 && present > 0)
        return error_set_errno(err, FAILURE_CRIU, errno, "%s", name);
    if ((uint64_t)st.st_size != present * PAGE_BYTES)
        return error_set(err, FAILURE_CRIU, "%s has %llu bytes and its pagemap %llu pages", name,
                         (unsigned long long)st.st_size, (unsigned long long)present);
    return 0;
}

/* 1: it is good, and only criu 4.2 can read it; 0: it is good; -1 with *err. */
static int check_pagemap(int imagefd, const uint8_t *bytes, size_t length, struct error *err)
{
    struct pagemap_reader reader;
    struct pagemap_run run;
    uint32_t pages_id;
    if (pagemap_read_begin(&reader, bytes, length, &pages_id, err) < 0)
        return -1;
    uint64_t present = 0;
    int r;
    while ((r = pagemap_read_next(&reader, &run, err)) > 0) {
        if (run.flags & PAGEMAP_PARENT)
            return error_set(err, FAILURE_CRIU, "pages are missing: they are in a parent's images");
        if (!(run.flags & PAGEMAP_PRESENT))
            return error_set(err, FAILURE_CRIU,
                             "pages are missing: they were to be fetched lazily");
        present += run.pages;
    }
    if (r < 0 || check_pages(imagefd, pages_id, present, err) < 0)
        return -1;
    return reader.wide;
}

/* Writes a pagemap, which has been checked, in the form that all releases read.  0 or a negative
 * errno. */
static int rewrite_pagemap(int imagefd, const char *name, const uint8_t *bytes, size_t length)
{
    static const char fresh[] = "pagemap.new";
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t pages_id;
    _cleanup_close_ int fd =
        openat(imagefd, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || pagemap_read_begin(&reader, bytes, length, &pages_id, &err) < 0)
        return fd < 0 ? -errno : -EPROTO;
    struct pagemap_writer *writer = pagemap_begin(fd, pages_id);
    if (!writer)
        return -ENOMEM;
    while (pagemap_read_next(&reader, &run, &err) > 0)
        pagemap_add(writer, &run);
    int r = pagemap_finish(writer);
    return r < 0 || renameat(imagefd, fresh, imagefd, name) == 0 ? r : -errno;
}

/*
 * Pages that came as plain images (criu --stream, godwit import) are kept by task and address as
 * well: their own pagemap says where, and it has to agree with what is there.
 */
static int receiver_check_pagemap(struct receiver *receiver, const char *name, struct error *err)
{
    struct stat st;
    int imagefd = receiver->snapshot->imagefd;
    _cleanup_close_ int fd = openat(imagefd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", name);
    if (st.st_size == 0 || (uint64_t)st.st_size > PAGEMAP_IMAGE_MAX)
        return error_set(err, FAILURE_CRIU, "%s: no pagemap has %lld bytes", name,
                         (long long)st.st_size);
    size_t length = (size_t)st.st_size;
    void *bytes = mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", name);
    int r = check_pagemap(imagefd, bytes, length, err);
    if (r > 0) {
        r = rewrite_pagemap(imagefd, name, bytes, length);
        if (r < 0)
            error_set_errno(err, FAILURE_SYSTEM, r, "writing it anew");
    }
    munmap(bytes, length);
    return r < 0 ? error_prefix(err, "%s", name) : 0;
}

static bool is_pagemap_name(const char *name)
{
    return strncmp(name, "pagemap-", 8) == 0;
}

static int receiver_check_images(struct receiver *receiver, struct error *err)
{
    const struct stream *stream = &receiver->streams[0];
    for (uint32_t i = 0; i < stream->count; i++) {
        const struct item *item = stream->items[i];
        if (!item->space && is_pagemap_name(item->name) &&
            receiver_check_pagemap(receiver, item->name, err) < 0)
            return error_prefix(err, "snapshot %s", receiver->id);
    }
    return 0;
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
        return broken(err, frame, "it does not sum up what was sent");
    unsigned joined = 0, ended = 1;
    for (unsigned i = 0; i < receiver->stream_count; i++) {
        joined += receiver->streams[i].joined;
        ended += receiver->streams[i].ended;
    }
    if (joined < receiver->stream_count)
        return broken(err, frame, "not all data connections have come");
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
        return broken(err, frame, "a second time");
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
    if (check_place(number, frame, err) < 0)
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
            return broken(err, frame, "behind its end");
        return takes[i].take(receiver, stream, frame, message, err);
    }
    return broken(err, frame, "not in a snapshot");
}
