/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * image-cache: the daemon of the destination host.  It takes snapshots from image-proxies and gives
 * them to `godwit restore --remote` (as a directory) and to unmodified `criu restore --stream`.
 *
 *   cache.c    the daemon: listeners, links, what is held for whom
 *   claim.c    one restore through `godwit restore`: waiting, restoring, started
 *   serve.c    one restore through the serve socket of criu --stream
 */
#include "daemon/daemon.h"
#include "store/store.h"
#include "wire/tcp.h"

struct peer;
struct claim;
struct serve;

struct cache {
    struct daemon daemon;
    struct store *store;
    sd_event_source *listeners[TCP_LISTENERS_MAX];
    sd_event_source *serve_listener;
    struct peer *peers;
    struct claim *claims;
    struct serve *serves;
    unsigned peer_count;
};

/* Runs the daemon.  Exit status, or -1 with *err set. */
int cache_run(const struct daemon_options *options, struct error *err);

/* ---- between the three files ---- */

/* A snapshot may be restored: whoever waits for it gets it. */
void cache_snapshot_ready(struct cache *cache, struct snapshot *snapshot);

/* Sets a state; one that cannot be written down is logged, and stands in memory. */
void cache_set_state(struct cache *cache, struct snapshot *snapshot, enum snapshot_state state);

/* Hands it to a restore that may still fail. */
void cache_snapshot_claim(struct cache *cache, struct snapshot *snapshot);

/* A restore has failed and nothing of it runs: the snapshot is what it was before, or, if the
 * source has meanwhile said that its process runs on, gone. */
void cache_snapshot_release(struct cache *cache, struct snapshot *snapshot);

/* A restored snapshot is freed, or kept.  With --once the daemon ends. */
void cache_snapshot_restored(struct cache *cache, struct snapshot *snapshot, bool keep);

/* The next snapshot for somebody who does not name one: the oldest that is ready and not kept from
 * an earlier restore.  *ret_count: how many there are. */
struct snapshot *cache_next_ready(struct cache *cache, unsigned *ret_count);

/* godwit restore. */
void claim_open(struct cache *cache, struct client *client, const struct local_packet *packet);
void claim_exited(struct cache *cache, struct client *client, const struct local_packet *packet);
bool claim_hook(struct cache *cache, struct client *client, const struct hook_ask *ask);
void claims_client_gone(struct cache *cache, struct client *client);
/* True when somebody took it. */
bool claims_snapshot_ready(struct cache *cache, struct snapshot *snapshot);
/* Whoever waits for that snapshot, or for any unless named_only, is told why there is none. */
void claims_snapshot_lost(struct cache *cache, const char *id, bool named_only,
                          const struct error *err);
/* An operator has removed a snapshot that was started: its claim holds it no longer. */
void claims_snapshot_forgotten(struct cache *cache, const struct snapshot *snapshot);
void claims_tick(struct cache *cache);
void claims_free(struct cache *cache);

/* criu restore --stream. */
void serve_open(struct cache *cache, int fd);
bool serve_hook(struct cache *cache, struct client *client, const struct hook_ask *ask);
bool serves_snapshot_ready(struct cache *cache, struct snapshot *snapshot);
void serves_snapshot_lost(struct cache *cache);
/* Whether a criu that lives has it. */
bool serves_hold(const struct cache *cache, const struct snapshot *snapshot);
void serves_snapshot_forgotten(struct cache *cache, const struct snapshot *snapshot);
void serves_free(struct cache *cache);
