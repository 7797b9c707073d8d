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
 */
#include "base/digest.h"
#include "migrate/sender.h"
#include "task/memory.h"

enum { SPACES_MAX = 1 << 16 }; /* tasks and shared objects of one snapshot */

/* What is being sent under one item number. */
struct item {
    uint32_t number;
    uint64_t bytes;
    struct digest digest;
};

enum space_kind { SPACE_TASK = 1, SPACE_SHARED };

/* Memory by address; open until the snapshot ends, whatever door its pages come through. */
struct space {
    enum space_kind kind;
    uint64_t id;
    bool listed;           /* its pages that exist have been told */
    struct page_runs criu; /* what criu has sent of it, if that is wanted */
    bool keep_criu;        /* it is */
    struct item item;
};

struct page_door;
struct directory_door;
struct pipe_door;
struct rounds;

struct sender {
    sd_event *event;
    struct link *link;
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

    uint32_t last_item, images;
    uint64_t bytes; /* of items that have ended */
};

/* Memory for a door behind |fd|.  NULL with errno set, and the descriptor is closed. */
void *door_new(const struct sender *sender, size_t size, int fd);

/* The space, begun if it is new and |make|.  NULL: there is none; with errno, when one was to be
 * made. */
struct space *sender_space(struct sender *sender, enum space_kind kind, uint64_t id, bool make);

/* Adds frames of a space to a batch.  False when there is no room for them. */
bool space_add_pages(struct sender *sender, struct space *space, struct link_batch *batch,
                     uint64_t vaddr, const void *payload, uint64_t pages, uint16_t flags);
bool space_add_list(struct sender *sender, struct space *space, struct link_batch *batch,
                    enum frame_type type, uint16_t flags, const uint8_t *list, size_t bytes);
bool space_add_copies(struct sender *sender, struct space *space, struct link_batch *batch,
                      const struct space *of, const uint8_t *list, size_t bytes);

/* A door has closed: ends the snapshot if that was the last. */
void sender_check_end(struct sender *sender);
void sender_fail_errno(struct sender *sender, int error_number, const char *what);

struct page_door *page_door_free(struct page_door *door);

/* The sender is done, or has failed: the link is not touched any more. */
struct rounds *rounds_door_close(struct rounds *rounds);
bool rounds_door_is_busy(const struct rounds *rounds);
