/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/cache.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-daemon.h>

#include "base/io.h"
#include "criu/process.h"
#include "daemon/confine.h"
#include "daemon/spool.h"
#include "migrate/preflight.h"
#include "store/chain.h"
#include "wire/message.h"

enum { MEMORY_PER_CENT = 80 }; /* of what is available: the default limit */

/* How long a cache that was started on demand waits for something to do. */
#define IDLE_USEC (2 * USEC_PER_SEC)

/* ---- snapshots ---- */

void cache_set_state(struct cache *cache, struct snapshot *snapshot, enum snapshot_state state)
{
    int r = snapshot_set_state(snapshot, state);
    if (r < 0) {
        log_error(&cache->daemon.log, "snapshot %s: its state is not written down: %s",
                  snapshot->id, strerror(-r));
        snapshot->state = state;
    }
    log_info(&cache->daemon.log, "snapshot %s: %s", snapshot->id, snapshot_state_name(state));
}

struct snapshot *cache_next_ready(struct cache *cache, bool whole, unsigned *ret_count)
{
    struct snapshot *first = NULL;
    *ret_count = 0;
    for (struct snapshot *s = store_first(cache->store); s; s = s->next) {
        if (s->state != SNAPSHOT_READY || s->kept || (whole && s->moved))
            continue;
        if (!first)
            first = s;
        ++*ret_count;
    }
    return first;
}

void cache_snapshot_ready(struct cache *cache, struct snapshot *snapshot)
{
    spool_snapshot_ready(cache, snapshot);
    if (!claims_snapshot_ready(cache, snapshot))
        serves_snapshot_ready(cache, snapshot);
}

void cache_snapshot_lost(struct cache *cache, const char *id, const struct error *err)
{
    claims_snapshot_lost(cache, id, false, err);
    serves_snapshot_lost(cache);
}

/* A snapshot whose process runs elsewhere. */
static void cache_drop(struct cache *cache, struct snapshot *snapshot, const char *text)
{
    struct error err;
    error_set(&err, FAILURE_PEER, "snapshot %s: the process runs on at the source: %s",
              snapshot->id, text);
    log_error(&cache->daemon.log, "%s", err.text);
    _cleanup_free_ char *id = strdup(snapshot->id);
    spool_snapshot_forgotten(cache, snapshot);
    snapshot_remove(snapshot);
    if (id)
        cache_snapshot_lost(cache, id, &err);
    if (cache->daemon.options->once)
        daemon_exit(&cache->daemon, (int)err.code);
}

void cache_snapshot_claim(struct cache *cache, struct snapshot *snapshot)
{
    snapshot->fallback = snapshot->state;
    cache_set_state(cache, snapshot, SNAPSHOT_RESTORING);
}

void cache_snapshot_release(struct cache *cache, struct snapshot *snapshot)
{
    if (snapshot->revoked) {
        cache_drop(cache, snapshot, "its restore failed here");
        return;
    }
    chain_remove_flat(snapshot);
    cache_set_state(cache, snapshot, snapshot->fallback);
    if (snapshot->state == SNAPSHOT_READY)
        cache_snapshot_ready(cache, snapshot);
}

/* Nobody waits for it any more; it goes when it is in the spool. */
static void cache_snapshot_spent(struct cache *cache, struct snapshot *snapshot)
{
    snapshot->spent = true;
    cache_set_state(cache, snapshot, SNAPSHOT_STARTED);
    log_info(&cache->daemon.log, "snapshot %s: restored, and freed when it is in the spool",
             snapshot->id);
}

void cache_snapshot_restored(struct cache *cache, struct snapshot *snapshot, bool keep)
{
    if (!keep && snapshot_spools(snapshot)) {
        cache_snapshot_spent(cache, snapshot);
        return;
    }
    if (keep) {
        chain_remove_flat(snapshot);
        snapshot->kept = true;
        snapshot->fallback = SNAPSHOT_READY;
        cache_set_state(cache, snapshot, SNAPSHOT_READY);
        cache_snapshot_ready(cache, snapshot);
    } else {
        log_info(&cache->daemon.log, "snapshot %s: restored and freed", snapshot->id);
        struct error err;
        error_set(&err, FAILURE_NOT_FOUND, "snapshot %s: another restore has had it", snapshot->id);
        claims_snapshot_lost(cache, snapshot->id, true, &err);
        snapshot_remove(snapshot);
    }
    if (cache->daemon.options->once)
        daemon_exit(&cache->daemon, 0);
}

