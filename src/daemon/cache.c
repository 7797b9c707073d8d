/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/cache.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include "base/io.h"
#include "criu/process.h"
#include "migrate/preflight.h"
#include "migrate/receiver.h"
#include "wire/tcp.h"

#define SERVE_SOCKET "streamer-serve.sock"

enum {
    PEERS_MAX = 64,
    SESSIONS_MAX = 256,   /* snapshots arriving on one link at once */
    MEMORY_PER_CENT = 80, /* of what is available: the default limit */
};

/* How long a cache that was started on demand waits for something to do. */
#define IDLE_USEC (2 * USEC_PER_SEC)

/* One link to an image-proxy; or a data connection of a session that another link has. */
struct peer {
    struct cache *cache;
    struct peer *next;
    struct link *link;
    char host[65];
    struct receiver *receivers[SESSIONS_MAX];
    unsigned receiver_count;
    unsigned stream;         /* of a data connection: which it is; 0: it is none */
    struct receiver *joined; /* and whose; NULL: that is over */
};

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

struct snapshot *cache_next_ready(struct cache *cache, unsigned *ret_count)
{
    struct snapshot *first = NULL;
    *ret_count = 0;
    for (struct snapshot *s = store_first(cache->store); s; s = s->next) {
        if (s->state != SNAPSHOT_READY || s->kept)
            continue;
        if (!first)
            first = s;
        ++*ret_count;
    }
    return first;
}

void cache_snapshot_ready(struct cache *cache, struct snapshot *snapshot)
{
    if (!claims_snapshot_ready(cache, snapshot))
        serves_snapshot_ready(cache, snapshot);
}

static void cache_snapshot_lost(struct cache *cache, const char *id, const struct error *err)
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
    cache_set_state(cache, snapshot, snapshot->fallback);
    if (snapshot->state == SNAPSHOT_READY)
        cache_snapshot_ready(cache, snapshot);
}

