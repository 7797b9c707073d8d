/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The spool of an image-cache: a directory of a disk, where snapshots are written to as well, as
 * ordinary images of criu (migrate/plain_images.h), as soon as they are ready.
 *
 *   DIR/ID          whole, and on the disk: renamed when it was
 *   DIR/ID~2        the next of that id; what is there is never touched
 *   DIR/.ID.part    being written, or left by an image-cache that was killed
 *
 * A child writes them, one after the other: the daemon neither waits for the disk nor has to reach
 * it.  It is started before the daemon opens anything, and is handed the snapshots' directories;
 * what it has written is seen when the daemon says so.
 *
 *   daemon   WRITE(id, directories) ──────────▶            ──▶ PUBLISH, or DROP: it is forgotten
 *   child                           .ID.part, synced WRITTEN            ID, synced PUBLISHED ──▶
 *
 * Restores do not wait for it.  A snapshot that is restored before it is written stays until then
 * (|spent|), unless it is forgotten; so the spool has every snapshot that was ready, but for a
 * migration's, which is restored without being asked for, and pre-dumps, which are no processes.
 * How a snapshot stands to the spool is struct snapshot's |spool|; there is no other list.
 */
#include "daemon/cache.h"

/* Checks the directory, which is made if missing and must belong to this user alone, and starts
 * the child.  0, or -1 with *err set (FAILURE_BUSY: another image-cache writes there). */
int spool_start(const char *directory, struct spool **ret, struct error *err);

/* In the child, which ends with its parent: takes requests from a socket, and writes to an open
 * directory, of which it clears first what is not whole. */
_Noreturn void spool_write(int socket, int directory);

/* The store and the loop are there: what an earlier image-cache has left undone is done, with or
 * without a spool.  0, or -1 with *err set. */
int spool_load(struct cache *cache, struct error *err);

/* The child ends, at the latest with this process. */
void spool_free(struct cache *cache);

/* A snapshot may be restored. */
void spool_snapshot_ready(struct cache *cache, struct snapshot *snapshot);

/* It is about to be removed. */
void spool_snapshot_forgotten(struct cache *cache, struct snapshot *snapshot);

/* It cannot be written any more, for a reason that is logged and shown. */
void spool_give_up(struct cache *cache, struct snapshot *snapshot, const char *why);

/* How far it is, for people; "" without a spool.  May be made in buf. */
char *spool_shown(const struct cache *cache, const struct snapshot *snapshot, char *buf,
                  size_t size);
