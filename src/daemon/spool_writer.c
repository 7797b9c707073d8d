/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "base/io.h"
#include "daemon/spool.h"
#include "migrate/plain_images.h"
#include "wire/message.h"

#define PART_SUFFIX ".part"

enum {
    NAME_BYTES = WIRE_ID_MAX + 32,
    TWINS_MAX = 100000, /* of one id */
};

struct writer {
    int socket, directory;
    char id[WIRE_ID_MAX + 1]; /* of what is written; empty: nothing is */
};

/* ---- what is not whole ---- */

static void part_name(const char *id, char name[NAME_BYTES])
{
    snprintf(name, NAME_BYTES, ".%s" PART_SUFFIX, id);
}

static int remove_part(int directory, const char *name)
{
    _cleanup_close_ int fd =
        openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : -errno;
    int r = plain_images_remove(fd);
    if (r == 0 && unlinkat(directory, name, AT_REMOVEDIR) < 0)
        r = -errno;
    return r;
}

static int remove_if_part(int directory, const char *name, void *user)
{
    (void)user;
    size_t length = strlen(name), suffix = strlen(PART_SUFFIX);
    if (name[0] == '.' && length > suffix && strcmp(name + length - suffix, PART_SUFFIX) == 0)
        remove_part(directory, name);
    return 0;
}

static void writer_drop(struct writer *writer)
{
    char part[NAME_BYTES];
    part_name(writer->id, part);
    remove_part(writer->directory, part);
    writer->id[0] = '\0';
}

/* ---- requests ---- */

static void writer_fail(struct writer *writer, int error)
{
    struct error err;
    writer_drop(writer);
    error_set_errno(&err, FAILURE_SYSTEM, error, "writing it");
    Godwit__Pb__Failure failure = failure_message(&err);
    local_send(writer->socket, LOCAL_FAILURE, &failure.base, NULL, 0);
}

/* Whatever is of that name, not whole, goes.  A descriptor, or a negative errno. */
static int make_part(const struct writer *writer)
{
    char part[NAME_BYTES];
    part_name(writer->id, part);
    int r = remove_part(writer->directory, part);
    if (r == 0 && mkdirat(writer->directory, part, 0700) < 0)
        r = -errno;
    if (r < 0)
        return r;
    int fd = openat(writer->directory, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* Opened anew, for a lock on it is not to be the daemon's too. */
static int open_again(int fd)
{
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return again < 0 ? -errno : again;
}

static void writer_write(struct writer *writer, const Godwit__Pb__SpoolWrite *write,
                         const struct local_packet *packet)
{
    snprintf(writer->id, sizeof(writer->id), "%s", write->id);
    _cleanup_close_ int to = make_part(writer);
    _cleanup_close_ int images = open_again(packet->fds[0]);
    _cleanup_close_ int memory = packet->fds[1] < 0 ? -EBADF : open_again(packet->fds[1]);
    int r = MIN(to, images);
    if (r >= 0 && packet->fds[1] >= 0)
        r = memory;
    if (r >= 0)
        r = plain_images_write(images, memory, false, to);
    if (r < 0)
        writer_fail(writer, r);
    else
        local_send(writer->socket, LOCAL_SPOOL_WRITTEN, NULL, NULL, 0);
}

/* Renaming a directory replaces no file, and no directory that has anything in it. */
static int rename_part(const struct writer *writer, char name[NAME_BYTES])
{
    char part[NAME_BYTES];
    part_name(writer->id, part);
    snprintf(name, NAME_BYTES, "%s", writer->id);
    for (unsigned twin = 2; renameat(writer->directory, part, writer->directory, name) < 0;
         twin++) {
        if ((errno != EEXIST && errno != ENOTEMPTY && errno != ENOTDIR) || twin == TWINS_MAX)
            return -errno;
        snprintf(name, NAME_BYTES, "%s~%u", writer->id, twin);
    }
    return fsync(writer->directory) < 0 ? -errno : 0;
}

static void writer_publish(struct writer *writer)
{
    char name[NAME_BYTES];
    int r = rename_part(writer, name);
    if (r < 0) {
        writer_fail(writer, r);
        return;
    }
    writer->id[0] = '\0';
    Godwit__Pb__SpoolPublished published = GODWIT__PB__SPOOL_PUBLISHED__INIT;
    published.name = name;
    local_send(writer->socket, LOCAL_SPOOL_PUBLISHED, &published.base, NULL, 0);
}

static int writer_take(struct writer *writer, const struct local_packet *packet)
{
    struct error err;
    if (packet->kind == LOCAL_SPOOL_WRITE) {
        _cleanup_message_ ProtobufCMessage *message = message_unpack(
            &godwit__pb__spool_write__descriptor, packet->bytes, packet->length, &err);
        const Godwit__Pb__SpoolWrite *write = (const Godwit__Pb__SpoolWrite *)message;
        if (!write || !snapshot_id_valid(write->id) || packet->fds[0] < 0)
            return -EPROTO;
        writer_write(writer, write, packet);
    } else if (packet->kind == LOCAL_SPOOL_PUBLISH && writer->id[0]) {
        writer_publish(writer);
    } else if (packet->kind == LOCAL_SPOOL_DROP && writer->id[0]) {
        writer_drop(writer);
    } else {
        return -EPROTO;
    }
    return 0;
}

void spool_write(int socket, int directory)
{
    struct writer writer = {.socket = socket, .directory = directory};
    int keep[] = {socket, directory};
    prctl(PR_SET_NAME, "godwit-spool");
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* had it died before, the socket would tell */
    close_all_but(keep, ARRAY_SIZE(keep));
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        open("/dev/null", O_RDWR);
    signal(SIGPIPE, SIG_IGN);
    umask(0077);
    directory_for_each(directory, remove_if_part, NULL);
    struct local_packet packet;
    int r;
    do {
        r = local_receive(socket, &packet);
        if (r == 0) {
            r = writer_take(&writer, &packet);
            local_packet_close(&packet);
        }
    } while (r == 0);
    _exit(r != -ENODATA);
}
