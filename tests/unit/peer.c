/* SPDX-License-Identifier: Apache-2.0 */
#include "peer.h"

#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/utsname.h>

void bytes_add(struct bytes *bytes, const void *more, size_t length)
{
    if (bytes->length + length > bytes->room) {
        bytes->room = MAX(2 * bytes->room, bytes->length + length);
        bytes->at = realloc(bytes->at, bytes->room);
        if (!bytes->at)
            abort();
    }
    if (length > 0)
        memcpy(bytes->at + bytes->length, more, length);
    bytes->length += length;
}

void bytes_add_preamble(struct bytes *bytes, uint16_t major, uint16_t minor)
{
    uint8_t preamble[WIRE_PREAMBLE_BYTES];
    preamble_encode(preamble);
    put_le16(preamble + 8, major);
    put_le16(preamble + 10, minor);
    bytes_add(bytes, preamble, sizeof(preamble));
}

void bytes_add_frame(struct bytes *bytes, const struct frame *frame, const void *payload)
{
    uint8_t header[WIRE_HEADER_BYTES];
    frame_encode(frame, payload, header);
    bytes_add(bytes, header, sizeof(header));
    bytes_add(bytes, payload, payload ? frame->length : 0);
}

void bytes_add_message(struct bytes *bytes, uint16_t type, uint32_t session, uint32_t item,
                       const ProtobufCMessage *message)
{
    uint8_t payload[WIRE_CONTROL_MAX];
    struct frame frame = {.type = type, .session = session, .item = item};
    if (message)
        frame.length = (uint32_t)protobuf_c_message_pack(message, payload);
    bytes_add_frame(bytes, &frame, payload);
}

void bytes_add_greeting(struct bytes *bytes)
{
    struct utsname uts;
    uname(&uts);
    Godwit__Pb__Hello hello = GODWIT__PB__HELLO__INIT;
    hello.software = (char *)"peer by hand";
    hello.hostname = (char *)"elsewhere";
    hello.machine = uts.machine;
    hello.page_bytes = PAGE_BYTES;
    bytes_add_preamble(bytes, WIRE_MAJOR, WIRE_MINOR);
    bytes_add_message(bytes, FRAME_HELLO, 0, 0, &hello.base);
}

void bytes_mend_checks(struct bytes *bytes, size_t at)
{
    while (at <= bytes->length && bytes->length - at >= WIRE_HEADER_BYTES) {
        uint8_t *header = bytes->at + at;
        struct frame frame = {
            .type = get_le16(header),
            .flags = get_le16(header + 2),
            .length = get_le32(header + 4),
            .session = get_le32(header + 8),
            .item = get_le32(header + 12),
            .offset = get_le64(header + 16),
        };
        if (!frame_is_bulk(frame.type) && frame.length > bytes->length - at - WIRE_HEADER_BYTES)
            return;
        frame_encode(&frame, header + WIRE_HEADER_BYTES, header);
        if (frame.length > bytes->length - at - WIRE_HEADER_BYTES)
            return;
        at += WIRE_HEADER_BYTES + frame.length;
    }
}

void bytes_free(struct bytes *bytes)
{
    free(bytes->at);
    *bytes = (struct bytes){0};
}

char *directory_make(void)
{
    static const char *const templates[] = {"/dev/shm/godwit-test-XXXXXX",
                                            "/tmp/godwit-test-XXXXXX"};
    for (size_t i = 0; i < ARRAY_SIZE(templates); i++) {
        char *path = strdup(templates[i]);
        if (path && mkdtemp(path))
            return path;
        free(path);
    }
    perror("a directory for a test");
    exit(1);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st;
    (void)flag;
    (void)ftw;
    return remove(path);
}

void directory_remove(char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}

void socket_pair(int fds[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0) {
        perror("socketpair");
        exit(1);
    }
}