static void cache_void(struct cache *cache, const char *id, uint64_t nonce)
{
    struct voided *voided = &cache->voided[cache->voided_next++ % VOIDED_MAX];
    snprintf(voided->id, sizeof(voided->id), "%s", id);
    voided->nonce = nonce;
}

static bool cache_is_void(const struct cache *cache, const struct snapshot *snapshot)
{
    for (size_t i = 0; i < VOIDED_MAX; i++) {
        if (cache->voided[i].nonce == snapshot->nonce &&
            strcmp(cache->voided[i].id, snapshot->id) == 0)
            return true;
    }
    return false;
}

/* A pre-dump is there for the one that follows it, which has come. */
static void cache_drop_parent(struct cache *cache, const struct snapshot *snapshot)
{
    struct snapshot *parent = store_find(cache->store, snapshot->parent);
    if (!parent || parent->state != SNAPSHOT_PRE_DUMPED || parent->chain != snapshot->chain)
        return;
    log_info(&cache->daemon.log, "snapshot %s: freed, for %s is there", parent->id, snapshot->id);
    snapshot_remove(parent);
}

void cache_snapshot_held(struct cache *cache, struct snapshot *snapshot)
{
    char size[24];
    log_info(&cache->daemon.log, "snapshot %s: complete, %u images, %s, from %s", snapshot->id,
             snapshot->images, format_bytes(snapshot->bytes, size), snapshot->host);
    cache_drop_parent(cache, snapshot);
    if (cache_is_void(cache, snapshot)) {
        incoming_expect_no_more(cache, snapshot->id);
        cache_drop(cache, snapshot, "it has said so on another link");
    } else if (snapshot->restore)
        incoming_begin(cache, snapshot);
}

/* ---- verdicts ---- */

static void cache_commit(struct cache *cache, struct snapshot *snapshot)
{
    if (snapshot->fallback == SNAPSHOT_DOUBT)
        snapshot->fallback = SNAPSHOT_READY; /* an operator was ahead, and right */
    if (snapshot->state != SNAPSHOT_HELD && snapshot->state != SNAPSHOT_DOUBT)
        return;
    snapshot->origin = NULL;
    cache_set_state(cache, snapshot, SNAPSHOT_READY);
    cache_snapshot_ready(cache, snapshot);
}

static void cache_abort(struct cache *cache, struct snapshot *snapshot, const char *text)
{
    if (snapshot->state == SNAPSHOT_HELD || snapshot->state == SNAPSHOT_DOUBT ||
        snapshot->state == SNAPSHOT_PRE_DUMPED) {
        cache_drop(cache, snapshot, text);
    } else if (snapshot->state == SNAPSHOT_RESTORING && snapshot->fallback == SNAPSHOT_DOUBT) {
        log_error(&cache->daemon.log, "snapshot %s: taken over, but its process runs on: %s",
                  snapshot->id, text);
        snapshot->revoked = true; /* the hook will hear it */
    } else {
        log_error(&cache->daemon.log,
                  "snapshot %s: its process runs on at the source (%s), and it is %s here",
                  snapshot->id, text, snapshot_state_name(snapshot->state));
    }
}

Godwit__Pb__VerdictAck__Standing cache_take_verdict(struct cache *cache, const struct link *link,
                                                    const Godwit__Pb__Verdict *verdict)
{
    struct snapshot *snapshot = store_find(cache->store, verdict->id);
    if (!snapshot || snapshot->state == SNAPSHOT_RECEIVING || snapshot->nonce != verdict->nonce) {
        if (!verdict->commit)
            cache_void(cache, verdict->id, verdict->nonce);
        return GODWIT__PB__VERDICT_ACK__STANDING__UNKNOWN;
    }
    if (snapshot->restore) {
        snapshot->origin = link; /* whoever knows the nonce is its source */
        bool runs = snapshot->state == SNAPSHOT_RESTORED;
        incoming_verdict(cache, snapshot, verdict->commit, verdict->text);
        return runs ? GODWIT__PB__VERDICT_ACK__STANDING__RUNS
                    : GODWIT__PB__VERDICT_ACK__STANDING__TAKEN;
    }
    if (verdict->commit)
        cache_commit(cache, snapshot);
    else
        cache_abort(cache, snapshot, verdict->text);
    return GODWIT__PB__VERDICT_ACK__STANDING__TAKEN;
}

