/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/transport.h"

#include <linux/sockios.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "wire/owner.h"

enum { DRAIN_BYTES = 8 << 20 };

/* ---- the socket ---- */

ssize_t transport_socket_read(struct transport *transport, struct iovec *iov, size_t count)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t n;
    do {
        n = recvmsg(transport->fd, &message, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0)
        transport->heard_usec = now_usec();
    return n;
}

ssize_t transport_socket_write(struct transport *transport, const struct iovec *iov, size_t count)
{
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};
    ssize_t n;
    do {
        n = sendmsg(transport->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0)
        transport->taken_usec = now_usec();
    return n;
}

void transport_socket_end(struct transport *transport)
{
    char scratch[16 << 10];
    shutdown(transport->fd, SHUT_WR);
    for (size_t read = 0; read < DRAIN_BYTES;) {
        ssize_t n = recv(transport->fd, scratch, sizeof(scratch), MSG_DONTWAIT);
        if (n <= 0)
            break;
        read += (size_t)n;
    }
    explicit_bzero(scratch, sizeof(scratch));
}

uint64_t transport_socket_unsent(const struct transport *transport)
{
    int waiting = 0;
    if (ioctl(transport->fd, SIOCOUTQ, &waiting) < 0 || waiting < 0)
        return 0;
    return (uint64_t)waiting;
}

/* ---- plain ---- */

static int plain_start(struct transport *transport, struct error *err)
{
    (void)transport;
    (void)err;
    return 1;
}

static int plain_check(struct transport *transport, struct error *err)
{
    return transport->shared ? tcp_check_owner(transport->fd, err) : 1;
}

static bool plain_is_peer(const struct transport *transport, const char *name)
{
    (void)transport;
    (void)name;
    return false;
}

static ssize_t plain_read(struct transport *transport, const struct iovec *iov, size_t count,
                          struct error *err)
{
    ssize_t n = transport_socket_read(transport, (struct iovec *)iov, count);
    if (n > 0)
        return n;
    if (n == 0) {
        transport->ended = true;
        return error_set(err, FAILURE_PEER, "the peer closed the connection");
    }
    if (errno == EAGAIN)
        return 0;
    if (errno == EFAULT)
        return error_set(err, FAILURE_LIMIT, "no memory for what the peer sends");
    return error_set_errno(err, FAILURE_PEER, errno, "receiving from the peer");
}

static ssize_t plain_write(struct transport *transport, const struct iovec *iov, size_t count,
                           struct error *err)
{
    ssize_t n = count > 0 ? transport_socket_write(transport, iov, count) : 0;
    if (n >= 0)
        return n;
    return errno == EAGAIN ? 0 : error_set_errno(err, FAILURE_PEER, errno, "sending to the peer");
}

static uint32_t plain_wants(const struct transport *transport)
{
    (void)transport;
    return EPOLLIN;
}

static bool plain_holds(const struct transport *transport)
{
    (void)transport;
    return false;
}

static void plain_free(struct transport *transport)
{
    close_fd(transport->fd);
    free(transport);
}

static const struct transport_ops plain_ops = {
    .start = plain_start,
    .check = plain_check,
    .is_peer = plain_is_peer,
    .read = plain_read,
    .write = plain_write,
    .wants = plain_wants,
    .holds = plain_holds,
    .unsent = transport_socket_unsent,
    .end = transport_socket_end,
    .free = plain_free,
};

struct transport *transport_plain(int fd)
{
    struct transport *transport = calloc(1, sizeof(*transport));
    if (!transport) {
        close_fd(fd);
        return NULL;
    }
    uint64_t now = now_usec();
    *transport = (struct transport){
        .ops = &plain_ops, .fd = fd, .kind = "plain text", .heard_usec = now, .taken_usec = now};
    return transport;
}
