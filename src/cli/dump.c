/* SPDX-License-Identifier: Apache-2.0 */
/* godwit dump and godwit pre-dump: with --remote through the image-proxy, without it plain criu. */
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/plain.h"
#include "cli/session.h"
#include "criu/dump.h"
#include "task/task.h"
#include "task/tree.h"
#include "wire/message.h"

struct values {
    bool remote, leave_running, leave_stopped, json, pre_dump;
    const char *workdir, *directory, *snapshot, *parent, *log, *criu, *how;
    enum godwit_tracker tracker;
    uint64_t pid, silence_usec;
};

#define AT(field) offsetof(struct values, field)

const struct option_row dump_options[] = {
    {'t', "tree", OPTION_NUMBER, AT(pid), "PID", "root task of the tree to dump"},
    {0, "remote", OPTION_FLAG, AT(remote), NULL, "through the image-proxy, touching no disk"},
    {0, "snapshot", OPTION_STRING, AT(snapshot), "ID", "name of the snapshot (default: made up)"},
    {0, "parent", OPTION_STRING, AT(parent), "ID",
     "only what was written since that snapshot (default: the newest of the process, if any)"},
    {0, "leave-running", OPTION_FLAG, AT(leave_running), NULL, "let the process run on"},
    {0, "leave-stopped", OPTION_FLAG, AT(leave_stopped), NULL, "leave it stopped"},
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "work-dir of the image-proxy (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {'D', "images-dir", OPTION_STRING, AT(directory), "DIR",
     "without --remote: write images there"},
    {'o', "log-file", OPTION_STRING, AT(log), "LOG", "log of criu, relative to the work-dir"},
    {0, "criu", OPTION_STRING, AT(criu), "PATH", "the criu to use (default: $GODWIT_CRIU, PATH)"},
    {0, "timeout", OPTION_SECONDS, AT(silence_usec), "SECONDS",
     "silence after which the image-proxy is dead (default: 10)"},
    {0, "json", OPTION_FLAG, AT(json), NULL, "print the result as JSON"},
    {0},
};

const struct option_row pre_dump_options[] = {
    {'t', "tree", OPTION_NUMBER, AT(pid), "PID", "root task of the tree"},
    {0, "remote", OPTION_FLAG, AT(remote), NULL, "through the image-proxy, touching no disk"},
    {0, "snapshot", OPTION_STRING, AT(snapshot), "ID", "name of the snapshot (default: made up)"},
    {0, "parent", OPTION_STRING, AT(parent), "ID",
     "only what was written since that snapshot (default: the newest of the process, if any)"},
    {0, "tracker", OPTION_STRING, AT(how), "HOW",
     "uffd-wp, soft-dirty, compare or auto: how to tell what it has written (default: auto)"},
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "work-dir of the image-proxy (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {'D', "images-dir", OPTION_STRING, AT(directory), "DIR",
     "without --remote: write images there"},
    {'o', "log-file", OPTION_STRING, AT(log), "LOG", "without --remote: log of criu"},
    {0, "criu", OPTION_STRING, AT(criu), "PATH", "without --remote: the criu to use"},
    {0, "timeout", OPTION_SECONDS, AT(silence_usec), "SECONDS",
     "silence after which the image-proxy is dead (default: 10)"},
    {0, "json", OPTION_FLAG, AT(json), NULL, "print the result as JSON"},
    {0},
};

struct dump_run {
    const struct values *values;
    char **passed;
    char *criu;
    char hook[PATH_MAX];
    struct session session;
    char id[128], parent[128];
    uint64_t token;
    bool narrow;  /* criu is to be shown only what was written since the parent */
    char *hidden; /* and nothing of these tasks */

    int process_fd; /* pidfd of the root task */
    struct criu_dump dump;
    int lifeline_fd; /* write end: criu's alone once it runs */
    int filter_fd;   /* the same, the scan filter's in it */
    int proxy_fds[DUMP_FDS];
};

/* ---- preparing ---- */

/* A pipe whose read end goes to the proxy. */
static int open_pipe(struct dump_run *run, enum dump_fd which, int *ret_write, struct error *err)
{
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "a pipe for criu");
    run->proxy_fds[which] = pair[0];
    *ret_write = pair[1];
    return 0;
}

static int open_process(struct dump_run *run, struct error *err)
{
    int pid = (int)run->values->pid;
    run->proxy_fds[DUMP_FD_PROCESS] = (int)syscall(SYS_pidfd_open, pid, 0);
    if (run->proxy_fds[DUMP_FD_PROCESS] < 0)
        return error_set_errno(err, errno == ESRCH ? FAILURE_NOT_FOUND : FAILURE_SYSTEM, errno,
                               "process %d", pid);
    run->process_fd = fcntl(run->proxy_fds[DUMP_FD_PROCESS], F_DUPFD_CLOEXEC, 3);
    return 0;
}

