/* SPDX-License-Identifier: Apache-2.0 */
/* godwit export: a snapshot of the image-cache as ordinary images of criu, in a directory. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "migrate/lazy_images.h"
#include "migrate/plain_images.h"
#include "wire/message.h"

struct values {
    bool lazy;
    const char *workdir;
    uint64_t silence_usec;
};

#define AT(field) offsetof(struct values, field)

const struct option_row export_options[] = {
    {0, "lazy", OPTION_FLAG, AT(lazy), NULL,
     "leave the memory to criu lazy-pages, which asks the image-cache for it"},
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "of the image-cache (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {0, "timeout", OPTION_SECONDS, AT(silence_usec), "SECONDS",
     "silence after which the image-cache is dead (default: 10)"},
    {0},
};

struct export_run {
    const struct values *values;
    const char *id, *directory;
    struct session session;
    struct session_snapshot snapshot;
    int to; /* the directory */
    bool made;
};

static int request(struct export_run *run, struct error *err)
{
    Godwit__Pb__RestoreOpen open = GODWIT__PB__RESTORE_OPEN__INIT;
    open.id = (char *)run->id;
    open.keep = true;
    open.to_copy = true;
    return session_open_snapshot(&run->session, &open, &run->snapshot, err);
}

/* ---- the directory ---- */

/* An empty one, made if missing: what is in another may be somebody's images. */
static int open_directory(struct export_run *run, struct error *err)
{
    run->made = mkdir(run->directory, 0700) == 0;
    if (!run->made && errno != EEXIST)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", run->directory);
    run->to = open(run->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (run->to < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", run->directory);
    int r = directory_is_empty(run->to);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s", run->directory);
    return r ? 0 : error_set(err, FAILURE_USAGE, "%s: is not empty", run->directory);
}

static int write_all_images(const struct export_run *run)
{
    _cleanup_close_ int images = open(run->snapshot.images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (images < 0)
        return -errno;
    _cleanup_close_ int memory =
        *run->snapshot.memory ? open(run->snapshot.memory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
                              : -EBADF;
    if (*run->snapshot.memory && memory < 0)
        return -errno;
    return run->values->lazy ? lazy_images_write(images, memory, run->snapshot.moved, run->to)
                             : plain_images_write(images, memory, run->snapshot.moved, run->to);
}

/* It was empty: what is there is ours, and not whole. */
static void remove_copies(const struct export_run *run)
{
    plain_images_remove(run->to);
    if (run->made)
        rmdir(run->directory);
}

static int run_export(struct export_run *run, struct error *err)
{
    if (open_directory(run, err) < 0 ||
        session_open(&run->session, run->values->workdir, LOCAL_CACHE_SOCKET, "image-cache", err) <
            0 ||
        request(run, err) < 0)
        return -1;
    int r = write_all_images(run);
    if (r == 0)
        return 0;
    remove_copies(run);
    run->made = false;
    if (r == -ENOENT && run->values->lazy)
        return error_set(err, FAILURE_USAGE,
                         "snapshot %s: is a pre-dump, which is memory and no process", run->id);
    return error_set_errno(err, FAILURE_SYSTEM, r, "snapshot %s: writing it to %s", run->id,
                           run->directory);
}

int command_export(int argc, char **argv)
{
    const struct command *command = command_find("export");
    struct values values = {.workdir = DAEMON_DEFAULT_WORKDIR,
                            .silence_usec = DAEMON_DEFAULT_SILENCE_USEC};
    struct error err = {0};
    char **rest, **passed;
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && (passed || !rest[0] || !rest[1] || rest[2]))
        r = error_set(&err, FAILURE_USAGE, "the id of a snapshot and a directory are expected");
    struct export_run run = {
        .values = &values,
        .session = {.workdir = -EBADF, .daemon = -EBADF, .silence_usec = values.silence_usec},
        .to = -EBADF,
    };
    if (r == 0) {
        run.id = rest[0];
        run.directory = rest[1];
        r = run_export(&run, &err);
    }
    session_close(&run.session);
    close_fd(run.to);
    if (r < 0 && run.made)
        rmdir(run.directory);
    return r < 0 ? command_fail(command, &err) : 0;
}
