/* SPDX-License-Identifier: Apache-2.0 */
#include "base/passing.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "base/util.h"

union control {
    char bytes[CMSG_SPACE(PASSING_MAX * sizeof(int))];
    struct cmsghdr align;
};

ssize_t send_passing(int socket, const struct iovec *iov, size_t iov_count, const int *fds,
                     size_t count)
{
    union control control = {0};
    struct msghdr header = {.msg_iov = (struct iovec *)iov, .msg_iovlen = iov_count};
    if (count > PASSING_MAX)
        return -EINVAL;
    if (count > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, count * sizeof(int));
    }
    ssize_t n;
    do {
        n = sendmsg(socket, &header, MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

ssize_t receive_passed(int socket, int flags, const struct iovec *iov, size_t iov_count,
                       struct passed *ret)
{
    union control control;
    struct msghdr header = {
        .msg_iov = (struct iovec *)iov,
        .msg_iovlen = iov_count,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ret->count = 0;
    ssize_t n;
    do {
        n = recvmsg(socket, &header, flags | MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    ret->cut = header.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(ret->fds + ret->count, CMSG_DATA(c), count * sizeof(int));
        ret->count += count;
    }
    return n;
}

void passed_close(struct passed *passed)
{
    for (size_t i = 0; i < passed->count; i++)
        close_fd(passed->fds[i]);
    passed->count = 0;
}

int passed_take_first(struct passed *passed)
{
    for (size_t i = 1; i < passed->count; i++)
        close_fd(passed->fds[i]);
    return passed->count > 0 ? passed->fds[0] : -EBADF;
}
