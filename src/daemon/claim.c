/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A claim: one `godwit restore --remote`.
 *
 *   WAITING ──▶ RESTORING ──▶ STARTED ──▶ (over)
 *
 * It waits for its snapshot, is handed the directory, and runs criu, whose post-restore hook asks
 * before the tasks run: from that answer on the snapshot counts as running here, until criu's end
 * (or the post-resume hook) tells otherwise.
 */
#include <limits.h>
#include <string.h>
#include <sys/random.h>

#include "base/io.h"
#include "criu/process.h"
#include "criu/stream.h"
#include "daemon/cache.h"
#include "daemon/spool.h"
#include "store/chain.h"
#include "wire/frame.h"
#include "wire/message.h"

struct claim {
    struct cache *cache;
    struct claim *next;
    struct client *client;    /* NULL: gone while STARTED; the last hook is still to come */
    char id[WIRE_ID_MAX + 1]; /* empty: any */
    bool keep, take_over, to_copy;
    bool streamed;             /* criu reads from us, not from the directory */
    sd_event_source *listener; /* until it has connected */
    bool spoilt;               /* some image could not be read */
    uint64_t since_usec, wait_usec;
    uint64_t token;
    struct snapshot *snapshot; /* NULL: waiting, or over */
    bool released;             /* criu is about to let the tasks go, or has */
};

static void claim_free(struct claim *claim)
{
    struct claim **at = &claim->cache->claims;
    while (*at != claim)
        at = &(*at)->next;
    *at = claim->next;
    sd_event_source_disable_unref(claim->listener);
    if (claim->streamed && claim->snapshot)
        serves_snapshot_forgotten(claim->cache, claim->snapshot);
    free(claim);
}

static void claim_fail(struct claim *claim, const struct error *err)
{
    client_fail(claim->client, err);
    claim_free(claim);
}

void claims_free(struct cache *cache)
{
    while (cache->claims)
        claim_free(cache->claims);
}

/* ---- getting the snapshot ---- */

/* What is being written to the spool is not moved from under it, as long as there is room. */
static int claim_prepare_flat(const struct claim *claim, struct snapshot *snapshot)
{
    int r = chain_prepare_flat(snapshot, claim->keep || snapshot_spools(snapshot));
    if (r != -EDQUOT || claim->keep || !snapshot_spools(snapshot))
        return r;
    r = chain_prepare_flat(snapshot, false);
    if (r == 0 && snapshot->moved)
        spool_give_up(claim->cache, snapshot, "its restore had no room for a copy of its pages");
    return r;
}

static void claim_take(struct claim *claim, struct snapshot *snapshot)
{
    char path[PATH_MAX], memory[PATH_MAX];
    struct error err;
    int r = snapshot_path(snapshot, "images", path, sizeof(path));
    if (r == 0)
        r = snapshot_path(snapshot, "memory", memory, sizeof(memory));
    claim->streamed = snapshot->chain && !claim->to_copy && !snapshot->moved &&
                      stream_restores(snapshot->imagefd);
    if (r == 0 && !claim->to_copy && !claim->streamed)
        r = claim_prepare_flat(claim, snapshot);
    if (r < 0) {
        if (r == -EDQUOT)
            error_set(&err, FAILURE_LIMIT,
                      "snapshot %s: the image-cache has no room to put its pages together: free "
                      "others there (godwit forget), or raise its --memory-limit",
                      snapshot->id);
        else
            error_set_errno(&err, FAILURE_SYSTEM, r, "snapshot %s", snapshot->id);
        claim_fail(claim, &err);
        return;
    }
    claims_snapshot_forgotten(claim->cache, snapshot);
    claim->snapshot = snapshot;
    cache_snapshot_claim(claim->cache, snapshot);
    Godwit__Pb__RestoreReady ready = GODWIT__PB__RESTORE_READY__INIT;
    ready.id = snapshot->id;
    ready.token = claim->token;
    ready.directory = path;
    if (snapshot->chain)
        ready.memory = memory;
    ready.moved = snapshot->moved;
    ready.streamed = claim->streamed;
    client_send(claim->client, LOCAL_RESTORE_READY, &ready.base);
}

static void doubt_error(const struct snapshot *snapshot, struct error *ret)
{
    if (snapshot->state == SNAPSHOT_STARTED)
        error_set(ret, FAILURE_DOUBT,
                  "snapshot %s: it was started here, and nobody told how that ended: if no copy of "
                  "the process runs, --take-over",
                  snapshot->id);
    else
        error_set(ret, FAILURE_DOUBT,
                  "snapshot %s: complete, but host %s has not told whether process %u has ended "
                  "there: if it has, --take-over",
                  snapshot->id, snapshot->host, snapshot->pid);
}

static bool claim_holds(const struct cache *cache, const struct snapshot *snapshot)
{
    for (const struct claim *claim = cache->claims; claim; claim = claim->next) {
        if (claim->snapshot == snapshot && claim->client)
            return true;
    }
    return false;
}

