/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page door: criu's page-server connection.  What comes is read once, into user memory, hashed,
 * and sent from there.
 *
 *   criu ──▶ buf: headers, pages ──▶ pieces ──▶ each stream takes those of its addresses
 *              ▲                                          │
 *              └──── when all have left: what is next ────┘
 */
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "criu/page_server.h"
#include "migrate/doors.h"

enum {
    DOOR_BYTES = 1 << 20, /* of the buffer, for each stream: bounds the memory per dump */
    DOOR_PAGES = DOOR_BYTES / PAGE_BYTES,
};

/* Pages in the buffer that go into one frame. */
struct piece {
    struct space *space;
    uint64_t vaddr, pages;
    const uint8_t *bytes;
    uint16_t flags;
    uint8_t stream;
};

/* What one stream takes of them. */
struct outlet {
    struct link_source source;
    struct page_door *door;
    unsigned stream;
    size_t next; /* piece to look at */
    bool flying; /* what it took last may not have left */
};

struct page_door {
    struct sender *sender;
    struct outlet outlets[WIRE_STREAMS_MAX];
    sd_event_source *io;
    int fd;
    unsigned form;

    /* buf[start..end) has been read and is in no piece; pages of the present run come first */
    uint8_t *buf;
    size_t room, start, end;
    struct space *current; /* of the present run */
    uint64_t vaddr, left;
    bool lazy;

    struct piece *pieces; /* as many as the buffer has pages, at most */
    size_t count;
};

struct page_door *page_door_free(struct page_door *door)
{
    if (!door)
        return NULL;
    for (unsigned i = 0; i < door->sender->stream_count; i++)
        link_source_remove(&door->outlets[i].source);
    sd_event_source_disable_unref(door->io);
    close_fd(door->fd);
    free(door->buf);
    free(door->pieces);
    free(door);
    return NULL;
}

static void page_door_wake(struct page_door *door)
{
    for (unsigned i = 0; i < door->sender->stream_count; i++)
        link_source_ready(door->sender->streams[i].link, &door->outlets[i].source);
}

static int on_page_door(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct page_door *door = user;
    link_source_ready(sender_link(door->sender), &door->outlets[0].source);
    return 0;
}

