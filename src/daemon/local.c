/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/local.h"

#include <string.h>

#include "base/passing.h"

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

    struct iovec iov = {packet, sizeof(kind) + length};
    ssize_t n = send_passing(fd, &iov, 1, fds, fd_count);
    return n < 0 ? (int)n : 0;
}

int local_receive(int fd, struct local_packet *ret)
{
    struct iovec iov[2] = {{&ret->kind, sizeof(ret->kind)}, {ret->bytes, sizeof(ret->bytes)}};
    struct passed passed;
    ssize_t n;
    for (size_t i = 0; i < LOCAL_FDS_MAX; i++)
        ret->fds[i] = -EBADF;
    /* That the other end has closed with something of ours unread is told once, in front of what it
     * has sent. */
    do {
        n = receive_passed(fd, 0, iov, 2, &passed);
    } while (n == -ECONNRESET);
    if (n < 0)
        return (int)n;
    /* No bytes are the end, or an empty packet, which may have descriptors too. */
    if (n < (ssize_t)sizeof(ret->kind) || passed.cut || passed.count > LOCAL_FDS_MAX) {
        passed_close(&passed);
        return n == 0 ? -ENODATA : -EBADMSG;
    }
    memcpy(ret->fds, passed.fds, passed.count * sizeof(int));
    ret->length = (size_t)n - sizeof(ret->kind);
    return 0;
}

void local_packet_close(struct local_packet *packet)
{
    for (size_t i = 0; i < LOCAL_FDS_MAX; i++)
        packet->fds[i] = close_fd(packet->fds[i]);
}
