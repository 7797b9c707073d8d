/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A peer made by hand: bytes as they go over a link, a directory to work in, two
 * sockets.  No test framework here: the fuzzers use it too.
 */
#include "wire/frame.h"
#include "wire/message.h"

struct bytes {
    uint8_t *at;
    size_t length, room;
};

void bytes_add(struct bytes *bytes, const void *more, size_t length);
void bytes_add_preamble(struct bytes *bytes, uint16_t major, uint16_t minor);
void bytes_add_frame(struct bytes *bytes, const struct frame *frame, const void *payload);
/* The frame's length is that of the message; NULL: none. */
void bytes_add_message(struct bytes *bytes, uint16_t type, uint32_t session, uint32_t item,
                       const ProtobufCMessage *message);
/* Preamble and hello of a peer that may link with this host. */
void bytes_add_greeting(struct bytes *bytes);
/* Writes the right checks into all whole frames from byte |at| on. */
void bytes_mend_checks(struct bytes *bytes, size_t at);
void bytes_free(struct bytes *bytes);

/* A new directory, on tmpfs if there is one: absolute, to be freed with directory_remove(). */
char *directory_make(void);
void directory_remove(char *path);

/* Two connected stream sockets, or the end of the program. */
void socket_pair(int fds[2]);
