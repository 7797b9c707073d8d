/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * image-cache: the daemon of the destination host.  It takes snapshots from image-proxies and gives
 * them to `godwit restore --remote` (as a directory) and to unmodified `criu restore --stream`.
 *
 *   cache.c    the daemon: what is held for whom
 *   peers.c    its links to image-proxies
 *   claim.c    one restore through `godwit restore`: waiting, restoring, started
 *   incoming.c one migration: restored here without being asked for
 *   starter.c  what needs root, asked of another process (starter.h)
 *   serve.c    one restore through the serve socket of criu --stream
 *   spool.c    copies on a disk
 *   asker.c    one criu lazy-pages --page-server, which asks for pages
 */
#include "daemon/daemon.h"
#include "daemon/starter.h"
#include "migrate/preflight.h"
#include "store/store.h"
#include "wire/frame.h"
#include "wire/tcp.h"

struct link;
struct peer;
struct claim;
struct serve;
struct incoming;
struct spool;
struct asker;

#define CACHE_SERVE_SOCKET "streamer-serve.sock"

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
    struct starter *starter;
    sd_event_source *tells;
    int inherited;       /* listening sockets of systemd */
    int store_fd;        /* the directory of the store, until that is open */
    char *store_path;    /* and what it is called outside */
    uint64_t limit;      /* bytes, of the store */
    struct spool *spool; /* NULL: none */
    struct asker *askers;
    sd_event_source *page_listeners[TCP_LISTENERS_MAX]; /* with --page-server */
    uint64_t told_usec; /* strangers have only so many lines of the log in a second: since when */
    unsigned told;      /* and how many they have had */
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

/* ---- between these files ---- */

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
 * an earlier restore; with |whole|, and whose pages nobody has begun to put together.  *ret_count:
 * how many there are. */
struct snapshot *cache_next_ready(struct cache *cache, bool whole, unsigned *ret_count);

/* All of it is here. */
void cache_snapshot_held(struct cache *cache, struct snapshot *snapshot);

/* There is none of that name, and why: for those who wait. */
void cache_snapshot_lost(struct cache *cache, const char *id, const struct error *err);

/* What a source says of a snapshot of its, on that link. */
Godwit__Pb__VerdictAck__Standing cache_take_verdict(struct cache *cache, const struct link *link,
                                                    const Godwit__Pb__Verdict *verdict);

/* Ends a cache that was started for a migration, when there is nothing left to do. */
void cache_check_idle(struct cache *cache);

/* Links to image-proxies.  Listening; or one more, on a transport that is taken over (NULL: there
 * was no memory for it), |handed| by somebody who may do anything here.  0, or a negative errno. */
int peers_listen(struct cache *cache, struct error *err);
int peers_take(struct cache *cache, struct transport *transport, bool handed);
/* The link that is still there, or NULL. */
struct link *peers_link(struct cache *cache, const void *origin);
unsigned peers_count_links(const struct cache *cache);
void peers_tick(struct cache *cache);
void peers_free(struct cache *cache);

/* godwit migrate.  A snapshot that wants it is whole. */
void incoming_begin(struct cache *cache, struct snapshot *snapshot);
/* It is about to become whole: criu is started ahead.  Or it will not: by id, what is gone. */
void incoming_expect(struct cache *cache, struct snapshot *snapshot);
void incoming_expect_no_more(struct cache *cache, const char *id);
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
/* The starter has told something. */
int incomings_told(sd_event_source *source, int fd, uint32_t events, void *user);
void incomings_free(struct cache *cache);

/* godwit restore. */
void claim_open(struct cache *cache, struct client *client, const struct local_packet *packet);
void claim_exited(struct cache *cache, struct client *client, const struct local_packet *packet);
/* criu's images are going to be asked for on a socket, which is brought. */
void claim_stream(struct cache *cache, struct client *client, struct local_packet *packet);
bool claim_hook(struct cache *cache, struct client *client, const struct hook_ask *ask);
void claims_client_gone(struct cache *cache, struct client *client);
/* True when somebody took it. */
bool claims_snapshot_ready(struct cache *cache, struct snapshot *snapshot);
/* Whoever waits for that snapshot, or for any unless named_only, is told why there is none. */
void claims_snapshot_lost(struct cache *cache, const char *id, bool named_only,
                          const struct error *err);
/* An operator has removed a snapshot that was started: its claim holds it no longer. */
void claims_snapshot_forgotten(struct cache *cache, const struct snapshot *snapshot);
/* An image could not be read: what is built of it must not run. */
void claims_snapshot_spoilt(struct cache *cache, const struct snapshot *snapshot);
#define HOOK_SPOILT "an image could not be read whole"
void claims_tick(struct cache *cache);
void claims_free(struct cache *cache);

/* criu lazy-pages --page-server. */
int askers_listen(struct cache *cache, struct error *err);
void askers_tick(struct cache *cache);
void askers_free(struct cache *cache);

/* criu restore --stream. */
void serve_open(struct cache *cache, int fd);
/* Of a claim's snapshot, until that is said to be forgotten. */
void serve_open_claimed(struct cache *cache, int fd, struct snapshot *snapshot);
bool serve_hook(struct cache *cache, struct client *client, const struct hook_ask *ask);
bool serves_snapshot_ready(struct cache *cache, struct snapshot *snapshot);
void serves_snapshot_lost(struct cache *cache);
/* Whether a criu that lives has it. */
bool serves_hold(const struct cache *cache, const struct snapshot *snapshot);
void serves_snapshot_forgotten(struct cache *cache, const struct snapshot *snapshot);
void serves_free(struct cache *cache);
