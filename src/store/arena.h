/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An arena: one file on tmpfs that grows at its end and is filled in place.
 *
 *   file   |== filled ==|-- room: charged, allocated, not touched yet ------|
 *                   |<------ window: a part that is mapped --------->|
 *
 * Data is received straight into the window, so there is no copy between the socket and the file
 * that CRIU reads later.  Touching a page new to the machine in pieces of 4 KiB is up to 50 times
 * as slow as in huge pages (docs/architecture.md, "Measured"); the file grows in steps that let
 * tmpfs use huge pages where the mount allows them.
 *
 * What is charged is allocated, so that a machine without memory says so before anything is
 * received, and not by a signal to whoever touches the window.
 */
#include "base/error.h"

/* What all arenas and shadows of a store may hold together, in bytes. */
struct budget {
    uint64_t limit;
    uint64_t used;
};

/* Charges bytes.  0, or -EDQUOT and nothing is charged. */
int budget_charge(struct budget *budget, uint64_t bytes);
void budget_refund(struct budget *budget, uint64_t bytes);

struct arena {
    struct budget *budget;
    int fd;          /* -EBADF once sealed or dropped */
    bool extends;    /* a file that others read, which is as long as |base| without us */
    uint64_t base;   /* bytes that were there before, and are not charged here */
    uint64_t filled; /* end of the bytes handed out by arena_append */
    uint64_t room;   /* bytes charged, and the base; the file's length until it is sealed */
};

/* A part of an arena that is mapped, for one who fills it: several may be at it.  Begins zeroed. */
struct arena_window {
    uint8_t *at; /* NULL: nothing is */
    uint64_t start;
};

/* Creates the file `name` in dirfd; it must not exist.  0, or a negative errno. */
int arena_create(struct arena *arena, int dirfd, const char *name, struct budget *budget);

/*
 * Opens a file that is there, to append to it what can be taken back as long as it is not sealed.
 * 0; -EBUSY: somebody else appends to it; or another negative errno.
 */
int arena_extend(struct arena *arena, int dirfd, const char *name, struct budget *budget);

/* Hands out the next |bytes| of the file.  0 with *ret_offset, -EDQUOT over the budget, or another
 * negative errno. */
int arena_append(struct arena *arena, uint64_t bytes, uint64_t *ret_offset);

/*
 * A place to receive into: *ret_place for the byte at |offset|, good for *length bytes (cut to the
 * window) until the next call for this window, which is always used with this arena.  0, or a
 * negative errno.
 */
int arena_at(const struct arena *arena, struct arena_window *window, uint64_t offset,
             void **ret_place, size_t *length);
void arena_window_close(struct arena_window *window); /* also one with nothing in it */

/* Cuts the file to what was filled and closes it; its windows have been closed.  The charge for the
 * filled part stays until arena_drop().  0, or a negative errno. */
int arena_seal(struct arena *arena);

/* The same for one whose file stays: its charge is added to *charge, and it is as if dropped.  0,
 * or a negative errno and it is as before. */
int arena_hand_over(struct arena *arena, uint64_t *charge);

/* Gives everything back but the file's name, and in a file of others what was appended.  Works on a
 * zeroed arena too. */
void arena_drop(struct arena *arena);
