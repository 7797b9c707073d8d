/* SPDX-License-Identifier: Apache-2.0 */
/* The links of an image-cache: who may have one, what may be said on it, and whose data it is. */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <systemd/sd-daemon.h>

#include "base/io.h"
#include "daemon/admit.h"
#include "daemon/cache.h"
#include "daemon/crowd.h"
#include "migrate/receiver.h"
#include "wire/message.h"

enum {
    LINKS_MAX = 64,       /* data connections not among them */
    STRANGERS_LINES = 20, /* of the log, in a second */
    SESSIONS_MAX = 256,   /* snapshots arriving on one link at once */
};

/* One link to an image-proxy; or a data connection of a session that another link has. */
struct peer {
    struct cache *cache;
    struct peer *next;
    struct link *link;
    char host[65];
    struct stranger stranger; /* until it is known */
    bool up;                  /* the handshake is over */
    bool surplus; /* it came up when there were links enough: it may only join a session */
    bool handed;  /* by somebody who may do anything here */
    bool refused; /* to start something, once at least */
    struct receiver *receivers[SESSIONS_MAX];
    unsigned receiver_count;
    unsigned stream;         /* of a data connection: which it is; 0: it is none */
    struct receiver *joined; /* and whose; NULL: that is over */
};

/* ---- sessions ---- */

static void on_held(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    struct peer *peer = user;
    cache_snapshot_held(peer->cache, snapshot);
}

static void on_freezing(struct receiver *receiver, struct snapshot *snapshot, void *user)
{
    (void)receiver;
    struct peer *peer = user;
    incoming_expect(peer->cache, snapshot);
}

static void on_dropped(struct receiver *receiver, const char *id, const struct error *err,
                       void *user)
{
    (void)receiver;
    struct peer *peer = user;
    incoming_expect_no_more(peer->cache, id);
    log_error(&peer->cache->daemon.log, "snapshot %s: dropped: %s", id, err->text);
    /* To those who wait for it a criu that failed is the source's, and nothing is here to try. */
    struct error told = *err;
    if (told.code == FAILURE_CRIU) {
        told.code = FAILURE_PEER;
        error_prefix(
            &told, "snapshot %s: its dump has failed at the source, where the process runs on", id);
    }
    cache_snapshot_lost(peer->cache, id, &told);
    if (peer->cache->daemon.options->once)
        daemon_exit(&peer->cache->daemon, (int)err->code);
}

static int peer_admit(struct peer *peer, char *const *options, size_t count, struct error *err)
{
    const struct daemon *daemon = &peer->cache->daemon;
    int r = admit(daemon->options, link_transport(peer->link), peer->handed, options, count, err);
    if (r < 0 && !peer->refused)
        log_error(&daemon->log, "host %s may start no restore: %s", peer->host, err->text);
    peer->refused |= r < 0;
    return r;
}

static int on_admit(const Godwit__Pb__SnapshotBegin *begin, void *user, struct error *err)
{
    return peer_admit(user, begin->options, begin->n_options, err);
}

static const struct receiver_ops receiver_ops = {
    .admit = on_admit, .freezing = on_freezing, .held = on_held, .dropped = on_dropped};

/* ---- what is not of a session ---- */

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
    ack.standing = cache_take_verdict(peer->cache, peer->link, verdict);
    link_send(peer->link, FRAME_VERDICT_ACK, 0, 0, &ack.base);
    return 0;
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
    const Godwit__Pb__Facts *facts = (const Godwit__Pb__Facts *)message;
    struct findings findings = {0};
    const struct preflight_eyes eyes = starter_eyes(cache->starter);
    struct error reason;
    /* Whoever may not have anything started here is told nothing of this host either. */
    if (peer_admit(peer, facts->options, facts->n_options, &reason) < 0) {
        findings_add(&findings, GODWIT__PB__FINDING__SEVERITY__PROBLEM, "accept",
                     "see --accept in godwit-image-cache(1)", "%s", reason.text);
    } else {
        preflight_judge(facts, &cache->criu_known, budget->limit - MIN(budget->used, budget->limit),
                        &eyes, &findings);
    }
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

/* ---- the sessions of a link ---- */

