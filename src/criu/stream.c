/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/stream.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/passing.h"
#include "criu/mm_image.h"

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

static int mm_restores(int imagefd, const char *name)
{
    Godwit__Pb__CriuMm *mm = NULL;
    int r = mm_image_read(imagefd, name, &mm);
    for (size_t i = 0; r == 0 && i < mm->n_vmas; i++) {
        if (mm->vmas[i]->flags & MAP_PRIVATE && mm->vmas[i]->flags & MAP_HUGETLB)
            r = -EOPNOTSUPP;
    }
    godwit__pb__criu_mm__free_unpacked(mm, NULL);
    return r;
}

static int image_restores(int imagefd, const char *name, void *user)
{
    struct stat st;
    (void)user;
    if (strncmp(name, "nftables-", 9) == 0)
        return fstatat(imagefd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_size > 0 ? -EOPNOTSUPP
                                                                                      : 0;
    return strncmp(name, "mm-", 3) == 0 ? mm_restores(imagefd, name) : 0;
}

bool stream_restores(int imagefd)
{
    return directory_for_each(imagefd, image_restores, NULL) == 0;
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
    struct iovec iov = {buf, length};
    struct passed passed;
    ssize_t n = receive_passed(socket, MSG_DONTWAIT, &iov, 1, &passed);
    *ret_fd = n < 0 ? -EBADF : passed_take_first(&passed);
    return n;
}
