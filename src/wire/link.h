/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A link: one connection between a proxy and a cache, served by an sd-event loop.  What carries its
 * bytes is a transport: a stream socket, or TLS on one.
 *
 *       control frames ──▶ queue ──┐
 *                                  ├──▶ socket ──▶ ┬──▶ control(): whole message
 *       sources, in turn ──▶ batch ┘               └──▶ bulk_place() / bulk_landed(): in place
 *
 * Sending: control frames go before data that has not been drawn yet, never before data that has.
 * Data is drawn, not pushed: whoever has some makes its link_source ready, and when the socket
 * takes more the link asks one ready source after the other for a batch.  So the memory of a link
 * is one batch, however fast the sources are.
 *
 * Receiving: the payload of a data frame is received where bulk_place() says, with no copy between.
 *
 * Silence is failure: each side sends a heartbeat when it has nothing else to say, and calls the
 * other dead when nothing came, or nothing that was to go out was taken, for silence_usec.
 *
 * All calls are made on the loop's thread.  A link never frees itself under its caller: down() is
 * called from the loop only, once, and after it nothing else.
 */
#include <sys/uio.h>
#include <systemd/sd-event.h>

#include "wire/frame.h"
#include "wire/message.h"
#include "wire/transport.h"

struct link;
struct link_source;

enum {
    LINK_BATCH_BYTES = 1 << 20,
    LINK_BATCH_FRAMES = 256,
};

/* What a source gives in one turn: frames whose payloads lie all in |buf|, or all in memory of the
 * source that stays as it is until its next turn or its removal. */
struct link_batch {
    uint8_t *buf; /* LINK_BATCH_BYTES of scratch that is the source's for this turn; page-aligned */
    size_t bytes; /* of payload so far, at most LINK_BATCH_BYTES */
    unsigned frames;
    uint8_t headers[LINK_BATCH_FRAMES][WIRE_HEADER_BYTES];
    struct iovec iov[2 * LINK_BATCH_FRAMES];
};

/* Adds a frame with frame->length bytes at payload.  False when it does not fit. */
bool link_batch_add(struct link_batch *batch, const struct frame *frame, const void *payload);

/*
 * Somebody with data.  fill() puts what it has into the batch without blocking and returns true to
 * be asked again, or false when it has nothing now and will call link_source_ready() later.  It may
 * send control frames on the link and may remove the source.  Frames of the batch go out before
 * those control frames.
 */
struct link_source {
    bool (*fill)(struct link_source *source, struct link_batch *batch);
    /* the link's: */
    struct link *link; /* that has it in hand: listed, filling, or with its batch in flight */
    bool ready;
    struct link_source *next, *prev;
};

struct link_ops {
    unsigned peer; /* what it is: SENT_BY_SOURCE, SENT_BY_CACHE, or either */

    /* The handshake is over.  hello is valid during the call. */
    void (*up)(struct link *link, const Godwit__Pb__Hello *hello, void *user);

    /* A control frame, payload whole.  Negative: the link goes down with *err. */
    int (*control)(struct link *link, const struct frame *frame, const uint8_t *payload, void *user,
                   struct error *err);

    /* Where the data from byte |done| of this frame goes: sets *ret_place and a length of at most
     * the rest of the frame, both valid until bulk_landed() or link_forget_place().  Asked once for
     * each piece.  NULL, both: of a peer that sends none. */
    int (*bulk_place)(struct link *link, const struct frame *frame, uint32_t done, void **ret_place,
                      size_t *ret_length, void *user, struct error *err);

    /* |length| bytes have landed there. */
    int (*bulk_landed)(struct link *link, const struct frame *frame, uint32_t done,
                       const void *place, size_t length, void *user, struct error *err);

    /* The link is dead: err tells why, code FAILURE_NONE when the peer said goodbye. */
    void (*down)(struct link *link, const struct error *err, void *user);
};

/*
 * Takes over a transport (NULL: there was no memory for one) and starts the handshake.  The ops and
 * user outlive the link.  Returns NULL with errno set; the transport is freed then.
 */
struct link *link_new_on(sd_event *event, struct transport *transport, uint64_t silence_usec,
                         const struct link_ops *ops, void *user);

/* The same for fd, a connected stream socket (TCP, UNIX or inherited), as it is. */
struct link *link_new(sd_event *event, int fd, uint64_t silence_usec, const struct link_ops *ops,
                      void *user);

/* Closes at once.  down() is not called.  Sources are removed before.  Takes NULL, returns NULL. */
struct link *link_free(struct link *link);

/* Whether the handshake is over and down() has not been called. */
bool link_is_up(const struct link *link);

/* What carries it; NULL once it is down. */
const struct transport *link_transport(const struct link *link);

/*
 * How far the peer is: link_position() is where what is queued now ends, link_delivered() how much
 * has reached the peer's host (TCP) or the peer (UNIX); both count bytes since the link began.
 */
uint64_t link_position(const struct link *link);
uint64_t link_delivered(const struct link *link);

/* The minor number of the protocol that the peer speaks; once the link is up. */
unsigned link_peer_minor(const struct link *link);

/* Queues a control frame; message may be NULL (no payload).  What cannot be queued (no memory, a
 * peer that takes nothing) takes the link down. */
void link_send(struct link *link, uint16_t type, uint32_t session, uint32_t item,
               const ProtobufCMessage *message);

/* Sends Failure as FRAME_GOODBYE if the socket takes it at once, then takes the link down. */
void link_goodbye(struct link *link, const struct error *err);

/* Puts a source into, or takes it out of, the round.  Both may be called at any time, and after the
 * removal the link does not touch the source or its memory any more. */
void link_source_ready(struct link *link, struct link_source *source);
void link_source_remove(struct link_source *source);

/* The place that was given last is no more: if nothing has landed there yet, it is asked for again.
 */
void link_forget_place(struct link *link);

/* Bytes of the link in each direction, headers included. */
uint64_t link_bytes_sent(const struct link *link);
uint64_t link_bytes_received(const struct link *link);
