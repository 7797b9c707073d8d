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

#include "base/hidden.h"
#include "criu/page_server.h"
#include "migrate/doors.h"

enum {
    DOOR_BYTES = 1 << 20, /* of the buffer, for each stream: bounds the memory per dump */
    DOOR_PAGES = DOOR_BYTES / PAGE_BYTES,
};

/* Pages that a parent may be said to have, 16 TiB of them: a few bytes of criu's name any number,
 * and each GiB of them is told in a list of its own. */
#define HOLES_MAX (1ull << 32)

/* Pages in the buffer that go into one frame; or pages that the parent has. */
struct piece {
    struct space *space;
    uint64_t vaddr, pages;
    const uint8_t *bytes; /* NULL: they were sent before, or are the parent's, and only exist */
    uint16_t flags;
    uint8_t stream;
    uint8_t run[WIRE_RUN_BYTES]; /* of those */
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
    bool hole;      /* it has no pages: they are as they were in the parent */
    uint64_t holes; /* pages in all of these */

    struct piece *pieces; /* as many as the buffer has pages, at most */
    size_t count;

    const struct page_door_ops *ops; /* NULL: there is no parent */
    void *user;
};

struct page_door *page_door_free(struct page_door *door)
{
    if (!door)
        return NULL;
    for (unsigned i = 0; i < door->sender->stream_count; i++)
        link_source_remove(&door->outlets[i].source);
    sd_event_source_disable_unref(door->io);
    close_fd(door->fd);
    hidden_free(door->buf, door->room);
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
    const struct page_door_ops *ops = door->ops;
    void *user = door->user;
    int32_t status = 0;
    int r = ops ? 0 : page_door_answer(door, &status, sizeof(status));
    if (r < 0)
        return r;
    int fd = ops ? TAKE_FD(door->fd) : -EBADF;
    sender->pages = page_door_free(door);
    if (ops)
        ops->closed(fd, user);
    else
        sender_check_end(sender);
    return 0;
}

static int page_door_begin_run(struct page_door *door, const struct page_server_request *request)
{
    struct space *space = sender_space(door->sender, kind_of(request), request->id, SPACE_IF_BEGUN);
    bool hole = !(request->flags & PAGEMAP_PRESENT);
    if (!space || (hole && !(space->based && request->flags & PAGEMAP_PARENT)))
        return -EPROTO; /* never opened; or a hole, and no parent was promised */
    if (hole && request->pages > HOLES_MAX - door->holes)
        return -EFBIG;
    door->holes += hole ? request->pages : 0;
    door->current = space;
    door->hole = hole;
    door->vaddr = request->vaddr;
    door->left = request->pages;
    door->lazy = request->flags & PAGEMAP_LAZY;
    return space->keep_criu && !hole
               ? page_runs_add(&space->criu, request->vaddr, request->pages, false)
               : 0;
}

/* How many of the next pages are as the first is: what was sent of them before, or not. */
static uint64_t page_door_alike(const struct page_door *door, uint64_t pages, bool *ret_sent)
{
    const struct page_hashes *sent = door->current->sent;
    const uint8_t *bytes = door->buf + door->start;
    uint64_t i = 0;
    *ret_sent = sent && page_hashes_same(sent, door->vaddr, false, bytes);
    while (sent && ++i < pages &&
           page_hashes_same(sent, door->vaddr + i * PAGE_BYTES, false, bytes + i * PAGE_BYTES) ==
               *ret_sent)
        ;
    return sent ? i : pages;
}

static bool page_door_has_parent(const struct page_door *door,
                                 const struct page_server_request *request)
{
    return door->ops && door->ops->has_parent(kind_of(request), request->id, door->user);
}

static int page_door_open(struct page_door *door, const struct page_server_request *request)
{
    uint8_t parent = page_door_has_parent(door, request);
    struct space *space = sender_space(door->sender, kind_of(request), request->id,
                                       parent ? SPACE_BASED : SPACE_MAKE);
    if (!space)
        return -errno;
    space->listed |= door->ops != NULL;
    return request->command == PAGE_SERVER_OPEN_1 ? 0
                                                  : page_door_answer(door, &parent, sizeof(parent));
}

