/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One snapshot on its way in: the destination's half of a session on the link.
 *
 *   images ──▶ one file each              ┐
 *   pages  ──▶ arena of a shadow          ├──▶ at the end: every digest agrees, pagemaps written,
 *              (pages-N.img)              ┘    the directory is what `criu restore -D` reads
 *
 * Memory may come over several connections, the streams of a session: number 0 is its own, and the
 * others have joined it by a token.  What comes of one address comes over one of them, so nothing
 * waits for anything before the end: each stream has items, digests and sums of its own, and what
 * is of the whole snapshot happens when all have brought it.
 *
 * Everything here comes from the network and is checked against the state, against limits and
 * against the budget before memory is touched.  What a well-meaning source can run into (no
 * memory, an id that is taken, damage) refuses the snapshot and leaves the link alone; a source
 * that breaks the protocol loses its link.
 */
#include "store/store.h"
#include "wire/link.h"

struct receiver;

struct receiver_ops {
    /* Whether a snapshot that wants to be restored here and now is welcome.  0, or -1 with *err
     * set. NULL: none is. */
    int (*admit)(const Godwit__Pb__SnapshotBegin *begin, void *user, struct error *err);
    /* The source is about to stop the process: what the restore takes may be got ready, if it is to
     * be restored here.  held() or dropped() will follow. */
    void (*freezing)(struct receiver *receiver, struct snapshot *snapshot, void *user);
    /* Whole, checked and written down as HELD, or PRE_DUMPED; the acknowledgement is on its way. */
    void (*held)(struct receiver *receiver, struct snapshot *snapshot, void *user);
    /* Refused or aborted; the snapshot is gone, and what was got ready for it has to go.  err->text
     * tells why. */
    void (*dropped)(struct receiver *receiver, const char *id, const struct error *err, void *user);
};

/* Answers a FRAME_SNAPSHOT_BEGIN.  A snapshot that cannot be is refused at once and the receiver
 * then only swallows what is on its way.  The link outlives it.  NULL with *err set: the link goes
 * down. */
struct receiver *receiver_new(struct store *store, struct link *link, const char *host,
                              const struct frame *frame, const uint8_t *payload,
                              const struct receiver_ops *ops, void *user, struct error *err);

/* Drops a snapshot that is not whole. */
struct receiver *receiver_free(struct receiver *receiver);

uint32_t receiver_session(const struct receiver *receiver);

/* Whether it is done and is to be freed: ended, or aborted by the source. */
bool receiver_is_over(const struct receiver *receiver);

/* Whether this is the token of a session that waits for data connections; takes the same time for
 * any that is not. */
bool receiver_has_token(const struct receiver *receiver, uint32_t session,
                        const uint8_t token[WIRE_TOKEN_BYTES]);

/* A link becomes stream |stream|, until receiver_stream_down() or receiver_free().  0, or -1 with
 * *err set: there is no such stream, or it is there already. */
int receiver_join(struct receiver *receiver, unsigned stream, struct link *link, struct error *err);

/* As in struct link_ops, for the frames of one stream. */
int receiver_control(struct receiver *receiver, unsigned stream, const struct frame *frame,
                     const uint8_t *payload, struct error *err);
int receiver_bulk_place(struct receiver *receiver, unsigned stream, const struct frame *frame,
                        uint32_t done, void **ret_place, size_t *ret_length, struct error *err);
int receiver_bulk_landed(struct receiver *receiver, unsigned stream, const struct frame *frame,
                         uint32_t done, const void *place, size_t length, struct error *err);

/* The session's link is gone: tells dropped() if the snapshot was not whole. */
void receiver_link_down(struct receiver *receiver, const struct error *err);

/* The link of a stream behind the first is gone: refuses the snapshot unless the stream had come to
 * its end. */
void receiver_stream_down(struct receiver *receiver, unsigned stream, const struct error *err);
