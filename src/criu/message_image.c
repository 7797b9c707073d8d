/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/message_image.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define IMAGE_MAGIC 0x54564319u /* CRIU criu/include/magic.h */

enum {
    MAGIC_BYTES = 8,  /* two of them */
    LENGTH_BYTES = 4, /* before each message */
    IMAGE_MAX = 64 << 20,
    EACH_MAX = 4 << 20, /* a message that is one of many */
};

/* ---- memory for a message ---- */

/* What is left of it.  libprotobuf-c makes forty bytes of two. */
static void *take_memory(void *left, size_t size)
{
    void *at = size <= *(size_t *)left ? malloc(size) : NULL;
    size_t taken = at ? malloc_usable_size(at) : 0;
    *(size_t *)left -= MIN(taken, *(size_t *)left);
    return at;
}

static void give_memory(void *left, void *at)
{
    *(size_t *)left += malloc_usable_size(at);
    free(at);
}

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *type, const uint8_t *bytes,
                                size_t length)
{
    size_t left = MESSAGE_IMAGE_FACTOR * length + MIB(4);
    ProtobufCAllocator memory = {
        .alloc = take_memory, .free = give_memory, .allocator_data = &left};
    return protobuf_c_message_unpack(type, &memory, length, bytes);
}

/* ---- from memory ---- */

/* The next message.  1, 0 at the end, or a negative errno. */
static int take_message(const uint8_t **bytes, size_t *left, size_t max,
                        const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret)
{
    if (*left == 0)
        return 0;
    if (*left < LENGTH_BYTES || get_le32(*bytes) > MIN(*left - LENGTH_BYTES, max))
        return -EBADMSG;
    size_t length = get_le32(*bytes);
    *ret = unpack(type, *bytes + LENGTH_BYTES, length);
    *bytes += LENGTH_BYTES + length;
    *left -= LENGTH_BYTES + length;
    return *ret ? 1 : -EBADMSG;
}

static bool has_magic(const uint8_t *bytes, size_t length, uint32_t magic)
{
    return length >= MAGIC_BYTES && get_le32(bytes) == IMAGE_MAGIC && get_le32(bytes + 4) == magic;
}

int message_image_parse(const uint8_t *bytes, size_t length, uint32_t magic,
                        const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret)
{
    if (!has_magic(bytes, length, magic))
        return -EBADMSG;
    bytes += MAGIC_BYTES;
    length -= MAGIC_BYTES;
    int r = take_message(&bytes, &length, IMAGE_MAX, type, ret);
    return r < 0 ? r : r == 0 ? -EBADMSG : 0;
}

int message_image_parse_each(const uint8_t *bytes, size_t length, uint32_t magic,
                             const ProtobufCMessageDescriptor *type, message_image_each_t *each,
                             void *user)
{
    ProtobufCMessage *message;
    if (!has_magic(bytes, length, magic))
        return -EBADMSG;
    bytes += MAGIC_BYTES;
    length -= MAGIC_BYTES;
    int r;
    while ((r = take_message(&bytes, &length, EACH_MAX, type, &message)) > 0) {
        r = each(message, user);
        protobuf_c_message_free_unpacked(message, NULL);
        if (r != 0)
            break;
    }
    return r;
}

/* ---- from a directory ---- */

struct mapping {
    uint8_t *bytes;
    size_t length;
};

static int map_image(int dirfd, const char *name, struct mapping *ret)
{
    struct stat st;
    _cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < MAGIC_BYTES || st.st_size > IMAGE_MAX)
        return -EBADMSG;
    ret->length = (size_t)st.st_size;
    ret->bytes = mmap(NULL, ret->length, PROT_READ, MAP_PRIVATE, fd, 0);
    return ret->bytes == MAP_FAILED ? -errno : 0;
}

int message_image_read(int dirfd, const char *name, uint32_t magic,
                       const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret)
{
    struct mapping image;
    int r = map_image(dirfd, name, &image);
    if (r < 0)
        return r;
    r = message_image_parse(image.bytes, image.length, magic, type, ret);
    munmap(image.bytes, image.length);
    return r;
}

int message_image_read_each(int dirfd, const char *name, uint32_t magic,
                            const ProtobufCMessageDescriptor *type, message_image_each_t *each,
                            void *user)
{
    struct mapping image;
    int r = map_image(dirfd, name, &image);
    if (r < 0)
        return r;
    r = message_image_parse_each(image.bytes, image.length, magic, type, each, user);
    munmap(image.bytes, image.length);
    return r;
}
