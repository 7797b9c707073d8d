/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/local.h"

#include <string.h>
#include <sys/socket.h>

union descriptors {
    char bytes[CMSG_SPACE(LOCAL_FDS_MAX * sizeof(int))];
    struct cmsghdr align;
};

int local_send(int fd, uint32_t kind, const ProtobufCMessage *message, const int *fds,
               size_t fd_count)
{
    size_t length = message ? protobuf_c_message_get_packed_size(message) : 0;
    uint8_t packet[sizeof(kind) + LOCAL_PACKET_MAX];
    if (length > LOCAL_PACKET_MAX)
        return -EMSGSIZE;
    memcpy(packet, &kind, sizeof(kind));
    if (length > 0)
        protobuf_c_message_pack(message, packet + sizeof(kind));

    union descriptors control = {0};
    struct iovec iov = {packet, sizeof(kind) + length};
    struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > 0) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
    }
    while (sendmsg(fd, &header, MSG_NOSIGNAL) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

int local_receive(int fd, struct local_packet *ret)
{
    union descriptors control;
    struct iovec iov[2] = {{&ret->kind, sizeof(ret->kind)}, {ret->bytes, sizeof(ret->bytes)}};
    struct msghdr header = {
        .msg_iov = iov,
        .msg_iovlen = 2,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    for (size_t i = 0; i < LOCAL_FDS_MAX; i++)
        ret->fds[i] = -EBADF;
    ssize_t n;
    do {
        n = recvmsg(fd, &header, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(ret->fds, CMSG_DATA(c), MIN(c->cmsg_len - CMSG_LEN(0), sizeof(ret->fds)));
    }
    if (n == 0)
        return -ENODATA;
    if (n < (ssize_t)sizeof(ret->kind) || header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        local_packet_close(ret);
        return -EBADMSG;
    }
    ret->length = (size_t)n - sizeof(ret->kind);
    return 0;
}

void local_packet_close(struct local_packet *packet)
{
    for (size_t i = 0; i < LOCAL_FDS_MAX; i++)
        packet->fds[i] = close_fd(packet->fds[i]);
}