void cache_snapshot_restored(struct cache *cache, struct snapshot *snapshot, bool keep)
{
    if (keep) {
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

static void on_held(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    struct peer *peer = user;
    char size[24];
    log_info(&peer->cache->daemon.log, "snapshot %s: complete, %u images, %s, from %s",
             snapshot->id, snapshot->images, format_bytes(snapshot->bytes, size), snapshot->host);
    if (cache_is_void(peer->cache, snapshot))
        cache_drop(peer->cache, snapshot, "it has said so on another link");
    else if (snapshot->restore)
        incoming_begin(peer->cache, snapshot);
}

static void on_dropped(struct receiver *receiver, const char *id, const struct error *err,
                       void *user)
{
    (void)receiver;
    struct peer *peer = user;
    log_error(&peer->cache->daemon.log, "snapshot %s: dropped: %s", id, err->text);
    cache_snapshot_lost(peer->cache, id, err);
    if (peer->cache->daemon.options->once)
        daemon_exit(&peer->cache->daemon, (int)err->code);
}

static const struct receiver_ops plain_ops = {.held = on_held, .dropped = on_dropped};
static const struct receiver_ops accepting_ops = {
    .accept = true, .held = on_held, .dropped = on_dropped};

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
    if (snapshot->state == SNAPSHOT_HELD || snapshot->state == SNAPSHOT_DOUBT) {
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

static Godwit__Pb__VerdictAck__Standing cache_take_verdict(struct peer *peer,
                                                           const Godwit__Pb__Verdict *verdict)
{
    struct cache *cache = peer->cache;
    struct snapshot *snapshot = store_find(cache->store, verdict->id);
    if (!snapshot || snapshot->state == SNAPSHOT_RECEIVING || snapshot->nonce != verdict->nonce) {
        if (!verdict->commit)
            cache_void(cache, verdict->id, verdict->nonce);
        return GODWIT__PB__VERDICT_ACK__STANDING__UNKNOWN;
    }
    if (snapshot->restore) {
        snapshot->origin = peer->link; /* whoever knows the nonce is its source */
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

static int take_verdict(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                        struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__verdict__descriptor, payload, frame->length, err);
    if (!message)
        return -1;
    const Godwit__Pb__Verdict *verdict = (const Godwit__Pb__Verdict *)message;
    /* Heard before or never, it is acknowledged: the source need not say so again. */
    Godwit__Pb__VerdictAck ack = GODWIT__PB__VERDICT_ACK__INIT;
    ack.id = verdict->id;
    ack.nonce = verdict->nonce;
    ack.standing = cache_take_verdict(peer, verdict);
    link_send(peer->link, FRAME_VERDICT_ACK, 0, 0, &ack.base);
    return 0;
}

/* ---- migrations ---- */

struct link *cache_link(struct cache *cache, const void *origin)
{
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        if (peer->link == origin && link_is_up(peer->link))
            return peer->link;
    }
    return NULL;
}

void cache_check_idle(struct cache *cache)
{
    const struct daemon_options *options = cache->daemon.options;
    bool wanted = options->on_demand || (options->accept && options->once && cache->served);
    if (!wanted || cache->peers || cache->claims || cache->serves || incomings_work(cache))
        return;
    for (struct snapshot *s = store_first(cache->store); s; s = s->next) {
        if (s->filling ||
            (s->restore && s->state != SNAPSHOT_READY && s->state != SNAPSHOT_RESTORED))
            return;
    }
    if (now_usec() - cache->busy_usec > IDLE_USEC || !options->on_demand)
        daemon_exit(&cache->daemon, 0);
}

static int take_check(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                      struct error *err)
{
    struct cache *cache = peer->cache;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__facts__descriptor, payload, frame->length, err);
    if (!message)
        return -1;
    const struct budget *budget = store_budget(cache->store);
    struct findings findings = {0};
    if (!cache->daemon.options->accept)
        findings_add(&findings, GODWIT__PB__FINDING__SEVERITY__PROBLEM, "accept",
                     "start godwit image-cache there with --accept",
                     "the image-cache starts no restores by itself");
    preflight_judge((const Godwit__Pb__Facts *)message, &cache->criu_known,
                    budget->limit - MIN(budget->used, budget->limit), &findings);
    Godwit__Pb__Findings answer = GODWIT__PB__FINDINGS__INIT;
    answer.findings = findings.list;
    answer.n_findings = findings.count;
    /* What does not fit is of the kind that is told already. */
    while (godwit__pb__findings__get_packed_size(&answer) > WIRE_CONTROL_MAX)
        answer.n_findings /= 2;
    link_send(peer->link, FRAME_CHECKED, 0, 0, &answer.base);
    findings_free(&findings);
    return 0;
}

static int take_settled(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                        struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__standing__descriptor, payload, frame->length, err);
    if (!message)
        return -1;
    const Godwit__Pb__Standing *standing = (const Godwit__Pb__Standing *)message;
    struct snapshot *snapshot = store_find(peer->cache->store, standing->id);
    if (snapshot && snapshot->restore && snapshot->nonce == standing->nonce)
        incoming_settled(peer->cache, snapshot);
    Godwit__Pb__VerdictAck ack = GODWIT__PB__VERDICT_ACK__INIT;
    ack.id = standing->id;
    ack.nonce = standing->nonce;
    link_send(peer->link, FRAME_VERDICT_ACK, 0, 0, &ack.base);
    return 0;
}

/* ---- links ---- */

static struct receiver **peer_find(struct peer *peer, uint32_t session)
{
    for (unsigned i = 0; i < peer->receiver_count; i++) {
        if (receiver_session(peer->receivers[i]) == session)
            return &peer->receivers[i];
    }
    return NULL;
}

/* Frees a session that is over, or whose link is.  Its data connections have nothing more to do. */
static void cache_free_receiver(struct cache *cache, struct receiver *receiver)
{
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        if (peer->joined == receiver)
            peer->joined = NULL;
    }
    receiver_free(receiver);
}

