/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* XXH3-128 over what an item of a snapshot carries, on either side of the link. */
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h> /* the widest vectors that this CPU has: twice as fast */
#else
#include <xxhash.h>
#endif

#include "base/util.h"

enum { DIGEST_BYTES = 16 };

struct digest {
    XXH3_state_t *state; /* owned */
};

/* 0, or -ENOMEM. */
static inline int digest_begin(struct digest *digest)
{
    digest->state = XXH3_createState();
    if (!digest->state)
        return -ENOMEM;
    XXH3_128bits_reset(digest->state);
    return 0;
}

static inline void digest_bytes(struct digest *digest, const void *bytes, size_t length)
{
    XXH3_128bits_update(digest->state, bytes, length);
}

/* Where the bytes that follow belong: pages count with their address. */
static inline void digest_place(struct digest *digest, uint64_t vaddr, uint64_t length)
{
    uint8_t place[16];
    put_le64(place, vaddr);
    put_le64(place + 8, length);
    XXH3_128bits_update(digest->state, place, sizeof(place));
}

/* The state holds up to 256 bytes of what it was given last, and its memory is somebody else's
 * next: zeros in small pieces take their place. */
static inline void digest_drop(struct digest *digest)
{
    static const uint8_t zeros[64];
    for (size_t i = 0; digest->state && i < 8; i++)
        XXH3_128bits_update(digest->state, zeros, sizeof(zeros));
    XXH3_freeState(digest->state);
    digest->state = NULL;
}

/* Writes the canonical form, which is the same on every machine, and frees the state. */
static inline void digest_end(struct digest *digest, uint8_t out[DIGEST_BYTES])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(digest->state));
    for (size_t i = 0; i < DIGEST_BYTES; i++)
        out[i] = canonical.digest[i];
    digest_drop(digest);
}
