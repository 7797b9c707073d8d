/* SPDX-License-Identifier: Apache-2.0 */
#include "canned.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "fuzz.h"

/* Can be read as long as there is something that has not been, and can always be written to. */
static int ready = -1;

static struct canned *canned_of(struct transport *transport)
{
    return (struct canned *)transport;
}

static int canned_start(struct transport *transport, struct error *err)
{
    (void)transport;
    (void)err;
    return 1;
}

static int canned_check(struct transport *transport, struct error *err)
{
    (void)transport;
    (void)err;
    return 1;
}

static bool canned_is_peer(const struct transport *transport, const char *name)
{
    (void)transport;
    (void)name;
    return false;
}

static ssize_t canned_read(struct transport *transport, const struct iovec *iov, size_t count,
                           struct error *err)
{
    struct canned *canned = canned_of(transport);
    size_t before = canned->given;
    eventfd_t value;
    if (before == 0 && canned->closes) {
        transport->ended = true;
        return error_set(err, FAILURE_PEER, "the peer closed the connection");
    }
    for (size_t i = 0; i < count && canned->given > 0; i++) {
        size_t length = MIN(iov[i].iov_len, canned->given);
        memcpy(iov[i].iov_base, canned->next, length);
        canned->next += length;
        canned->left -= length;
        canned->given -= length;
    }
    if (before == 0)
        eventfd_read(ready, &value);
    transport->heard_usec = now_usec();
    return (ssize_t)(before - canned->given);
}

static ssize_t canned_write(struct transport *transport, const struct iovec *iov, size_t count,
                            struct error *err)
{
    (void)err;
    size_t length = 0;
    for (size_t i = 0; i < count; i++)
        length += iov[i].iov_len;
    transport->taken_usec = now_usec();
    return (ssize_t)length;
}

static uint32_t canned_wants(const struct transport *transport)
{
    (void)transport;
    return EPOLLIN;
}

static bool canned_holds(const struct transport *transport)
{
    (void)transport;
    return false;
}

static uint64_t canned_unsent(const struct transport *transport)
{
    (void)transport;
    return 0;
}

static void canned_nothing(struct transport *transport)
{
    (void)transport;
}

static const struct transport_ops canned_ops = {
    .start = canned_start,
    .check = canned_check,
    .is_peer = canned_is_peer,
    .read = canned_read,
    .write = canned_write,
    .wants = canned_wants,
    .holds = canned_holds,
    .unsent = canned_unsent,
    .end = canned_nothing,
    .free = canned_nothing,
};

sd_event *canned_loop(void)
{
    static sd_event *loop;
    if (!loop)
        must(sd_event_new(&loop) >= 0);
    return loop;
}

struct transport *canned_open(struct canned *canned, const void *bytes, size_t length)
{
    eventfd_t value;
    uint64_t now = now_usec();
    if (ready < 0)
        ready = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    must(ready >= 0);
    eventfd_read(ready, &value);
    *canned = (struct canned){
        .transport = {.ops = &canned_ops,
                      .fd = ready,
                      .kind = "memory",
                      .heard_usec = now,
                      .taken_usec = now},
        .next = bytes,
        .left = length,
    };
    return &canned->transport;
}

void canned_give(struct canned *canned, size_t length)
{
    canned->given += MIN(length, canned->left - canned->given);
    must(eventfd_write(ready, 1) == 0);
}

bool canned_is_empty(const struct canned *canned)
{
    return canned->given == canned->left;
}

void canned_end(struct canned *canned)
{
    canned->closes = true;
    must(eventfd_write(ready, 1) == 0);
}
