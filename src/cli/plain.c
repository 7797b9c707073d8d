/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/plain.h"

#include <stdio.h>
#include <sys/wait.h>

#include "criu/process.h"

static void tell_failure(const struct plain_run *run, const char *log, int status,
                         struct error *err)
{
    char path[512], line[300];
    const char *base = *log == '/' ? "" : run->workdir ? run->workdir : run->directory;
    snprintf(path, sizeof(path), "%s%s%s", base, *base ? "/" : "", log);
    if (criu_first_error(path, line, sizeof(line)))
        error_set(err, FAILURE_CRIU, "criu %s failed: %s (log: %.100s)", run->action, line, path);
    else
        error_set(err, FAILURE_CRIU, "criu %s ended with status %d (log: %.200s)", run->action,
                  status, path);
}

int plain_run(const struct plain_run *run, struct error *err)
{
    if (!run->directory)
        return error_set(err, FAILURE_USAGE, "say --remote, or -D DIR for images in a directory");
    _cleanup_free_ char *criu = criu_find(run->criu, err);
    if (!criu)
        return -1;
    char log[64];
    snprintf(log, sizeof(log), "%s.log", run->action);
    const char *log_name = run->log ? run->log : log;
    struct criu_args args = {0};
    criu_args_add(&args, "%s", criu);
    criu_args_add(&args, "%s", run->action);
    criu_args_add(&args, "-D%s", run->directory);
    if (run->workdir)
        criu_args_add(&args, "-W%s", run->workdir);
    criu_args_add(&args, "-o%s", log_name);
    criu_args_add_all(&args, run->options);
    if (run->passed)
        criu_args_add_all(&args, run->passed);
    struct criu_spawn spawn = {0};
    int pidfd, status = 0;
    pid_t pid = criu_start(&args, &spawn, &pidfd, err);
    criu_args_free(&args);
    if (pid < 0)
        return -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    close_fd(pidfd);
    if (status == 0)
        return 0;
    tell_failure(run, log_name, criu_exit_status(status), err);
    return -1;
}