static void peer_forget(struct peer *peer, struct receiver **at)
{
    cache_free_receiver(peer->cache, *at);
    *at = peer->receivers[--peer->receiver_count];
}

static void peer_forget_all(struct peer *peer)
{
    while (peer->receiver_count > 0)
        peer_forget(peer, &peer->receivers[peer->receiver_count - 1]);
}

static int peer_no_session(const struct frame *frame, struct error *err)
{
    return error_set(err, FAILURE_PEER,
                     "the peer broke the protocol: %s frame for session %u, which "
                     "is not open",
                     frame_name(frame->type), frame->session);
}

static int peer_begin(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                      struct error *err)
{
    if (peer_find(peer, frame->session) || peer->receiver_count == SESSIONS_MAX)
        return error_set(err, FAILURE_PEER,
                         "the peer broke the protocol: session %u is open, or there are too many",
                         frame->session);
    const struct receiver_ops *ops =
        peer->cache->daemon.options->accept ? &accepting_ops : &plain_ops;
    struct receiver *receiver =
        receiver_new(peer->cache->store, peer->link, peer->host, frame, payload, ops, peer, err);
    if (!receiver)
        return -1;
    peer->receivers[peer->receiver_count++] = receiver;
    return 0;
}

/* ---- data connections ---- */

/* The session that has this token.  All are looked at, whatever is found. */
static struct receiver *cache_find_token(struct cache *cache, uint32_t session,
                                         const uint8_t token[WIRE_TOKEN_BYTES])
{
    struct receiver *found = NULL;
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        for (unsigned i = 0; i < peer->receiver_count; i++) {
            if (receiver_has_token(peer->receivers[i], session, token))
                found = peer->receivers[i];
        }
    }
    return found;
}

/* Somebody says that this is a data connection.  If it is not, it ends, and nobody else is harmed.
 */
static int peer_join(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                     struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__stream_join__descriptor, payload, frame->length, err);
    if (!message)
        return -1;
    const Godwit__Pb__StreamJoin *join = (const Godwit__Pb__StreamJoin *)message;
    struct receiver *receiver =
        join->token.len == WIRE_TOKEN_BYTES && peer->receiver_count == 0
            ? cache_find_token(peer->cache, frame->session, join->token.data)
            : NULL;
    if (!receiver)
        return error_set(err, FAILURE_PEER, "no session here waits for this data connection");
    if (receiver_join(receiver, join->stream, peer->link, err) < 0)
        return -1;
    peer->stream = join->stream;
    peer->joined = receiver;
    link_send(peer->link, FRAME_STREAM_JOINED, frame->session, 0, NULL);
    return 0;
}

/* What came over a data connection may have been the last of its session. */
static void cache_check_over(struct cache *cache, const struct receiver *receiver)
{
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        for (unsigned i = 0; i < peer->receiver_count; i++) {
            if (peer->receivers[i] != receiver || !receiver_is_over(receiver))
                continue;
            peer_forget(peer, &peer->receivers[i]);
            return;
        }
    }
}

static int stream_is_over(const struct frame *frame, struct error *err)
{
    return error_set(err, FAILURE_PEER, "%s frame of a session that is over",
                     frame_name(frame->type));
}

static int stream_control(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                          struct error *err)
{
    struct receiver *receiver = peer->joined;
    if (!receiver)
        return stream_is_over(frame, err);
    if (frame->session != receiver_session(receiver))
        return peer_no_session(frame, err);
    int r = receiver_control(receiver, peer->stream, frame, payload, err);
    if (r >= 0)
        cache_check_over(peer->cache, receiver);
    return r;
}

