/* SPDX-License-Identifier: Apache-2.0 */
/* godwit status and godwit forget. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/session.h"
#include "migrate/journal.h"
#include "store/store.h"
#include "wire/message.h"

struct values {
    const char *workdir;
    bool json;
};

#define AT(field) offsetof(struct values, field)

const struct option_row status_options[] = {
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "of the daemons (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {0, "json", OPTION_FLAG, AT(json), NULL, "one JSON object per line"},
    {0},
};

const struct option_row forget_options[] = {
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "of the image-cache (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {0},
};

static void print_daemon(const Godwit__Pb__Status *status, bool json)
{
    char used[24], limit[24];
    bool cache = status->limit_bytes > 0;
    if (json) {
        printf("{\"daemon\": \"%s\", \"peer\": ", status->daemon);
        json_print_string(status->peer);
        printf(", \"link\": ");
        json_print_string(status->link);
        if (cache)
            printf(", \"used_bytes\": %llu, \"limit_bytes\": %llu",
                   (unsigned long long)status->used_bytes, (unsigned long long)status->limit_bytes);
        printf("}\n");
    } else if (cache) {
        printf("%s: listens on %s, %s link%s, %s in use of %s\n", status->daemon, status->peer,
               status->link, strcmp(status->link, "1") == 0 ? "" : "s",
               format_bytes(status->used_bytes, used), format_bytes(status->limit_bytes, limit));
    } else {
        printf("%s: link to image-cache %s: %s\n", status->daemon, status->peer, status->link);
    }
}

static void print_snapshot(const Godwit__Pb__StatusSnapshot *s, const char *daemon, bool json)
{
    char size[24];
    double age = (double)s->age_usec / (double)USEC_PER_SEC;
    if (!json) {
        printf("  %-24s %-20s %10s  pid %u %s%s%s%s%s  %.1f s%s%s\n", s->id, s->state,
               format_bytes(s->bytes, size), s->pid, s->command, *s->host ? " from " : "", s->host,
               *s->parent ? " based on " : "", s->parent, age, *s->spool ? "  spool: " : "",
               s->spool);
        return;
    }
    printf("{\"daemon\": \"%s\", \"snapshot\": \"%s\", \"state\": \"%s\", \"bytes\": %llu, "
           "\"images\": %u, \"pid\": %u, \"command\": ",
           daemon, s->id, s->state, (unsigned long long)s->bytes, s->images, s->pid);
    json_print_string(s->command);
    printf(", \"host\": ");
    json_print_string(s->host);
    printf(", \"parent\": ");
    json_print_string(s->parent);
    printf(", \"spool\": ");
    json_print_string(s->spool);
    printf(", \"age_seconds\": %.3f}\n", age);
}

/* One packet of a status.  1: there is more, 0: that was all, -1: *err set. */
static int take_status(const struct session *session, const struct local_packet *packet, bool json,
                       struct error *err)
{
    const char *daemon = session->daemon_name;
    if (packet->kind == LOCAL_DONE)
        return 0;
    bool is_daemon = packet->kind == LOCAL_STATUS_DAEMON;
    if (!is_daemon && packet->kind != LOCAL_STATUS_SNAPSHOT)
        return error_set(err, FAILURE_PEER, "the %s answered something else", daemon);
    _cleanup_message_ ProtobufCMessage *message = message_unpack(
        is_daemon ? &godwit__pb__status__descriptor : &godwit__pb__status_snapshot__descriptor,
        packet->bytes, packet->length, err);
    if (!message)
        return -1;
    if (is_daemon)
        print_daemon((const Godwit__Pb__Status *)message, json);
    else
        print_snapshot((const Godwit__Pb__StatusSnapshot *)message, daemon, json);
    return 1;
}

/* 0: shown; -1: *err set, code FAILURE_PEER when no such daemon works here. */
static int show(const char *workdir, const char *socket_name, const char *daemon, bool json,
                struct error *err)
{
    struct session session = {.silence_usec = DAEMON_DEFAULT_SILENCE_USEC};
    struct local_packet packet;
    int r = session_open(&session, workdir, socket_name, daemon, err);
    if (r == 0) {
        r = local_send(session.daemon, LOCAL_STATUS, NULL, NULL, 0);
        if (r < 0)
            error_set_errno(err, FAILURE_PEER, r, "asking the %s", daemon);
    }
    while (r >= 0 && (r = session_next(&session, &packet, err)) >= 0) {
        r = take_status(&session, &packet, json, err);
        local_packet_close(&packet);
        if (r <= 0)
            break;
    }
    session_close(&session);
    return r;
}

/* ---- what is left of a cache that does not work ---- */

struct peek {
    bool json, migrations_only;
    unsigned count;
};

static void peek_snapshot(const struct snapshot *s, void *user)
{
    struct peek *peek = user;
    if (peek->migrations_only && (!s->restore || s->state == SNAPSHOT_RESTORED))
        return;
    Godwit__Pb__StatusSnapshot snapshot = GODWIT__PB__STATUS_SNAPSHOT__INIT;
    snapshot.id = s->id;
    snapshot.state = (char *)snapshot_shown_state(s);
    snapshot.bytes = s->bytes;
    snapshot.images = s->images;
    snapshot.pid = s->pid;
    snapshot.command = s->command;
    snapshot.host = s->host;
    snapshot.parent = s->parent;
    print_snapshot(&snapshot, "image-cache", peek->json);
    peek->count++;
}

