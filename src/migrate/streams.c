/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/streams.h"

/* One data connection. */
struct connection {
    struct streams *streams;
    unsigned stream; /* its number, from 1 */
    struct dial *dial;
    struct link *link;
    bool joined;
    uint64_t end_at; /* where on the link ends what matters */
};

struct streams {
    sd_event_source *closing;
    sd_event *event;
    uint64_t silence_usec;
    uint32_t session;
    uint8_t token[WIRE_TOKEN_BYTES];
    const struct streams_ops *ops;
    void *user;
    bool closed;         /* nothing is told any more */
    struct error reason; /* of that */
    unsigned count;      /* of connections */
    struct connection connections[WIRE_STREAMS_MAX - 1];
};

static void streams_lose(struct connection *connection, const struct error *err)
{
    struct streams *streams = connection->streams;
    if (streams->closed)
        return;
    struct error reason = *err;
    if (reason.code == FAILURE_NONE)
        error_set(&reason, FAILURE_PEER, "the image-cache ended it");
    error_prefix(&reason, "data connection %u", connection->stream);
    streams->closed = true;
    streams->ops->lost(streams, &reason, streams->user);
}

/* ---- their links ---- */

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)hello;
    const struct connection *connection = user;
    struct streams *streams = connection->streams;
    Godwit__Pb__StreamJoin join = GODWIT__PB__STREAM_JOIN__INIT;
    join.token = (ProtobufCBinaryData){WIRE_TOKEN_BYTES, streams->token};
    join.stream = connection->stream;
    link_send(link, FRAME_STREAM_JOIN, streams->session, 0, &join.base);
}

static bool all_have_joined(const struct streams *streams)
{
    for (unsigned i = 0; i < streams->count; i++) {
        if (!streams->connections[i].joined)
            return false;
    }
    return true;
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    (void)payload;
    struct connection *connection = user;
    struct streams *streams = connection->streams;
    if (frame->type != FRAME_STREAM_JOINED || connection->joined)
        return error_set(err, FAILURE_PEER,
                         "the peer broke the protocol: %s frame on a data connection",
                         frame_name(frame->type));
    connection->joined = true;
    if (!streams->closed && all_have_joined(streams))
        streams->ops->joined(streams, streams->user);
    return 0;
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct connection *connection = user;
    struct error reason = *err;
    dial_explain(connection->dial, &reason);
    streams_lose(connection, &reason);
    connection->link = link_free(connection->link);
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_CACHE,
    .up = on_up,
    .control = on_control,
    .down = on_down,
};

/* ---- dialling ---- */

static void on_failed(struct dial *dial, const struct error *err, void *user)
{
    (void)dial;
    streams_lose(user, err);
}

static void on_connected(struct dial *dial, struct transport *transport, void *user)
{
    (void)dial;
    struct connection *connection = user;
    const struct streams *streams = connection->streams;
    connection->link =
        link_new_on(streams->event, transport, streams->silence_usec, &link_ops, connection);
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, ENOMEM, "a link");
    if (!connection->link)
        streams_lose(connection, &err);
}

static const struct dial_ops dial_ops = {.connected = on_connected, .failed = on_failed};

struct streams *streams_open(sd_event *event, const struct streams_request *request,
                             const struct streams_ops *ops, void *user, struct error *err)
{
    struct streams *streams = calloc(1, sizeof(*streams));
    if (!streams) {
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "data connections");
        return NULL;
    }
    streams->event = sd_event_ref(event);
    streams->silence_usec = request->silence_usec;
    streams->session = request->session;
    streams->ops = ops;
    streams->user = user;
    for (size_t i = 0; i < WIRE_TOKEN_BYTES; i++)
        streams->token[i] = request->token[i];
    while (streams->count + 1 < request->count) {
        struct connection *connection = &streams->connections[streams->count++];
        connection->streams = streams;
        connection->stream = streams->count;
        connection->dial = dial_new(event, request->target, request->protection,
                                    request->silence_usec, &dial_ops, connection);
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "data connections");
        if (!connection->dial || dial_begin(connection->dial, err) < 0)
            return streams_free(streams);
    }
    return streams;
}

/* ---- their end ---- */

struct link *streams_link(const struct streams *streams, unsigned stream)
{
    return streams->connections[stream - 1].link;
}

void streams_mark_end(struct streams *streams)
{
    for (unsigned i = 0; i < streams->count; i++) {
        struct connection *connection = &streams->connections[i];
        connection->end_at = connection->link ? link_position(connection->link) : 0;
    }
}

bool streams_are_delivered(const struct streams *streams)
{
    for (unsigned i = 0; i < streams->count; i++) {
        const struct connection *connection = &streams->connections[i];
        if (connection->link && link_delivered(connection->link) < connection->end_at)
            return false;
    }
    return true;
}

static void hang_up(struct streams *streams)
{
    for (unsigned i = 0; i < streams->count; i++) {
        struct connection *connection = &streams->connections[i];
        if (connection->link)
            link_goodbye(connection->link, &streams->reason);
        connection->link = link_free(connection->link);
    }
}

static int on_closing(sd_event_source *source, void *user)
{
    (void)source;
    hang_up(user);
    return 0;
}

void streams_close(struct streams *streams, const struct error *reason)
{
    if (!streams || streams->closing)
        return;
    streams->closed = true;
    streams->reason = *reason;
    /* Without memory for that they stay until they are freed. */
    if (sd_event_add_defer(streams->event, &streams->closing, on_closing, streams) < 0)
        streams->closing = NULL;
}

struct streams *streams_free(struct streams *streams)
{
    if (!streams)
        return NULL;
    sd_event_source_disable_unref(streams->closing);
    hang_up(streams);
    for (unsigned i = 0; i < streams->count; i++)
        dial_free(streams->connections[i].dial);
    sd_event_unref(streams->event);
    free(streams);
    return NULL;
}