/* ---- its end ---- */

void cache_check_idle(struct cache *cache)
{
    const struct daemon_options *options = cache->daemon.options;
    bool wanted = options->on_demand || (options->accept && options->once && cache->served);
    if (!wanted || cache->peers || cache->claims || cache->serves || cache->askers ||
        incomings_work(cache))
        return;
    for (struct snapshot *s = store_first(cache->store); s; s = s->next) {
        if (s->filling ||
            (s->restore && s->state != SNAPSHOT_READY && s->state != SNAPSHOT_RESTORED))
            return;
    }
    if (now_usec() - cache->busy_usec > IDLE_USEC || !options->on_demand)
        daemon_exit(&cache->daemon, 0);
}

/* ---- local clients ---- */

static void cache_status(struct cache *cache, struct client *client)
{
    char links[32];
    snprintf(links, sizeof(links), "%u", peers_count_links(cache));
    const struct budget *budget = store_budget(cache->store);
    Godwit__Pb__Status status = GODWIT__PB__STATUS__INIT;
    status.daemon = (char *)"image-cache";
    status.peer = (char *)cache->daemon.options->address;
    status.link = links;
    status.used_bytes = budget->used;
    status.limit_bytes = budget->limit;
    client_send(client, LOCAL_STATUS_DAEMON, &status.base);
    for (struct snapshot *s = store_first(cache->store); s; s = s->next) {
        Godwit__Pb__StatusSnapshot snapshot = GODWIT__PB__STATUS_SNAPSHOT__INIT;
        snapshot.id = s->id;
        snapshot.state = (char *)snapshot_shown_state(s);
        snapshot.bytes = s->bytes;
        snapshot.images = s->images;
        snapshot.pid = s->pid;
        snapshot.command = s->command;
        snapshot.host = s->host;
        snapshot.age_usec = now_usec() - s->created_usec;
        snapshot.parent = s->parent;
        char spool[sizeof(((struct error *)NULL)->text)];
        snapshot.spool = spool_shown(cache, s, spool, sizeof(spool));
        client_send(client, LOCAL_STATUS_SNAPSHOT, &snapshot.base);
    }
    client_done(client, 0);
}

static void cache_forget(struct cache *cache, struct client *client,
                         const struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__forget__descriptor, packet->bytes, packet->length, &err);
    if (!message) {
        client_fail(client, &err);
        return;
    }
    const char *id = ((const Godwit__Pb__Forget *)message)->id;
    struct snapshot *snapshot = store_find(cache->store, id);
    if (!snapshot) {
        error_set(&err, FAILURE_NOT_FOUND, "snapshot %s: the image-cache has no such snapshot", id);
        client_fail(client, &err);
    } else if (snapshot->state == SNAPSHOT_RECEIVING || snapshot->state == SNAPSHOT_HELD ||
               snapshot->state == SNAPSHOT_RESTORING || snapshot->state == SNAPSHOT_PREPARED ||
               snapshot->filling) {
        error_set(&err, FAILURE_BUSY, "snapshot %s: is %s", id, snapshot_shown_state(snapshot));
        client_fail(client, &err);
    } else {
        claims_snapshot_forgotten(cache, snapshot);
        serves_snapshot_forgotten(cache, snapshot);
        incoming_forget(cache, snapshot);
        spool_snapshot_forgotten(cache, snapshot);
        snapshot_remove(snapshot);
        client_done(client, 0);
    }
}

static void cache_resolve(struct cache *cache, struct client *client,
                          const struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__resolve__descriptor, packet->bytes, packet->length, &err);
    const Godwit__Pb__Resolve *resolve = (const Godwit__Pb__Resolve *)message;
    struct snapshot *snapshot = resolve ? store_find(cache->store, resolve->id) : NULL;
    int r = message ? 0 : -1;
    if (r == 0 && (!snapshot || !snapshot->restore))
        r = error_set(&err, FAILURE_NOT_FOUND, "%s: no migration of this name came here",
                      resolve->id);
    if (r == 0)
        r = incoming_resolve(cache, snapshot, resolve->resume, &err);
    if (r < 0)
        client_fail(client, &err);
    else
        client_done(client, 0);
}

