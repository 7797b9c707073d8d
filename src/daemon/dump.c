/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One dump on the source host.
 *
 *   WAIT_LINK ─▶ OPENING ─▶ COPYING ─▶ SENDING ─▶ ASKED ─▶ ALLOWED ─▶ DECIDED ─▶ OVER
 *       └───────────┴──────────┴──────────┴─────────┴──▶ (failed) ───────────────▲
 *
 *   OPENING  the cache has been asked whether it takes the snapshot
 *   COPYING  of a process that is followed: what it has written is sent while it runs
 *   SENDING  criu dumps
 *   ASKED    the post-dump hook asks; the images are sent and acknowledged while it waits
 *   ALLOWED  the hook was told yes: criu kills the tasks, or does not; nothing but their end tells
 *   DECIDED  the verdict is on its way to the cache
 *
 * A pre-dump goes from COPYING to ASKED, and is over when the cache has acknowledged it.
 *
 * Before ALLOWED every failure is the dump's failure: the hook is told no, and criu lets the
 * process run on.  From then on the process itself is asked: when it has ended, the snapshot may be
 * restored (commit); when criu has ended and the process has not, it must not (abort).  That holds
 * whatever becomes of criu and of `godwit dump`.
 */
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include "criu/process.h"
#include "criu/scan_filter.h"
#include "daemon/dump.h"
#include "task/task.h"

/* How long after criu's end the process may show no sign of being killed, and still be. */
#define GRACE_USEC (500 * USEC_PER_MSEC)
#define GRACE_GOOD_EXIT_USEC (2 * USEC_PER_SEC)

enum {
    ANSWER_SILENCES = 3, /* a tunnel on the way may hold what this host sees as delivered */
};

static const char *const phase_names[] = {
    [DUMP_WAIT_LINK] = "waiting for the link",
    [DUMP_OPENING] = "opening",
    [DUMP_COPYING] = "copying",
    [DUMP_SENDING] = "dumping",
    [DUMP_ASKED] = "completing",
    [DUMP_ALLOWED] = "ending the source",
    [DUMP_DECIDED] = "telling the cache",
    [DUMP_OVER] = "over",
};

struct dump *dump_next(const struct dump *dump)
{
    return dump->next;
}

bool dump_is_over(const struct dump *dump)
{
    return dump->state == DUMP_OVER;
}

struct error dump_error(enum failure code, const char *text)
{
    struct error err;
    error_set(&err, code, "%s", text);
    return err;
}

/* ---- the end of it ---- */

static void dump_stop_listening(struct dump *dump)
{
    dump->root_io = sd_event_source_disable_unref(dump->root_io);
    dump->lifeline_io = sd_event_source_disable_unref(dump->lifeline_io);
    dump->filter_io = sd_event_source_disable_unref(dump->filter_io);
    dump->stream_io = sd_event_source_disable_unref(dump->stream_io);
    dump->pages_fd = close_fd(dump->pages_fd);
    dump->images_fd = close_fd(dump->images_fd);
}

/* The dump is freed at the next tick; whoever waits has been told before. */
static void dump_over(struct dump *dump, enum failure code)
{
    dump->state = DUMP_OVER;
    dump_stop_listening(dump);
    proxy_dump_over(dump->proxy, code);
}

void dump_fail(struct dump *dump, const struct error *err)
{
    if (dump->state >= DUMP_ALLOWED)
        return;
    log_error(&dump->proxy->daemon.log, "dump %s: %s", dump->id, err->text);
    dump->state = DUMP_OVER; /* so that what the sender reports from here on is no news */
    struct lineage *lineage = TAKE_PTR(dump->based.lineage);
    if (lineage)
        lineage_failed(lineage, err);
    if (dump->hook)
        client_hook(dump->hook, HOOK_NO, err->text);
    if (dump->client)
        client_fail(dump->client, err);
    if (dump->sender) {
        /* The cache may have it whole, with its acknowledgement under way.  The process runs on,
         * but for a criu --stream without a hook, which waits for nobody. */
        if (sender_end_is_sent(dump->sender))
            proxy_add_verdict(dump->proxy, dump->id, dump->token, dump->is_unasked, err->text);
        sender_fail(dump->sender, err);
    }
    dump_over(dump, err->code);
}