/* Whose the data is: of the link's own session of that number, or of the one that it has joined. */
static struct receiver *peer_receiver(struct peer *peer, const struct frame *frame,
                                      struct error *err)
{
    if (peer->stream > 0) {
        if (!peer->joined)
            stream_is_over(frame, err);
        else if (receiver_session(peer->joined) == frame->session)
            return peer->joined;
        else
            peer_no_session(frame, err);
        return NULL;
    }
    struct receiver **at = peer_find(peer, frame->session);
    if (!at)
        peer_no_session(frame, err);
    return at ? *at : NULL;
}

static void stream_down(struct peer *peer, const struct error *err)
{
    struct receiver *receiver = TAKE_PTR(peer->joined);
    log_info(&peer->cache->daemon.log, "data connection %u of host %s: %s", peer->stream,
             peer->host, err->text);
    if (!receiver)
        return;
    receiver_stream_down(receiver, peer->stream, err);
    cache_check_over(peer->cache, receiver);
}

/* ---- what comes over links ---- */

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    struct peer *peer = user;
    if (peer->stream > 0)
        return stream_control(peer, frame, payload, err);
    if (frame->type == FRAME_STREAM_JOIN)
        return peer_join(peer, frame, payload, err);
    if (frame->type == FRAME_VERDICT)
        return take_verdict(peer, frame, payload, err);
    if (frame->type == FRAME_SNAPSHOT_BEGIN)
        return peer_begin(peer, frame, payload, err);
    if (frame->type == FRAME_CHECK)
        return take_check(peer, frame, payload, err);
    if (frame->type == FRAME_SETTLED)
        return take_settled(peer, frame, payload, err);
    struct receiver **at = peer_find(peer, frame->session);
    if (!at)
        return peer_no_session(frame, err);
    int r = receiver_control(*at, 0, frame, payload, err);
    if (r >= 0 && receiver_is_over(*at))
        peer_forget(peer, at);
    return r;
}

static int on_bulk_place(struct link *link, const struct frame *frame, uint32_t done,
                         void **ret_place, size_t *ret_length, void *user, struct error *err)
{
    (void)link;
    struct peer *peer = user;
    struct receiver *receiver = peer_receiver(peer, frame, err);
    return receiver ? receiver_bulk_place(receiver, peer->stream, frame, done, ret_place,
                                          ret_length, err)
                    : -1;
}

static int on_bulk_landed(struct link *link, const struct frame *frame, uint32_t done,
                          const void *place, size_t length, void *user, struct error *err)
{
    (void)link;
    struct peer *peer = user;
    struct receiver *receiver = peer_receiver(peer, frame, err);
    return receiver ? receiver_bulk_landed(receiver, peer->stream, frame, done, place, length, err)
                    : -1;
}

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    struct peer *peer = user;
    const struct transport *transport = link_transport(link);
    const struct logger *log = &peer->cache->daemon.log;
    if (transport->exposed)
        log_error(log, "the link from %s is neither encrypted nor authenticated", peer->host);
    snprintf(peer->host, sizeof(peer->host), "%s", hello->hostname);
    log_info(log, "linked to host %s (%.64s, %s)", peer->host, hello->software, transport->kind);
}

/* What the link's other end has not told of is in doubt from now on. */
static void peer_doubt(struct peer *peer)
{
    for (struct snapshot *s = store_first(peer->cache->store), *next; s; s = next) {
        next = s->next;
        if (s->origin != peer->link || incoming_link_down(peer->cache, s) ||
            s->state != SNAPSHOT_HELD)
            continue;
        s->origin = NULL;
        cache_set_state(peer->cache, s, SNAPSHOT_DOUBT);
        struct error err;
        error_set(
            &err, FAILURE_DOUBT,
            "snapshot %s: complete, but the link broke before host %s told whether process %u "
            "has ended there: if it has, --take-over",
            s->id, s->host, s->pid);
        claims_snapshot_lost(peer->cache, s->id, false, &err);
    }
}

