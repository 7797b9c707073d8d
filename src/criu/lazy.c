/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/lazy.h"

#include <poll.h>
#include <string.h>

enum { PID_BYTES = 4 };

#define FINISHED 0x52535446u /* LAZY_PAGES_RESTORE_FINISHED */

static int malformed(struct error *err, const char *what)
{
    error_set(err, FAILURE_CRIU, "criu's lazy-pages socket: %s", what);
    return -EPROTO;
}

int lazy_parse(const uint8_t *bytes, size_t length, struct lazy_item *ret, struct error *err)
{
    uint32_t word;
    if (length < PID_BYTES)
        return 0;
    memcpy(&word, bytes, sizeof(word));
    struct lazy_item item = {.kind = LAZY_FINISHED, .bytes = PID_BYTES};
    if (word != FINISHED) {
        int32_t pid = (int32_t)word;
        if (pid == 0 || pid > LAZY_PID_MAX || pid < -LAZY_PID_MAX)
            return malformed(err, "no process has such a number");
        item.kind = pid > 0 ? LAZY_TASK : LAZY_ZOMBIE;
        item.pid = pid > 0 ? pid : -pid;
        item.bytes += pid > 0;
    }
    if (length < item.bytes)
        return 0;
    *ret = item;
    return 1;
}

static bool hung_up(int socket)
{
    struct pollfd poller = {.fd = socket, .events = POLLRDHUP};
    return poll(&poller, 1, 0) > 0 && poller.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

int lazy_peek(int socket, struct lazy_item *ret, struct error *err)
{
    uint8_t bytes[LAZY_ITEM_BYTES];
    bool over = hung_up(socket); /* first: what was sent before the end is there then */
    ssize_t n;
    do {
        n = recv(socket, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return -EAGAIN;
    if (n == 0 || (n < 0 && errno == ECONNRESET))
        return -ENODATA;
    if (n < 0) {
        int r = -errno;
        error_set_errno(err, FAILURE_SYSTEM, r, "criu's lazy-pages socket");
        return r;
    }
    int r = lazy_parse(bytes, (size_t)n, ret, err);
    if (r == 0)
        return over ? malformed(err, "a message is cut short") : -EAGAIN;
    return r;
}

int lazy_take(int socket, const struct lazy_item *item, struct lazy_arrival *ret, struct error *err)
{
    struct iovec iov = {ret->bytes, item->bytes};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = ret->control,
        .msg_controllen = CMSG_LEN(sizeof(int)), /* the kernel keeps no second one */
    };
    lazy_arrival_clear(ret);
    ssize_t n;
    do {
        n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        int r = -errno;
        error_set_errno(err, FAILURE_SYSTEM, r, "criu's lazy-pages socket");
        return r;
    }
    int32_t pid;
    int uffd;
    bool task = lazy_arrival_task(ret, &pid, &uffd);
    if ((size_t)n != item->bytes || task != (item->kind == LAZY_TASK) ||
        (!task && message.msg_controllen > 0))
        return malformed(err, task ? "a message is cut short" : "a task without its descriptor");
    return 0;
}

void lazy_arrival_clear(struct lazy_arrival *arrival)
{
    *arrival = (struct lazy_arrival){0};
}

bool lazy_arrival_task(const struct lazy_arrival *arrival, int32_t *ret_pid, int *ret_uffd)
{
    struct cmsghdr head;
    struct lazy_item item;
    memcpy(&head, arrival->control, sizeof(head));
    if (head.cmsg_level != SOL_SOCKET || head.cmsg_type != SCM_RIGHTS ||
        head.cmsg_len != CMSG_LEN(sizeof(int)))
        return false;
    if (lazy_parse(arrival->bytes, sizeof(arrival->bytes), &item, NULL) != 1 ||
        item.kind != LAZY_TASK)
        return false;
    memcpy(ret_uffd, arrival->control + CMSG_LEN(0), sizeof(int));
    *ret_pid = item.pid;
    return true;
}