struct dump *dump_free(struct dump *dump)
{
    struct dump *next = dump->next;
    struct error gone = dump_error(FAILURE_PEER, "the image-proxy ends");
    dump_stop_listening(dump);
    if (dump->based.lineage)
        lineage_failed(dump->based.lineage, &gone);
    sender_free(dump->sender);
    free(dump->command);
    free(dump->stream_name);
    intake_memory_free(dump->memory);
    free(dump);
    return next;
}

/* What is queued last is a question to the cache. */
static void dump_asks(struct dump *dump)
{
    dump->unanswered_since = 0;
    dump->question_at = dump->proxy->link ? link_position(dump->proxy->link) : 0;
}

/* ---- the verdict ---- */

/* The client need not wait until a broken link is back. */
static void dump_tell_doubt(struct dump *dump)
{
    struct error err;
    error_set(&err, FAILURE_DOUBT,
              "snapshot %s is complete on the other host, the process has ended here, and the link "
              "broke before the cache was told: the proxy goes on trying; if it cannot, `godwit "
              "restore --remote --snapshot %s --take-over` there",
              dump->id, dump->id);
    if (dump->client)
        client_fail(dump->client, &err);
    dump->client = NULL;
}

/* What becomes of what was noted of the process. */
static void dump_settle_lineage(struct dump *dump, bool commit, const char *text)
{
    struct error err = dump_error(FAILURE_CRIU, text);
    struct lineage *lineage = TAKE_PTR(dump->based.lineage);
    if (lineage && !commit)
        lineage_failed(lineage, &err);
    else if (lineage && dump->source_lives_on)
        lineage_keep(lineage, dump->id, dump->token);
    else if (lineage)
        lineage_end(lineage);
}

static void dump_decide(struct dump *dump, bool commit, const char *text)
{
    struct proxy *proxy = dump->proxy;
    dump_settle_lineage(dump, commit, text);
    dump->commit = commit;
    dump->state = DUMP_DECIDED;
    if (!commit)
        log_error(&proxy->daemon.log, "dump %s: %s", dump->id, text);
    struct error err;
    if (proxy_add_verdict(proxy, dump->id, dump->token, commit, text) < 0) {
        error_set_errno(&err, FAILURE_DOUBT, ENOMEM, "dump %s: telling the cache", dump->id);
        if (dump->client)
            client_fail(dump->client, &err);
        dump_over(dump, FAILURE_DOUBT);
        return;
    }
    dump_asks(dump);
    if (!commit) {
        error_set(&err, FAILURE_CRIU, "%s", text);
        if (dump->client)
            client_fail(dump->client, &err);
    } else if (!proxy->link_up) {
        dump_tell_doubt(dump);
    }
}

/*
 * Whether the process demonstrably runs on.  Tearing down a large one takes seconds: as long as it
 * is dying there is nothing to say.  One that cannot be looked at (another pid namespace) runs if
 * criu says that it failed, and is waited for otherwise.
 */
static bool dump_root_runs(const struct dump *dump, bool criu_failed)
{
    struct pollfd process = {.fd = dump->root_fd, .events = POLLIN};
    if (poll(&process, 1, 0) != 0)
        return false;
    return dump->root_pid > 0 ? !task_is_dying(dump->root_pid) : criu_failed;
}

/* Looks at what is known of criu and of the process, and decides when it is enough. */
static void dump_evaluate(struct dump *dump)
{
    if (dump->state != DUMP_ALLOWED)
        return;
    if (dump->source_lives_on) {
        if (dump->exit_known && dump->exit_status == 0)
            dump_decide(dump, true, "");
        else if (dump->exit_known || (dump->criu_ended && !dump->client))
            dump_decide(dump, false, "criu failed after the dump; the process runs on");
        return;
    }
    /* criu kills the root first: it is done when it has ended itself. */
    if (!dump->criu_ended && !dump->exit_known)
        return;
    if (dump->root_ended) {
        dump_decide(dump, true, "");
        return;
    }
    if (dump->root_fd < 0) {
        /* criu --stream without a hook: criu's end is all there is. */
        dump_decide(dump, true, "");
        return;
    }
    bool good = dump->exit_known && dump->exit_status == 0;
    uint64_t grace = good ? GRACE_GOOD_EXIT_USEC : GRACE_USEC;
    /* A criu that says itself that it failed has killed nobody; else it takes a while to be sure.
     */
    bool failed = dump->exit_known && dump->exit_status && !criu_killed_by(dump->exit_status);
    if ((failed || now_usec() - dump->criu_ended_usec > grace) && dump_root_runs(dump, failed))
        dump_decide(dump, false,
                    good ? "criu ended well and the process still runs: was it told to leave it?"
                         : "criu failed after the dump; the process runs on");
}

