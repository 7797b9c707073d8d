/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/daemonize.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>

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
    daemonize->starter = -EBADF;
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
    daemonize->starter = fds[1];
    setsid();
    return 0;
}

static int write_pidfile(const char *path)
{
    char text[16];
    int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd < 0 ? -errno : write_all(fd, text, (size_t)n);
}

void daemonize_reopen_log(const struct daemonize *daemonize)
{
    if (!daemonize->log)
        return;
    _cleanup_close_ int fd =
        open(daemonize->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0) {
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
    }
}

int daemonize_ready(struct daemonize *daemonize, struct error *err)
{
    int r = daemonize->pidfile ? write_pidfile(daemonize->pidfile) : 0;
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "pid file %s", daemonize->pidfile);
    if (daemonize->background) {
        _cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (chdir("/") < 0)
            return error_set_errno(err, FAILURE_SYSTEM, errno, "chdir /");
        for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
            dup2(null, fd);
    }
    daemonize_reopen_log(daemonize);
    char zero = 0;
    if (daemonize->status_fd >= 0)
        write_all(daemonize->status_fd, &zero, 1);
    daemonize->status_fd = close_fd(daemonize->status_fd);
    if (daemonize->starter >= 0)
        write_all(daemonize->starter, &zero, 1);
    daemonize->starter = close_fd(daemonize->starter);
    sd_notify(0, "READY=1");
    return 0;
}

void daemonize_end(const struct daemonize *daemonize)
{
    if (daemonize->pidfile)
        unlink(daemonize->pidfile);
}
