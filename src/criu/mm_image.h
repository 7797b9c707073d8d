/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* mm images (CRIU images/mm.proto): what is mapped where in a task. */
#include "base/error.h"
#include "criu.pb-c.h"

/*
 * Reads mm-ID.img by its name in a directory of images, which nobody is trusted to have written.  0
 * and *ret, to be freed by godwit__pb__criu_mm__free_unpacked(), or a negative errno (-ENOENT:
 * there is none; -EBADMSG: it is none).
 */
int mm_image_read(int dirfd, const char *name, Godwit__Pb__CriuMm **ret);

/* The same from memory. */
int mm_image_parse(const uint8_t *bytes, size_t length, Godwit__Pb__CriuMm **ret);
