/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A directory in memory for what is read by name; one for each process, removed when it ends. */
#include <stddef.h>

const char *scratch_path(void);
int scratch_fd(void);

/* Has a file there hold this and nothing else. */
void scratch_put(const char *name, const void *bytes, size_t size);
