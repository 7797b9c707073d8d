/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/single_image.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define IMAGE_MAGIC 0x54564319u /* CRIU criu/include/magic.h */

enum {
    HEAD_BYTES = 12, /* two magics, the length of the message */
    IMAGE_MAX = 64 << 20,
};

int single_image_parse(const uint8_t *bytes, size_t length, uint32_t magic,
                       const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret)
{
    if (length < HEAD_BYTES || get_le32(bytes) != IMAGE_MAGIC || get_le32(bytes + 4) != magic ||
        get_le32(bytes + 8) > length - HEAD_BYTES)
        return -EBADMSG;
    *ret = protobuf_c_message_unpack(type, NULL, get_le32(bytes + 8), bytes + HEAD_BYTES);
    return *ret ? 0 : -EBADMSG;
}

int single_image_read(int dirfd, const char *name, uint32_t magic,
                      const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret)
{
    struct stat st;
    _cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < HEAD_BYTES || st.st_size > IMAGE_MAX)
        return -EBADMSG;
    void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    int r = single_image_parse(bytes, (size_t)st.st_size, magic, type, ret);
    munmap(bytes, (size_t)st.st_size);
    return r;
}
