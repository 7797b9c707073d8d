/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/half.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "daemon/daemon.h"

static const char *daemon_name = ""; /* for the signal handler */

/* Told as it is by a signal handler. */
_Noreturn void half_parser_has_gone(void)
{
    static const char text[] = ": the process that serves others has gone without a word: it was "
                               "killed, by somebody or for a system call that it may not make\n";
    const struct iovec line[] = {{(void *)daemon_name, strlen(daemon_name)},
                                 {(void *)text, sizeof(text) - 1}};
    (void)!writev(STDERR_FILENO, line, ARRAY_SIZE(line));
    _exit(FAILURE_SYSTEM);
}

static void on_parser_death(int signal_number)
{
    (void)signal_number;
    half_parser_has_gone();
}

void half_watch_parser(const char *daemon, pid_t parser)
{
    sigset_t hears;
    struct sigaction death = {.sa_handler = on_parser_death};
    daemon_name = daemon;
    sigemptyset(&hears);
    sigaddset(&hears, SIGUSR2);
    sigaction(SIGUSR2, &death, NULL);
    sigprocmask(SIG_UNBLOCK, &hears, NULL);
    prctl(PR_SET_PDEATHSIG, SIGUSR2);
    if (getppid() != parser)
        half_parser_has_gone();
}

int half_make_room(int fd)
{
    int domain = 0, type = 0, room = DAEMON_CLIENT_ROOM;
    socklen_t length = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || domain != AF_UNIX ||
        type != SOCK_SEQPACKET)
        return -EINVAL;
    return setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) < 0 ? -errno : 0;
}
