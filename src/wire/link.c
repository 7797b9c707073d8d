/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/utsname.h>

#include "base/hidden.h"

enum {
    RX_LOOK_AHEAD = 4096, /* read beyond what is needed now */
    RX_BYTES = WIRE_CONTROL_MAX + WIRE_HEADER_BYTES + RX_LOOK_AHEAD,
    QUEUE_MAX = 8 << 20,   /* control bytes waiting to leave */
    LOW_WATER = 256 << 10, /* worth to be woken for, in the midst of data */
    TURN_BYTES = 8 << 20,  /* per event, then others' turn; */
    TURN_USEC = 20000,     /* or after that time: few bytes may mean much work */
};

enum link_state {
    LINK_STARTING, /* the transport is not up */
    LINK_PREAMBLE, /* waiting for the peer's preamble */
    LINK_HELLO,    /* waiting for its hello */
    LINK_UP,
    LINK_DOWN,
};

struct link {
    sd_event *event;
    sd_event_source *io, *timer, *last_word;
    struct transport *transport; /* NULL once LINK_DOWN */
    enum link_state state;
    const struct link_ops *ops;
    void *user;
    struct error failure; /* once LINK_DOWN */

    uint64_t silence_usec;      /* ours: after that long the peer is dead */
    uint64_t peer_silence_usec; /* the peer's: it has to hear from us well before */
    uint64_t started;
    uint64_t offered; /* when there was something to send after there was nothing */
    uint64_t spoke;   /* last queued frame */
    uint64_t bytes_in, bytes_out;

    /* receiving: rx[rx_start..rx_end) is here and not used yet */
    uint8_t *rx;
    size_t rx_start, rx_end;
    int peer_minor;
    bool in_payload;
    bool turn_over; /* what is read ahead is used up, nothing more is read */
    bool peer_left; /* it said goodbye or closed: there is nobody to say it to */
    uint8_t header[WIRE_HEADER_BYTES];
    struct frame frame; /* the same, taken apart */
    uint32_t frame_done;
    int low_water; /* SO_RCVLOWAT as it is set; 0: as the kernel has it */
    void *place;   /* where the next data goes, asked for once per piece; length 0: to be asked */
    size_t place_length;

    /* sending: the batch in flight, then the queue, then the next source */
    uint8_t *queue;
    size_t queue_start, queue_end, queue_room;
    struct link_batch batch;
    unsigned batch_next; /* first iov not sent; 2 * frames: none in flight */
    struct link_source *ready_first, *ready_last;
    struct link_source *filling; /* in its fill() right now */
    struct link_source *flying;  /* whose memory the batch in flight may refer to */
    uint32_t io_events;
    bool stained; /* data has gone through the link's own memory since that was cleared */
};

/* ---- sending ---- */

bool link_batch_add(struct link_batch *batch, const struct frame *frame, const void *payload)
{
    if (batch->frames == LINK_BATCH_FRAMES || batch->bytes + frame->length > LINK_BATCH_BYTES)
        return false;
    unsigned n = batch->frames++;
    batch->bytes += frame->length;
    frame_encode(frame, payload, batch->headers[n]);
    batch->iov[2 * n] = (struct iovec){batch->headers[n], WIRE_HEADER_BYTES};
    batch->iov[2 * n + 1] = (struct iovec){(void *)payload, frame->length};
    return true;
}

static bool link_batch_in_flight(const struct link *link)
{
    return link->batch_next < 2 * link->batch.frames;
}

static bool link_has_output(const struct link *link)
{
    return link_batch_in_flight(link) || link->queue_end > 0 ||
           (link->ready_first && link->state == LINK_UP);
}

static void link_watch(struct link *link)
{
    uint32_t events = link->transport->ops->wants(link->transport);
    if (link->state != LINK_STARTING && link_has_output(link))
        events |= EPOLLOUT;
    if (events != link->io_events && link->io &&
        sd_event_source_set_io_events(link->io, events) >= 0)
        link->io_events = events;
}

