/* SPDX-License-Identifier: Apache-2.0 */
#include "task/helper.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"
#include "task/inject.h"
#include "task/page_table.h"
#include "task/stop.h"

/* ---- in the child ---- */

static void help_clear(pid_t pid, int socket)
{
    int r = page_table_clear(pid);
    send(socket, &r, sizeof(r), MSG_NOSIGNAL);
}

_Noreturn void task_help(enum task_help help, pid_t pid, int socket)
{
    switch (help) {
    case TASK_HELP_USERFAULTFD:
        task_help_userfaultfd(pid, socket);
        break;
    case TASK_HELP_STOP:
        task_help_stop(pid, socket);
        break;
    case TASK_HELP_CLEAR:
        help_clear(pid, socket);
        break;
    }
    _exit(0);
}

/* ---- for the caller ---- */

static int helper_fork(enum task_help help, pid_t pid, int ours, int theirs)
{
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* it puts everything back, whatever comes */
    pid_t child = fork();
    if (child == 0) {
        close_fd(ours);
        task_help(help, pid, theirs);
    }
    int r = child < 0 ? -errno : child;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return r;
}

int task_helper_start(const struct task_helpers *helpers, enum task_help help, pid_t pid,
                      struct task_helper *ret)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    int r = helpers ? helpers->start(helpers->user, help, pid, pair[1])
                    : helper_fork(help, pid, pair[0], pair[1]);
    close_fd(pair[1]);
    *ret = (struct task_helper){.pid = helpers ? 0 : r, .socket = pair[0]};
    if (r < 0)
        close_fd(pair[0]);
    return r < 0 ? r : 0;
}

int task_helper_result(const struct task_helper *helper)
{
    int result;
    ssize_t n;
    do {
        n = recv(helper->socket, &result, sizeof(result), 0);
    } while (n < 0 && errno == EINTR);
    return n == sizeof(result) ? result : -EIO;
}

void task_helper_end(struct task_helper *helper)
{
    char rest[64];
    ssize_t n;
    shutdown(helper->socket, SHUT_WR);
    do {
        n = recv(helper->socket, rest, sizeof(rest), 0);
    } while (n > 0 || (n < 0 && errno == EINTR));
    helper->socket = close_fd(helper->socket);
    while (helper->pid > 0 && waitpid(helper->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}
