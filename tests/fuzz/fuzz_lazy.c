/* SPDX-License-Identifier: Apache-2.0 */
/* Input: one byte that says in how large pieces the rest, criu's side of the lazy-pages socket,
 * comes.  It goes through a real socket too, without descriptors. */
#include "fuzz.h"

#include <poll.h>
#include <string.h>

#include "criu/lazy.h"

/* What is said of bytes does not depend on how many more there are. */
static void check_parts(const uint8_t *bytes, size_t length, int whole,
                        const struct lazy_item *item)
{
    struct lazy_item part;
    struct error err = {0};
    for (size_t i = 0; i < length; i++) {
        int r = lazy_parse(bytes, i, &part, &err);
        must(r == 0 || r == whole);
        if (r == 1)
            must(part.kind == item->kind && part.pid == item->pid && part.bytes <= i);
        else if (r < 0)
            must(err.code == FAILURE_CRIU && err.text[0]);
    }
}

static void parse_all(const uint8_t *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        struct lazy_item item;
        struct error err = {0};
        size_t length = MIN(size - at, (size_t)LAZY_ITEM_BYTES);
        uint8_t *bytes = malloc(length); /* of the exact size: a read beyond it is seen */
        must(bytes);
        memcpy(bytes, data + at, length);
        int r = lazy_parse(bytes, length, &item, &err);
        check_parts(bytes, length, r, &item);
        free(bytes);
        if (r != 1)
            return;
        must(item.bytes > 0 && item.bytes <= length);
        must(item.kind == LAZY_FINISHED || (item.pid > 0 && item.pid <= LAZY_PID_MAX));
        at += item.bytes;
    }
}

/* All that can be taken now.  False: it has failed, or has ended. */
static bool receive(int socket)
{
    for (;;) {
        struct lazy_item item;
        struct lazy_arrival arrival;
        struct error err = {0};
        int32_t pid;
        int uffd;
        int r = lazy_peek(socket, &item, &err);
        if (r < 0)
            return r == -EAGAIN;
        r = lazy_take(socket, &item, &arrival, &err);
        must(!lazy_arrival_task(&arrival, &pid, &uffd));
        must((r == 0) == (item.kind != LAZY_TASK));
        if (r < 0)
            return false;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int pair[2];
    if (size == 0)
        return 0;
    size_t step = (size_t)data[0] % 8 + 1;
    parse_all(data + 1, size - 1);
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    bool more = true;
    for (size_t at = 1; at < size && at < 1000 && more; at += step) {
        size_t length = MIN(step, size - at);
        must(write(pair[0], data + at, length) == (ssize_t)length);
        more = receive(pair[1]);
    }
    close(pair[0]);
    /* Whoever looks at this program's descriptors in /proc may hold the socket open for a moment.
     */
    struct pollfd end = {.fd = pair[1], .events = POLLRDHUP};
    must(poll(&end, 1, 10000) == 1);
    if (more)
        must(!receive(pair[1]));
    close(pair[1]);
    return 0;
}
