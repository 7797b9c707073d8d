/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/proxy.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "base/io.h"
#include "daemon/confine.h"
#include "daemon/intake.h"
#include "daemon/lineage.h"

#define CAPTURE_SOCKET "streamer-capture.sock"
#define REDIAL_USEC (200 * USEC_PER_MSEC)

/* ---- verdicts ---- */

static void proxy_send_verdict(struct proxy *proxy, const struct verdict *verdict)
{
    if (!proxy->link_up)
        return;
    Godwit__Pb__Verdict message = GODWIT__PB__VERDICT__INIT;
    message.id = verdict->id;
    message.nonce = verdict->nonce;
    message.commit = verdict->commit;
    message.text = verdict->text;
    link_send(proxy->link, FRAME_VERDICT, 0, 0, &message.base);
}

static struct verdict *verdict_free(struct verdict *verdict)
{
    if (verdict) {
        free(verdict->id);
        free(verdict->text);
        free(verdict);
    }
    return NULL;
}

int proxy_add_verdict(struct proxy *proxy, const char *id, uint64_t nonce, bool commit,
                      const char *text)
{
    struct verdict *verdict = calloc(1, sizeof(*verdict));
    if (!verdict)
        return -ENOMEM;
    *verdict =
        (struct verdict){.id = strdup(id), .nonce = nonce, .commit = commit, .text = strdup(text)};
    if (!verdict->id || !verdict->text) {
        verdict_free(verdict);
        return -ENOMEM;
    }
    verdict->next = proxy->verdicts;
    proxy->verdicts = verdict;
    proxy_send_verdict(proxy, verdict);
    return 0;
}

static void proxy_forget_verdict(struct proxy *proxy, uint64_t nonce)
{
    for (struct verdict **at = &proxy->verdicts; *at;) {
        struct verdict *verdict = *at;
        if (verdict->nonce == nonce) {
            *at = verdict->next;
            verdict_free(verdict);
        } else {
            at = &verdict->next;
        }
    }
}

static int proxy_take_verdict_ack(struct proxy *proxy, const struct frame *frame,
                                  const uint8_t *payload, struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__verdict_ack__descriptor, payload, frame->length, err);
    if (!message)
        return -1;
    uint64_t nonce = ((const Godwit__Pb__VerdictAck *)message)->nonce;
    proxy_forget_verdict(proxy, nonce);
    for (struct dump *dump = proxy->dumps; dump; dump = dump_next(dump))
        dump_verdict_known(dump, nonce);
    return 0;
}

/* ---- the link ---- */

static void proxy_redial(struct proxy *proxy, const struct error *err);

static void on_link_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    struct proxy *proxy = user;
    proxy->link_up = true;
    const struct transport *transport = link_transport(link);
    log_info(&proxy->daemon.log, "linked to image-cache on %.64s (%.64s, %s)", hello->hostname,
             hello->software, transport->kind);
    if (transport->exposed)
        log_error(&proxy->daemon.log,
                  "--insecure: the link is neither encrypted nor authenticated");
    for (const struct verdict *verdict = proxy->verdicts; verdict; verdict = verdict->next)
        proxy_send_verdict(proxy, verdict);
    for (struct dump *dump = proxy->dumps; dump; dump = dump_next(dump))
        dump_link_up(dump);
}

static int on_link_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                           void *user, struct error *err)
{
    (void)link;
    struct proxy *proxy = user;
    if (frame->type == FRAME_VERDICT_ACK)
        return proxy_take_verdict_ack(proxy, frame, payload, err);
    for (struct dump *dump = proxy->dumps; dump; dump = dump_next(dump)) {
        if (dump_has_session(dump, frame->session))
            return dump_control(dump, frame, payload, err);
    }
    int r;
    if (intakes_control(proxy, frame, payload, &r, err))
        return r;
    if (frame->type == FRAME_SNAPSHOT_REFUSE || frame->type == FRAME_SNAPSHOT_ACCEPT ||
        frame->type == FRAME_SNAPSHOT_ACK)
        return 0; /* it crossed our abort, and the dump is over */
    return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame of no dump",
                     frame_name(frame->type));
}

