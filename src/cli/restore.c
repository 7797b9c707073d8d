/* SPDX-License-Identifier: Apache-2.0 */
/* godwit restore: with --remote from the image-cache, without it plain criu. */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/plain.h"
#include "cli/session.h"
#include "criu/process.h"
#include "migrate/restore_images.h"
#include "store/chain.h"
#include "wire/message.h"

struct values {
    bool remote, detached, keep, take_over, json;
    const char *workdir, *directory, *snapshot, *log, *criu, *pidfile;
    uint64_t wait_usec, silence_usec;
};

#define AT(field) offsetof(struct values, field)

const struct option_row restore_options[] = {
    {0, "remote", OPTION_FLAG, AT(remote), NULL, "from the image-cache"},
    {0, "snapshot", OPTION_STRING, AT(snapshot), "ID",
     "which (default: the one there is, or the next to come)"},
    {0, "wait", OPTION_SECONDS, AT(wait_usec), "SECONDS",
     "how long to wait for it (default: for ever)"},
    {'d', "restore-detached", OPTION_FLAG, AT(detached), NULL,
     "end when the process runs, instead of staying its parent"},
    {0, "pidfile", OPTION_STRING, AT(pidfile), "FILE", "write the process id there"},
    {0, "keep", OPTION_FLAG, AT(keep), NULL, "keep the snapshot for another restore"},
    {0, "take-over", OPTION_FLAG, AT(take_over), NULL,
     "restore a snapshot in doubt: you know that no other copy runs"},
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "work-dir of the image-cache (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {'D', "images-dir", OPTION_STRING, AT(directory), "DIR", "without --remote: images are there"},
    {'o', "log-file", OPTION_STRING, AT(log), "LOG", "log of criu, relative to the work-dir"},
    {0, "criu", OPTION_STRING, AT(criu), "PATH", "the criu to use (default: $GODWIT_CRIU, PATH)"},
    {0, "timeout", OPTION_SECONDS, AT(silence_usec), "SECONDS",
     "silence after which the image-cache is dead (default: 10)"},
    {0, "json", OPTION_FLAG, AT(json), NULL, "print the result as JSON"},
    {0},
};

struct restore_run {
    const struct values *values;
    char **passed;
    char *criu;
    char hook[PATH_MAX], pidfile[PATH_MAX];
    struct session session;
    struct session_snapshot snapshot;
    int images_fd, memory_fd; /* of the snapshot; memory: holds the lock of who moves pages */
    int stream_fd;            /* the directory of the socket that criu asks for images, or -EBADF */
    bool completed;           /* the hook writes memory, and criu has images of its own */
};

#define STREAM_SOCKET "streamer-serve.sock" /* criu's name for it */
#define COMPLETED_IMAGES "../restore"       /* beside those of the snapshot */

static int request(struct restore_run *run, struct error *err)
{
    const struct values *values = run->values;
    Godwit__Pb__RestoreOpen open = GODWIT__PB__RESTORE_OPEN__INIT;
    open.id = (char *)(values->snapshot ? values->snapshot : "");
    open.wait_usec = values->wait_usec;
    open.keep = values->keep;
    open.take_over = values->take_over;
    return session_open_snapshot(&run->session, &open, &run->snapshot, err);
}

static int put_together(const struct restore_run *run)
{
    return run->snapshot.moved ? chain_move_flat(run->memory_fd, run->images_fd)
                               : chain_copy_flat(run->memory_fd, run->images_fd);
}

/* The image-cache hands the images to criu, through a socket in our directory. */
static int open_stream(struct restore_run *run, struct error *err)
{
    struct session *session = &run->session;
    run->stream_fd =
        openat(session->workdir, session->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    _cleanup_close_ int fd =
        run->stream_fd < 0 ? -errno : unix_listen_at(run->stream_fd, STREAM_SOCKET, SOCK_STREAM);
    int r = fd < 0 ? fd : local_send(session->daemon, LOCAL_RESTORE_STREAM, NULL, &fd, 1);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "a socket for criu in %s/%s",
                                   session->workdir_path, session->directory)
                 : 0;
}

/* 0: that is not how it is to be restored. */
static int make_images(struct restore_run *run)
{
    char *images = run->snapshot.images;
    size_t length = strlen(images);
    int r = restore_images_make(run->images_fd, run->memory_fd, COMPLETED_IMAGES);
    if (r <= 0)
        return r;
    run->completed = true;
    if (length + sizeof("/" COMPLETED_IMAGES) > sizeof(run->snapshot.images))
        return -ENAMETOOLONG;
    strcpy(images + length, "/" COMPLETED_IMAGES);
    return 1;
}

