/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A file space-N, mapped, and how many pages of each 2 MiB of it somebody still lacks.  A piece
 * that nobody lacks any more can be given back.
 */
#include "base/util.h"

struct piece {
    uint32_t lacking;
    bool wanted; /* a map speaks of it: only such pieces are ours to give back */
    bool returned;
};

struct space {
    struct space *next;
    unsigned users;
    uint32_t number;
    int fd; /* borrowed from the book */
    const uint8_t *bytes;
    uint64_t length;
    struct piece *pieces;
};

struct spaces {
    struct space *first;
    bool release; /* what nobody lacks is given back */
};

/* The space with that number, mapped from fd if it is new; each call needs a spaces_put().  0, or a
 * negative errno. */
int spaces_get(struct spaces *spaces, uint32_t number, int fd, struct space **ret);
void spaces_put(struct spaces *spaces, struct space *space);

/* From now on what nobody lacks is given back, and at once what nobody lacks already. */
void spaces_release(struct spaces *spaces);

/* A map speaks of these pages; of those of them that somebody lacks space_lack() tells. */
void space_want(struct space *space, uint64_t offset, uint64_t pages);
void space_lack(struct space *space, uint64_t offset, uint64_t pages);
void space_filled(struct spaces *spaces, struct space *space, uint64_t offset, uint64_t pages);

/* Where to copy from.  The pages are there, so that the kernel need not find them one by one. */
const uint8_t *space_at(const struct space *space, uint64_t offset, uint64_t length);
