/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page door: criu's page-server connection.  What comes is read once, into user memory, hashed,
 * and sent from there.
 */
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "criu/page_server.h"
#include "migrate/doors.h"

enum { DOOR_BYTES = 1 << 20 }; /* of the buffer: bounds the proxy's memory per dump */

struct page_door {
    struct link_source source;
    struct sender *sender;
    sd_event_source *io;
    int fd;
    unsigned form;

    /* buf[start..end) has been read and not been sent; pages of the present run come first */
    uint8_t *buf;
    size_t start, end;
    struct space *current; /* of the present run */
    uint64_t vaddr, left;
    bool lazy;
};

struct page_door *page_door_free(struct page_door *door)
{
    if (!door)
        return NULL;
    link_source_remove(&door->source);
    sd_event_source_disable_unref(door->io);
    close_fd(door->fd);
    free(door->buf);
    free(door);
    return NULL;
}

static int on_page_door(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct page_door *door = user;
    link_source_ready(door->sender->link, &door->source);
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

/* Puts the pages that are in the buffer into the batch.  False when nothing could be put. */
static bool page_door_add_pages(struct page_door *door, struct link_batch *batch)
{
    uint64_t pages = MIN(door->left, (door->end - door->start) / PAGE_BYTES);
    if (pages == 0)
        return false;
    uint16_t flags = (door->lazy ? PAGES_LAZY : 0) | PAGES_EXIST;
    if (!space_add_pages(door->sender, door->current, batch, door->vaddr, door->buf + door->start,
                         pages, flags))
        return false;
    door->start += pages * PAGE_BYTES;
    door->vaddr += pages * PAGE_BYTES;
    door->left -= pages;
    return true;
}

enum page_step { STEP_ON, STEP_ENOUGH, STEP_NEED_BYTES, STEP_CLOSED };

/* One header or one piece of a run out of the buffer.  A step, or a negative errno with *err. */
static int page_door_step(struct page_door *door, struct link_batch *batch, struct error *err)
{
    if (door->left > 0) {
        if (page_door_add_pages(door, batch))
            return STEP_ON;
        return door->end - door->start >= PAGE_BYTES ? STEP_ENOUGH : STEP_NEED_BYTES;
    }
    struct page_server_request request;
    int n = page_server_parse(&door->form, door->buf + door->start, door->end - door->start,
                              &request, err);
    if (n <= 0)
        return n == 0 ? STEP_NEED_BYTES : n;
    /* A batch goes out before the control frames of the same turn, so these begin a new one. */
    if (request.command != PAGE_SERVER_ADD && batch->frames > 0)
        return STEP_ENOUGH;
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
    return request.command == PAGE_SERVER_ADD ? STEP_ON : STEP_ENOUGH;
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
        n = recv(door->fd, door->buf + door->end, DOOR_BYTES - door->end, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 ? -errno : -ENODATA;
    door->end += (size_t)n;
    return n;
}

static bool page_fill(struct link_source *source, struct link_batch *batch)
{
    struct page_door *door = (struct page_door *)source;
    struct sender *sender = door->sender;
    struct error err;
    int step = STEP_ON;
    while (step == STEP_ON)
        step = page_door_step(door, batch, &err);
    if (step < 0) {
        sender_fail(sender, &err);
        return false;
    }
    if (step == STEP_CLOSED)
        return false;
    /* Reading moves the buffer under a batch, so a batch goes first. */
    if (step == STEP_ENOUGH || batch->frames > 0)
        return true;

    ssize_t n = page_door_read(door);
    if (n > 0)
        return true;
    if (n == -EAGAIN) {
        sd_event_source_set_enabled(door->io, SD_EVENT_ONESHOT);
        return false;
    }
    error_set(&err, FAILURE_CRIU, "criu closed its page connection before it was done");
    sender_fail(sender, &err);
    return false;
}

int sender_open_page_door(struct sender *sender, int fd)
{
    struct page_door *door = door_new(sender, sizeof(*door), fd);
    if (!door)
        return -errno;
    *door = (struct page_door){.source.fill = page_fill, .sender = sender, .fd = fd};
    door->buf = aligned_alloc(PAGE_BYTES, DOOR_BYTES);
    int r = door->buf ? sd_event_add_io(sender->event, &door->io, fd, EPOLLIN, on_page_door, door)
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
