/* SPDX-License-Identifier: Apache-2.0 */
/* godwit dump: with --remote through the image-proxy, without it plain criu. */
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
#include "wire/message.h"

struct values {
    bool remote, leave_running, leave_stopped, json;
    const char *workdir, *directory, *snapshot, *log, *criu;
    uint64_t pid, silence_usec;
};

#define AT(field) offsetof(struct values, field)

const struct option_row dump_options[] = {
    {'t', "tree", OPTION_NUMBER, AT(pid), "PID", "root task of the tree to dump"},
    {0, "remote", OPTION_FLAG, AT(remote), NULL, "through the image-proxy, touching no disk"},
    {0, "snapshot", OPTION_STRING, AT(snapshot), "ID", "name of the snapshot (default: made up)"},
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

struct dump_run {
    const struct values *values;
    char **passed;
    char *criu;
    char hook[PATH_MAX];
    struct session session;
    char id[128];
    uint64_t token;

    int process_fd; /* pidfd of the root task */
    struct criu_dump dump;
    int lifeline_fd;  /* write end: criu's alone once it runs */
    int proxy_fds[4]; /* enum dump_fd */
};

/* ---- preparing ---- */

static int open_descriptors(struct dump_run *run, struct error *err)
{
    int pid = (int)run->values->pid;
    run->proxy_fds[DUMP_FD_PROCESS] = (int)syscall(SYS_pidfd_open, pid, 0);
    if (run->proxy_fds[DUMP_FD_PROCESS] < 0)
        return error_set_errno(err, errno == ESRCH ? FAILURE_NOT_FOUND : FAILURE_SYSTEM, errno,
                               "process %d", pid);
    run->process_fd = fcntl(run->proxy_fds[DUMP_FD_PROCESS], F_DUPFD_CLOEXEC, 3);
    if (criu_dump_open(&run->dump, err) < 0)
        return -1;
    run->proxy_fds[DUMP_FD_IMAGES] = fcntl(run->dump.images_fd, F_DUPFD_CLOEXEC, 3);
    run->proxy_fds[DUMP_FD_PAGES] = TAKE_FD(run->dump.pages_peer_fd);
    int pair[2];
    if (pipe2(pair, O_CLOEXEC) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "a pipe for criu");
    run->proxy_fds[DUMP_FD_LIFELINE] = pair[0];
    run->lifeline_fd = pair[1];
    return 0;
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
    int r = local_send(run->session.daemon, LOCAL_DUMP_OPEN, &open.base, run->proxy_fds,
                       ARRAY_SIZE(run->proxy_fds));
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
    run->token = opened->token;
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
    int keep[] = {run->dump.images_fd, run->dump.pages_fd, run->lifeline_fd};
    struct criu_spawn spawn = {
        .keep = keep,
        .keep_count = ARRAY_SIZE(keep),
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
        printf("{\"snapshot\": \"%s\", \"pid\": %u, \"bytes\": %llu, \"seconds\": %.3f}\n", run->id,
               (unsigned)run->values->pid, (unsigned long long)run->session.bytes, seconds);
    else
        printf("process %u dumped as snapshot %s: %s in %.2f s\n", (unsigned)run->values->pid,
               run->id, format_bytes(run->session.bytes, size), seconds);
}

static int dump_remote_steps(struct dump_run *run, struct error *err)
{
    const struct values *values = run->values;
    if (criu_check_options(run->passed, criu_count_options(run->passed), err) < 0)
        return -1;
    if (values->directory)
        return error_set(err, FAILURE_USAGE,
                         "-D %s: with --remote nothing is written to a "
                         "directory: leave it out",
                         values->directory);
    run->criu = criu_find(values->criu, err);
    if (!run->criu || criu_find_hook(run->hook, sizeof(run->hook), err) < 0)
        return -1;
    if (session_open(&run->session, values->workdir, LOCAL_PROXY_SOCKET, "image-proxy", err) < 0 ||
        open_descriptors(run, err) < 0 || request(run, err) < 0 ||
        session_make_directory(&run->session, "dump", run->id, values->log, err) < 0)
        return -1;
    return run_criu(run, err);
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
        .proxy_fds = {-EBADF, -EBADF, -EBADF, -EBADF},
    };
    uint64_t began = now_usec();
    int r = dump_remote_steps(&run, err);
    if (r == 0 && run.session.directory[0])
        session_remove_directory(&run.session);
    session_close(&run.session);
    if (r == 0)
        report(&run, (double)(now_usec() - began) / (double)USEC_PER_SEC);
    close_fd(run.process_fd);
    criu_dump_close(&run.dump);
    close_fd(run.lifeline_fd);
    for (size_t i = 0; i < ARRAY_SIZE(run.proxy_fds); i++)
        close_fd(run.proxy_fds[i]);
    free(run.criu);
    return r;
}

static int dump_plain(const struct values *values, char **passed, struct error *err)
{
    struct criu_args options = {0};
    criu_args_add(&options, "-t%u", (unsigned)values->pid);
    if (values->leave_running)
        criu_args_add(&options, "--leave-running");
    if (values->leave_stopped)
        criu_args_add(&options, "--leave-stopped");
    struct plain_run run = {
        .action = "dump",
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

int command_dump(int argc, char **argv)
{
    const struct command *command = command_find("dump");
    struct values values = {.silence_usec = DAEMON_DEFAULT_SILENCE_USEC};
    char **rest, **passed;
    struct error err = {0};
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && *rest)
        r = error_set(&err, FAILURE_USAGE,
                      "%s: no argument is expected; options of criu go behind --", *rest);
    if (r == 0 && values.pid == 0)
        r = error_set(&err, FAILURE_USAGE, "-t PID is missing: the process to dump");
    if (r == 0 && values.silence_usec < USEC_PER_SEC)
        r = error_set(&err, FAILURE_USAGE, "--timeout: at least 1 s");
    if (r == 0 && values.remote && !values.workdir)
        values.workdir = DAEMON_DEFAULT_WORKDIR;
    if (r == 0)
        r = check_memory((pid_t)values.pid, &err);
    if (r == 0)
        r = values.remote ? dump_remote(&values, passed, &err) : dump_plain(&values, passed, &err);
    return r < 0 ? command_fail(command, &err) : 0;
}