static void on_link_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct proxy *proxy = user;
    struct error reason = *err;
    if (reason.code == FAILURE_NONE)
        error_set(&reason, FAILURE_PEER, "the image-cache ended");
    error_prefix(&reason, "link to image-cache %s", proxy->peer);
    bool was_up = proxy->link_up;
    if (was_up)
        log_error(&proxy->daemon.log, "%s", reason.text);
    proxy->link_up = false;
    for (struct dump *dump = proxy->dumps, *next; dump; dump = next) {
        next = dump_next(dump);
        if (was_up)
            dump_link_down(dump, &reason);
    }
    intakes_link_down(proxy, &reason);
    proxy->link = link_free(proxy->link);
    proxy_redial(proxy, &reason);
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_CACHE,
    .up = on_link_up,
    .control = on_link_control,
    .down = on_link_down,
};

static int proxy_take(struct proxy *proxy, struct transport *transport)
{
    proxy->link = link_new_on(proxy->daemon.event, transport, proxy->daemon.options->silence_usec,
                              &link_ops, proxy);
    return proxy->link ? 0 : -errno;
}

/* ---- dialling ---- */

static void on_dialled(struct dial *dial, struct transport *transport, void *user)
{
    (void)dial;
    struct proxy *proxy = user;
    int r = proxy_take(proxy, transport);
    if (r < 0) {
        struct error err;
        error_set_errno(&err, FAILURE_SYSTEM, r, "the link");
        proxy_redial(proxy, &err);
    }
}

static void on_dial_failed(struct dial *dial, const struct error *err, void *user)
{
    (void)dial;
    struct proxy *proxy = user;
    struct error reason;
    error_set(&reason, err->code, "no image-cache at %s", err->text);
    proxy_redial(proxy, &reason);
}

static const struct dial_ops dial_ops = {.connected = on_dialled, .failed = on_dial_failed};

static void proxy_redial(struct proxy *proxy, const struct error *err)
{
    /* Only a change is worth a line: a cache that is not there yet is asked five times a second. */
    if (strcmp(proxy->link_error.text, err->text) != 0)
        log_info(&proxy->daemon.log, "%s", err->text);
    proxy->link_error = *err;
    if (proxy->dial)
        dial_begin_after(proxy->dial, REDIAL_USEC);
    else
        daemon_exit(&proxy->daemon, proxy->dumps ? FAILURE_PEER : (int)err->code);
}

/* An address that can never do ends the daemon at once. */
static int proxy_aim(struct proxy *proxy, struct error *err)
{
    const struct daemon_options *options = proxy->daemon.options;
    proxy->target = daemon_target(options);
    if (proxy->target.kind == TARGET_UNIX)
        snprintf(proxy->peer, sizeof(proxy->peer), "%s", options->address);
    else
        snprintf(proxy->peer, sizeof(proxy->peer), "%s, port %s", options->address, options->port);
    if (proxy->target.kind == TARGET_TCP && daemon_protect(&proxy->daemon, err) < 0)
        return -1;
    return target_check(&proxy->target, &proxy->daemon.protection, err);
}

static int proxy_dial(struct proxy *proxy, struct error *err)
{
    const struct daemon_options *options = proxy->daemon.options;
    proxy->dial = dial_new(proxy->daemon.event, &proxy->target, &proxy->daemon.protection,
                           options->silence_usec, &dial_ops, proxy);
    if (!proxy->dial)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "the link");
    dial_use(proxy->dial, helper_dialler(proxy->helper));
    return dial_begin(proxy->dial, err);
}

/* ---- local clients ---- */

