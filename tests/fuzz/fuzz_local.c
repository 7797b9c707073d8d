/* SPDX-License-Identifier: Apache-2.0 */
/* Input: one byte, the number of descriptors that come along, then a packet on a local socket. */
#include "fuzz.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/passing.h"
#include "daemon/local.h"
#include "wire/message.h"

enum { FDS_SENT_MAX = 8 };

static const struct {
    uint32_t kind;
    const ProtobufCMessageDescriptor *message;
} messages[] = {
    {LOCAL_FAILURE, &godwit__pb__failure__descriptor},
    {LOCAL_DONE, &godwit__pb__progress__descriptor},
    {LOCAL_EXITED, &godwit__pb__exited__descriptor},
    {LOCAL_DUMP_OPEN, &godwit__pb__dump_open__descriptor},
    {LOCAL_RESTORE_OPEN, &godwit__pb__restore_open__descriptor},
    {LOCAL_RESTORE_READY, &godwit__pb__restore_ready__descriptor},
    {LOCAL_FORGET, &godwit__pb__forget__descriptor},
    {LOCAL_RESOLVE, &godwit__pb__resolve__descriptor},
    {LOCAL_STATUS_DAEMON, &godwit__pb__status__descriptor},
    {LOCAL_STATUS_SNAPSHOT, &godwit__pb__status_snapshot__descriptor},
    {LOCAL_SPOOL_WRITE, &godwit__pb__spool_write__descriptor},
    {LOCAL_SPOOL_PUBLISHED, &godwit__pb__spool_published__descriptor},
};

/* The lowest descriptor that is free: the same again when all that came have been closed. */
static int lowest_free(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    must(fd >= 0);
    close(fd);
    return fd;
}

static void say(int fd, const uint8_t *data, size_t size, size_t count)
{
    struct iovec iov = {(void *)data, size};
    int fds[FDS_SENT_MAX];
    for (size_t i = 0; i < count; i++)
        fds[i] = STDERR_FILENO;
    must(send_passing(fd, &iov, 1, fds, count) == (ssize_t)size);
}

/* As the daemons and commands do. */
static void look(const struct local_packet *packet)
{
    struct error err = {0};
    for (size_t i = 0; i < ARRAY_SIZE(messages); i++) {
        if (messages[i].kind != packet->kind)
            continue;
        ProtobufCMessage *message =
            message_unpack(messages[i].message, packet->bytes, packet->length, &err);
        must(message || err.text[0]);
        if (message)
            protobuf_c_message_free_unpacked(message, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fds[2] = {-1, -1};
    static struct local_packet packet;
    if (fds[0] < 0)
        must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    if (size == 0)
        return 0;
    size_t count = data[0] % (FDS_SENT_MAX + 1), length = size - 1;
    int before = lowest_free();
    say(fds[1], data + 1, length, count);
    int r = local_receive(fds[0], &packet);
    if (r == 0) {
        must(packet.length + sizeof(packet.kind) == length && packet.length <= LOCAL_PACKET_MAX);
        for (size_t i = 0; i < LOCAL_FDS_MAX; i++)
            must((packet.fds[i] >= 0) == (i < count));
        look(&packet);
        local_packet_close(&packet);
    } else {
        must(r == (length == 0 ? -ENODATA : -EBADMSG));
    }
    must(lowest_free() == before);
    return 0;
}
