/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The server's side of CRIU's --stream sockets (CRIU criu/img-streamer.c), as read.  Per image:
 *
 *   criu → server   u32 length, Request{filename}
 *   server → criu   u32 length, Reply{exists}              on restore only
 *   criu → server   1 byte with one end of a pipe          on restore: only if the image exists
 *
 * End of the pipe is end of the image; end of the socket is end of the session.
 */
#include "base/error.h"

enum {
    STREAM_REQUEST_MAX = 4096, /* bytes of a request; a name has at most 255 */
    STREAM_REPLY_BYTES = 6,
};

struct stream_parser {
    uint8_t bytes[4 + STREAM_REQUEST_MAX];
    size_t have;
    bool want_pipe; /* the next byte on the socket carries a pipe */
};

/* How many bytes to read from the socket next: never more than the present message has. */
size_t stream_want(const struct stream_parser *parser);

/*
 * Takes |length| <= stream_want() bytes of a request.  1: the request is whole and *ret_name (to be
 * freed) holds its file's name, valid as a name; 0: more is needed; -EPROTO with *err set.
 */
int stream_take(struct stream_parser *parser, const uint8_t *bytes, size_t length, char **ret_name,
                struct error *err);

/*
 * Whether criu restore --stream makes of these images, in an open directory, what it makes of the
 * directory.  It does not read nftables rules through a pipe, nor the content of private mappings
 * of huge pages.
 */
bool stream_restores(int imagefd);

void stream_reply(bool exists, uint8_t out[STREAM_REPLY_BYTES]);

/*
 * Receives up to |length| bytes and at most one descriptor from a stream socket without blocking.
 * The bytes read, 0 at the end, -EAGAIN, or another negative errno.  *ret_fd is -EBADF if none
 * came.
 */
ssize_t stream_receive(int socket, void *buf, size_t length, int *ret_fd);