static void proxy_status(struct proxy *proxy, struct client *client)
{
    Godwit__Pb__Status status = GODWIT__PB__STATUS__INIT;
    status.daemon = (char *)"image-proxy";
    status.peer = proxy->peer;
    status.link = proxy->link_up              ? (char *)"up"
                  : proxy->link_error.text[0] ? proxy->link_error.text
                                              : (char *)"connecting";
    client_send(client, LOCAL_STATUS_DAEMON, &status.base);
    for (const struct dump *dump = proxy->dumps; dump; dump = dump_next(dump)) {
        if (dump_is_over(dump))
            continue;
        Godwit__Pb__StatusSnapshot snapshot = GODWIT__PB__STATUS_SNAPSHOT__INIT;
        dump_describe(dump, &snapshot);
        client_send(client, LOCAL_STATUS_SNAPSHOT, &snapshot.base);
    }
    lineages_describe(proxy, client);
    for (const struct verdict *verdict = proxy->verdicts; verdict; verdict = verdict->next) {
        Godwit__Pb__StatusSnapshot snapshot = GODWIT__PB__STATUS_SNAPSHOT__INIT;
        snapshot.id = verdict->id;
        snapshot.state = verdict->commit ? (char *)"commit-untold" : (char *)"abort-untold";
        client_send(client, LOCAL_STATUS_SNAPSHOT, &snapshot.base);
    }
    client_done(client, 0);
}

static void proxy_forget(struct proxy *proxy, struct client *client,
                         const struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__forget__descriptor, packet->bytes, packet->length, &err);
    const char *id = message ? ((const Godwit__Pb__Forget *)message)->id : NULL;
    int r = id ? lineages_forget(proxy, id) : 0;
    if (r == -EBUSY)
        error_set(&err, FAILURE_BUSY, "snapshot %s: the next one is being made", id);
    else if (r < 0)
        error_set(&err, FAILURE_NOT_FOUND, "snapshot %s: no process is followed since that", id);
    if (!id || r < 0)
        client_fail(client, &err);
    else
        client_done(client, 0);
}

static void on_packet(struct daemon *daemon, struct client *client, struct local_packet *packet)
{
    struct proxy *proxy = daemon->user;
    struct hook_ask ask = {.kind = packet->kind};
    struct error err;
    switch (packet->kind) {
    case HOOK_ASK:
        if (packet->length != sizeof(ask) - sizeof(ask.kind)) {
            client_hook(client, HOOK_NO, "a malformed question");
            return;
        }
        memcpy((char *)&ask + sizeof(ask.kind), packet->bytes, packet->length);
        dump_hook(proxy, client, &ask, TAKE_FD(packet->fds[0]));
        return;
    case LOCAL_DUMP_OPEN:
        dump_open(proxy, client, packet);
        return;
    case LOCAL_EXITED:
        dump_exited(proxy, client, packet);
        return;
    case LOCAL_FORGET:
        proxy_forget(proxy, client, packet);
        return;
    case LOCAL_STATUS:
        proxy_status(proxy, client);
        return;
    default:
        error_set(&err, FAILURE_USAGE, "an image-proxy does not do that");
        client_fail(client, &err);
    }
}

static void on_gone(struct daemon *daemon, struct client *client)
{
    struct proxy *proxy = daemon->user;
    for (struct dump *dump = proxy->dumps; dump; dump = dump_next(dump))
        dump_client_gone(dump, client);
}

static void on_tick(struct daemon *daemon)
{
    struct proxy *proxy = daemon->user;
    for (struct dump *dump = proxy->dumps, *next; dump; dump = next) {
        next = dump_next(dump);
        dump_tick(dump);
    }
    lineages_reap(proxy);
    intakes_tick(proxy);
}

static void make_room(struct daemon *daemon, int fd)
{
    const struct proxy *proxy = daemon->user;
    helper_make_room(proxy->helper, fd);
}

static int open_log(struct daemon *daemon)
{
    const struct proxy *proxy = daemon->user;
    return helper_open_log(proxy->helper);
}

static void tell_ready(struct daemon *daemon)
{
    const struct proxy *proxy = daemon->user;
    helper_ready(proxy->helper);
}

static const struct daemon_ops daemon_ops = {
    .packet = on_packet,
    .gone = on_gone,
    .tick = on_tick,
    .make_room = make_room,
    .open_log = open_log,
    .tell_ready = tell_ready,
};

static int on_capture(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    int accepted = daemon_accept(fd);
    if (accepted >= 0)
        dump_open_stream(user, accepted);
    return 0;
}

void proxy_dump_over(struct proxy *proxy, enum failure code)
{
    if (proxy->daemon.options->once)
        daemon_exit(&proxy->daemon, (int)code);
}

/* ---- its other half ---- */

