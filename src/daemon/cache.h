/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * image-cache: the daemon of the destination host.  It takes snapshots from image-proxies and gives
 * them to `godwit restore --remote` (as a directory) and to unmodified `criu restore --stream`.
 *
 *   cache.c    the daemon: listeners, links, what is held for whom
 *   claim.c    one restore through `godwit restore`: waiting, restoring, started
 *   incoming.c one migration: restored here without being asked for
 *   serve.c    one restore through the serve socket of criu --stream
 */
#include "daemon/daemon.h"
#include "migrate/preflight.h"
#include "store/store.h"
#include "wire/frame.h"
#include "wire/tcp.h"

struct peer;
struct claim;
struct serve;
struct incoming;

enum { VOIDED_MAX = 64 };

/* A snapshot that its source has given up before all of it was here: the rest may still lie unread
 * in a link that the source has left. */
struct voided {
    char id[WIRE_ID_MAX + 1];
    uint64_t nonce;
};

struct cache {
    struct daemon daemon;
    struct store *store;
    sd_event_source *listeners[TCP_LISTENERS_MAX];
    sd_event_source *serve_listener;
    struct peer *peers;
    struct claim *claims;
    struct serve *serves;
    struct incoming *incomings;
    unsigned peer_count;
    struct voided voided[VOIDED_MAX]; /* the latest */
    unsigned voided_next;
    bool served;        /* a migration has come to its end */
    uint64_t busy_usec; /* when somebody last brought a connection */
    char *criu;         /* with --accept; NULL: there is none, and criu_error tells why */
    struct error criu_error;
    struct preflight_criu criu_known;
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

/* The link that is still there, or NULL. */
struct link *cache_link(struct cache *cache, const void *origin);

/* Ends a cache that was started for a migration, when there is nothing left to do. */
void cache_check_idle(struct cache *cache);

/* godwit migrate.  A snapshot that wants it is whole. */
void incoming_begin(struct cache *cache, struct snapshot *snapshot);
/* False: the question is not about a migration. */
bool incoming_hook(struct cache *cache, struct client *client, const struct hook_ask *ask);
/* The source's word, and the link's end.  False: the snapshot is no migration's. */
bool incoming_verdict(struct cache *cache, struct snapshot *snapshot, bool commit,
                      const char *text);
bool incoming_link_down(struct cache *cache, struct snapshot *snapshot);
/* The source knows that the process runs here. */
void incoming_settled(struct cache *cache, struct snapshot *snapshot);
/* The operator's word.  0, or -1 with *err set. */
int incoming_resolve(struct cache *cache, struct snapshot *snapshot, bool resume,
                     struct error *err);
/* The snapshot is about to be removed. */
void incoming_forget(struct cache *cache, const struct snapshot *snapshot);
void incomings_client_gone(struct cache *cache, struct client *client);
void incomings_tick(struct cache *cache);
/* Whether a criu is at work for any. */
bool incomings_work(const struct cache *cache);
/* Takes over what an earlier cache left in the store. */
void incomings_load(struct cache *cache);
void incomings_free(struct cache *cache);

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
