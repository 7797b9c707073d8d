/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Memory that the memory of others passes through: keys and passwords of processes that are moved.
 * It is in no core dump and no child's, and it goes back to the kernel, which clears it, as soon as
 * it is freed; malloc() would keep what was in it for whoever comes next.
 */
#include "base/util.h"

/* Zeroed pages for |bytes|, of their own mapping; children find zeros there.  NULL: no memory. */
void *hidden_alloc(size_t bytes);

/* Clears it; it stays the caller's. */
void hidden_clear(void *at, size_t bytes);

/* Takes NULL, returns NULL. */
void *hidden_free(void *at, size_t bytes);

/* Leaves a mapping out of core dumps, and what gcore writes. */
void hidden_from_dumps(void *at, size_t bytes);

/* No core dump of this process is written at all, of its heap neither, nor of its children before
 * they execute another program; and only who may trace any process looks into it. */
void hidden_process(void);
