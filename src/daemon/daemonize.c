/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/daemonize.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>

#include "base/io.h"

static void wait_for_daemon(int fd, pid_t pid)
{
    char byte;
    if (read_all(fd, &byte, 1) == 0) {
        /* Ready, and nothing of this start is left in it: the other end closes. */
        read_all(fd, &byte, 1);
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    _exit(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : FAILURE_SYSTEM);
}

int daemonize_begin(struct daemonize *daemonize, struct error *err)
{
    daemonize->waiting = -EBADF;
    if (!daemonize->background)
        return 0;
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "pipe");
    pid_t pid = fork();
    if (pid < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "fork");
    if (pid > 0) {
        close_fd(fds[1]);
        wait_for_daemon(fds[0], pid);
    }
    close_fd(fds[0]);
    daemonize->waiting = fds[1];
    setsid();
    return 0;
}

static int write_pidfile(const char *path)
{
    char text[16];
    int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    _cleanup_close_ int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    return fd < 0 ? -errno : write_all(fd, text, (size_t)n);
}

static int open_log(const struct daemonize *daemonize)
{
    return daemonize->log
               ? open(daemonize->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600)
               : -EBADF;
}

void daemonize_use_log(int fd)
{
    if (fd < 0)
        return;
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    close_fd(fd);
}

int daemonize_reopen_log(const struct daemonize *daemonize)
{
    int fd = open_log(daemonize);
    if (fd >= 0)
        daemonize_use_log(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    return fd;
}

static void open_outputs(struct daemonize *daemonize)
{
    daemonize->null_fd = daemonize->background ? open("/dev/null", O_RDWR | O_CLOEXEC) : -EBADF;
    daemonize->log_fd = open_log(daemonize);
}

static void use_outputs(struct daemonize *daemonize)
{
    for (int fd = STDIN_FILENO; daemonize->null_fd >= 0 && fd <= STDERR_FILENO; fd++)
        dup2(daemonize->null_fd, fd);
    daemonize->null_fd = close_fd(daemonize->null_fd);
    daemonize_use_log(daemonize->log_fd);
    daemonize->log_fd = -EBADF;
}

void daemonize_leave(const struct daemonize *daemonize)
{
    struct daemonize copy = *daemonize;
    open_outputs(&copy);
    use_outputs(&copy);
}

int daemonize_prepare(struct daemonize *daemonize, struct error *err)
{
    if (daemonize->background && chdir("/") < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "chdir /");
    int r = daemonize->pidfile ? write_pidfile(daemonize->pidfile) : 0;
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "pid file %s", daemonize->pidfile);
    open_outputs(daemonize);
    return 0;
}

void daemonize_ready(struct daemonize *daemonize)
{
    char zero = 0;
    use_outputs(daemonize);
    if (daemonize->status_fd >= 0)
        write_all(daemonize->status_fd, &zero, 1);
    daemonize->status_fd = close_fd(daemonize->status_fd);
    if (daemonize->waiting >= 0)
        write_all(daemonize->waiting, &zero, 1);
    daemonize->waiting = close_fd(daemonize->waiting);
}

void daemonize_end(const struct daemonize *daemonize)
{
    if (daemonize->pidfile)
        unlink(daemonize->pidfile);
}
