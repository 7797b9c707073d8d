/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One snapshot on its way out: the source's half of a session on the link.
 *
 *   page door (criu's page-server connection) ──▶ one space per task or shared object ──┐
 *   directory door (criu's images, after the dump) ──▶ images ──────────────────────────┼─▶ link
 *   pipes (criu --stream) ──▶ images ───────────────────────────────────────────────────┘
 *
 *   BEGUN ──▶ SENDING ──▶ ENDING ──▶ ACKED
 *     └──────────┴──────────┴──▶ FAILED
 *
 * BEGUN waits for the cache's accept, ENDING for its acknowledgement, which means: every image and
 * every page is there and its digest agrees.  What becomes of the process then, and the verdict
 * that follows, is the owner's.  All calls on the loop's thread; changed() is called from the loop
 * or from inside sender_fail(), and the owner may free the sender in it only through its own later
 * event.
 */
#include "wire/link.h"

enum sender_state { SENDER_BEGUN, SENDER_SENDING, SENDER_ENDING, SENDER_ACKED, SENDER_FAILED };

struct sender;

struct sender_ops {
    void (*changed)(struct sender *sender, void *user);
};

/* Announces the snapshot.  Strings are borrowed for the call.  NULL with errno set. */
struct sender *sender_new(sd_event *event, struct link *link, uint32_t session,
                          const Godwit__Pb__SnapshotBegin *begin, const struct sender_ops *ops,
                          void *user);
struct sender *sender_free(struct sender *sender);

/* What the accept has told for data connections, WIRE_TOKEN_BYTES; NULL: it takes none. */
const uint8_t *sender_token(const struct sender *sender);

/* Memory goes over this link as well, which has joined the session as stream 1, 2, ...  When
 * SENDING has been entered, and before anything is opened; the link outlives ACKED or FAILED. */
void sender_add_stream(struct sender *sender, struct link *link);

/* Whose memory a space is. */
enum space_kind { SPACE_TASK = 1, SPACE_SHARED };

/* What a page door is told of the snapshot that its criu makes by itself. */
struct page_door_ops {
    /* Whether the snapshot that this one is based on has that. */
    bool (*has_parent)(enum space_kind kind, uint64_t id, void *user);
    /* criu asks whether there is a parent: a pre-dump. */
    void (*is_pre_dump)(void *user);
    /* criu has sent all, and waits for four bytes of status on the descriptor, which is the
     * callee's from now on. */
    void (*closed)(int fd, void *user);
};

/* The three doors.  -EPROTO when the sender takes no more: it is finishing, has failed, or the link
 * is gone.
 *
 * Serves criu's page-server connection, a stream socket, which is taken over.  With ops all pages
 * that criu tells of exist, and those that it leaves to the parent are there already; without,
 * there is no parent, and criu is told at once that all is well. */
int sender_open_page_door(struct sender *sender, int fd, const struct page_door_ops *ops,
                          void *user);

/* Begins a space as what the parent has.  0, or a negative errno. */
int sender_add_based(struct sender *sender, enum space_kind kind, uint64_t id);

/* Sends every file of a directory, one after the other.  The descriptor is taken over. */
int sender_open_directory(struct sender *sender, int dirfd);

/* Sends what comes out of a pipe as an image of that name; the pipe is taken over. */
int sender_open_pipe(struct sender *sender, const char *name, int fd);

/* Nothing more will be opened: the snapshot ends when all that is open has ended. */
void sender_finish(struct sender *sender);

/* Gives up, tells the cache unless the snapshot's end has been sent (then a verdict has to), and
 * lets criu feel it: its page connection and pipes are closed. */
void sender_fail(struct sender *sender, const struct error *err);

/* The link's frames for this session, and its end. */
int sender_control(struct sender *sender, const struct frame *frame, const uint8_t *payload,
                   struct error *err);
void sender_link_down(struct sender *sender, const struct error *err);

enum sender_state sender_state(const struct sender *sender);
const struct error *sender_error(const struct sender *sender); /* once FAILED */
uint32_t sender_session(const struct sender *sender);
uint64_t sender_bytes(const struct sender *sender); /* of images and pages so far */

/* Whether the cache may have the snapshot whole: its end has been sent, and no refusal came back.
 * Also once FAILED. */
bool sender_end_is_sent(const struct sender *sender);

/* Whether an image of this name has been opened: criu writes inventory.img last. */
bool sender_has_inventory(const struct sender *sender);