/* What the snapshot shares with others is made ready here, not in the image-cache, which has
 * others to serve. */
static int make_ready(struct restore_run *run, struct error *err)
{
    if (!*run->snapshot.memory)
        return 0;
    run->memory_fd = open(run->snapshot.memory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    run->images_fd = open(run->snapshot.images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = run->memory_fd < 0 || run->images_fd < 0 ? -errno
            : run->snapshot.streamed                 ? make_images(run)
                                                     : put_together(run);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "snapshot %s: making its pages ready",
                               run->snapshot.id);
    return run->snapshot.streamed && !run->completed ? open_stream(run, err) : 0;
}

static void close_images(struct restore_run *run)
{
    if (run->completed)
        restore_images_remove(run->images_fd, COMPLETED_IMAGES);
    run->images_fd = close_fd(run->images_fd);
    run->memory_fd = close_fd(run->memory_fd);
}

static void close_stream(struct restore_run *run)
{
    if (run->stream_fd >= 0)
        unlinkat(run->stream_fd, STREAM_SOCKET, 0);
    run->stream_fd = close_fd(run->stream_fd);
}

/* criu takes a relative pid file as one of its work-dir, which is ours here. */
static int resolve_pidfile(struct restore_run *run, struct error *err)
{
    const char *given = run->values->pidfile;
    if (!given)
        return 0;
    char cwd[PATH_MAX] = "";
    if (*given != '/' && !getcwd(cwd, sizeof(cwd)))
        return error_set_errno(err, FAILURE_SYSTEM, errno, "pid file %s", given);
    int n = snprintf(run->pidfile, sizeof(run->pidfile), "%s%s%s", cwd, *cwd ? "/" : "", given);
    if (n >= (int)sizeof(run->pidfile))
        return error_set_errno(err, FAILURE_USAGE, ENAMETOOLONG, "pid file %s", given);
    /* criu does not write over one, and would say so when everything is done. */
    if (unlink(run->pidfile) < 0 && errno != ENOENT)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "pid file %s", given);
    return 0;
}

static void build_arguments(const struct restore_run *run, struct criu_args *args)
{
    criu_args_add(args, "%s", run->criu);
    criu_args_add(args, "restore");
    if (run->stream_fd >= 0) {
        /* The path of the socket may have 107 bytes: this is a short one. */
        criu_args_add(args, "-D/proc/%d/fd/%d", (int)getpid(), run->stream_fd);
        criu_args_add(args, "--stream");
    } else {
        criu_args_add(args, "-D%s", run->snapshot.images);
    }
    criu_args_add(args, "-W%s/%s", run->session.workdir_path, run->session.directory);
    criu_args_add(args, "-o%s", run->session.log);
    criu_args_add(args, "--action-script=%s", run->hook);
    if (run->values->detached)
        criu_args_add(args, "--restore-detached");
    if (*run->pidfile)
        criu_args_add(args, "--pidfile=%s", run->pidfile);
    if (run->passed)
        criu_args_add_all(args, run->passed);
}

/* Without a cache the hook gets no yes, and criu takes back what it has built by itself; and when
 * it has had its yes, it is not to be disturbed. */
static bool give_up(void *user, bool by_user)
{
    const struct session_run *watch = user;
    if (!by_user)
        return false;
    syscall(SYS_pidfd_send_signal, watch->criu_pidfd, SIGTERM, NULL, 0);
    return true;
}

