/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Images of CRIU that hold messages of one type, which nobody is trusted to have written.  While
 * one is looked at it takes at most MESSAGE_IMAGE_FACTOR times its own size, and 4 MiB; what wants
 * more is none.
 */
#include "base/error.h"
#include "criu.pb-c.h"

enum { MESSAGE_IMAGE_FACTOR = 12 };

/*
 * Reads one that holds one message by its name in a directory of images; |magic| is its own, the
 * second.  0 and *ret, to be freed by protobuf_c_message_free_unpacked(), or a negative errno
 * (-ENOENT: there is none; -EBADMSG: it is none).
 */
int message_image_read(int dirfd, const char *name, uint32_t magic,
                       const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret);

/* The same from memory. */
int message_image_parse(const uint8_t *bytes, size_t length, uint32_t magic,
                        const ProtobufCMessageDescriptor *type, ProtobufCMessage **ret);

/* Calls each() for every message of one that holds many, until one is not 0.  What that was, or as
 * message_image_read(). */
typedef int message_image_each_t(const ProtobufCMessage *message, void *user);
int message_image_read_each(int dirfd, const char *name, uint32_t magic,
                            const ProtobufCMessageDescriptor *type, message_image_each_t *each,
                            void *user);
int message_image_parse_each(const uint8_t *bytes, size_t length, uint32_t magic,
                             const ProtobufCMessageDescriptor *type, message_image_each_t *each,
                             void *user);
