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
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/io.h"
#include "criu/process.h"
#include "criu/scan_filter.h"
#include "criu/stream.h"
#include "daemon/intake.h"
#include "daemon/lineage.h"
#include "task/task.h"

/* How long after criu's end the process may show no sign of being killed, and still be. */
#define GRACE_USEC (500 * USEC_PER_MSEC)
#define GRACE_GOOD_EXIT_USEC (2 * USEC_PER_SEC)

enum {
    DUMPS_MAX = 200,
    ANSWER_SILENCES = 3, /* a tunnel on the way may hold what this host sees as delivered */
};

enum dump_state {
    DUMP_WAIT_LINK,
    DUMP_OPENING,
    DUMP_COPYING,
    DUMP_SENDING,
    DUMP_ASKED,
    DUMP_ALLOWED,
    DUMP_DECIDED,
    DUMP_OVER,
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

struct dump {
    struct proxy *proxy;
    struct dump *next;
    enum dump_state state;
    char id[WIRE_ID_MAX + 1];
    uint64_t token;
    uint32_t pid;
    char *command;
    bool source_lives_on, commit;
    uint64_t began_usec;
    struct sender *sender;
    struct client *client, *hook; /* NULL: none, or gone */
    int pages_fd, images_fd;      /* until their doors are opened */

    /* of a process that is followed, or is going to be */
    struct lineage_choice based; /* its lineage: until it has been told of the end */
    bool pre_dump;
    bool narrowed, listed;      /* criu was shown less than there is; what exists was sent */
    sd_event_source *filter_io; /* the scan filter tells that */

    /* what is known of the source, once ALLOWED */
    sd_event_source *root_io, *lifeline_io;
    int root_fd;
    pid_t root_pid;
    bool root_ended, criu_ended, exit_known;
    int exit_status;
    uint64_t criu_ended_usec;
    uint64_t question_at;      /* where on the link what was asked last ends */
    uint64_t unanswered_since; /* since when the cache has it; 0: it has not */

    struct intake_memory *memory; /* of criu --page-server: its pages, which came before */