/* The process runs: what of it loses its parent from now on is init's, and signals end us again. */
static void done(void *user)
{
    (void)user;
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

static int run_criu(struct restore_run *run, struct error *err)
{
    struct criu_args args = {0};
    build_arguments(run, &args);
    struct criu_spawn spawn = {
        .hook_workdir = run->session.workdir_path,
        .hook_token = run->snapshot.token,
        .hook_silence_usec = run->session.silence_usec,
        .hook_memory = run->completed ? run->snapshot.images : NULL,
    };
    struct session_run watch = {.give_up = give_up, .done = done, .user = &watch};
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    watch.criu = criu_start(&args, &spawn, &watch.criu_pidfd, err);
    criu_args_free(&args);
    if (watch.criu < 0)
        return -1;
    int r = session_run(&run->session, &watch, err);
    close_fd(watch.criu_pidfd);
    if (r < 0 && err->code == FAILURE_PEER && watch.status == 0) {
        fprintf(stderr,
                "godwit restore: %s; the process runs, and a later image-cache may still show its "
                "snapshot %s as started: godwit forget it\n",
                err->text, run->snapshot.id);
        return 0;
    }
    if (r < 0 && watch.daemon_failure == FAILURE_CRIU)
        criu_kill_children();
    if (r < 0 && err->code == FAILURE_CRIU) {
        char advice[sizeof(err->text)];
        snprintf(advice, sizeof(advice), "%s", err->text);
        criu_explain("criu restore", watch.status, run->session.log, err);
        error_append(err, "; %s", advice);
    }
    return r;
}

static int restore_remote_steps(struct restore_run *run, uint64_t *ret_began, struct error *err)
{
    const struct values *values = run->values;
    if (criu_check_options(run->passed, criu_count_options(run->passed), err) < 0)
        return -1;
    if (values->directory)
        return error_set(err, FAILURE_USAGE,
                         "-D %s: with --remote the images come from the image-cache: leave it out",
                         values->directory);
    run->criu = criu_find(values->criu, err);
    if (!run->criu || criu_find_hook(run->hook, sizeof(run->hook), err) < 0)
        return -1;
    if (session_open(&run->session, values->workdir, LOCAL_CACHE_SOCKET, "image-cache", err) < 0 ||
        request(run, err) < 0 || resolve_pidfile(run, err) < 0 ||
        session_make_directory(&run->session, "restore", run->snapshot.id, values->log, err) < 0)
        return -1;
    *ret_began = now_usec();
    return make_ready(run, err) < 0 ? -1 : run_criu(run, err);
}

static int restore_remote(const struct values *values, char **passed, struct error *err)
{
    struct restore_run run = {
        .values = values,
        .passed = passed,
        .session = {.workdir = -EBADF, .daemon = -EBADF, .silence_usec = values->silence_usec},
        .images_fd = -EBADF,
        .memory_fd = -EBADF,
        .stream_fd = -EBADF,
    };
    uint64_t began = now_usec();
    int r = restore_remote_steps(&run, &began, err);
    double seconds = (double)(now_usec() - began) / (double)USEC_PER_SEC;
    close_stream(&run);
    close_images(&run);
    if (r == 0 && run.session.directory[0])
        session_remove_directory(&run.session);
    session_close(&run.session);
    if (r == 0 && values->json)
        printf("{\"snapshot\": \"%s\", \"seconds\": %.3f}\n", run.snapshot.id, seconds);
    else if (r == 0)
        printf("snapshot %s %s %.2f s\n", run.snapshot.id,
               values->detached ? "restored in" : "ended after", seconds);
    free(run.criu);
    return r;
}

static int restore_plain(const struct values *values, char **passed, struct error *err)
{
    char *options[3] = {NULL};
    _cleanup_free_ char *pidfile = NULL;
    size_t n = 0;
    if (values->detached)
        options[n++] = (char *)"--restore-detached";
    if (values->pidfile) {
        if (asprintf(&pidfile, "--pidfile=%s", values->pidfile) < 0)
            return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "restore");
        options[n++] = pidfile;
    }
    struct plain_run run = {
        .action = "restore",
        .criu = values->criu,
        .directory = values->directory,
        .workdir = values->workdir,
        .log = values->log,
        .options = options,
        .passed = passed,
    };
    return plain_run(&run, err);
}

int command_restore(int argc, char **argv)
{
    const struct command *command = command_find("restore");
    struct values values = {.silence_usec = DAEMON_DEFAULT_SILENCE_USEC, .wait_usec = UINT64_MAX};
    char **rest, **passed;
    struct error err = {0};
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && *rest)
        r = error_set(&err, FAILURE_USAGE,
                      "%s: no argument is expected; options of criu go behind --", *rest);
    if (r == 0 && values.silence_usec < USEC_PER_SEC)
        r = error_set(&err, FAILURE_USAGE, "--timeout: at least 1 s");
    if (r == 0 && values.remote && !values.workdir)
        values.workdir = DAEMON_DEFAULT_WORKDIR;
    if (r == 0)
        r = values.remote ? restore_remote(&values, passed, &err)
                          : restore_plain(&values, passed, &err);
    return r < 0 ? command_fail(command, &err) : 0;
}
