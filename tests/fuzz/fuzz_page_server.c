/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte, then what criu says on its page-server connection.  Even: to the parser alone,
 * in pieces of that size, as what a sender says and as what criu lazy-pages asks; odd: to the page
 * door of a sender whose cache takes everything, and where there is a parent for every other object
 * if the bit above is set.  Holes are as large as they say if all the other bits are set: else they
 * are cut, for each GiB of them is told by itself, and a few bytes say 16 TiB.
 */
#include "fuzz.h"

#include <string.h>
#include <sys/socket.h>

#include "canned.h"
#include "criu/page_server.h"
#include "migrate/sender.h"
#include "unit/peer.h"

enum { MODE_DOOR = 1, MODE_PARENTS = 2, MODE_LARGE = 0xfc, HOLE_MAX = 3 << 18 };

static void parse(const uint8_t *data, size_t size)
{
    unsigned form = 0;
    for (size_t at = 0; at < size;) {
        struct page_server_request request;
        struct error err = {0};
        int n = 0;
        for (size_t length = 0; n == 0 && length <= size - at; length++) {
            n = page_server_parse(&form, data + at, length, &request, &err);
            must(n == 0 || n < 0 || (size_t)n == length);
        }
        if (n <= 0) {
            must(n == 0 || err.code == FAILURE_CRIU);
            return;
        }
        must(form == 24 || form == 32);
        if (request.command == PAGE_SERVER_ADD)
            must(request.pages > 0 && request.vaddr % PAGE_BYTES == 0 &&
                 request.vaddr + request.pages * PAGE_BYTES <= 1ull << 57);
        at += (size_t)n;
    }
}

static void parse_gets(const uint8_t *data, size_t size)
{
    unsigned form = 0;
    for (size_t at = 0; at < size;) {
        struct page_server_request request;
        struct error err = {0};
        int n = 0;
        for (size_t length = 0; n == 0 && length <= size - at; length++) {
            n = page_server_parse_get(&form, data + at, length, &request, &err);
            must(n <= 0 || (size_t)n == length);
        }
        if (n <= 0) {
            must(n == 0 || err.code == FAILURE_CRIU);
            return;
        }
        if (request.command != PAGE_SERVER_GET)
            return;
        must(form == (unsigned)n && request.pages > 0 && request.vaddr % PAGE_BYTES == 0 &&
             request.vaddr + request.pages * PAGE_BYTES <= 1ull << 57);
        uint8_t answer[PAGE_SERVER_HEADER_MAX];
        must(page_server_answer(form, &request, 1, answer) == form);
        at += (size_t)n;
    }
}

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)link;
    (void)hello;
    (void)user;
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    return sender_control(*(struct sender **)user, frame, payload, err);
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    (void)err;
    (void)user;
    must(!"the cache of this test does nothing that ends the link");
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_CACHE, .up = on_up, .control = on_control, .down = on_down};

static void on_changed(struct sender *sender, void *user)
{
    (void)sender;
    (void)user;
}

static const struct sender_ops sender_ops = {.changed = on_changed};

static bool has_parent(enum space_kind kind, uint64_t id, void *user)
{
    (void)user;
    must(kind == SPACE_TASK || kind == SPACE_SHARED);
    return id % 2;
}

static void is_pre_dump(void *user)
{
    must(user);
}

static void closed(int fd, void *user)
{
    must(fd >= 0);
    close_fd(fd);
    sender_finish(user);
}

static const struct page_door_ops door_ops = {
    .has_parent = has_parent, .is_pre_dump = is_pre_dump, .closed = closed};

/* criu waits for every answer; nobody reads them here, so they are taken out of the way. */
static void drain(int fd)
{
    static char buf[1 << 16];
    while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
        ;
}

static void run(int criu)
{
    int n = 1;
    for (int i = 0; i < 30000 && n > 0; i++) {
        n = sd_event_run(canned_loop(), 0);
        drain(criu);
    }
    must(n == 0);
}

static void cut_hole(uint8_t *header, unsigned form, uint64_t pages)
{
    if (form == 24)
        put_le32(header + 4, (uint32_t)pages);
    else
        put_le64(header + 8, pages);
}

static void cut_holes(uint8_t *bytes, size_t size)
{
    unsigned form = 0;
    for (size_t at = 0; at < size;) {
        struct page_server_request request;
        struct error err;
        int n = page_server_parse(&form, bytes + at, size - at, &request, &err);
        if (n <= 0)
            return;
        bool add = request.command == PAGE_SERVER_ADD, hole = !(request.flags & PAGEMAP_PRESENT);
        if (add && hole && request.pages > HOLE_MAX)
            cut_hole(bytes + at, form, request.pages % HOLE_MAX + 1);
        at += (size_t)n;
        if (add && !hole)
            at += MIN(request.pages, size / PAGE_BYTES + 1) * PAGE_BYTES;
    }
}

static void through_the_door(const uint8_t *data, size_t size, bool parents)
{
    int criu[2];
    struct sender *sender = NULL;
    struct canned canned;
    struct bytes bytes = {0};
    bytes_add_greeting(&bytes);
    bytes_add_message(&bytes, FRAME_SNAPSHOT_ACCEPT, 1, 0, NULL);
    struct link *link = link_new_on(canned_loop(), canned_open(&canned, bytes.at, bytes.length),
                                    3600 * USEC_PER_SEC, &link_ops, &sender);
    must(link);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    sender = sender_new(canned_loop(), link, 1, &begin, &sender_ops, NULL);
    socket_pair(criu);
    must(sender && sender_open_page_door(sender, criu[0], parents ? &door_ops : NULL, sender) == 0);
    canned_give(&canned, bytes.length);
    run(criu[1]);

    size = MIN(size, 100000); /* what a socket takes at once */
    if (send(criu[1], data, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
        must(size == 0);
    shutdown(criu[1], SHUT_WR);
    sender_finish(sender);
    run(criu[1]);
    /* the connection ended with a close, and the snapshot is announced as whole, or it failed */
    must(sender_state(sender) == SENDER_ENDING || sender_state(sender) == SENDER_FAILED);
    sender_free(sender);
    link_free(link);
    close_fd(criu[1]);
    bytes_free(&bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (!(data[0] & MODE_DOOR)) {
        parse(data + 1, size - 1);
        parse_gets(data + 1, size - 1);
        return 0;
    }
    struct bytes said = {0};
    bytes_add(&said, data + 1, size - 1);
    if ((data[0] & MODE_LARGE) != MODE_LARGE)
        cut_holes(said.at, said.length);
    through_the_door(said.at, said.length, data[0] & MODE_PARENTS);
    bytes_free(&said);
    return 0;
}