static void peer_free(struct peer *peer)
{
    struct cache *cache = peer->cache;
    struct peer **at = &cache->peers;
    while (*at && *at != peer)
        at = &(*at)->next;
    if (*at) {
        *at = peer->next;
        cache->peer_count--;
    }
    peer_forget_all(peer);
    link_free(peer->link);
    free(peer);
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct peer *peer = user;
    struct cache *cache = peer->cache;
    struct error reason = *err;
    if (reason.code == FAILURE_NONE)
        error_set(&reason, FAILURE_PEER, "it ended");
    if (peer->stream > 0) {
        stream_down(peer, &reason);
        peer_free(peer);
        cache_check_idle(cache);
        return;
    }
    error_prefix(&reason, "link to the source%s%s", peer->host[0] ? " " : "", peer->host);
    log_info(&cache->daemon.log, "%s", reason.text);
    for (unsigned i = 0; i < peer->receiver_count; i++)
        receiver_link_down(peer->receivers[i], &reason);
    peer_doubt(peer);
    peer_free(peer);
    if (cache->daemon.options->ps_socket >= 0 && !store_first(cache->store))
        daemon_exit(&cache->daemon, (int)reason.code);
    cache_check_idle(cache);
}

static const struct link_ops link_ops = {
    .up = on_up,
    .control = on_control,
    .bulk_place = on_bulk_place,
    .bulk_landed = on_bulk_landed,
    .down = on_down,
};

/* A link on it, which is taken over (NULL: there was no memory for it). */
static int cache_take(struct cache *cache, struct transport *transport)
{
    bool full = cache->peer_count == PEERS_MAX;
    struct peer *peer = full || !transport ? NULL : calloc(1, sizeof(*peer));
    if (!peer) {
        transport_free(transport);
        return full ? -EUSERS : -ENOMEM;
    }
    peer->cache = cache;
    tcp_peer_name(transport->fd, peer->host); /* until it says its own */
    peer->link = link_new_on(cache->daemon.event, transport, cache->daemon.options->silence_usec,
                             &link_ops, peer);
    if (!peer->link) {
        int r = -errno;
        peer_free(peer);
        return r;
    }
    peer->next = cache->peers;
    cache->peers = peer;
    cache->peer_count++;
    return 0;
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct cache *cache = user;
    int accepted = daemon_accept(fd);
    if (accepted < 0)
        return 0;
    int r = cache_take(cache, tcp_transport(accepted, &cache->daemon.protection, NULL));
    if (r < 0)
        log_error(&cache->daemon.log, "a connection is turned away: %s", strerror(-r));
    return 0;
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

/* ---- local clients ---- */

static void cache_status(struct cache *cache, struct client *client)
{
    char links[32];
    snprintf(links, sizeof(links), "%u", cache->peer_count);
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
        r = cache_take(cache, transport_plain(fd));
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
    cache_check_idle(daemon->user);
}

static const struct daemon_ops daemon_ops = {.packet = on_packet, .gone = on_gone, .tick = on_tick};

/* ---- its life ---- */

static int cache_add_listener(struct cache *cache, int index, int fd)
{
    int r = sd_event_add_io(cache->daemon.event, &cache->listeners[index], fd, EPOLLIN,
                            on_connection, cache);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    return sd_event_source_set_io_fd_own(cache->listeners[index], true);
}

static int cache_listen(struct cache *cache, struct error *err)
{
    const struct daemon_options *options = cache->daemon.options;
    struct target target = daemon_target(options);
    int fds[TCP_LISTENERS_MAX];
    int count = sd_listen_fds(1);
    if ((count > 0 || target.kind == TARGET_TCP) && daemon_protect(&cache->daemon, err) < 0)
        return -1;
    if (count > 0) {
        /* systemd has opened the sockets: who may reach them is its unit's matter. */
        count = MIN(count, TCP_LISTENERS_MAX);
        for (int i = 0; i < count; i++) {
            fds[i] = SD_LISTEN_FDS_START + i;
            set_nonblocking(fds[i], true);
        }
    } else if (target.kind == TARGET_UNIX) {
        fds[0] = unix_listen_path(target.rest, SOCK_STREAM);
        if (fds[0] < 0)
            return error_set_errno(err, FAILURE_SYSTEM, fds[0], "listening on %s",
                                   options->address);
        count = 1;
    } else {
        count = tcp_listen(options->address, options->port, &cache->daemon.protection, fds, err);
    }
    int r = 0;
    for (int i = 0; i < count; i++) {
        if (r >= 0)
            r = cache_add_listener(cache, i, fds[i]);
        else
            close_fd(fds[i]);
    }
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "listening");
    return count < 0 ? -1 : 0;
}

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