/* A snapshot that was named and is there: 1 it is to be had, 0 wait for it, -1 with *err. */
static int claim_check(const struct claim *claim, const struct snapshot *snapshot,
                       struct error *err)
{
    switch (snapshot->state) {
    case SNAPSHOT_RECEIVING:
    case SNAPSHOT_HELD:
        return 0;
    case SNAPSHOT_READY:
        return 1;
    case SNAPSHOT_PRE_DUMPED:
        if (claim->to_copy)
            return 1;
        return error_set(err, FAILURE_USAGE,
                         "snapshot %s: is a pre-dump, which is memory and no process: dump it with "
                         "--parent %s first",
                         snapshot->id, snapshot->id);
    case SNAPSHOT_PREPARED:
    case SNAPSHOT_RESTORED:
        return error_set(err, FAILURE_BUSY,
                         "snapshot %s: belongs to a migration, see godwit resolve", snapshot->id);
    case SNAPSHOT_RESTORING:
        return error_set(err, FAILURE_BUSY, "snapshot %s: is being restored already", snapshot->id);
    case SNAPSHOT_STARTED:
    case SNAPSHOT_DOUBT:
        if (claim_holds(claim->cache, snapshot) || serves_hold(claim->cache, snapshot))
            return error_set(err, FAILURE_BUSY, "snapshot %s: a restore of it is at work",
                             snapshot->id);
        if (snapshot->spent)
            return error_set(err, FAILURE_BUSY,
                             "snapshot %s: has been restored, and is being written to the spool",
                             snapshot->id);
        if (claim->take_over)
            return 1;
        doubt_error(snapshot, err);
        return -1;
    }
    return 0;
}

static int claim_find(struct claim *claim, struct snapshot **ret, struct error *err)
{
    if (claim->id[0]) {
        *ret = store_find(claim->cache->store, claim->id);
        return *ret ? claim_check(claim, *ret, err) : 0;
    }
    unsigned count;
    *ret = cache_next_ready(claim->cache, false, &count);
    if (count > 1)
        return error_set(err, FAILURE_BUSY,
                         "%u snapshots are there: say which with --snapshot (godwit status lists "
                         "them)",
                         count);
    return count > 0;
}

void claim_open(struct cache *cache, struct client *client, const struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__restore_open__descriptor, packet->bytes, packet->length, &err);
    const Godwit__Pb__RestoreOpen *open = (const Godwit__Pb__RestoreOpen *)message;
    if (open && *open->id && !snapshot_id_valid(open->id)) {
        error_set(&err, FAILURE_USAGE, "%s is not a snapshot id", open->id);
        open = NULL;
    }
    struct claim *claim = open ? calloc(1, sizeof(*claim)) : NULL;
    if (open && !claim)
        error_set_errno(&err, FAILURE_SYSTEM, ENOMEM, "a restore");
    if (!claim) {
        client_fail(client, &err);
        return;
    }
    *claim = (struct claim){
        .cache = cache,
        .client = client,
        .keep = open->keep,
        .take_over = open->take_over,
        .to_copy = open->to_copy,
        .since_usec = now_usec(),
        .wait_usec = open->wait_usec,
    };
    strcpy(claim->id, open->id);
    struct claim **last = &cache->claims; /* first come, first served */
    while (*last)
        last = &(*last)->next;
    *last = claim;
    struct snapshot *snapshot = NULL;
    int r = getrandom(&claim->token, sizeof(claim->token), 0) < 0
                ? error_set_errno(&err, FAILURE_SYSTEM, errno, "getrandom")
                : claim_find(claim, &snapshot, &err);
    claim->token |= 1;
    if (r < 0)
        claim_fail(claim, &err);
    else if (r > 0)
        claim_take(claim, snapshot);
}

bool claims_snapshot_ready(struct cache *cache, struct snapshot *snapshot)
{
    for (struct claim *claim = cache->claims; claim; claim = claim->next) {
        if (claim->snapshot ||
            (claim->id[0] ? strcmp(claim->id, snapshot->id) != 0 : snapshot->kept))
            continue;
        claim_take(claim, snapshot);
        return true;
    }
    return false;
}

void claims_snapshot_lost(struct cache *cache, const char *id, bool named_only,
                          const struct error *err)
{
    for (struct claim *claim = cache->claims, *next; claim; claim = next) {
        next = claim->next;
        if (claim->snapshot)
            continue;
        if (claim->id[0] ? strcmp(claim->id, id) == 0 : !named_only)
            claim_fail(claim, err);
    }
}

void claims_snapshot_forgotten(struct cache *cache, const struct snapshot *snapshot)
{
    for (struct claim *claim = cache->claims; claim; claim = claim->next) {
        if (claim->snapshot == snapshot) {
            if (claim->client)
                client_done(claim->client, 0);
            claim_free(claim);
            return;
        }
    }
}