/* criu waits for these answers, of 1 or 4 bytes: a socket that has no room for them is broken. */
static int page_door_answer(struct page_door *door, const void *answer, size_t length)
{
    ssize_t n = send(door->fd, answer, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    return n == (ssize_t)length ? 0 : n < 0 ? -errno : -EIO;
}

static enum space_kind kind_of(const struct page_server_request *request)
{
    return request->kind == PAGE_SERVER_TASK ? SPACE_TASK : SPACE_SHARED;
}

static int page_door_close(struct page_door *door)
{
    struct sender *sender = door->sender;
    int32_t status = 0;
    int r = page_door_answer(door, &status, sizeof(status));
    if (r < 0)
        return r;
    sender->pages = page_door_free(door);
    sender_check_end(sender);
    return 0;
}

static int page_door_begin_run(struct page_door *door, const struct page_server_request *request)
{
    struct space *space = sender_space(door->sender, kind_of(request), request->id, false);
    if (!space || !(request->flags & PAGEMAP_PRESENT))
        return -EPROTO; /* never opened; or a hole, and no parent was promised */
    door->current = space;
    door->vaddr = request->vaddr;
    door->left = request->pages;
    door->lazy = request->flags & PAGEMAP_LAZY;
    return space->keep_criu ? page_runs_add(&space->criu, request->vaddr, request->pages, false)
                            : 0;
}

/* Makes a piece of the pages that are in the buffer.  False when there are none. */
static bool page_door_cut(struct page_door *door)
{
    uint64_t pages = MIN(door->left, (door->end - door->start) / PAGE_BYTES);
    if (pages == 0)
        return false;
    pages = stream_pages(door->sender, door->vaddr, MIN(pages, DOOR_PAGES));
    door->pieces[door->count++] = (struct piece){
        .space = door->current,
        .vaddr = door->vaddr,
        .pages = pages,
        .bytes = door->buf + door->start,
        .flags = (door->lazy ? PAGES_LAZY : 0) | PAGES_EXIST,
        .stream = (uint8_t)stream_of(door->sender, door->vaddr),
    };
    door->start += pages * PAGE_BYTES;
    door->vaddr += pages * PAGE_BYTES;
    door->left -= pages;
    return true;
}

enum page_step { STEP_ON, STEP_ENOUGH, STEP_WAIT, STEP_CLOSED };

static bool is_close(const struct page_server_request *request)
{
    return request->command == PAGE_SERVER_CLOSE || request->command == PAGE_SERVER_FORCE_CLOSE;
}

/* One header or one piece of a run out of the buffer.  A step, or a negative errno with *err. */
static int page_door_step(struct page_door *door, struct error *err)
{
    if (door->left > 0)
        return page_door_cut(door) ? STEP_ON : STEP_ENOUGH;
    struct page_server_request request;
    int n = page_server_parse(&door->form, door->buf + door->start, door->end - door->start,
                              &request, err);
    if (n <= 0)
        return n == 0 ? STEP_ENOUGH : n;
    if (is_close(&request) && door->count > 0)
        return STEP_ENOUGH; /* these have to leave first */
    door->start += (size_t)n;

    int r;
    int32_t no_parent = 0;
    switch (request.command) {
    case PAGE_SERVER_ADD:
        r = page_door_begin_run(door, &request);
        break;
    case PAGE_SERVER_PARENT:
        r = page_door_answer(door, &no_parent, sizeof(no_parent));
        break;
    case PAGE_SERVER_OPEN:
        r = sender_space(door->sender, kind_of(&request), request.id, true) ? 0 : -errno;
        if (r == 0)
            r = page_door_answer(door, &no_parent, 1);
        break;
    default: /* the parser lets only the two closes through */
        r = page_door_close(door);
        return r < 0 ? error_set_errno(err, FAILURE_CRIU, r, "closing criu's page connection"),
               r     : STEP_CLOSED;
    }
    if (r < 0) {
        error_set_errno(err, FAILURE_CRIU, r, "criu's page connection, command %u",
                        request.command);
        return r;
    }
    return STEP_ON;
}

/* Reads more behind what is left in the buffer.  Bytes, or a negative errno; -ENODATA at the end.
 */
static ssize_t page_door_read(struct page_door *door)
{
    memmove(door->buf, door->buf + door->start, door->end - door->start);
    door->end -= door->start;
    door->start = 0;
    ssize_t n;
    do {
        n = recv(door->fd, door->buf + door->end, door->room - door->end, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 ? -errno : -ENODATA;
    door->end += (size_t)n;
    return n;
}

/* Everything has left: makes pieces of what has been read, or else reads on.  A step, or a negative
 * errno with *err. */
static int page_door_go_on(struct page_door *door, struct error *err)
{
    int step = STEP_ON;
    door->count = 0;
    for (unsigned i = 0; i < door->sender->stream_count; i++)
        door->outlets[i].next = 0;
    while (step == STEP_ON)
        step = page_door_step(door, err);
    if (step != STEP_ENOUGH || door->count > 0)
        return step;
    ssize_t n = page_door_read(door);
    if (n == -EAGAIN)
        return STEP_WAIT;
    if (n < 0) {
        error_set(err, FAILURE_CRIU, "criu closed its page connection before it was done");
        return (int)n;
    }
    return STEP_ENOUGH;
}

/* Puts the next pieces of a stream into its batch. */
static void outlet_fill(struct outlet *outlet, struct link_batch *batch)
{
    struct page_door *door = outlet->door;
    for (; outlet->next < door->count; outlet->next++) {
        const struct piece *piece = &door->pieces[outlet->next];
        if (piece->stream == outlet->stream &&
            !space_add_pages(door->sender, outlet->stream, piece->space, batch, piece->vaddr,
                             piece->bytes, piece->pages, piece->flags))
            break;
    }
}

static bool all_has_left(const struct page_door *door)
{
    for (unsigned i = 0; i < door->sender->stream_count; i++) {
        if (door->outlets[i].flying || door->outlets[i].next < door->count)
            return false;
    }
    return true;
}

static bool page_fill(struct link_source *source, struct link_batch *batch)
{
    struct outlet *outlet = (struct outlet *)source;
    struct page_door *door = outlet->door;
    struct sender *sender = door->sender;
    outlet_fill(outlet, batch);
    outlet->flying = batch->frames > 0;
    if (outlet->flying)
        return true;
    if (!all_has_left(door))
        return false; /* the last of the others goes on */
    struct error err;
    int step = page_door_go_on(door, &err);
    if (step == STEP_CLOSED)
        return false;
    if (step == STEP_WAIT) {
        sd_event_source_set_enabled(door->io, SD_EVENT_ONESHOT);
        return false;
    }
    if (step < 0) {
        sender_fail(sender, &err);
        return false;
    }
    /* In the next turn: a batch would go before what has been told of new spaces in this one. */
    page_door_wake(door);
    return true;
}

int sender_open_page_door(struct sender *sender, int fd)
{
    struct page_door *door = door_new(sender, sizeof(*door), fd);
    if (!door)
        return -errno;
    *door = (struct page_door){
        .sender = sender, .fd = fd, .room = (size_t)sender->stream_count * DOOR_BYTES};
    for (unsigned i = 0; i < sender->stream_count; i++)
        door->outlets[i] = (struct outlet){.source.fill = page_fill, .door = door, .stream = i};
    door->buf = aligned_alloc(PAGE_BYTES, door->room);
    door->pieces = calloc(door->room / PAGE_BYTES, sizeof(struct piece));
    int r = door->buf && door->pieces
                ? sd_event_add_io(sender->event, &door->io, fd, EPOLLIN, on_page_door, door)
                : -ENOMEM;
    if (r >= 0)
        r = sd_event_source_set_enabled(door->io, SD_EVENT_ONESHOT);
    if (r < 0) {
        page_door_free(door);
        return r;
    }
    sender->pages = door;
    return 0;
}