static int cache_open(struct cache *cache, const struct daemon_options *options, struct error *err)
{
    if (daemon_open(&cache->daemon, options, "image-cache", LOCAL_CACHE_SOCKET, &daemon_ops, cache,
                    err) < 0)
        return -1;
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/images", cache->daemon.workdir_path) >= (int)sizeof(path))
        return error_set_errno(err, FAILURE_SYSTEM, ENAMETOOLONG, "%s", cache->daemon.workdir_path);
    uint64_t limit =
        options->memory_limit ? options->memory_limit : available_memory() / 100 * MEMORY_PER_CENT;
    cache->store = store_open(path, true, limit, err);
    if (!cache->store)
        return -1;
    int fd = unix_listen_at(cache->daemon.workdir, SERVE_SOCKET, SOCK_STREAM);
    int r = fd < 0 ? fd
                   : sd_event_add_io(cache->daemon.event, &cache->serve_listener, fd, EPOLLIN,
                                     on_serve, cache);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s/%s", cache->daemon.workdir_path,
                               SERVE_SOCKET);
    sd_event_source_set_io_fd_own(cache->serve_listener, true);
    if (options->accept) {
        cache->criu = criu_find(options->criu, &cache->criu_error);
        preflight_try_criu(cache->criu, &cache->criu_known);
    }
    cache->busy_usec = now_usec();
    incomings_load(cache);
    if (options->on_demand)
        return 0;
    if (options->ps_socket < 0)
        return cache_listen(cache, err);
    r = cache_take(cache, transport_plain(options->ps_socket));
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "--ps-socket %d", options->ps_socket)
                 : 0;
}

static void cache_close(struct cache *cache)
{
    claims_free(cache);
    serves_free(cache);
    incomings_free(cache);
    for (struct peer *peer = cache->peers; peer; peer = peer->next)
        peer_forget_all(peer); /* before any link that they refer to */
    while (cache->peers) {
        struct peer *peer = cache->peers;
        struct error goodbye = {.code = FAILURE_NONE, .text = ""};
        if (link_is_up(peer->link))
            link_goodbye(peer->link, &goodbye);
        peer_free(peer);
    }
    struct target target = daemon_target(cache->daemon.options);
    if (target.kind == TARGET_UNIX && cache->listeners[0])
        unlink(target.rest);
    for (size_t i = 0; i < ARRAY_SIZE(cache->listeners); i++)
        sd_event_source_disable_unref(cache->listeners[i]);
    if (cache->serve_listener)
        unlinkat(cache->daemon.workdir, SERVE_SOCKET, 0);
    sd_event_source_disable_unref(cache->serve_listener);
    for (struct snapshot *s = cache->store ? store_first(cache->store) : NULL; s; s = s->next)
        log_info(&cache->daemon.log, "snapshot %s (%s) stays for the next image-cache", s->id,
                 snapshot_state_name(s->state));
    store_close(cache->store);
    daemon_close(&cache->daemon);
    free(cache->criu);
}

int cache_run(const struct daemon_options *options, struct error *err)
{
    struct cache *cache = calloc(1, sizeof(*cache));
    if (!cache)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "image-cache");
    int r = cache_open(cache, options, err);
    if (r == 0)
        r = daemon_run(&cache->daemon, err);
    cache_close(cache);
    free(cache);
    return r;
}