void link_source_ready(struct link *link, struct link_source *source)
{
    if (source->ready || link->state == LINK_DOWN)
        return;
    if (!link_has_output(link))
        link->offered = now_usec();
    source->link = link;
    source->ready = true;
    source->next = NULL;
    source->prev = link->ready_last;
    if (link->ready_last)
        link->ready_last->next = source;
    else
        link->ready_first = source;
    link->ready_last = source;
    link_watch(link);
}

/* Takes what of the batch in flight lies in its source's memory over into the link's own. */
static void link_adopt_batch(struct link *link)
{
    struct link_batch *batch = &link->batch;
    uint8_t *own = batch->buf;
    for (unsigned i = link->batch_next; i < 2 * batch->frames; i++) {
        struct iovec *iov = &batch->iov[i];
        bool payload = i % 2;
        if (!payload)
            continue;
        memmove(own, iov->iov_base, iov->iov_len);
        iov->iov_base = own;
        own += iov->iov_len;
    }
}

static void link_unlist(struct link *link, struct link_source *source)
{
    *(source->prev ? &source->prev->next : &link->ready_first) = source->next;
    *(source->next ? &source->next->prev : &link->ready_last) = source->prev;
    source->ready = false;
}

/* Its batch has left.  One that is not ready again may outlive the link, which is to know it no
 * longer. */
static void link_land_batch(struct link *link)
{
    if (link->flying && !link->flying->ready)
        link->flying->link = NULL;
    link->flying = NULL;
}

void link_source_remove(struct link_source *source)
{
    struct link *link = source->link;
    if (!link)
        return;
    if (source->ready)
        link_unlist(link, source);
    if (link->filling == source) {
        link->filling = NULL;
        link->batch.frames = 0;
    }
    if (link->flying == source) {
        link_adopt_batch(link);
        link->flying = NULL;
    }
    source->link = NULL;
}

static void link_forget_sources(struct link *link)
{
    while (link->ready_first)
        link_source_remove(link->ready_first);
    if (link->filling)
        link_source_remove(link->filling);
    if (link->flying)
        link_source_remove(link->flying);
}

static int on_last_word(sd_event_source *source, void *user)
{
    (void)source;
    struct link *link = user;
    link->ops->down(link, &link->failure, link->user);
    return 0;
}

static void link_fail(struct link *link, const struct error *err)
{
    if (link->state == LINK_DOWN)
        return;
    link->state = LINK_DOWN;
    link->failure = *err;
    link->io = sd_event_source_disable_unref(link->io);
    link->timer = sd_event_source_disable_unref(link->timer);
    link_forget_sources(link);
    link->transport = transport_free(link->transport);
    /* down() may free the link, so it is not called from inside one of its functions; and a loop
     * that has ended calls nobody any more. */
    if (sd_event_get_state(link->event) != SD_EVENT_FINISHED &&
        sd_event_add_defer(link->event, &link->last_word, on_last_word, link) < 0)
        abort();
}

static void link_fail_errno(struct link *link, int error_number, const char *what)
{
    struct error err;
    error_set_errno(&err, FAILURE_PEER, error_number, "%s", what);
    link_fail(link, &err);
}

/* Asks the next source for a batch.  False when there is none. */
static bool link_draw(struct link *link)
{
    struct link_source *source = link->ready_first;
    if (!source || link->state != LINK_UP)
        return false;
    link->stained = true;
    link_unlist(link, source);
    link->filling = source;
    link->batch.frames = 0;
    link->batch.bytes = 0;
    bool again = source->fill(source, &link->batch);
    if (link->filling == source) {
        link->flying = source;
        if (again)
            link_source_ready(link, source);
    }
    link->filling = NULL;
    link->batch_next = 0;
    if (!link_batch_in_flight(link))
        link_land_batch(link);
    return true;
}

static ssize_t link_write(struct link *link, const struct iovec *iov, size_t count,
                          struct error *err)
{
    ssize_t n = link->transport->ops->write(link->transport, iov, count, err);
    if (n > 0)
        link->bytes_out += (uint64_t)n;
    return n;
}