/* Somebody brings a connection. */
static void cache_attach(struct cache *cache, struct client *client, struct local_packet *packet)
{
    int fd = TAKE_FD(packet->fds[0]);
    int r = fd < 0 ? -EBADF : set_nonblocking(fd, true);
    if (r >= 0)
        r = peers_take(cache, transport_plain(fd), true);
    struct error err;
    if (r < 0) {
        error_set_errno(&err, FAILURE_SYSTEM, r, "the connection");
        client_fail(client, &err);
        return;
    }
    cache->busy_usec = now_usec();
    client_done(client, 0);
}

static void cache_hook(struct cache *cache, struct client *client,
                       const struct local_packet *packet)
{
    struct hook_ask ask = {.kind = packet->kind};
    if (packet->length != sizeof(ask) - sizeof(ask.kind)) {
        client_hook(client, HOOK_NO, "a malformed question");
        return;
    }
    memcpy((char *)&ask + sizeof(ask.kind), packet->bytes, packet->length);
    ask.action[sizeof(ask.action) - 1] = '\0';
    bool known = ask.token ? claim_hook(cache, client, &ask) || incoming_hook(cache, client, &ask)
                           : serve_hook(cache, client, &ask);
    if (!known)
        client_hook(client, HOOK_NO, "the cache knows no such restore");
}

static void on_packet(struct daemon *daemon, struct client *client, struct local_packet *packet)
{
    struct cache *cache = daemon->user;
    struct error err;
    switch (packet->kind) {
    case HOOK_ASK:
        cache_hook(cache, client, packet);
        return;
    case LOCAL_RESTORE_OPEN:
        claim_open(cache, client, packet);
        return;
    case LOCAL_RESTORE_STREAM:
        claim_stream(cache, client, packet);
        return;
    case LOCAL_EXITED:
        claim_exited(cache, client, packet);
        return;
    case LOCAL_FORGET:
        cache_forget(cache, client, packet);
        return;
    case LOCAL_RESOLVE:
        cache_resolve(cache, client, packet);
        return;
    case LOCAL_ATTACH:
        cache_attach(cache, client, packet);
        return;
    case LOCAL_STATUS:
        cache_status(cache, client);
        return;
    default:
        error_set(&err, FAILURE_USAGE, "an image-cache does not do that");
        client_fail(client, &err);
    }
}

static void on_gone(struct daemon *daemon, struct client *client)
{
    claims_client_gone(daemon->user, client);
    incomings_client_gone(daemon->user, client);
}

static void on_tick(struct daemon *daemon)
{
    claims_tick(daemon->user);
    incomings_tick(daemon->user);
    askers_tick(daemon->user);
    peers_tick(daemon->user);
    cache_check_idle(daemon->user);
}

static void make_room(struct daemon *daemon, int fd)
{
    const struct cache *cache = daemon->user;
    starter_make_room(cache->starter, fd);
}

static int open_log(struct daemon *daemon)
{
    const struct cache *cache = daemon->user;
    return starter_open_log(cache->starter);
}

static void tell_ready(struct daemon *daemon)
{
    const struct cache *cache = daemon->user;
    starter_ready(cache->starter);
}

static const struct daemon_ops daemon_ops = {
    .packet = on_packet,
    .gone = on_gone,
    .tick = on_tick,
    .make_room = make_room,
    .open_log = open_log,
    .tell_ready = tell_ready,
};

/* ---- its life ---- */

static uint64_t available_memory(void)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof(line), file) && sscanf(line, "MemAvailable: %llu", &kib) != 1)
        ;
    if (file)
        fclose(file);
    return kib << 10;
}

/* Before the starter is there: what both need, and what the parser could not find out later. */
static int cache_look_about(struct cache *cache, const struct daemon_options *options,
                            struct error *err)
{
    if (asprintf(&cache->store_path, "%s/images", cache->daemon.workdir_path) < 0) {
        cache->store_path = NULL;
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "image-cache");
    }
    cache->store_fd = store_mount(cache->store_path, err);
    if (cache->store_fd < 0)
        return -1;
    if (options->accept) {
        cache->criu = criu_find(options->criu, &cache->criu_error);
        preflight_try_criu(cache->criu, &cache->criu_error, &cache->criu_known);
    }
    cache->limit =
        options->memory_limit ? options->memory_limit : available_memory() / 100 * MEMORY_PER_CENT;
    pager_is_possible(); /* tried once */
    return 0;
}