void dump_criu_ended(struct dump *dump)
{
    if (!dump->criu_ended) {
        dump->criu_ended = true;
        dump->criu_ended_usec = now_usec();
    }
    dump_evaluate(dump);
}

void dump_verdict_known(struct dump *dump, uint64_t nonce)
{
    if (dump->state != DUMP_DECIDED || dump->token != nonce)
        return;
    if (dump->commit) {
        log_info(&dump->proxy->daemon.log, "dump %s: complete, %llu bytes", dump->id,
                 (unsigned long long)sender_bytes(dump->sender));
        if (dump->client)
            client_done(dump->client, sender_bytes(dump->sender));
    }
    dump_over(dump, dump->commit ? FAILURE_NONE : FAILURE_CRIU);
}

static int on_root(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)fd;
    (void)events;
    struct dump *dump = user;
    sd_event_source_set_enabled(source, SD_EVENT_OFF);
    dump->root_ended = true;
    if (dump->pre_dump) {
        struct error err = dump_error(FAILURE_NOT_FOUND, "the process has ended meanwhile");
        dump_fail(dump, &err);
        return 0;
    }
    dump_evaluate(dump);
    return 0;
}

static int on_lifeline(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)fd;
    (void)events;
    sd_event_source_set_enabled(source, SD_EVENT_OFF);
    dump_criu_ended(user);
    return 0;
}

int dump_watch(struct dump *dump, sd_event_source **source, int fd, sd_event_io_handler_t handler)
{
    int r = sd_event_add_io(dump->proxy->daemon.event, source, fd, EPOLLIN, handler, dump);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    return sd_event_source_set_io_fd_own(*source, true);
}

int dump_watch_root(struct dump *dump, int pidfd)
{
    dump->root_pid = task_of_pidfd(pidfd);
    dump->root_fd = pidfd;
    return dump_watch(dump, &dump->root_io, pidfd, on_root);
}

int dump_watch_criu(struct dump *dump, int fd)
{
    return dump_watch(dump, &dump->lifeline_io, fd, on_lifeline);
}

/* ---- the sender ---- */

/* The pre-dump is complete. */
static void dump_end_pre_dump(struct dump *dump)
{
    lineage_keep(TAKE_PTR(dump->based.lineage), dump->id, dump->token);
    log_info(&dump->proxy->daemon.log, "pre-dump %s: complete, %llu bytes", dump->id,
             (unsigned long long)sender_bytes(dump->sender));
    if (dump->client)
        client_done(dump->client, sender_bytes(dump->sender));
    dump_over(dump, FAILURE_NONE);
}

static void dump_allow(struct dump *dump)
{
    /* A hook that has not heard the yes has said no to criu.  criu --stream with no hook at all has
     * done its worst already. */
    if (!dump->is_unasked && (!dump->hook || client_hook(dump->hook, HOOK_YES, "") < 0)) {
        struct error err = dump_error(FAILURE_CRIU, "criu's hook has gone before it was answered");
        dump_fail(dump, &err);
        return;
    }
    dump->state = DUMP_ALLOWED;
    dump_evaluate(dump);
}

/* Tells the client what it is going to be; then it starts criu, unless it is a pre-dump. */
static void dump_tell_opened(struct dump *dump)
{
    enum { HIDDEN_MAX = LOCAL_PACKET_MAX - 1024 };
    _cleanup_free_ char *hidden = NULL, *skipped = NULL;
    Godwit__Pb__DumpOpened opened = GODWIT__PB__DUMP_OPENED__INIT;
    opened.id = dump->id;
    opened.token = dump->token;
    opened.parent = dump->based.parent;
    opened.why_full = dump->based.why_full;
    if (dump->based.lineage && (skipped = lineage_skipped(dump->based.lineage))) {
        log_info(&dump->proxy->daemon.log, "dump %s: %s", dump->id, skipped);
        opened.skipped = skipped;
    }
    if (dump->based.lineage && !dump->pre_dump) {
        hidden = lineage_hide(dump->based.lineage);
        opened.narrow = true;
        if (hidden)
            opened.hidden = (ProtobufCBinaryData){strlen(hidden), (uint8_t *)hidden};
    }
    if (opened.hidden.len > HIDDEN_MAX) {
        struct error err = dump_error(FAILURE_LIMIT, "there are too many tasks to be compared");
        dump_fail(dump, &err);
        return;
    }
    if (dump->client)
        client_send(dump->client, LOCAL_DUMP_OPENED, &opened.base);
}