static ssize_t link_write_batch(struct link *link, struct error *err)
{
    struct link_batch *batch = &link->batch;
    ssize_t n =
        link_write(link, &batch->iov[link->batch_next], 2 * batch->frames - link->batch_next, err);
    for (size_t left = n > 0 ? (size_t)n : 0; link->batch_next < 2 * batch->frames;) {
        struct iovec *iov = &batch->iov[link->batch_next];
        if (left < iov->iov_len) {
            iov->iov_base = (uint8_t *)iov->iov_base + left;
            iov->iov_len -= left;
            break;
        }
        left -= iov->iov_len;
        link->batch_next++;
    }
    if (!link_batch_in_flight(link))
        link_land_batch(link);
    return n;
}

static ssize_t link_write_queue(struct link *link, struct error *err)
{
    struct iovec iov = {link->queue + link->queue_start, link->queue_end - link->queue_start};
    ssize_t n = link_write(link, &iov, 1, err);
    if (n > 0)
        link->queue_start += (size_t)n;
    if (link->queue_start == link->queue_end)
        link->queue_start = link->queue_end = 0;
    return n;
}

static ssize_t link_write_next(struct link *link, struct error *err)
{
    return link_batch_in_flight(link) ? link_write_batch(link, err) : link_write_queue(link, err);
}

/* Sends what is drawn, queued or ready, until the transport takes no more.  0, or -1 with *err. */
static int link_send_all(struct link *link, struct error *err)
{
    if (link_write(link, NULL, 0, err) < 0)
        return -1;
    for (size_t sent = 0; sent < TURN_BYTES;) {
        if (!link_batch_in_flight(link) && link->queue_end == 0) {
            if (!link_draw(link))
                return 0;
            if (link->state == LINK_DOWN)
                return 0;
            continue;
        }
        ssize_t n = link_write_next(link, err);
        if (n <= 0)
            return (int)n;
        sent += (size_t)n;
    }
    return 0;
}

static void link_receive(struct link *link);

static void link_flush(struct link *link)
{
    struct error err;
    if (link_send_all(link, &err) < 0) {
        link_receive(link); /* the peer may have said why */
        link_fail(link, &err);
    }
    if (link->state != LINK_DOWN)
        link_watch(link);
}

/* Makes room for |need| bytes at the queue's end. */
static int link_queue_reserve(struct link *link, size_t need)
{
    if (link->queue_start > 0) {
        memmove(link->queue, link->queue + link->queue_start, link->queue_end - link->queue_start);
        link->queue_end -= link->queue_start;
        link->queue_start = 0;
    }
    size_t want = link->queue_end + need;
    if (want > QUEUE_MAX)
        return -ENOBUFS;
    if (want <= link->queue_room)
        return 0;
    size_t room = MAX(want, 2 * link->queue_room);
    uint8_t *grown = realloc(link->queue, room);
    if (!grown)
        return -ENOMEM;
    link->queue = grown;
    link->queue_room = room;
    return 0;
}

void link_send(struct link *link, uint16_t type, uint32_t session, uint32_t item,
               const ProtobufCMessage *message)
{
    if (link->state == LINK_DOWN)
        return;
    size_t length = message ? protobuf_c_message_get_packed_size(message) : 0;
    int r = length > WIRE_CONTROL_MAX ? -EMSGSIZE
                                      : link_queue_reserve(link, WIRE_HEADER_BYTES + length);
    if (r < 0) {
        link_fail_errno(link, r, "queueing for the peer");
        return;
    }
    /* The silence of a peer that takes nothing counts from the first byte it was offered. */
    if (!link_has_output(link))
        link->offered = now_usec();
    struct frame frame = {
        .type = type, .length = (uint32_t)length, .session = session, .item = item};
    uint8_t *header = link->queue + link->queue_end, *payload = header + WIRE_HEADER_BYTES;
    if (length > 0)
        protobuf_c_message_pack(message, payload);
    frame_encode(&frame, payload, header);
    link->queue_end += WIRE_HEADER_BYTES + length;
    link->spoke = now_usec();
    link_watch(link);
}