static unsigned peek_store(const char *workdir, bool json, bool migrations_only)
{
    char path[PATH_MAX];
    struct peek peek = {.json = json, .migrations_only = migrations_only};
    if (snprintf(path, sizeof(path), "%s/images", workdir) < (int)sizeof(path))
        store_peek(path, peek_snapshot, &peek);
    return peek.count;
}

unsigned status_print_store(const char *workdir)
{
    return peek_store(workdir, false, true);
}

static void print_journal_entry(const struct journal_entry *entry, void *user)
{
    struct peek *peek = user;
    peek->count++;
    if (!peek->json) {
        printf("  %-24s %-20s %10s  pid %d %s to %s\n", entry->id,
               journal_decision_name(entry->decision), "", (int)entry->pid, entry->command,
               entry->target);
        return;
    }
    printf("{\"migration\": \"%s\", \"decision\": \"%s\", \"pid\": %d, \"command\": ", entry->id,
           journal_decision_name(entry->decision), (int)entry->pid);
    json_print_string(entry->command);
    printf(", \"target\": ");
    json_print_string(entry->target);
    printf("}\n");
}

/* Migrations from here that are not settled. */
static unsigned show_journal(const char *workdir, bool json)
{
    struct peek peek = {.json = json};
    _cleanup_close_ int fd = workdir_open(workdir, false, NULL, NULL);
    if (fd >= 0)
        journal_list(fd, print_journal_entry, &peek);
    return peek.count;
}

static int parse(const struct command *command, int argc, char **argv, struct values *values,
                 char ***rest, struct error *err)
{
    char **passed;
    *values = (struct values){.workdir = DAEMON_DEFAULT_WORKDIR};
    int r = options_parse(command, argc, argv, values, rest, &passed, err);
    if (r == 0 && passed)
        return error_set(err, FAILURE_USAGE, "--: nothing is passed on to criu here");
    return r;
}

int command_status(int argc, char **argv)
{
    const struct command *command = command_find("status");
    struct values values;
    struct error err = {0}, first;
    char **rest;
    int r = parse(command, argc, argv, &values, &rest, &err);
    if (r > 0)
        return 0;
    if (r == 0 && *rest)
        r = error_set(&err, FAILURE_USAGE, "%s: no argument is expected", *rest);
    if (r < 0)
        return command_fail(command, &err);
    bool cache = show(values.workdir, LOCAL_CACHE_SOCKET, "image-cache", values.json, &first) == 0;
    bool proxy = show(values.workdir, LOCAL_PROXY_SOCKET, "image-proxy", values.json, &err) == 0;
    unsigned left = show_journal(values.workdir, values.json);
    if (!cache)
        left += peek_store(values.workdir, values.json, false);
    if (cache || proxy || left > 0)
        return 0;
    error_set(&err, FAILURE_PEER, "no daemon works in %s: name their work-dir with -W",
              values.workdir);
    return command_fail(command, &err);
}

/* 0, or -1 with *err set: FAILURE_PEER when no such daemon works here. */
static int forget(const char *workdir, const char *socket_name, const char *daemon, char *id,
                  struct error *err)
{
    struct session session = {
        .workdir = -EBADF, .daemon = -EBADF, .silence_usec = DAEMON_DEFAULT_SILENCE_USEC};
    int r = session_open(&session, workdir, socket_name, daemon, err);
    if (r == 0) {
        Godwit__Pb__Forget forget = GODWIT__PB__FORGET__INIT;
        struct local_packet packet;
        forget.id = id;
        r = local_send(session.daemon, LOCAL_FORGET, &forget.base, NULL, 0);
        if (r < 0)
            error_set_errno(err, FAILURE_PEER, r, "asking the %s", daemon);
        else
            r = session_expect(&session, LOCAL_DONE, &packet, err);
    }
    session_close(&session);
    return r < 0 ? -1 : 0;
}

int command_forget(int argc, char **argv)
{
    const struct command *command = command_find("forget");
    struct values values;
    struct error err = {0}, other;
    char **rest;
    int r = parse(command, argc, argv, &values, &rest, &err);
    if (r > 0)
        return 0;
    if (r == 0 && (!rest[0] || rest[1]))
        r = error_set(&err, FAILURE_USAGE, "the id of one snapshot is expected (godwit status)");
    if (r < 0)
        return command_fail(command, &err);
    r = forget(values.workdir, LOCAL_CACHE_SOCKET, "image-cache", rest[0], &err);
    if (r == 0 || (err.code != FAILURE_PEER && err.code != FAILURE_NOT_FOUND))
        return r < 0 ? command_fail(command, &err) : 0;
    r = forget(values.workdir, LOCAL_PROXY_SOCKET, "image-proxy", rest[0], &other);
    return r < 0 ? command_fail(command, other.code == FAILURE_PEER ? &err : &other) : 0;
}