static void dump_opened(struct dump *dump)
{
    dump->state = DUMP_SENDING;
    int r = dump->pages_fd >= 0
                ? sender_open_page_door(dump->sender, TAKE_FD(dump->pages_fd), NULL, NULL)
                : 0;
    if (r < 0) {
        struct error err;
        error_set_errno(&err, FAILURE_SYSTEM, r, "dump %s", dump->id);
        dump_fail(dump, &err);
        return;
    }
    if (dump->stream_io)
        sd_event_source_set_enabled(dump->stream_io, SD_EVENT_ON);
    dump_tell_opened(dump);
}

/* What criu --page-server has left in its directory; its pages are there already. */
static void dump_send_images(struct dump *dump)
{
    struct error err;
    int r = 0;
    for (size_t i = 0; r == 0 && i < dump->memory->count; i++)
        r = sender_add_based(dump->sender, dump->memory->objects[i].kind,
                             dump->memory->objects[i].id);
    if (r == 0)
        r = sender_open_directory(dump->sender, TAKE_FD(dump->images_fd));
    if (r < 0) {
        error_set_errno(&err, FAILURE_SYSTEM, r, "dump %s", dump->id);
        dump_fail(dump, &err);
        return;
    }
    dump->state = DUMP_ASKED;
    sender_finish(dump->sender);
}

/* The cache takes it. */
static void dump_accepted(struct dump *dump)
{
    struct error err;
    if (dump->memory) {
        dump_send_images(dump);
        return;
    }
    if (!dump->based.lineage) {
        dump_opened(dump);
        return;
    }
    dump->state = DUMP_COPYING;
    if (lineage_copy(dump->based.lineage, dump, dump->sender, &err) < 0)
        dump_fail(dump, &err);
    else if (dump->pre_dump)
        dump_tell_opened(dump);
}

void dump_copied(struct dump *dump)
{
    if (dump->state != DUMP_COPYING)
        return;
    if (dump->pre_dump) {
        dump->state = DUMP_ASKED;
        sender_finish(dump->sender);
    } else {
        dump_opened(dump);
    }
}

/* Sends what exists, once.  |held|: criu has done with the tasks; else they only should stand still
 * by now. */
static void dump_list(struct dump *dump, bool held)
{
    struct error err;
    if (!dump->based.lineage || dump->listed || (!held && !task_is_traced(dump->root_pid)))
        return;
    int r = lineage_list(dump->based.lineage, held, &err);
    if (r < 0)
        dump_fail(dump, &err);
    dump->listed = r > 0;
}

/* The scan filter tells that all tasks stand still, and that criu has been shown less. */
static int on_filter(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)events;
    struct dump *dump = user;
    char what;
    if (read(fd, &what, 1) != 1)
        return sd_event_source_set_enabled(source, SD_EVENT_OFF);
    dump->narrowed |= what == SCAN_FILTER_LESS;
    if (what == SCAN_FILTER_STILL && dump->state == DUMP_SENDING)
        dump_list(dump, false);
    return 0;
}

int dump_watch_filter(struct dump *dump, int fd)
{
    return dump_watch(dump, &dump->filter_io, fd, on_filter);
}

static void on_sender_changed(struct sender *sender, void *user)
{
    struct dump *dump = user;
    if (dump->state == DUMP_OVER)
        return;
    switch (sender_state(sender)) {
    case SENDER_BEGUN:
        return;
    case SENDER_ENDING:
        dump_asks(dump);
        return;
    case SENDER_SENDING:
        dump_accepted(dump);
        return;
    case SENDER_ACKED:
        if (dump->pre_dump)
            dump_end_pre_dump(dump);
        else
            dump_allow(dump);
        return;
    case SENDER_FAILED:
        dump_fail(dump, sender_error(sender));
        return;
    }
}

static const struct sender_ops sender_ops = {.changed = on_sender_changed};