static int page_door_ask_parent(struct page_door *door, const struct page_server_request *request)
{
    int32_t parent = page_door_has_parent(door, request);
    if (door->ops)
        door->ops->is_pre_dump(door->user);
    return page_door_answer(door, &parent, sizeof(parent));
}

/* How many of the next pages go into one piece; 0: they have not been read. */
static uint64_t page_door_next(const struct page_door *door, bool *ret_sent)
{
    *ret_sent = door->hole;
    if (door->hole)
        return MIN(door->left, (uint64_t)WIRE_LIST_PAGES_MAX);
    uint64_t pages = MIN(door->left, (door->end - door->start) / PAGE_BYTES);
    if (pages == 0)
        return 0;
    pages = stream_pages(door->sender, door->vaddr, MIN(pages, DOOR_PAGES));
    return page_door_alike(door, pages, ret_sent);
}

/* Of shared memory the next snapshot may be based on this one. */
static void page_door_note(const struct page_door *door, uint64_t pages, bool sent)
{
    struct page_hashes *hashes = door->current->sent;
    for (uint64_t i = 0; hashes && i < pages; i++) {
        uint64_t vaddr = door->vaddr + i * PAGE_BYTES;
        if (!sent)
            page_hashes_note(hashes, vaddr, false, door->buf + door->start + i * PAGE_BYTES);
        page_hashes_tell(hashes, vaddr);
    }
}

/* Makes a piece of the present run.  False when nothing of it is in the buffer. */
static bool page_door_cut(struct page_door *door)
{
    bool sent;
    uint64_t pages = page_door_next(door, &sent);
    if (pages == 0)
        return false;
    struct piece *piece = &door->pieces[door->count++];
    if (!door->hole)
        page_door_note(door, pages, sent);
    *piece = (struct piece){
        .space = door->current,
        .vaddr = door->vaddr,
        .pages = pages,
        .bytes = sent ? NULL : door->buf + door->start,
        .flags = (door->lazy ? PAGES_LAZY : 0) | PAGES_EXIST,
        .stream = (uint8_t)stream_of(door->sender, door->vaddr),
    };
    put_le64(piece->run, piece->vaddr);
    put_le64(piece->run + 8, piece->pages);
    door->start += door->hole ? 0 : pages * PAGE_BYTES;
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
    if (door->count == door->room / PAGE_BYTES)
        return STEP_ENOUGH;
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
    switch (request.command) {
    case PAGE_SERVER_ADD:
        r = page_door_begin_run(door, &request);
        break;
    case PAGE_SERVER_PARENT:
        r = page_door_ask_parent(door, &request);
        break;
    case PAGE_SERVER_OPEN:
    case PAGE_SERVER_OPEN_1:
        r = page_door_open(door, &request);
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

static bool add_piece(const struct outlet *outlet, struct link_batch *batch,
                      const struct piece *piece)
{
    struct sender *sender = outlet->door->sender;
    if (!piece->bytes)
        return space_add_list(sender, outlet->stream, piece->space, batch, FRAME_PAGE_RUNS,
                              RUNS_EXIST, piece->run, sizeof(piece->run));
    return space_add_pages(sender, outlet->stream, piece->space, batch, piece->vaddr, piece->bytes,
                           piece->pages, piece->flags);
}

/* Puts the next pieces of a stream into its batch. */
static void outlet_fill(struct outlet *outlet, struct link_batch *batch)
{
    struct page_door *door = outlet->door;
    for (; outlet->next < door->count; outlet->next++) {
        const struct piece *piece = &door->pieces[outlet->next];
        if (piece->stream == outlet->stream && !add_piece(outlet, batch, piece))
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

int sender_open_page_door(struct sender *sender, int fd, const struct page_door_ops *ops,
                          void *user)
{
    struct page_door *door = door_new(sender, sizeof(*door), fd);
    if (!door)
        return -errno;
    *door = (struct page_door){
        .sender = sender,
        .fd = fd,
        .room = (size_t)sender->stream_count * DOOR_BYTES,
        .ops = ops,
        .user = user,
    };
    for (unsigned i = 0; i < sender->stream_count; i++)
        door->outlets[i] = (struct outlet){.source.fill = page_fill, .door = door, .stream = i};
    door->buf = hidden_alloc(door->room);
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
