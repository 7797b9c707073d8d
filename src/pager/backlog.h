/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Messages of a userfaultfd that wait, in the order in which they came, until it is known how much
 * has been moved.
 *
 * Before Linux 6.17 the message of an mremap() that moves an area tells the length that was asked
 * to be moved, also where less has been: with MREMAP_FIXED the area may become smaller as it moves.
 * What follows tells.  Of one call come, in this order (mm/mremap.c, fs/userfaultfd.c),
 *
 *     UNMAP  what was at the new place
 *     REMAP  from, to, length before
 *     UNMAP  [from + moved, from + length), if it became smaller
 *     UNMAP  [from, from + moved), unless MREMAP_DONTUNMAP, which changes no length
 *
 * an UNMAP only where something is registered, and those of other threads in between.  Before the
 * last one has been read the kernel refuses to change anything (EAGAIN).
 *
 * A ring in memory that two processes share; where it begins and ends is in the record's word.
 */
#include <linux/userfaultfd.h>

#include "base/util.h"

enum { BACKLOG_MAX = 4096 };

struct backlog {
    struct uffd_msg list[BACKLOG_MAX];
};

/* The ring's two counters in a word whose low 16 bits are another's. */
#define BACKLOG_COUNTER 0xffffffull
enum { BACKLOG_BEGIN = 16, BACKLOG_END = 40 };

static inline uint32_t backlog_begin(uint64_t word)
{
    return (uint32_t)(word >> BACKLOG_BEGIN & BACKLOG_COUNTER);
}

static inline uint32_t backlog_count(uint64_t word)
{
    return (uint32_t)(((word >> BACKLOG_END) - (word >> BACKLOG_BEGIN)) & BACKLOG_COUNTER);
}

/* The word once a message more is there, or the first has been done. */
static inline uint64_t backlog_pushed(uint64_t word)
{
    return word + (1ull << BACKLOG_END);
}

static inline uint64_t backlog_popped(uint64_t word)
{
    uint64_t begin = (backlog_begin(word) + 1ull) & BACKLOG_COUNTER;
    return (word & ~(BACKLOG_COUNTER << BACKLOG_BEGIN)) | begin << BACKLOG_BEGIN;
}

/* The i-th that waits. */
static inline uint32_t backlog_index(uint64_t word, uint32_t i)
{
    return (backlog_begin(word) + i) % BACKLOG_MAX;
}

/* What the others say of the first, a REMAP. */
struct backlog_move {
    uint64_t length; /* that has been moved */
    bool certain;    /* or else: if nothing is missing in the rest of what there was */
    bool unmapped;   /* and list[own] says that it is gone from where it was */
    uint32_t own;
};

/* False: nothing yet. */
bool backlog_look(const struct backlog *backlog, uint64_t word, struct backlog_move *ret);