static int open_descriptors(struct dump_run *run, struct error *err)
{
    if (criu_dump_open(&run->dump, err) < 0)
        return -1;
    run->proxy_fds[DUMP_FD_IMAGES] = fcntl(run->dump.images_fd, F_DUPFD_CLOEXEC, 3);
    run->proxy_fds[DUMP_FD_PAGES] = TAKE_FD(run->dump.pages_peer_fd);
    return open_pipe(run, DUMP_FD_LIFELINE, &run->lifeline_fd, err) < 0
               ? -1
               : open_pipe(run, DUMP_FD_FILTER, &run->filter_fd, err);
}

/* A device may write into the memory of such a tree unseen: then only comparing tells. */
static bool has_direct_files(pid_t root)
{
    struct tree tree;
    struct error err;
    if (tree_look(root, &tree, &err) < 0)
        return false; /* whoever looks next says so */
    bool direct = tree.direct;
    tree_free(&tree);
    return direct;
}

static int request(struct dump_run *run, struct error *err)
{
    char command[32];
    task_command((pid_t)run->values->pid, command, sizeof(command));
    Godwit__Pb__DumpOpen open = GODWIT__PB__DUMP_OPEN__INIT;
    open.id = (char *)(run->values->snapshot ? run->values->snapshot : "");
    open.pid = (uint32_t)run->values->pid;
    open.command = command;
    open.source_lives_on = run->values->leave_running || run->values->leave_stopped;
    open.pre_dump = run->values->pre_dump;
    open.parent = (char *)(run->values->parent ? run->values->parent : "");
    open.tracker = run->values->tracker;
    if (open.tracker == GODWIT_TRACKER_AUTO && has_direct_files((pid_t)run->values->pid))
        open.tracker = GODWIT_TRACKER_COMPARE;
    int r = local_send(run->session.daemon, LOCAL_DUMP_OPEN, &open.base, run->proxy_fds,
                       open.pre_dump ? DUMP_FD_PROCESS + 1 : DUMP_FDS);
    if (r < 0)
        return error_set_errno(err, FAILURE_PEER, r, "asking the image-proxy");
    for (size_t i = 0; i < ARRAY_SIZE(run->proxy_fds); i++)
        run->proxy_fds[i] = close_fd(run->proxy_fds[i]);

    struct local_packet packet;
    if (session_expect(&run->session, LOCAL_DUMP_OPENED, &packet, err) < 0)
        return -1;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__dump_opened__descriptor, packet.bytes, packet.length, err);
    local_packet_close(&packet);
    if (!message)
        return -1;
    const Godwit__Pb__DumpOpened *opened = (const Godwit__Pb__DumpOpened *)message;
    snprintf(run->id, sizeof(run->id), "%s", opened->id);
    snprintf(run->parent, sizeof(run->parent), "%s", opened->parent);
    run->token = opened->token;
    run->narrow = opened->narrow;
    if (opened->hidden.len > 0)
        run->hidden = strndup((const char *)opened->hidden.data, opened->hidden.len);
    if (opened->hidden.len > 0 && !run->hidden)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "dump");
    const char *const warnings[] = {opened->why_full, opened->skipped};
    for (size_t i = 0; i < ARRAY_SIZE(warnings); i++) {
        if (*warnings[i])
            fprintf(stderr, "godwit %s: snapshot %s: %s\n",
                    run->values->pre_dump ? "pre-dump" : "dump", run->id, warnings[i]);
    }
    return 0;
}

/* ---- criu ---- */

static void build_arguments(const struct dump_run *run, struct criu_args *args)
{
    const struct values *values = run->values;
    char workdir[PATH_MAX];
    snprintf(workdir, sizeof(workdir), "%s/%s", run->session.workdir_path, run->session.directory);
    criu_dump_arguments(&run->dump, run->criu, (pid_t)values->pid, workdir, run->session.log,
                        run->hook, args);
    if (values->leave_running)
        criu_args_add(args, "--leave-running");
    if (values->leave_stopped)
        criu_args_add(args, "--leave-stopped");
    if (run->passed)
        criu_args_add_all(args, run->passed);
}

static bool give_up(void *user, bool by_user)
{
    (void)by_user;
    struct dump_run *run = user;
    criu_dump_break(&run->dump);
    return true;
}