void link_goodbye(struct link *link, const struct error *err)
{
    Godwit__Pb__Failure failure = failure_message(err);
    link_send(link, FRAME_GOODBYE, 0, 0, &failure.base);
    /* What is under way goes first; no more is drawn, and whether it arrives changes nothing. */
    struct error ignored;
    while (link->state != LINK_DOWN && link->state != LINK_STARTING &&
           (link_batch_in_flight(link) || link->queue_end > 0)) {
        if (link_write_next(link, &ignored) <= 0)
            break;
    }
    if (link->state != LINK_DOWN)
        link->transport->ops->end(link->transport);
    link_fail(link, err);
}

static void link_greet(struct link *link)
{
    uint8_t preamble[WIRE_PREAMBLE_BYTES];
    preamble_encode(preamble);
    if (link_queue_reserve(link, sizeof(preamble)) < 0)
        abort(); /* the queue was allocated with room for it */
    memcpy(link->queue, preamble, sizeof(preamble));
    link->queue_end = sizeof(preamble);

    struct utsname uts;
    uname(&uts);
    Godwit__Pb__Hello hello = GODWIT__PB__HELLO__INIT;
    hello.software = (char *)"godwit " GODWIT_VERSION;
    hello.hostname = uts.nodename;
    hello.machine = uts.machine;
    hello.page_bytes = PAGE_BYTES;
    hello.silence_msec = (uint32_t)(link->silence_usec / USEC_PER_MSEC);
    link_send(link, FRAME_HELLO, 0, 0, &hello.base);
}

/* ---- receiving ---- */

/* How often to look at the time, and to say something. */
static uint64_t link_tick_usec(const struct link *link)
{
    return MAX(MIN(link->silence_usec, link->peer_silence_usec) / 4, 10 * USEC_PER_MSEC);
}

static int link_take_hello(struct link *link, const uint8_t *payload, struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__hello__descriptor, payload, link->frame.length, err);
    if (!message)
        return -1;
    int r = link->transport->ops->check(link->transport, err);
    if (r <= 0)
        return r; /* what it has to say may follow; it never comes up */
    const Godwit__Pb__Hello *hello = (const Godwit__Pb__Hello *)message;
    struct utsname uts;
    uname(&uts);
    if (hello->page_bytes != PAGE_BYTES || strcmp(hello->machine, uts.machine) != 0)
        return error_set(
            err, FAILURE_PEER,
            "host %.64s is a %.32s with %u-byte pages, this host a %s with %u: a process "
            "cannot move between them",
            hello->hostname, hello->machine, hello->page_bytes, uts.machine, PAGE_BYTES);
    uint64_t peer_silence = hello->silence_msec * USEC_PER_MSEC;
    link->peer_silence_usec = peer_silence ? peer_silence : link->silence_usec;
    link->state = LINK_UP;
    sd_event_source_set_time_relative(link->timer, link_tick_usec(link));
    link->ops->up(link, hello, link->user);
    return 0;
}

static int link_take_goodbye(struct link *link, const uint8_t *payload, struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__failure__descriptor, payload, link->frame.length, err);
    if (message)
        failure_to_error((const Godwit__Pb__Failure *)message, err);
    link->peer_left = true;
    return -1;
}

static int link_take_control(struct link *link, const uint8_t *payload, struct error *err)
{
    if (link->frame.type == FRAME_GOODBYE)
        return link_take_goodbye(link, payload, err);
    if (link->state != LINK_UP)
        return link_take_hello(link, payload, err);
    if (link->frame.type == FRAME_HEARTBEAT)
        return 0;
    if (link->frame.type == FRAME_HELLO)
        return error_set(err, FAILURE_PEER, "the peer broke the protocol: a second hello");
    return link->ops->control(link, &link->frame, payload, link->user, err);
}