static struct receiver **peer_find(struct peer *peer, uint32_t session)
{
    for (unsigned i = 0; i < peer->receiver_count; i++) {
        if (receiver_session(peer->receivers[i]) == session)
            return &peer->receivers[i];
    }
    return NULL;
}

/* Frees a session that is over, or whose link is.  Its data connections have nothing more to do. */
static void peers_free_receiver(struct cache *cache, struct receiver *receiver)
{
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        if (peer->joined == receiver) {
            peer->joined = NULL;
            peer->stranger.since_usec = now_usec();
        }
    }
    receiver_free(receiver);
}

static void peer_forget(struct peer *peer, struct receiver **at)
{
    peers_free_receiver(peer->cache, *at);
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
    struct receiver *receiver = receiver_new(peer->cache->store, peer->link, peer->host, frame,
                                             payload, &receiver_ops, peer, err);
    if (!receiver)
        return -1;
    peer->receivers[peer->receiver_count++] = receiver;
    return 0;
}

/* ---- data connections ---- */

/* The session that has this token.  All are looked at, whatever is found. */
static struct receiver *peers_find_token(struct cache *cache, uint32_t session,
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

/* Neither a link nor a data connection, not yet or no longer. */
static bool peer_is_stranger(const struct peer *peer)
{
    return !peer->up || (peer->stream == 0 ? peer->surplus : !peer->joined);
}

unsigned peers_count_links(const struct cache *cache)
{
    unsigned count = 0;
    for (const struct peer *peer = cache->peers; peer; peer = peer->next)
        count += !peer_is_stranger(peer) && peer->stream == 0;
    return count;
}

static int peer_is_surplus(struct error *err)
{
    return error_set(err, FAILURE_LIMIT, "the image-cache there serves %d links already",
                     LINKS_MAX);
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
            ? peers_find_token(peer->cache, frame->session, join->token.data)
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
static void peers_check_over(struct cache *cache, const struct receiver *receiver)
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
        peers_check_over(peer->cache, receiver);
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
    peers_check_over(peer->cache, receiver);
}

/* ---- what comes over links ---- */

/* What is not of an open session. */
static const struct {
    uint16_t type;
    int (*take)(struct peer *peer, const struct frame *frame, const uint8_t *payload,
                struct error *err);
} takes[] = {
    {FRAME_STREAM_JOIN, peer_join},     {FRAME_VERDICT, take_verdict},
    {FRAME_SNAPSHOT_BEGIN, peer_begin}, {FRAME_CHECK, take_check},
    {FRAME_SETTLED, take_settled},
};

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    struct peer *peer = user;
    if (peer->stream > 0)
        return stream_control(peer, frame, payload, err);
    if (peer->surplus && frame->type != FRAME_STREAM_JOIN)
        return peer_is_surplus(err);
    for (size_t i = 0; i < ARRAY_SIZE(takes); i++) {
        if (takes[i].type == frame->type)
            return takes[i].take(peer, frame, payload, err);
    }
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
    peer->surplus = peers_count_links(peer->cache) == LINKS_MAX;
    peer->up = true;
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

/* Nobody fills the disk with tries. */
static bool peers_may_tell(struct cache *cache)
{
    uint64_t now = now_usec();
    if (now - cache->told_usec > USEC_PER_SEC) {
        cache->told_usec = now;
        cache->told = 0;
    }
    if (++cache->told == STRANGERS_LINES + 1)
        log_error(&cache->daemon.log, "more lines about strangers are left out");
    return cache->told <= STRANGERS_LINES;
}

static void peer_free(struct peer *peer)
{
    struct cache *cache = peer->cache;
    struct peer **at = &cache->peers;
    while (*at && *at != peer)
        at = &(*at)->next;
    if (*at)
        *at = peer->next;
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
    if (peer->up || peers_may_tell(cache))
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
    .peer = SENT_BY_SOURCE,
    .up = on_up,
    .control = on_control,
    .bulk_place = on_bulk_place,
    .bulk_landed = on_bulk_landed,
    .down = on_down,
};

/* Of those who have not shown who they are one goes when there are too many. */
static void peers_make_room(struct cache *cache)
{
    struct stranger crowd[CROWD_MAX];
    struct peer *peers[CROWD_MAX];
    size_t count = 0;
    for (struct peer *peer = cache->peers; peer && count < CROWD_MAX; peer = peer->next) {
        if (!peer_is_stranger(peer))
            continue;
        crowd[count] = peer->stranger;
        peers[count++] = peer;
    }
    if (count < CROWD_MAX)
        return;
    struct peer *peer = peers[crowd_choose(crowd, count)];
    if (peers_may_tell(cache))
        log_error(&cache->daemon.log,
                  "%d connections have not shown who they are: the oldest from where most are "
                  "(%s) is dropped",
                  CROWD_MAX, peer->host);
    peer_free(peer);
}

/* Whoever came up when there were links enough and has not joined a session, or whose session is
 * over, has no more to hope for. */
void peers_tick(struct cache *cache)
{
    uint64_t patience = cache->daemon.options->silence_usec;
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        struct error err;
        if (!peer->up || !peer_is_stranger(peer) ||
            now_usec() - peer->stranger.since_usec <= patience)
            continue;
        if (peer->stream == 0)
            peer_is_surplus(&err);
        else
            error_set(&err, FAILURE_PEER, "the session of this data connection is over");
        link_goodbye(peer->link, &err);
    }
}

