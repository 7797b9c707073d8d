/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Images of CRIU that hold one message. */
#include "base/error.h"
#include "criu.pb-c.h"

/*
 * Reads one by its name in a directory of images, which nobody is trusted to have written; |magic|
 * is its own, the second.  0 and *ret, to be freed by protobuf_c_message_free_unpacked(), or a
 * negative errno (-ENOENT: there is none; -EBADMSG: it is none).
 */
int single_image_read(int dirfd, const char *name, uint32_t magic,
                      const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret);

/* The same from memory. */
int single_image_parse(const uint8_t *bytes, size_t length, uint32_t magic,
                       const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret);