/* Bytes from the transport, 0: none now, or not in this turn; -1: error. */
static ssize_t link_read(struct link *link, const struct iovec *iov, size_t count,
                         struct error *err)
{
    const struct transport_ops *ops = link->transport->ops;
    if (link->turn_over && !ops->holds(link->transport))
        return 0;
    ssize_t n = ops->read(link->transport, iov, count, err);
    if (n > 0)
        link->bytes_in += (uint64_t)n;
    return n;
}

/* Makes at least |need| bytes of look-ahead available.  1: they are, 0: not yet, -1: error. */
static int link_pull(struct link *link, size_t need, struct error *err)
{
    if (link->rx_end - link->rx_start >= need)
        return 1;
    if (link->rx_start > 0) {
        memmove(link->rx, link->rx + link->rx_start, link->rx_end - link->rx_start);
        link->rx_end -= link->rx_start;
        link->rx_start = 0;
    }
    size_t want = MIN(need - link->rx_end + RX_LOOK_AHEAD, RX_BYTES - link->rx_end);
    ssize_t n = link_read(link, &(struct iovec){link->rx + link->rx_end, want}, 1, err);
    if (n <= 0)
        return (int)n;
    link->rx_end += (size_t)n;
    return link->rx_end - link->rx_start >= need;
}

/* Gets some of a data payload into place.  The number of bytes, 0: none now, -1: error. */
static ssize_t link_land(struct link *link, void *place, size_t length, struct error *err)
{
    size_t ahead = MIN(length, link->rx_end - link->rx_start);
    if (ahead > 0) {
        memcpy(place, link->rx + link->rx_start, ahead);
        link->rx_start += ahead;
        return (ssize_t)ahead;
    }
    /* The next header comes with the same call when this is the payload's end. */
    bool last = link->frame_done + length == link->frame.length;
    link->stained = true;
    struct iovec iov[2] = {{place, length}, {link->rx, last ? RX_LOOK_AHEAD : 0}};
    link->rx_start = link->rx_end = 0;
    ssize_t n = link_read(link, iov, 2, err);
    if (n <= 0)
        return n;
    if ((size_t)n > length) {
        link->rx_end = (size_t)n - length;
        n = (ssize_t)length;
    }
    return n;
}

/* One step of receiving.  Bytes used, 0: nothing more now, -1: error. */
static ssize_t link_step(struct link *link, struct error *err)
{
    if (link->state == LINK_PREAMBLE) {
        int r = link_pull(link, WIRE_PREAMBLE_BYTES, err);
        if (link->rx_end > link->rx_start && preamble_is_tls(link->rx[link->rx_start], err))
            return -1;
        if (r <= 0)
            return r;
        link->peer_minor = preamble_check(link->rx + link->rx_start, err);
        if (link->peer_minor < 0)
            return -1;
        link->rx_start += WIRE_PREAMBLE_BYTES;
        link->state = LINK_HELLO;
        return WIRE_PREAMBLE_BYTES;
    }
    if (!link->in_payload) {
        int r = link_pull(link, WIRE_HEADER_BYTES, err);
        if (r <= 0)
            return r;
        if (frame_decode(link->rx + link->rx_start, &link->frame, err) < 0)
            return -1;
        if (frame_may_come(&link->frame, link->ops->peer, link->state != LINK_UP, err) < 0)
            return -1;
        memcpy(link->header, link->rx + link->rx_start, WIRE_HEADER_BYTES);
        link->rx_start += WIRE_HEADER_BYTES;
        link->in_payload = true;
        link->frame_done = 0;
        return WIRE_HEADER_BYTES;
    }
    if (!frame_is_bulk(link->frame.type)) {
        int r = link_pull(link, link->frame.length, err);
        if (r <= 0)
            return r;
        const uint8_t *payload = link->rx + link->rx_start;
        link->rx_start += link->frame.length;
        link->in_payload = false;
        if (frame_check(link->header, &link->frame, payload, err) < 0)
            return -1;
        return link_take_control(link, payload, err) < 0 ? -1 : WIRE_HEADER_BYTES;
    }
    if (link->frame_done == link->frame.length) {
        link->in_payload = false;
        return 1;
    }
    if (link->place_length == 0 &&
        link->ops->bulk_place(link, &link->frame, link->frame_done, &link->place,
                              &link->place_length, link->user, err) < 0)
        return -1;
    ssize_t n = link_land(link, link->place, link->place_length, err);
    if (n <= 0)
        return n;
    link->place_length = 0;
    if (link->ops->bulk_landed(link, &link->frame, link->frame_done, link->place, (size_t)n,
                               link->user, err) < 0)
        return -1;
    link->frame_done += (uint32_t)n;
    return n;
}