static void remove_sockets(const struct daemon *daemon)
{
    unlinkat(daemon->workdir, LOCAL_PROXY_SOCKET, 0);
    unlinkat(daemon->workdir, CAPTURE_SOCKET, 0);
    intakes_remove(daemon->options);
}

static int on_helper_end(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    const struct proxy *proxy = user;
    helper_lost(proxy->helper, ENODATA);
}

static int proxy_fork(struct proxy *proxy, struct error *err)
{
    const struct helper_setup setup = {
        .daemon = &proxy->daemon, .target = &proxy->target, .remove = remove_sockets};
    proxy->helper = helper_new(&setup, err);
    if (!proxy->helper)
        return -1;
    int r = sd_event_add_io(proxy->daemon.event, &proxy->helper_end, helper_fd(proxy->helper),
                            EPOLLIN, on_helper_end, proxy);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "watching the helper") : 0;
}

/* What comes from the link, criu and local clients is read without rights. */
static int proxy_confine(struct proxy *proxy, struct error *err)
{
    if (daemon_prepare(&proxy->daemon, err) < 0 || confine_proxy(err) < 0)
        return -1;
    proxy->daemon.workdir = close_fd(proxy->daemon.workdir); /* what is in it is the helper's */
    return 0;
}

/* ---- its life ---- */

static int proxy_open(struct proxy *proxy, const struct daemon_options *options, struct error *err)
{
    if (daemon_open(&proxy->daemon, options, "image-proxy", LOCAL_PROXY_SOCKET, &daemon_ops, proxy,
                    err) < 0)
        return -1;
    int fd = unix_listen_at(proxy->daemon.workdir, CAPTURE_SOCKET, SOCK_STREAM);
    int r = fd < 0 ? fd
                   : sd_event_add_io(proxy->daemon.event, &proxy->capture, fd, EPOLLIN, on_capture,
                                     proxy);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s/%s", proxy->daemon.workdir_path,
                               CAPTURE_SOCKET);
    sd_event_source_set_io_fd_own(proxy->capture, true);
    if (options->page_server && intakes_listen(proxy, err) < 0)
        return -1;
    if ((options->ps_socket < 0 && proxy_aim(proxy, err) < 0) || proxy_fork(proxy, err) < 0 ||
        proxy_confine(proxy, err) < 0)
        return -1;
    if (options->ps_socket < 0)
        return proxy_dial(proxy, err);
    snprintf(proxy->peer, sizeof(proxy->peer), "on descriptor %d", options->ps_socket);
    r = proxy_take(proxy, transport_plain(options->ps_socket));
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "--ps-socket %d", options->ps_socket)
                 : 0;
}

static void proxy_close(struct proxy *proxy)
{
    while (proxy->dumps)
        proxy->dumps = dump_free(proxy->dumps);
    lineages_free(proxy);
    if (!proxy->helper && proxy->page_listeners[0])
        intakes_remove(proxy->daemon.options);
    intakes_free(proxy);
    while (proxy->verdicts) {
        struct verdict *verdict = proxy->verdicts;
        proxy->verdicts = verdict->next;
        log_error(&proxy->daemon.log,
                  "snapshot %s: the cache does not know yet that it %s: there it is in doubt",
                  verdict->id, verdict->commit ? "may be restored" : "is void");
        verdict_free(verdict);
    }
    if (!proxy->helper && proxy->capture)
        unlinkat(proxy->daemon.workdir, CAPTURE_SOCKET, 0);
    sd_event_source_disable_unref(proxy->capture);
    dial_free(proxy->dial);
    if (proxy->link && link_is_up(proxy->link)) {
        struct error goodbye = {.code = FAILURE_NONE, .text = ""};
        link_goodbye(proxy->link, &goodbye);
    }
    link_free(proxy->link);
    sd_event_source_disable_unref(proxy->helper_end);
    proxy->helper = helper_end(proxy->helper);
    daemon_close(&proxy->daemon);
}

int proxy_run(const struct daemon_options *options, struct error *err)
{
    struct proxy *proxy = calloc(1, sizeof(*proxy));
    if (!proxy)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "image-proxy");
    int r = proxy_open(proxy, options, err);
    if (r == 0)
        r = daemon_run(&proxy->daemon, err);
    proxy_close(proxy);
    free(proxy);
    return r;
}
