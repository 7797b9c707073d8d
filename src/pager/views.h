/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Where a task has its memory now, against where it had it at the dump.  mremap() moves memory, and
 * what is missing in it moves along:
 *
 *   address now     |------ a ------|   |--- b ---|          views, ascending by it
 *   at the dump     |------ a ------|         |--- b ---|    "home": what the fill map speaks of
 *
 * A task begins with one view of everything.  No two views show the same home.  They lie in memory
 * that two processes share, so there is no pointer in them.
 */
#include "base/util.h"

enum { VIEWS_MAX = 1024 };

struct view {
    uint64_t start, end;
    uint64_t home; /* of start */
};

struct views {
    uint64_t count;
    struct view list[VIEWS_MAX];
};

void views_begin(struct views *views);

/* The view that shows the address, or NULL. */
const struct view *views_find(const struct views *views, uint64_t vaddr);

/*
 * Where the home address is shown now.  True with *ret_vaddr, and *length cut to what lies there in
 * one piece.
 */
bool views_locate(const struct views *views, uint64_t home, uint64_t *ret_vaddr, uint64_t *length);

/* The first part of [start, end) that is shown: true with its home and its length; start moves
 * behind it. */
bool views_next(const struct views *views, uint64_t *start, uint64_t end, uint64_t *ret_home,
                uint64_t *ret_length);

/*
 * Writes to |after| what |before| is once [from, from + length) has moved to |to|.  What was shown
 * where it moves to is shown no more.  0, or -ENOSPC if there would be too many views.
 */
int views_move(struct views *after, const struct views *before, uint64_t from, uint64_t to,
               uint64_t length);
