/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Snapshots that share memory: each is based on the one before it, its parent, and has of that what
 * has not changed.
 *
 *   ID/memory/space-N       pages, in the order they came: one file, which all of the chain have by
 * a hard link ID/memory/space-N.map   where in it the pages are that this snapshot has
 * (store/space_map.h)
 *
 *     space-1    [ a ][ b ][ c ][ d ][ B ][ E ][ C ] ...
 *     s1          a    b    c    d
 *     s2          a         c    d    B    E               b became B, and E is new
 *     s3          a              d    B    E    C
 *
 * Nothing that is in the file is written to again.  The kernel counts the links, so the file lives
 * as long as one snapshot has it; and when a snapshot goes, the pages that only it had are punched
 * out.  So every snapshot is whole, whatever becomes of the others, and together they take what is
 * different in them.  There is no list of who is based on whom.
 *
 * Of each file the budget is charged with the pages that some snapshot has, once.  Snapshots of a
 * chain have images of what criu reads like any other, but for the pages: those are put together
 * when somebody wants to restore, and have no parents.
 */
#include "store/space_map.h"
#include "store/store.h"

/* Makes a snapshot, which is RECEIVING, one of a chain: the parent's, or a new one (NULL).  0, or a
 * negative errno. */
int chain_join(struct snapshot *snapshot, const struct snapshot *parent);

/*
 * Opens the next space of such a snapshot, which from now on counts as spaces of it do.  With a
 * parent it begins as what that has of this task or object.  The arena is the caller's, to be
 * dropped if chain_close_space() is not reached; so is *ret_shadow.  0; -ENODATA: the parent has no
 * such space; -EBUSY: another snapshot is being added to it; or another negative errno.
 */
int chain_open_space(struct snapshot *snapshot, const struct snapshot *parent, bool shared,
                     uint64_t id, struct arena *arena, struct shadow **ret_shadow);

/* Writes down where everything is, frees the shadow, seals the arena, and gives back what nobody
 * has any more.  0, or a negative errno. */
int chain_close_space(struct snapshot *snapshot, uint32_t number, bool shared, uint64_t id,
                      struct arena *arena, struct shadow **shadow);

/* The snapshot leaves its chain: what only it has is given back.  Before its files are removed. */
void chain_leave(struct snapshot *snapshot);

/* Charges for the chains of a store that has just been loaded, and gives back what is nobody's. */
void chains_load(struct store *store);

/* Bytes that all chains of a store are charged with, besides what their snapshots are. */
uint64_t chains_bytes(struct store *store);

/*
 * Makes ready for its pages to be put together for criu.  Those of a snapshot that is not kept, and
 * shares nothing any more, are going to be moved (|moved|, which is written down): it takes no more
 * memory than before, and is of no use as a parent from then on.  Else they are copied, and charged
 * for.  0, -EDQUOT, or another negative errno.
 */
int chain_prepare_flat(struct snapshot *snapshot, bool keep);

/* Removes copies, and gives the charge back. */
void chain_remove_flat(struct snapshot *snapshot);

/* Opens what pages-N.img would be made of: the file, and in *ret which parts of it.  A descriptor;
 * -ENOENT: there is no such space, or it is no such name; or another negative errno. */
int chain_open_pages(const struct snapshot *snapshot, const char *name, struct space_map *ret);

/*
 * Writes pages-N.img for each space, in the form that criu reads: from memory/ of the snapshot, by
 * directories, to images/ or elsewhere.  Moving may be broken off at any moment, and goes on with
 * the next call; -EBUSY: somebody is at it (the lock lives as long as the descriptor of memory/).
 * 0, or another negative errno.
 */
int chain_copy_flat(int memoryfd, int imagefd);
int chain_move_flat(int memoryfd, int imagefd);