/* Says what the failure means for the process, which is asked itself. */
static void explain(const struct dump_run *run, int criu_status, struct error *err)
{
    unsigned pid = (unsigned)run->values->pid;
    /* When the proxy knows no more than that criu failed, criu's log knows better. */
    if (err->code == FAILURE_CRIU && criu_status != 0)
        criu_explain("criu dump", criu_status, run->session.log, err);
    struct pollfd process = {.fd = run->process_fd, .events = POLLIN};
    bool ended = poll(&process, 1, 0) > 0 || task_is_dying((pid_t)pid);
    if (!ended) {
        error_append(err, "; process %u runs on", pid);
    } else if (err->code == FAILURE_PEER || err->code == FAILURE_SYSTEM) {
        err->code = FAILURE_DOUBT;
        error_append(
            err,
            "; process %u has ended here and its snapshot %s is complete on the other host: if "
            "that does not show it as ready, godwit restore --remote --snapshot %s --take-over",
            pid, run->id, run->id);
    } else {
        error_append(err, "; process %u has ended", pid);
    }
}

static int run_criu(struct dump_run *run, struct error *err)
{
    struct criu_args args = {0};
    build_arguments(run, &args);
    int keep[] = {run->dump.images_fd, run->dump.pages_fd, run->lifeline_fd, run->filter_fd};
    char filter[PATH_MAX];
    struct error no_filter; /* then criu dumps all memory again */
    bool narrow = run->narrow && criu_find_scan_filter(filter, sizeof(filter), &no_filter) == 0;
    struct criu_spawn spawn = {
        .keep = keep,
        .keep_count = ARRAY_SIZE(keep),
        .scan_filter = narrow ? filter : NULL,
        .scan_filter_fd = run->filter_fd,
        .scan_filter_table = -EBADF,
        .scan_filter_hidden = run->hidden,
        .hook_workdir = run->session.workdir_path,
        .hook_token = run->token,
        .hook_silence_usec = run->session.silence_usec,
        .ignore_interrupt = true,
    };
    struct session_run watch = {.give_up = give_up, .user = run};
    watch.criu = criu_start(&args, &spawn, &watch.criu_pidfd, err);
    criu_args_free(&args);
    if (watch.criu < 0)
        return -1;
    run->lifeline_fd = close_fd(run->lifeline_fd);
    run->filter_fd = close_fd(run->filter_fd);
    int r = session_run(&run->session, &watch, err);
    close_fd(watch.criu_pidfd);
    if (r < 0)
        explain(run, watch.status, err);
    return r;
}

/* ---- the command ---- */

static void report(const struct dump_run *run, double seconds)
{
    char size[24];
    if (run->values->json)
        printf("{\"snapshot\": \"%s\", \"parent\": \"%s\", \"pid\": %u, \"bytes\": %llu, "
               "\"seconds\": %.3f}\n",
               run->id, run->parent, (unsigned)run->values->pid,
               (unsigned long long)run->session.bytes, seconds);
    else
        printf("process %u %sdumped as snapshot %s%s%s: %s in %.2f s\n", (unsigned)run->values->pid,
               run->values->pre_dump ? "pre-" : "", run->id, *run->parent ? ", based on " : "",
               run->parent, format_bytes(run->session.bytes, size), seconds);
}

/* The proxy reads the memory itself; it goes on if we are gone. */
static int pre_dump_steps(struct dump_run *run, struct error *err)
{
    struct local_packet packet;
    if (session_open(&run->session, run->values->workdir, LOCAL_PROXY_SOCKET, "image-proxy", err) <
            0 ||
        open_process(run, err) < 0 || request(run, err) < 0 ||
        session_expect(&run->session, LOCAL_DONE, &packet, err) < 0)
        return -1;
    local_packet_close(&packet);
    return 0;
}

static int dump_steps(struct dump_run *run, struct error *err)
{
    const struct values *values = run->values;
    if (criu_check_options(run->passed, criu_count_options(run->passed), err) < 0)
        return -1;
    run->criu = criu_find(values->criu, err);
    if (!run->criu || criu_find_hook(run->hook, sizeof(run->hook), err) < 0)
        return -1;
    if (session_open(&run->session, values->workdir, LOCAL_PROXY_SOCKET, "image-proxy", err) < 0 ||
        open_process(run, err) < 0 || open_descriptors(run, err) < 0 || request(run, err) < 0 ||
        session_make_directory(&run->session, "dump", run->id, values->log, err) < 0)
        return -1;
    return run_criu(run, err);
}