/*
 * Says how much has to come before it is worth to be woken: while the rest of a data frame is still
 * to come, that or a good part of it; else anything.  Wakes cost both ends more than the bytes do.
 * Some of it may be in the transport already, where the kernel does not see it.
 */
static void link_set_low_water(struct link *link)
{
    size_t rest = 0, ahead = link->transport->ahead;
    if (link->in_payload && frame_is_bulk(link->frame.type))
        rest = MIN(link->frame.length - link->frame_done, LOW_WATER);
    int bytes = rest > ahead + 1 ? (int)(rest - ahead) : 1;
    if (bytes == link->low_water)
        return;
    link->low_water = bytes;
    setsockopt(link->transport->fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof(bytes));
}

static void link_receive(struct link *link)
{
    uint64_t until = now_usec() + TURN_USEC;
    for (size_t received = 0; link->state != LINK_DOWN && link->state != LINK_STARTING;) {
        struct error err;
        link->turn_over = received >= TURN_BYTES || now_usec() > until;
        ssize_t n = link_step(link, &err);
        if (n < 0) {
            if (link->peer_left || link->transport->ended)
                link_fail(link, &err);
            else
                link_goodbye(link, &err);
            return;
        }
        if (n == 0)
            return;
        received += (size_t)n;
    }
}

/* Whether the transport is up. */
static bool link_start(struct link *link)
{
    struct error err;
    if (link->state != LINK_STARTING)
        return link->state != LINK_DOWN;
    int r = link->transport->ops->start(link->transport, &err);
    if (r < 0) {
        link->transport->ops->end(link->transport);
        link_fail(link, &err);
        return false;
    }
    if (r > 0)
        link->state = LINK_PREAMBLE;
    link_watch(link);
    return r > 0;
}