void dump_link_up(struct dump *dump)
{
    struct proxy *proxy = dump->proxy;
    if (dump->state == DUMP_DECIDED)
        dump_asks(dump); /* the verdict has been told again */
    if (dump->state != DUMP_WAIT_LINK)
        return;
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = dump->id;
    begin.pid = dump->pid;
    begin.command = dump->command;
    begin.source_lives_on = dump->source_lives_on;
    begin.nonce = dump->token;
    begin.pre_dump = dump->pre_dump;
    begin.parent = dump->based.parent;
    begin.parent_nonce = dump->based.parent_nonce;
    dump->state = DUMP_OPENING;
    dump->sender = sender_new(proxy->daemon.event, proxy->link, ++proxy->last_session, &begin,
                              &sender_ops, dump);
    if (!dump->sender) {
        struct error err = dump_error(FAILURE_SYSTEM, "no memory for a dump");
        dump_fail(dump, &err);
    }
    dump_asks(dump);
}

void dump_link_down(struct dump *dump, const struct error *err)
{
    if (!dump->sender)
        return;
    sender_link_down(dump->sender, err); /* fails the dump, if it is not past that */
    if (dump->state == DUMP_DECIDED && dump->commit)
        dump_tell_doubt(dump);
}

bool dump_has_session(const struct dump *dump, uint32_t session)
{
    return dump->sender && sender_session(dump->sender) == session;
}

int dump_control(struct dump *dump, const struct frame *frame, const uint8_t *payload,
                 struct error *err)
{
    return sender_control(dump->sender, frame, payload, err);
}

/* ---- hooks and clients ---- */

static bool dump_is_of(const struct dump *dump, const struct hook_ask *ask, pid_t criu)
{
    return ask->token ? dump->token == ask->token : criu > 0 && dump->criu_pid == criu;
}

static struct dump *dump_for_hook(struct proxy *proxy, const struct client *client,
                                  const struct hook_ask *ask)
{
    pid_t criu = ask->token ? 0 : task_parent(client->pid);
    for (struct dump *dump = proxy->dumps; dump; dump = dump->next) {
        if (dump->state == DUMP_SENDING && !dump->memory && dump_is_of(dump, ask, criu))
            return dump;
    }
    return NULL;
}

/* Whether criu has had its yes already: it runs an action script as often as it was told of it, and
 * one configuration may reach it twice. */
static bool dump_is_allowed(const struct proxy *proxy, const struct client *client,
                            const struct hook_ask *ask)
{
    pid_t criu = ask->token ? 0 : task_parent(client->pid);
    for (const struct dump *dump = proxy->dumps; dump; dump = dump->next) {
        if (dump->state == DUMP_ALLOWED && dump_is_of(dump, ask, criu))
            return true;
    }
    return false;
}

void dump_hook(struct proxy *proxy, struct client *client, const struct hook_ask *ask,
               int images_fd)
{
    struct dump *dump = dump_for_hook(proxy, client, ask);
    if (!dump && dump_is_allowed(proxy, client, ask)) {
        close_fd(images_fd);
        client_hook(client, HOOK_YES, "");
        return;
    }
    if (!dump && !ask->token && images_fd >= 0) {
        dump_open_images(proxy, client, ask, images_fd);
        return;
    }
    close_fd(images_fd);
    if (!dump) {
        client_hook(client, HOOK_NO, "the proxy knows no such dump");
        return;
    }
    dump->hook = client;
    if (dump->is_stream && !dump_stream_is_whole(dump))
        return;
    int r;
    if (dump->is_stream) {
        int pidfd = (int)syscall(SYS_pidfd_open, (pid_t)ask->root_pid, 0);
        r = pidfd < 0 ? -errno : dump_watch_root(dump, pidfd);
    } else {
        r = sender_open_directory(dump->sender, TAKE_FD(dump->images_fd));
    }
    if (r < 0) {
        struct error err;
        error_set_errno(&err, FAILURE_SYSTEM, r, "dump %s", dump->id);
        dump_fail(dump, &err);
        return;
    }
    dump_list(dump, true);
    if (dump->state != DUMP_SENDING)
        return;
    if (dump->based.lineage && !dump->narrowed)
        log_info(&proxy->daemon.log, "dump %s: criu could not be shown only what was written",
                 dump->id);
    dump->state = DUMP_ASKED;
    sender_finish(dump->sender);
}

