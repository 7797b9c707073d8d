/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the doors of a sender have in common (see migrate/sender.h); for them only.
 *
 *   sender.c     directory door, pipes
 *   page_door.c  criu's page-server connection
 *   rounds.c     memory of running tasks
 *
 * A door is a source of the link: it is asked for a batch, and removes itself when it is done.
 *
 * Memory may leave over several connections, the streams of the session: number 0 is its own link,
 * which carries everything else.  Which of them a page takes depends on its address alone, so what
 * comes of one address stays in order, whatever the streams do to one another, and a page that is
 * told to be that of another space, at the same address, finds it there.
 */
#include "base/digest.h"
#include "migrate/sender.h"
#include "task/memory.h"
#include "task/page_hashes.h"

enum { SPACES_MAX = 1 << 16 }; /* tasks and shared objects of one snapshot */

/* What follows one another in the address space takes the same stream, as much as a frame carries.
 */
#define STRETCH_BYTES ((uint64_t)LINK_BATCH_BYTES)

/* What is being sent under one item number. */
struct item {
    uint32_t number;
    uint64_t bytes;
    struct digest digest;
};

/* Memory by address; open until the snapshot ends, whatever door its pages come through. */
struct space {
    enum space_kind kind;
    uint64_t id;
    bool listed;           /* its pages that exist have been told */
    struct page_runs criu; /* what criu has sent of it, if that is wanted */
    bool keep_criu;        /* it is */
    bool based;            /* it began as what the parent has */
    /* Shared memory: of what criu sends only that is sent which is not what was sent in the rounds.
     * NULL: nothing was.  What criu tells is noted there. */
    struct page_hashes *sent;
    struct item items[]; /* one of each stream */
};

/* One of the session's connections. */
struct stream {
    struct link *link;
    uint32_t last_item;
    uint64_t bytes; /* of items that have ended */
};

struct page_door;
struct directory_door;
struct pipe_door;
struct rounds;

struct sender {
    sd_event *event;
    struct stream streams[WIRE_STREAMS_MAX]; /* the first is the session's link; NULL: it is gone */
    unsigned stream_count;
    uint8_t token[WIRE_TOKEN_BYTES]; /* for the others, if the cache has given one */
    bool has_token;
    uint32_t session;
    enum sender_state state;
    struct error error;
    const struct sender_ops *ops;
    void *user;

    struct page_door *pages;
    struct rounds *rounds;
    struct directory_door *directory;
    struct pipe_door *pipes;
    bool finishing, inventory, end_sent;

    struct space **spaces;
    size_t space_count, space_room;

    uint32_t images;
};

/* The link that carries what is not memory. */
static inline struct link *sender_link(const struct sender *sender)
{
    return sender->streams[0].link;
}

/* The stream that an address takes; and how many of the pages from there on, at most |pages|, take
 * the same. */
static inline unsigned stream_of(const struct sender *sender, uint64_t vaddr)
{
    return (unsigned)(vaddr / STRETCH_BYTES % sender->stream_count);
}

static inline uint64_t stream_pages(const struct sender *sender, uint64_t vaddr, uint64_t pages)
{
    uint64_t stretch = (STRETCH_BYTES - vaddr % STRETCH_BYTES) / PAGE_BYTES;
    return sender->stream_count == 1 ? pages : MIN(pages, stretch);
}

/* Memory for a door behind |fd|.  NULL with errno set, and the descriptor is closed. */
void *door_new(const struct sender *sender, size_t size, int fd);

enum space_want {
    SPACE_IF_BEGUN,
    SPACE_MAKE,  /* begin it if it is new: as an empty one, */
    SPACE_BASED, /* or as what the parent of the snapshot has of it */
};

/* The space.  NULL: there is none; with errno, when one was to be made. */
struct space *sender_space(struct sender *sender, enum space_kind kind, uint64_t id,
                           enum space_want want);

/* Adds frames of a space to a batch of a stream.  False when there is no room for them. */
bool space_add_pages(struct sender *sender, unsigned stream, struct space *space,
                     struct link_batch *batch, uint64_t vaddr, const void *payload, uint64_t pages,
                     uint16_t flags);
bool space_add_list(struct sender *sender, unsigned stream, struct space *space,
                    struct link_batch *batch, enum frame_type type, uint16_t flags,
                    const uint8_t *list, size_t bytes);
bool space_add_copies(struct sender *sender, unsigned stream, struct space *space,
                      struct link_batch *batch, const struct space *of, const uint8_t *list,
                      size_t bytes);

/* A door has closed: ends the snapshot if that was the last. */
void sender_check_end(struct sender *sender);
void sender_fail_errno(struct sender *sender, int error_number, const char *what);

struct page_door *page_door_free(struct page_door *door);

/* The sender is done, or has failed: the link is not touched any more. */
struct rounds *rounds_door_close(struct rounds *rounds);
bool rounds_door_is_busy(const struct rounds *rounds);