static int check_remote(const struct values *values, char **passed, struct error *err)
{
    if (values->directory)
        return error_set(err, FAILURE_USAGE,
                         "-D %s: with --remote nothing is written to a "
                         "directory: leave it out",
                         values->directory);
    if (values->pre_dump && (passed || values->log || values->criu))
        return error_set(
            err, FAILURE_USAGE,
            "with --remote no criu is started for a pre-dump: leave out what is for it");
    return 0;
}

static int dump_remote(const struct values *values, char **passed, struct error *err)
{
    struct dump_run run = {
        .values = values,
        .passed = passed,
        .session = {.workdir = -EBADF, .daemon = -EBADF, .silence_usec = values->silence_usec},
        .process_fd = -EBADF,
        .dump = CRIU_DUMP_CLOSED,
        .lifeline_fd = -EBADF,
        .filter_fd = -EBADF,
        .proxy_fds = {-EBADF, -EBADF, -EBADF, -EBADF, -EBADF},
    };
    uint64_t began = now_usec();
    int r = check_remote(values, passed, err);
    if (r == 0)
        r = values->pre_dump ? pre_dump_steps(&run, err) : dump_steps(&run, err);
    if (r == 0 && run.session.directory[0])
        session_remove_directory(&run.session);
    session_close(&run.session);
    if (r == 0)
        report(&run, (double)(now_usec() - began) / (double)USEC_PER_SEC);
    close_fd(run.process_fd);
    criu_dump_close(&run.dump);
    close_fd(run.lifeline_fd);
    close_fd(run.filter_fd);
    for (size_t i = 0; i < ARRAY_SIZE(run.proxy_fds); i++)
        close_fd(run.proxy_fds[i]);
    free(run.criu);
    free(run.hidden);
    return r;
}

static int dump_plain(const struct values *values, char **passed, struct error *err)
{
    struct criu_args options = {0};
    if (values->parent || values->how)
        return error_set(err, FAILURE_USAGE,
                         "--parent and --tracker go with --remote; criu has --prev-images-dir and "
                         "--track-mem, behind --");
    criu_args_add(&options, "-t%u", (unsigned)values->pid);
    if (values->leave_running)
        criu_args_add(&options, "--leave-running");
    if (values->leave_stopped)
        criu_args_add(&options, "--leave-stopped");
    struct plain_run run = {
        .action = values->pre_dump ? "pre-dump" : "dump",
        .criu = values->criu,
        .directory = values->directory,
        .workdir = values->workdir,
        .log = values->log,
        .options = options.list,
        .passed = passed,
    };
    int r = plain_run(&run, err);
    criu_args_free(&options);
    return r;
}

/* criu takes what is missing for zeros. */
static int check_memory(pid_t root, struct error *err)
{
    pid_t *pids;
    size_t count, i = 0;
    if (task_list_tree(root, &pids, &count) < 0)
        return 0; /* whoever looks next says so */
    while (i < count && !task_lacks_pages(pids[i]))
        i++;
    int r = i == count
                ? 0
                : error_set(err, FAILURE_BUSY,
                            "process %d is still being filled in by a userfaultfd, and what is "
                            "missing would be lost: wait until it is there (godwit status)",
                            pids[i]);
    free(pids);
    return r;
}

static int run_command(const char *name, int argc, char **argv)
{
    const struct command *command = command_find(name);
    struct values values = {.silence_usec = DAEMON_DEFAULT_SILENCE_USEC,
                            .pre_dump = strcmp(name, "pre-dump") == 0};
    char **rest, **passed;
    struct error err = {0};
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && *rest)
        r = error_set(&err, FAILURE_USAGE,
                      "%s: no argument is expected; options of criu go behind --", *rest);
    if (r == 0 && values.pid == 0)
        r = error_set(&err, FAILURE_USAGE, "-t PID is missing or 0: the process to dump");
    if (r == 0 && values.silence_usec < USEC_PER_SEC)
        r = error_set(&err, FAILURE_USAGE, "--timeout: at least 1 s");
    if (r == 0 && values.remote && !values.workdir)
        values.workdir = DAEMON_DEFAULT_WORKDIR;
    if (r == 0)
        r = options_take_tracker(values.how, &values.tracker, &err);
    if (r == 0)
        r = check_memory((pid_t)values.pid, &err);
    if (r == 0)
        r = values.remote ? dump_remote(&values, passed, &err) : dump_plain(&values, passed, &err);
    return r < 0 ? command_fail(command, &err) : 0;
}

int command_dump(int argc, char **argv)
{
    return run_command("dump", argc, argv);
}

int command_pre_dump(int argc, char **argv)
{
    return run_command("pre-dump", argc, argv);
}
