/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte, then what criu says on its page-server connection.  Even: to the parser alone,
 * in pieces of that size; odd: to the page door of a sender whose cache takes everything.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "criu/page_server.h"
#include "migrate/sender.h"
#include "unit/peer.h"

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

static const struct link_ops link_ops = {.up = on_up, .control = on_control, .down = on_down};

static void on_changed(struct sender *sender, void *user)
{
    (void)sender;
    (void)user;
}

static const struct sender_ops sender_ops = {.changed = on_changed};

static void drain(int fd)
{
    static char buf[1 << 16];
    while (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) > 0)
        ;
}

static void run(sd_event *event, int peer, int criu)
{
    int quiet = 0;
    for (int i = 0; i < 10000 && quiet < 3; i++) {
        int n = sd_event_run(event, 0);
        must(n >= 0);
        quiet = n > 0 ? 0 : quiet + 1;
        drain(peer);
        drain(criu);
    }
}

static void through_the_door(const uint8_t *data, size_t size)
{
    int link_fds[2], criu_fds[2];
    sd_event *event = NULL;
    struct sender *sender = NULL;
    socket_pair(link_fds);
    socket_pair(criu_fds);
    must(sd_event_new(&event) >= 0);
    struct link *link = link_new(event, link_fds[0], 3600 * USEC_PER_SEC, &link_ops, &sender);
    must(link);
    struct bytes bytes = {0};
    bytes_add_greeting(&bytes);
    bytes_add_message(&bytes, FRAME_SNAPSHOT_ACCEPT, 1, 0, NULL);
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    sender = sender_new(event, link, 1, &begin, &sender_ops, NULL);
    must(sender && sender_open_page_door(sender, criu_fds[0]) == 0);
    must(send(link_fds[1], bytes.at, bytes.length, 0) == (ssize_t)bytes.length);
    bytes_free(&bytes);
    run(event, link_fds[1], criu_fds[1]);

    size = MIN(size, 100000); /* what a socket takes at once */
    if (send(criu_fds[1], data, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
        must(size == 0);
    shutdown(criu_fds[1], SHUT_WR);
    sender_finish(sender);
    run(event, link_fds[1], criu_fds[1]);
    /* the connection ended with a close, and the snapshot is announced as whole, or it failed */
    must(sender_state(sender) == SENDER_ENDING || sender_state(sender) == SENDER_FAILED);
    sender_free(sender);
    link_free(link);
    close_fd(link_fds[1]);
    close_fd(criu_fds[1]);
    sd_event_unref(event);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 2)
        through_the_door(data + 1, size - 1);
    else
        parse(data + 1, size - 1);
    return 0;
}
