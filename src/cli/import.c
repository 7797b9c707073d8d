/* SPDX-License-Identifier: Apache-2.0 */
/* godwit import: images of criu in a directory become a snapshot of the image-cache of this host.
 * They go there by a link, as if they came from another host. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "migrate/sender.h"
#include "wire/frame.h"
#include "wire/link.h"
#include "wire/message.h"

enum { SESSION = 1 };

struct values {
    const char *workdir, *snapshot;
    uint64_t silence_usec;
};

#define AT(field) offsetof(struct values, field)

const struct option_row import_options[] = {
    {0, "snapshot", OPTION_STRING, AT(snapshot), "ID", "name of the snapshot (default: made up)"},
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "of the image-cache (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {0, "timeout", OPTION_SECONDS, AT(silence_usec), "SECONDS",
     "silence after which the image-cache is dead (default: 10)"},
    {0},
};

struct import {
    sd_event *event;
    struct link *link;
    struct sender *sender;
    int directory; /* until the sender has it */
    char id[WIRE_ID_MAX + 1];
    uint64_t nonce;
    bool done;
    struct error err;
};

static void import_end(struct import *import, const struct error *err)
{
    if (err)
        import->err = *err;
    import->done = !err;
    sd_event_exit(import->event, 0);
}

/* Nothing of it runs anywhere: it may be restored. */
static void send_verdict(struct import *import)
{
    Godwit__Pb__Verdict verdict = GODWIT__PB__VERDICT__INIT;
    verdict.id = import->id;
    verdict.nonce = import->nonce;
    verdict.commit = true;
    link_send(import->link, FRAME_VERDICT, 0, 0, &verdict.base);
}

static void send_images(struct import *import)
{
    struct error err;
    int r = sender_open_directory(import->sender, TAKE_FD(import->directory));
    if (r == 0) {
        sender_finish(import->sender);
        return;
    }
    error_set_errno(&err, FAILURE_SYSTEM, r, "reading the directory");
    import_end(import, &err);
}

static void on_changed(struct sender *sender, void *user)
{
    struct import *import = user;
    switch (sender_state(sender)) {
    case SENDER_SENDING:
        send_images(import);
        return;
    case SENDER_ACKED:
        send_verdict(import);
        return;
    case SENDER_FAILED:
        import_end(import, sender_error(sender));
        return;
    default:
        return;
    }
}

static const struct sender_ops sender_ops = {.changed = on_changed};

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    (void)hello;
    struct import *import = user;
    struct error err;
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = import->id;
    begin.nonce = import->nonce;
    begin.command = (char *)"imported";
    begin.source_lives_on = true;
    import->sender = sender_new(import->event, link, SESSION, &begin, &sender_ops, import);
    error_set_errno(&err, FAILURE_SYSTEM, ENOMEM, "an import");
    if (!import->sender)
        import_end(import, &err);
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    struct import *import = user;
    if (frame->type == FRAME_VERDICT_ACK) {
        import_end(import, NULL);
        return 0;
    }
    if (import->sender && frame->session == SESSION)
        return sender_control(import->sender, frame, payload, err);
    return error_set(err, FAILURE_PEER, "the image-cache said something else");
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct import *import = user;
    struct error reason = *err;
    if (reason.code == FAILURE_NONE)
        error_set(&reason, FAILURE_PEER, "the image-cache ended");
    if (import->sender)
        sender_link_down(import->sender, &reason);
    import_end(import, &reason);
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_CACHE, .up = on_up, .control = on_control, .down = on_down};

/* ---- the way there ---- */

/* The image-cache takes one end of a socket as a link. */
static int attach(const struct values *values, int *ret_fd, struct error *err)
{
    int pair[2];
    struct local_packet packet;
    struct session session = {
        .workdir = -EBADF, .daemon = -EBADF, .silence_usec = values->silence_usec};
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "a socket");
    int r = session_open(&session, values->workdir, LOCAL_CACHE_SOCKET, "image-cache", err);
    if (r == 0) {
        r = local_send(session.daemon, LOCAL_ATTACH, NULL, &pair[1], 1);
        if (r < 0)
            error_set_errno(err, FAILURE_PEER, r, "asking the image-cache");
        else
            r = session_expect(&session, LOCAL_DONE, &packet, err);
    }
    session_close(&session);
    close_fd(pair[1]);
    if (r < 0)
        close_fd(pair[0]);
    else
        *ret_fd = pair[0];
    return r < 0 ? -1 : 0;
}

static int open_directory(struct import *import, const char *path, struct error *err)
{
    struct stat st;
    import->directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (import->directory < 0)
        return error_set_errno(err, FAILURE_USAGE, errno, "%s", path);
    if (fstatat(import->directory, "inventory.img", &st, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set(err, FAILURE_USAGE,
                         "%s: has no inventory.img: these are no images of criu", path);
    if (fstatat(import->directory, "parent", &st, AT_SYMLINK_NOFOLLOW) == 0)
        return error_set(err, FAILURE_USAGE,
                         "%s: has a parent, with the pages that it has not: images without parents "
                         "are expected",
                         path);
    return 0;
}

static int choose_id(struct import *import, const char *given, struct error *err)
{
    if (getrandom(&import->nonce, sizeof(import->nonce), 0) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "getrandom");
    if (given && !snapshot_id_valid(given))
        return error_set(err, FAILURE_USAGE, "snapshot id %s: use letters, digits, dots, dashes",
                         given);
    if (given)
        snprintf(import->id, sizeof(import->id), "%s", given);
    else
        snprintf(import->id, sizeof(import->id), "import-%06x", (unsigned)(import->nonce >> 40));
    return 0;
}

static int run_import(struct import *import, const struct values *values, const char *path,
                      struct error *err)
{
    int fd;
    if (open_directory(import, path, err) < 0 || choose_id(import, values->snapshot, err) < 0 ||
        attach(values, &fd, err) < 0)
        return -1;
    int r = set_nonblocking(fd, true);
    if (r >= 0)
        r = sd_event_new(&import->event);
    if (r < 0) {
        close_fd(fd);
        return error_set_errno(err, FAILURE_SYSTEM, r, "the event loop");
    }
    import->link = link_new(import->event, fd, values->silence_usec, &link_ops, import);
    if (!import->link)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "the link");
    r = sd_event_loop(import->event);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the event loop");
    if (!import->done)
        *err = import->err;
    return import->done ? 0 : -1;
}

int command_import(int argc, char **argv)
{
    const struct command *command = command_find("import");
    struct values values = {.workdir = DAEMON_DEFAULT_WORKDIR,
                            .silence_usec = DAEMON_DEFAULT_SILENCE_USEC};
    struct import import = {.directory = -EBADF};
    struct error err = {0};
    char **rest, **passed, size[24];
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && (passed || !rest[0] || rest[1]))
        r = error_set(&err, FAILURE_USAGE, "a directory with images of criu is expected");
    if (r == 0)
        r = run_import(&import, &values, rest[0], &err);
    if (r == 0)
        printf("%s imported as snapshot %s: %s\n", rest[0], import.id,
               format_bytes(sender_bytes(import.sender), size));
    sender_free(import.sender);
    link_free(import.link);
    sd_event_unref(import.event);
    close_fd(import.directory);
    return r < 0 ? command_fail(command, &err) : 0;
}
