/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The data connections of a source: the streams of a session behind the first, which is its own
 * link.
 *
 *   dialled as the link was ──▶ handshake ──▶ stream-join, with the token ──▶ stream-joined
 *
 * Each is a link of its own, with its own silence.  One that is lost before all of them are closed
 * is the end of the session.  All calls on the loop's thread.
 */
#include <systemd/sd-event.h>

#include "wire/link.h"
#include "wire/target.h"

struct streams;

struct streams_request {
    const struct target *target;         /* outlives the streams */
    const struct protection *protection; /* outlives them too */
    uint64_t silence_usec;
    unsigned count; /* of the streams, the session's own link among them */
    uint32_t session;
    const uint8_t *token; /* WIRE_TOKEN_BYTES */
};

struct streams_ops {
    /* All have joined. */
    void (*joined)(struct streams *streams, void *user);
    /* One could not be made, or is lost.  At most once, from the loop; streams_close() follows. */
    void (*lost)(struct streams *streams, const struct error *err, void *user);
};

/* Begins to dial.  NULL with *err set. */
struct streams *streams_open(sd_event *event, const struct streams_request *request,
                             const struct streams_ops *ops, void *user, struct error *err);

/* The link of stream 1, 2, ..., once all have joined. */
struct link *streams_link(const struct streams *streams, unsigned stream);

/* Remembers what is queued now as the last that matters; and whether all of that has reached the
 * other host. */
void streams_mark_end(struct streams *streams);
bool streams_are_delivered(const struct streams *streams);

/* They are not used any more: says goodbye on all, soon, and from the loop, so that a link may be
 * the caller.  Nothing is told any more.  Takes NULL. */
void streams_close(struct streams *streams, const struct error *reason);

/* The same at once, not from inside a link; closed or not.  Takes NULL, returns NULL. */
struct streams *streams_free(struct streams *streams);