static int cache_fork(struct cache *cache, const struct daemon_options *options, struct error *err)
{
    const struct starter_setup setup = {
        .options = options,
        .log = &cache->daemon.log,
        .restores =
            {
                .workdir = cache->daemon.workdir,
                .store = cache->store_fd,
                .workdir_path = cache->daemon.workdir_path,
                .store_path = cache->store_path,
                .criu = cache->criu,
                .criu_error = &cache->criu_error,
                .silence_usec = options->silence_usec,
            },
    };
    cache->starter = starter_new(&setup, err);
    if (!cache->starter)
        return -1;
    int r = sd_event_add_io(cache->daemon.event, &cache->tells, starter_tells(cache->starter),
                            EPOLLIN, incomings_told, cache);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "watching the starter") : 0;
}

static int on_serve(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    int accepted = daemon_accept(fd);
    if (accepted >= 0)
        serve_open(user, accepted);
    return 0;
}

static int cache_serve(struct cache *cache, struct error *err)
{
    int fd = unix_listen_at(cache->daemon.workdir, CACHE_SERVE_SOCKET, SOCK_STREAM);
    int r = fd < 0 ? fd
                   : sd_event_add_io(cache->daemon.event, &cache->serve_listener, fd, EPOLLIN,
                                     on_serve, cache);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s/%s", cache->daemon.workdir_path,
                               CACHE_SERVE_SOCKET);
    sd_event_source_set_io_fd_own(cache->serve_listener, true);
    return 0;
}

/* The rest is done without rights: what an earlier cache has left may be a parser's that was in
 * the hands of others. */
static int cache_confine(struct cache *cache, struct error *err)
{
    if (daemon_prepare(&cache->daemon, err) < 0 ||
        confine_cache(cache->store_path, &cache->store_fd, err) < 0)
        return -1;
    cache->daemon.workdir = -EBADF; /* closed with what leads out */
    cache->store = store_open_at(cache->store_path, TAKE_FD(cache->store_fd), cache->limit, err);
    if (!cache->store)
        return -1;
    cache->busy_usec = now_usec();
    incomings_load(cache);
    return spool_load(cache, err);
}

static int cache_open(struct cache *cache, const struct daemon_options *options, struct error *err)
{
    cache->store_fd = -EBADF;
    cache->inherited = sd_listen_fds(1); /* first of all: it also forgets them, for children */
    if (daemon_open(&cache->daemon, options, "image-cache", LOCAL_CACHE_SOCKET, &daemon_ops, cache,
                    err) < 0 ||
        cache_look_about(cache, options, err) < 0 || cache_fork(cache, options, err) < 0 ||
        cache_serve(cache, err) < 0)
        return -1;
    int r = 0;
    if (options->ps_socket >= 0)
        r = peers_take(cache, transport_plain(options->ps_socket), true);
    else if (!options->on_demand && peers_listen(cache, err) < 0)
        return -1;
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "--ps-socket %d", options->ps_socket);
    if (options->page_server && askers_listen(cache, err) < 0)
        return -1;
    return cache_confine(cache, err);
}

static void cache_close(struct cache *cache)
{
    claims_free(cache);
    serves_free(cache);
    askers_free(cache);
    incomings_free(cache);
    spool_free(cache);
    uint32_t flags =
        (cache->listeners[0] ? ASK_UNIX_SOCKET : 0) | (cache->daemon.prepared ? ASK_PIDFILE : 0);
    peers_free(cache);
    sd_event_source_disable_unref(cache->serve_listener);
    sd_event_source_disable_unref(cache->tells);
    for (struct snapshot *s = cache->store ? store_first(cache->store) : NULL; s; s = s->next)
        log_info(&cache->daemon.log, "snapshot %s (%s) stays for the next image-cache", s->id,
                 snapshot_state_name(s->state));
    store_close(cache->store);
    if (cache->starter)
        cache->starter = starter_end(cache->starter, flags);
    else if (cache->store_fd >= 0)
        store_unmount(cache->store_path, cache->store_fd);
    close_fd(cache->store_fd);
    free(cache->store_path);
    daemon_close(&cache->daemon);
    free(cache->criu);
}

int cache_run(const struct daemon_options *options, struct error *err)
{
    struct cache *cache = calloc(1, sizeof(*cache));
    if (!cache)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "image-cache");
    /* First, for what writes the spool is to have nothing of what comes now. */
    if (options->spool && spool_start(options->spool, &cache->spool, err) < 0) {
        free(cache);
        return -1;
    }
    int r = cache_open(cache, options, err);
    if (r == 0)
        r = daemon_run(&cache->daemon, err);
    cache_close(cache);
    free(cache);
    return r;
}
