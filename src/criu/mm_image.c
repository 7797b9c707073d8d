/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/mm_image.h"

#include "criu/message_image.h"

#define MM_MAGIC 0x57492820u /* CRIU criu/include/magic.h */

int mm_image_parse(const uint8_t *bytes, size_t length, Godwit__Pb__CriuMm **ret)
{
    return message_image_parse(bytes, length, MM_MAGIC, &godwit__pb__criu_mm__descriptor,
                               (ProtobufCMessage **)ret);
}

int mm_image_read(int dirfd, const char *name, Godwit__Pb__CriuMm **ret)
{
    return message_image_read(dirfd, name, MM_MAGIC, &godwit__pb__criu_mm__descriptor,
                              (ProtobufCMessage **)ret);
}
