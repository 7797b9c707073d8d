/* SPDX-License-Identifier: Apache-2.0 */
/*
 * godwit-hook: asks the daemon at CRIU's points of no return (see criu/hook.h).  criu starts it a
 * dozen times per migration while the process stands still: it is static, and leaves at once when
 * the action is none of its business.  Whatever goes wrong, the answer is no: then criu lets the
 * process run on where it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu/hook.h"

static int refuse(const char *what)
{
    fprintf(stderr, "godwit-hook: %s: %s\n", what, strerror(errno));
    return 1;
}

static const char *socket_for(const char *action)
{
    if (strcmp(action, "post-dump") == 0)
        return "proxy.sock";
    if (strcmp(action, "post-restore") == 0 || strcmp(action, "post-resume") == 0)
        return "cache.sock";
    return NULL;
}

static int connect_to(const char *directory, const char *name)
{
    int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* criu closes its images directory before post-resume; its work-dir is the same by default. */
    if (dirfd < 0)
        dirfd = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (dirfd < 0 || fd < 0)
        return -1;
    /* Through the descriptor, because sun_path holds 108 bytes and the directory may be longer. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", dirfd, name);
    return connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -1 : fd;
}

static int ask(int fd, const char *action)
{
    const char *token = getenv("GODWIT_HOOK_TOKEN"), *pid = getenv("CRTOOLS_INIT_PID");
    struct hook_ask packet = {
        .kind = HOOK_ASK,
        .root_pid = pid ? (uint32_t)strtoul(pid, NULL, 10) : 0,
        .token = token ? strtoull(token, NULL, 16) : 0,
    };
    snprintf(packet.action, sizeof(packet.action), "%s", action);
    return send(fd, &packet, sizeof(packet), MSG_NOSIGNAL) == sizeof(packet) ? 0 : -1;
}

int main(void)
{
    const char *action = getenv("CRTOOLS_SCRIPT_ACTION");
    const char *name = action ? socket_for(action) : NULL;
    if (!name)
        return 0;
    const char *directory = getenv("GODWIT_HOOK_WORKDIR");
    if (!directory)
        directory = getenv("CRTOOLS_IMAGE_DIR");
    if (!directory)
        return errno = ENOENT, refuse("GODWIT_HOOK_WORKDIR");
    int fd = connect_to(directory, name);
    if (fd < 0)
        return refuse(directory);
    if (ask(fd, action) < 0)
        return refuse(name);

    const char *silence = getenv("GODWIT_HOOK_SILENCE");
    int silence_msec = silence ? atoi(silence) : HOOK_SILENCE_MSEC;
    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        char answer[sizeof(uint32_t) + 512] = "";
        uint32_t kind;
        int ready = poll(&poll_fd, 1, silence_msec);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready == 0)
            return errno = ETIMEDOUT, refuse(name);
        ssize_t n = recv(fd, answer, sizeof(answer) - 1, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < (ssize_t)sizeof(kind))
            return errno = n < 0 ? errno : ECONNRESET, refuse(name);
        memcpy(&kind, answer, sizeof(kind));
        if (kind == HOOK_WAIT)
            continue;
        if (kind != HOOK_YES)
            fprintf(stderr, "godwit-hook: %s: no: %s\n", action, answer + sizeof(kind));
        return kind == HOOK_YES ? 0 : 1;
    }
}