void dump_exited(struct proxy *proxy, struct client *client, const struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__exited__descriptor, packet->bytes, packet->length, &err);
    struct dump *dump = proxy->dumps;
    while (dump && (dump->client != client || dump->state == DUMP_OVER))
        dump = dump->next;
    if (!message || !dump) {
        err = dump_error(FAILURE_PEER, "the proxy knows no such dump");
        client_fail(client, &err);
        return;
    }
    dump->exit_known = true;
    dump->exit_status = ((const Godwit__Pb__Exited *)message)->status;
    if (dump->state < DUMP_ALLOWED) {
        error_set(&err, FAILURE_CRIU, "criu ended with status %d before the dump was complete",
                  dump->exit_status);
        dump_fail(dump, &err);
        return;
    }
    dump_criu_ended(dump);
}

void dump_client_gone(struct dump *dump, struct client *client)
{
    if (dump->hook == client) {
        dump->hook = NULL;
        struct error err = dump_error(FAILURE_CRIU, "criu's hook has gone before it was answered");
        if (dump->state == DUMP_ASKED || (dump->memory && dump->state < DUMP_ALLOWED))
            dump_fail(dump, &err);
    }
    if (dump->client == client)
        dump->client = NULL;
}

/* ---- time ---- */

static bool dump_waits_for_answer(const struct dump *dump)
{
    const struct proxy *proxy = dump->proxy;
    if (!proxy->link_up || link_delivered(proxy->link) < dump->question_at)
        return false;
    return dump->state == DUMP_OPENING || dump->state == DUMP_DECIDED ||
           (dump->state == DUMP_ASKED && sender_state(dump->sender) == SENDER_ENDING);
}

/* A cache that lives and does not answer is no better than a silent one: the source is frozen. */
static void dump_check_answer(struct dump *dump)
{
    struct proxy *proxy = dump->proxy;
    uint64_t now = now_usec();
    if (!dump_waits_for_answer(dump))
        dump->unanswered_since = 0;
    else if (dump->unanswered_since == 0)
        dump->unanswered_since = now;
    if (dump->unanswered_since == 0 ||
        now - dump->unanswered_since <= ANSWER_SILENCES * proxy->daemon.options->silence_usec)
        return;
    struct error err;
    error_set(&err, FAILURE_PEER, "the image-cache has not answered for %g s",
              (double)(ANSWER_SILENCES * proxy->daemon.options->silence_usec) /
                  (double)USEC_PER_SEC);
    dump->unanswered_since = 0;
    link_goodbye(proxy->link, &err);
}

void dump_tick(struct dump *dump)
{
    struct proxy *proxy = dump->proxy;
    if (dump->state == DUMP_OVER) {
        struct dump **at = &proxy->dumps;
        while (*at != dump)
            at = &(*at)->next;
        *at = dump_free(dump);
        return;
    }
    struct error err;
    if (dump->state == DUMP_WAIT_LINK &&
        now_usec() - dump->began_usec > proxy->daemon.options->silence_usec) {
        err = proxy->link_error;
        if (!err.text[0])
            error_set(&err, FAILURE_PEER, "no image-cache answers at %s", proxy->peer);
        dump_fail(dump, &err);
        return;
    }
    /* A hook of a criu that was killed may come a moment after its stream's end. */
    if (dump->state == DUMP_SENDING && dump->is_stream && dump->criu_ended &&
        now_usec() - dump->criu_ended_usec > GRACE_USEC) {
        dump_stream_unasked(dump);
        return;
    }
    if (dump->state < DUMP_ALLOWED && dump->criu_ended && !dump->is_stream) {
        err = dump_error(FAILURE_CRIU, "criu ended before the dump was complete");
        dump_fail(dump, &err);
        return;
    }
    dump_evaluate(dump);
    dump_check_answer(dump);
    if (dump->client)
        client_progress(dump->client, dump->sender ? sender_bytes(dump->sender) : 0,
                        phase_names[dump->state]);
    if (dump->hook && (dump->state == DUMP_ASKED || (dump->memory && dump->state < DUMP_ALLOWED)))
        client_hook(dump->hook, HOOK_WAIT, "");
}

void dump_describe(const struct dump *dump, Godwit__Pb__StatusSnapshot *ret)
{
    ret->id = (char *)dump->id;
    ret->state = (char *)phase_names[dump->state];
    ret->pid = dump->pid;
    ret->command = dump->command;
    ret->bytes = dump->sender ? sender_bytes(dump->sender) : 0;
    ret->age_usec = now_usec() - dump->began_usec;
}