    /* criu --stream */
    sd_event_source *stream_io;
    struct stream_parser parser;
    char *stream_name; /* its pipe comes next */
    pid_t criu_pid;
    bool is_stream, is_unasked; /* without a hook: its end is the end */
};

struct dump *dump_next(const struct dump *dump)
{
    return dump->next;
}

bool dump_is_over(const struct dump *dump)
{
    return dump->state == DUMP_OVER;
}

static struct error dump_error(enum failure code, const char *text)
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

static void dump_fail(struct dump *dump, const struct error *err)
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

static void dump_criu_ended(struct dump *dump)
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

/* Watches a descriptor and owns it from here on. */
static int dump_watch(struct dump *dump, sd_event_source **source, int fd,
                      sd_event_io_handler_t handler)
{
    int r = sd_event_add_io(dump->proxy->daemon.event, source, fd, EPOLLIN, handler, dump);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    return sd_event_source_set_io_fd_own(*source, true);
}

static int dump_watch_root(struct dump *dump, int pidfd)
{
    dump->root_pid = task_of_pidfd(pidfd);
    dump->root_fd = pidfd;
    return dump_watch(dump, &dump->root_io, pidfd, on_root);
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

/* ---- opening ---- */

static struct dump *dump_new(struct proxy *proxy, const char *id, uint32_t pid, const char *command)
{
    struct dump *dump = calloc(1, sizeof(*dump));
    if (!dump)
        return NULL;
    *dump = (struct dump){
        .proxy = proxy,
        .pid = pid,
        .command = strdup(command),
        .began_usec = now_usec(),
        .pages_fd = -EBADF,
        .images_fd = -EBADF,
        .root_fd = -EBADF,
    };
    if (!dump->command || getrandom(&dump->token, sizeof(dump->token), 0) < 0) {
        free(dump->command);
        free(dump);
        return NULL;
    }
    dump->token |= 1; /* 0 means: by criu's process id */
    if (*id)
        snprintf(dump->id, sizeof(dump->id), "%s", id);
    else
        snprintf(dump->id, sizeof(dump->id), "%u-%06x", pid, (unsigned)(dump->token >> 40));
    return dump;
}

static void dump_start(struct dump *dump)
{
    struct proxy *proxy = dump->proxy;
    dump->next = proxy->dumps;
    proxy->dumps = dump;
    if (proxy->link_up)
        dump_link_up(dump);
}

/* Fewer than a cache takes on one link. */
static bool dumps_are_many(const struct proxy *proxy)
{
    unsigned count = 0;
    for (const struct dump *dump = proxy->dumps; dump; dump = dump->next)
        count++;
    return count >= DUMPS_MAX;
}

static bool dump_is_under_way(const struct proxy *proxy, uint32_t pid)
{
    for (const struct dump *dump = proxy->dumps; dump; dump = dump->next) {
        if (dump->pid == pid && !dump->is_stream && dump->state != DUMP_OVER)
            return true;
    }
    return false;
}

static int dump_take_fds(struct dump *dump, struct local_packet *packet)
{
    int r = dump_watch_root(dump, TAKE_FD(packet->fds[DUMP_FD_PROCESS]));
    if (r < 0 || dump->pre_dump)
        return r;
    dump->pages_fd = TAKE_FD(packet->fds[DUMP_FD_PAGES]);
    dump->images_fd = TAKE_FD(packet->fds[DUMP_FD_IMAGES]);
    r = dump_watch(dump, &dump->lifeline_io, TAKE_FD(packet->fds[DUMP_FD_LIFELINE]), on_lifeline);
    if (r >= 0)
        r = dump_watch(dump, &dump->filter_io, TAKE_FD(packet->fds[DUMP_FD_FILTER]), on_filter);
    return r;
}

void dump_open(struct proxy *proxy, struct client *client, struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__dump_open__descriptor, packet->bytes, packet->length, &err);
    const Godwit__Pb__DumpOpen *open = (const Godwit__Pb__DumpOpen *)message;
    if (open && *open->id && !snapshot_id_valid(open->id)) {
        error_set(&err, FAILURE_USAGE, "snapshot id %s: use letters, digits, dots, dashes",
                  open->id);
        open = NULL;
    } else if (open && dumps_are_many(proxy)) {
        error_set(&err, FAILURE_BUSY, "%d dumps are under way: try again later", DUMPS_MAX);
        open = NULL;
    } else if (open && dump_is_under_way(proxy, open->pid)) {
        error_set(&err, FAILURE_BUSY, "process %u is being dumped already", open->pid);
        open = NULL;
    }
    struct lineage_choice based = {0};
    lineages_reap(proxy);
    if (open && lineage_choose(proxy, open, packet->fds[DUMP_FD_PROCESS], &based, &err) < 0)
        open = NULL;
    if (!open) {
        client_fail(client, &err);
        return;
    }
    struct dump *dump = dump_new(proxy, open->id, open->pid, open->command);
    if (!dump) {
        err = dump_error(FAILURE_SYSTEM, "no memory for a dump");
        if (based.lineage)
            lineage_failed(based.lineage, &err);
        client_fail(client, &err);
        return;
    }
    dump->client = client;
    dump->based = based;
    dump->pre_dump = open->pre_dump;
    dump->source_lives_on = open->source_lives_on;
    int r = dump_take_fds(dump, packet);
    if (r < 0) {
        error_set_errno(&err, FAILURE_SYSTEM, r, "dump %s", dump->id);
        client_fail(client, &err);
        dump_free(dump);
        return;
    }
    log_info(&proxy->daemon.log, "%s %s: process %u (%s)%s%s", dump->pre_dump ? "pre-dump" : "dump",
             dump->id, dump->pid, dump->command, *based.parent ? ", based on " : "", based.parent);
    dump_start(dump);
}

/* ---- criu --stream ---- */

static void dump_stream_fail(struct dump *dump, int error_number, const char *what)
{
    struct error err;
    error_set_errno(&err, FAILURE_CRIU, error_number, "criu --stream: %s", what);
    dump_fail(dump, &err);
}

static void dump_stream_end(struct dump *dump)
{
    dump->stream_io = sd_event_source_disable_unref(dump->stream_io);
    dump_criu_ended(dump);
}

/* criu --stream has ended, and no hook has come: it has written all there is, or has given up;
 * inventory.img comes last. */
static void dump_stream_unasked(struct dump *dump)
{
    if (sender_has_inventory(dump->sender)) {
        dump->state = DUMP_ASKED;
        dump->is_unasked = true;
        sender_finish(dump->sender);
        return;
    }
    struct error err = dump_error(FAILURE_CRIU, "criu --stream ended before its inventory.img");
    dump_fail(dump, &err);
}

static void dump_stream_pipe(struct dump *dump, int fd)
{
    dump->parser.want_pipe = false;
    _cleanup_free_ char *name = TAKE_PTR(dump->stream_name);
    if (fd < 0) {
        dump_stream_fail(dump, EBADMSG, "no pipe came with the byte");
        return;
    }
    int r = sender_open_pipe(dump->sender, name, fd);
    if (r < 0)
        dump_stream_fail(dump, r, "opening an image");
}

/* Takes one message from the capture socket.  False when there is none now. */
static bool dump_stream_take(struct dump *dump)
{
    int fd = sd_event_source_get_io_fd(dump->stream_io);
    uint8_t bytes[512];
    int passed;
    ssize_t n = stream_receive(fd, bytes, MIN(stream_want(&dump->parser), sizeof(bytes)), &passed);
    if (n == -EAGAIN)
        return false;
    if (n <= 0) {
        dump_stream_end(dump);
        return true;
    }
    if (dump->state != DUMP_SENDING) {
        close_fd(passed); /* too late to be of the snapshot */
        return true;
    }
    if (dump->parser.want_pipe) {
        dump_stream_pipe(dump, passed);
        return true;
    }
    close_fd(passed);
    struct error err;
    int r = stream_take(&dump->parser, bytes, (size_t)n, &dump->stream_name, &err);
    if (r < 0)
        dump_fail(dump, &err);
    else if (r > 0)
        dump->parser.want_pipe = true;
    return true;
}

static int on_stream(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    dump_stream_take(user);
    return 0;
}

void dump_open_stream(struct proxy *proxy, int fd)
{
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    struct dump *dump =
        dumps_are_many(proxy) ? NULL : dump_new(proxy, "", (uint32_t)peer.pid, "criu --stream");
    if (!dump) {
        close_fd(fd);
        return;
    }
    dump->is_stream = true;
    dump->criu_pid = peer.pid;
    if (dump_watch(dump, &dump->stream_io, fd, on_stream) < 0) {
        dump_free(dump);
        return;
    }
    /* criu waits in its pipes until the cache has taken the snapshot. */
    sd_event_source_set_enabled(dump->stream_io, SD_EVENT_OFF);
    log_info(&proxy->daemon.log, "dump %s: criu %d streams", dump->id, peer.pid);
    dump_start(dump);
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

/* A criu whose pages came by its page-server connection asks: its images follow them. */
static void dump_open_images(struct proxy *proxy, struct client *client, const struct hook_ask *ask,
                             int images_fd)
{
    pid_t root = (pid_t)ask->root_pid;
    struct intake_memory *memory = intake_take_dumped(proxy, root);
    struct dump *dump = memory ? dump_new(proxy, "", ask->root_pid, "criu --page-server") : NULL;
    int process = dump ? (int)syscall(SYS_pidfd_open, root, 0) : -EBADF;
    int criu = dump ? (int)syscall(SYS_pidfd_open, task_parent(client->pid), 0) : -EBADF;
    if (process < 0 || criu < 0 || dump_watch_root(dump, TAKE_FD(process)) < 0 ||
        dump_watch(dump, &dump->lifeline_io, TAKE_FD(criu), on_lifeline) < 0) {
        client_hook(
            client, HOOK_NO,
            "its pages have not come by --page-server, or whose they are could not be told, "
            "nor is it another dump");
        close_fd(process);
        close_fd(criu);
        close_fd(images_fd);
        intake_memory_free(memory);
        if (dump)
            dump_free(dump);
        return;
    }
    dump->memory = memory;
    dump->criu_pid = task_parent(client->pid);
    dump->images_fd = images_fd;
    dump->hook = client;
    snprintf(dump->based.parent, sizeof(dump->based.parent), "%s", memory->id);
    dump->based.parent_nonce = memory->nonce;
    log_info(&proxy->daemon.log, "dump %s: process %u, whose pages are %s", dump->id, dump->pid,
             memory->id);
    dump_start(dump);
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
    if (dump->is_stream) {
        /* The hook may be heard before what criu sent ahead of it. */
        while (dump->state == DUMP_SENDING && dump->stream_io && dump_stream_take(dump))
            ;
        if (dump->state == DUMP_SENDING &&
            (dump->criu_ended || !sender_has_inventory(dump->sender))) {
            struct error err =
                dump_error(FAILURE_CRIU, "criu --stream ended, or sent no inventory.img");
            dump_fail(dump, &err);
        }
        if (dump->state != DUMP_SENDING)
            return;
    }
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
