/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A snapshot that arrives, for the files that are about one: receiver.c is its life,
 * receiver_data.c what comes of images and of memory.
 */
#include "base/digest.h"
#include "migrate/receiver.h"

enum { SINK_BYTES = 64 << 10 }; /* where what is not wanted any more lands */

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

/*
 * The snapshot is not going to be: the source is told why, and what else it sends is swallowed.
 * All items are gone then.
 */
void receiver_refuse(struct receiver *receiver, const struct error *err);

/* The same for a negative errno. */
void receiver_refuse_errno(struct receiver *receiver, int error_number, const char *what);

/* The peer does not keep to the protocol: the link ends.  -1, with *err set. */
int receiver_broken(struct error *err, const struct frame *frame, const char *what);

/* Whether a frame may come over the stream of that number.  0, or -1 with *err set. */
int receiver_check_place(unsigned number, const struct frame *frame, struct error *err);

/* Where the bytes of an item are. */
struct arena *item_arena(struct item *item);

/*
 * An item of that stream is going to be written to.  Of many tasks over many connections the
 * windows would be more than a process may map; and a data connection brings one task after the
 * other.
 */
void stream_map_one(struct receiver *receiver, struct stream *stream, struct item *item);

/* The item that a frame of this stream is for: an image, or with is_space memory.  NULL with *err
 * set: it is not open. */
struct item *receiver_item(const struct stream *stream, const struct frame *frame, bool is_space,
                           struct error *err);
