/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/stream.h"

#include <string.h>
#include <sys/socket.h>

#include "criu.pb-c.h"

size_t stream_want(const struct stream_parser *parser)
{
    if (parser->want_pipe)
        return 1;
    if (parser->have < 4)
        return 4 - parser->have;
    return 4 + get_le32(parser->bytes) - parser->have;
}

static int malformed(struct error *err, const char *what)
{
    error_set(err, FAILURE_CRIU, "criu --stream: %s", what);
    return -EPROTO;
}

int stream_take(struct stream_parser *parser, const uint8_t *bytes, size_t length, char **ret_name,
                struct error *err)
{
    memcpy(parser->bytes + parser->have, bytes, length);
    parser->have += length;
    if (parser->have < 4)
        return 0;
    uint32_t size = get_le32(parser->bytes);
    if (size == 0 || size > STREAM_REQUEST_MAX)
        return malformed(err, "a request of impossible length");
    if (parser->have < 4 + size)
        return 0;
    parser->have = 0;
    Godwit__Pb__CriuStreamRequest *request =
        godwit__pb__criu_stream_request__unpack(NULL, size, parser->bytes + 4);
    if (!request)
        return malformed(err, "a malformed request");
    char *name = TAKE_PTR(request->filename);
    godwit__pb__criu_stream_request__free_unpacked(request, NULL);
    *ret_name = name;
    return 1;
}

void stream_reply(bool exists, uint8_t out[STREAM_REPLY_BYTES])
{
    Godwit__Pb__CriuStreamReply reply = GODWIT__PB__CRIU_STREAM_REPLY__INIT;
    reply.exists = exists;
    put_le32(out, 2);
    godwit__pb__criu_stream_reply__pack(&reply, out + 4);
}

ssize_t stream_receive(int socket, void *buf, size_t length, int *ret_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {buf, length};
    struct msghdr message = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    *ret_fd = -EBADF;
    ssize_t n;
    do {
        n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
            close_fd(*ret_fd); /* one is expected; padding has room for more */
            memcpy(ret_fd, (char *)c + at, sizeof(int));
        }
    }
    return n;
}