static int on_io(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    struct link *link = user;
    bool starting = link->state == LINK_STARTING;
    if (!link_start(link))
        return 0;
    if (starting || events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        link_receive(link);
    if (link->state != LINK_DOWN)
        link_set_low_water(link);
    if (link->state != LINK_DOWN)
        link_flush(link);
    return 0;
}

/* ---- time ---- */

static void link_check_silence(struct link *link, uint64_t now)
{
    struct error err;
    double seconds = (double)link->silence_usec / (double)USEC_PER_SEC;
    if (link->state != LINK_UP && now - link->started > link->silence_usec)
        error_set(&err, FAILURE_PEER, "the peer did not finish the handshake within %g s", seconds);
    else if (now - MAX(link->transport->heard_usec, link->started) > link->silence_usec)
        error_set(&err, FAILURE_PEER, "the peer has been silent for %g s", seconds);
    else if (link->io_events & EPOLLOUT &&
             now - MAX(link->transport->taken_usec, link->offered) > link->silence_usec)
        error_set(&err, FAILURE_PEER, "the peer has taken nothing for %g s", seconds);
    else
        return;
    link_fail(link, &err);
}

/* A link that lives on keeps nothing of what went over it. */
static void link_clear(struct link *link)
{
    bool idle = !link->in_payload && link->rx_start == link->rx_end &&
                !link_batch_in_flight(link) && !link->ready_first;
    if (!link->stained || !idle)
        return;
    link->rx_start = link->rx_end = 0;
    hidden_clear(link->rx, RX_BYTES);
    hidden_clear(link->batch.buf, LINK_BATCH_BYTES);
    link->stained = false;
}

static int on_tick(sd_event_source *source, uint64_t usec, void *user)
{
    (void)usec;
    struct link *link = user;
    /* What lies below the low-water mark has been said, and woke nobody. */
    if (link_start(link))
        link_receive(link);
    uint64_t now = now_usec();
    if (link->state != LINK_DOWN) {
        link_set_low_water(link);
        link_clear(link);
        link_check_silence(link, now);
    }
    if (link->state == LINK_DOWN)
        return 0;
    if (now - link->spoke >= link_tick_usec(link) && link->state == LINK_UP)
        link_send(link, FRAME_HEARTBEAT, 0, 0, NULL);
    sd_event_source_set_time_relative(source, link_tick_usec(link));
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* ---- its life ---- */

static int link_attach(struct link *link)
{
    int r = sd_event_add_io(link->event, &link->io, link->transport->fd, EPOLLIN | EPOLLOUT, on_io,
                            link);
    if (r < 0)
        return r;
    link->io_events = EPOLLIN | EPOLLOUT;
    return sd_event_add_time_relative(link->event, &link->timer, CLOCK_MONOTONIC,
                                      link_tick_usec(link), USEC_PER_MSEC, on_tick, link);
}

struct link *link_new_on(sd_event *event, struct transport *transport, uint64_t silence_usec,
                         const struct link_ops *ops, void *user)
{
    struct link *link = transport ? calloc(1, sizeof(*link)) : NULL;
    if (!link) {
        transport_free(transport);
        errno = ENOMEM;
        return NULL;
    }
    link->transport = transport;
    link->event = sd_event_ref(event);
    link->silence_usec = link->peer_silence_usec = silence_usec;
    link->ops = ops;
    link->user = user;
    link->started = link->offered = link->spoke = now_usec();
    link->rx = hidden_alloc(RX_BYTES);
    link->queue_room = 4096;
    link->queue = malloc(link->queue_room);
    link->batch.buf = hidden_alloc(LINK_BATCH_BYTES);
    int one = 1;
    setsockopt(transport->fd, IPPROTO_TCP, TCP_NODELAY, &one,
               sizeof(one)); /* fails on UNIX sockets, rightly */
    int r = link->rx && link->queue && link->batch.buf ? link_attach(link) : -ENOMEM;
    if (r < 0) {
        link_free(link);
        errno = -r;
        return NULL;
    }
    link_greet(link);
    link_start(link);
    return link;
}

struct link *link_new(sd_event *event, int fd, uint64_t silence_usec, const struct link_ops *ops,
                      void *user)
{
    return link_new_on(event, transport_plain(fd), silence_usec, ops, user);
}

struct link *link_free(struct link *link)
{
    if (!link)
        return NULL;
    link_forget_sources(link);
    sd_event_source_disable_unref(link->io);
    sd_event_source_disable_unref(link->timer);
    sd_event_source_disable_unref(link->last_word);
    transport_free(link->transport);
    sd_event_unref(link->event);
    hidden_free(link->rx, RX_BYTES);
    free(link->queue);
    hidden_free(link->batch.buf, LINK_BATCH_BYTES);
    free(link);
    return NULL;
}

unsigned link_peer_minor(const struct link *link)
{
    return (unsigned)link->peer_minor;
}

uint64_t link_position(const struct link *link)
{
    uint64_t position = link->bytes_out + (link->queue_end - link->queue_start);
    for (unsigned i = link->batch_next; i < 2 * link->batch.frames; i++)
        position += link->batch.iov[i].iov_len;
    return position;
}

uint64_t link_delivered(const struct link *link)
{
    if (link->state == LINK_DOWN)
        return link->bytes_out;
    uint64_t unsent = link->transport->ops->unsent(link->transport);
    return link->bytes_out - MIN(unsent, link->bytes_out);
}

void link_forget_place(struct link *link)
{
    link->place_length = 0;
}

const struct transport *link_transport(const struct link *link)
{
    return link->transport;
}

bool link_is_up(const struct link *link)
{
    return link->state == LINK_UP;
}

uint64_t link_bytes_sent(const struct link *link)
{
    return link->bytes_out;
}

uint64_t link_bytes_received(const struct link *link)
{
    return link->bytes_in;
}