/* A link on it, which is taken over (NULL: there was no memory for it). */
int peers_take(struct cache *cache, struct transport *transport, bool handed)
{
    struct peer *peer = transport ? calloc(1, sizeof(*peer)) : NULL;
    if (!peer) {
        transport_free(transport);
        return -ENOMEM;
    }
    peers_make_room(cache);
    peer->cache = cache;
    peer->stranger.since_usec = now_usec();
    stranger_network(transport->fd, peer->stranger.network);
    peer->handed = handed;
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
    return 0;
}

/* ---- listening ---- */

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct cache *cache = user;
    int accepted = daemon_accept(fd);
    if (accepted < 0)
        return 0;
    int r = peers_take(cache, tcp_transport(accepted, &cache->daemon.protection, NULL), false);
    if (r < 0)
        log_error(&cache->daemon.log, "a connection is turned away: %s", strerror(-r));
    return 0;
}

static int peers_add_listener(struct cache *cache, int index, int fd)
{
    int r = sd_event_add_io(cache->daemon.event, &cache->listeners[index], fd, EPOLLIN,
                            on_connection, cache);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    return sd_event_source_set_io_fd_own(cache->listeners[index], true);
}

int peers_listen(struct cache *cache, struct error *err)
{
    const struct daemon_options *options = cache->daemon.options;
    struct target target = daemon_target(options);
    int fds[TCP_LISTENERS_MAX];
    int count = cache->inherited;
    if ((count > 0 || target.kind == TARGET_TCP) && daemon_protect(&cache->daemon, err) < 0)
        return -1;
    const struct credentials *credentials = cache->daemon.protection.credentials;
    if (options->accept_from && (!credentials || credentials->is_psk))
        return error_set(
            err, FAILURE_USAGE,
            "--accept-from: only certificates tell who somebody is: " CREDENTIALS_ADVICE);
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
            r = peers_add_listener(cache, i, fds[i]);
        else
            close_fd(fds[i]);
    }
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "listening");
    return count < 0 ? -1 : 0;
}

/* ---- for the rest of the cache ---- */

struct link *peers_link(struct cache *cache, const void *origin)
{
    for (struct peer *peer = cache->peers; peer; peer = peer->next) {
        if (peer->link == origin && link_is_up(peer->link))
            return peer->link;
    }
    return NULL;
}

void peers_free(struct cache *cache)
{
    for (struct peer *peer = cache->peers; peer; peer = peer->next)
        peer_forget_all(peer); /* before any link that they refer to */
    while (cache->peers) {
        struct peer *peer = cache->peers;
        struct error goodbye = {.code = FAILURE_NONE, .text = ""};
        if (link_is_up(peer->link))
            link_goodbye(peer->link, &goodbye);
        peer_free(peer);
    }
    for (size_t i = 0; i < ARRAY_SIZE(cache->listeners); i++)
        sd_event_source_disable_unref(cache->listeners[i]);
}