void claims_tick(struct cache *cache)
{
    for (struct claim *claim = cache->claims, *next; claim; claim = next) {
        next = claim->next;
        if (!claim->client)
            continue;
        if (claim->snapshot) {
            client_progress(claim->client, claim->snapshot->bytes,
                            snapshot_state_name(claim->snapshot->state));
            continue;
        }
        if (now_usec() - claim->since_usec < claim->wait_usec) {
            client_progress(claim->client, 0, "waiting");
            continue;
        }
        struct error err;
        const struct snapshot *snapshot = claim->id[0] ? store_find(cache->store, claim->id) : NULL;
        error_set(&err, FAILURE_NOT_FOUND, "%s%s: %s", claim->id[0] ? "snapshot " : "no snapshot",
                  claim->id,
                  snapshot ? "is not complete" : "the image-cache has none, and the wait is over");
        claim_fail(claim, &err);
    }
}

/* ---- restoring it ---- */

static struct claim *claim_of(const struct cache *cache, const struct client *client)
{
    struct claim *claim = cache->claims;
    while (claim && claim->client != client)
        claim = claim->next;
    return claim;
}

static int on_stream(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct claim *claim = user;
    int accepted = daemon_accept(fd);
    if (accepted < 0)
        return 0;
    claim->listener = sd_event_source_disable_unref(claim->listener); /* it comes once */
    serve_open_claimed(claim->cache, accepted, claim->snapshot);
    return 0;
}

void claim_stream(struct cache *cache, struct client *client, struct local_packet *packet)
{
    struct claim *claim = claim_of(cache, client);
    struct error err;
    int fd = TAKE_FD(packet->fds[0]);
    int r = fd < 0 ? -EBADF : set_nonblocking(fd, true);
    if (r >= 0 && (!claim || !claim->snapshot || !claim->streamed || claim->listener))
        r = -EPROTO;
    if (r >= 0)
        r = sd_event_add_io(cache->daemon.event, &claim->listener, fd, EPOLLIN, on_stream, claim);
    if (r >= 0) {
        sd_event_source_set_io_fd_own(claim->listener, true);
        return;
    }
    close_fd(fd);
    error_set_errno(&err, FAILURE_SYSTEM, r, "the socket for criu --stream");
    client_fail(client, &err);
}

void claims_snapshot_spoilt(struct cache *cache, const struct snapshot *snapshot)
{
    for (struct claim *claim = cache->claims; claim; claim = claim->next) {
        if (claim->snapshot == snapshot)
            claim->spoilt = true;
    }
}

/* The claim goes first: a kept snapshot is handed on to the next at once. */
static void claim_done(struct claim *claim)
{
    struct cache *cache = claim->cache;
    struct snapshot *snapshot = claim->snapshot;
    bool keep = claim->keep;
    if (claim->client)
        client_done(claim->client, snapshot->bytes);
    claim_free(claim);
    cache_snapshot_restored(cache, snapshot, keep);
}

bool claim_hook(struct cache *cache, struct client *client, const struct hook_ask *ask)
{
    for (struct claim *claim = cache->claims; claim; claim = claim->next) {
        if (!claim->snapshot || claim->token != ask->token)
            continue;
        if (strcmp(ask->action, "post-resume") == 0) {
            claim_done(claim);
        } else if (claim->snapshot->revoked || claim->spoilt) {
            client_hook(client, HOOK_NO,
                        claim->spoilt ? HOOK_SPOILT : "the process runs on at the source");
            return true;
        } else if (strcmp(ask->action, "post-restore") == 0) {
            cache_set_state(cache, claim->snapshot, SNAPSHOT_STARTED);
        } else {
            claim->released = true;
        }
        client_hook(client, HOOK_YES, "");
        return true;
    }
    return false;
}

void claim_exited(struct cache *cache, struct client *client, const struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__exited__descriptor, packet->bytes, packet->length, &err);
    struct claim *claim = claim_of(cache, client);
    if (!message || !claim || !claim->snapshot) {
        error_set(&err, FAILURE_PEER, "the cache knows no such restore");
        client_fail(client, &err);
        return;
    }
    struct snapshot *snapshot = claim->snapshot;
    int status = ((const Godwit__Pb__Exited *)message)->status;
    if (status == 0) {
        claim_done(claim);
        return;
    }
    if (criu_killed_by(status) && claim->released) {
        doubt_error(snapshot, &err);
        claim_fail(claim, &err);
        return;
    }
    /* Nothing of it runs: criu has killed what it had built, or was killed before it could start
     * it. It is ready for another try when the client, which clears up behind criu, has gone. */
    cache_set_state(cache, snapshot, SNAPSHOT_RESTORING);
    claim->token = 0;
    error_set(&err, FAILURE_CRIU, "snapshot %s is still there for another try", snapshot->id);
    client_fail(client, &err);
}

void claims_client_gone(struct cache *cache, struct client *client)
{
    for (struct claim *claim = cache->claims; claim; claim = claim->next) {
        if (claim->client != client)
            continue;
        struct snapshot *snapshot = claim->snapshot;
        if (snapshot && snapshot->state == SNAPSHOT_STARTED) {
            claim->client = NULL;
            return;
        }
        claim_free(claim);
        /* Its criu may still be at work, but cannot start anything: its hook is unknown now. */
        if (snapshot && snapshot->state == SNAPSHOT_RESTORING)
            cache_snapshot_release(cache, snapshot);
        return;
    }
}
