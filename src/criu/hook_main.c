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
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu/hook.h"
#include "criu/hook_memory.h"

enum { COME_BACK_USEC = 20000 };

static int refuse(const char *what)
{
    fprintf(stderr, "godwit-hook: %s: %s\n", what, strerror(errno));
    return 1;
}

static const char *socket_for(const char *action)
{
    if (strcmp(action, "post-dump") == 0)
        return "proxy.sock";
    if (strcmp(action, "post-restore") == 0 || strcmp(action, "pre-resume") == 0 ||
        strcmp(action, "post-resume") == 0)
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
    int r = connect(fd, (struct sockaddr *)&address, sizeof(address));
    int saved = errno;
    close(dirfd);
    if (r == 0)
        return fd;
    close(fd);
    return errno = saved, -1;
}

/* A packet, and a descriptor with it unless that is negative.  Whether it went. */
static int send_with(int fd, const struct hook_ask *packet, int passed)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {(void *)packet, sizeof(*packet)};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (passed >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &passed, sizeof(int));
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL) == sizeof(*packet);
}

/* The images of a criu that was not started by godwit, and does not stream. */
static int open_images(const char *action)
{
    const char *images = getenv("CRTOOLS_IMAGE_DIR");
    if (strcmp(action, "post-dump") != 0 || getenv("GODWIT_HOOK_TOKEN") ||
        !getenv("GODWIT_HOOK_WORKDIR") || !images)
        return -1;
    return open(images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static int ask(const char *directory, const char *name, const char *action)
{
    const char *token = getenv("GODWIT_HOOK_TOKEN"), *pid = getenv("CRTOOLS_INIT_PID");
    struct hook_ask packet = {
        .kind = HOOK_ASK,
        .root_pid = pid ? (uint32_t)strtoul(pid, NULL, 10) : 0,
        .token = token ? strtoull(token, NULL, 16) : 0,
    };
    snprintf(packet.action, sizeof(packet.action), "%s", action);
    int fd = connect_to(directory, name), images = open_images(action);
    if (fd >= 0 && !send_with(fd, &packet, images)) {
        close(fd);
        fd = -1;
    }
    if (images >= 0)
        close(images);
    return fd;
}

/* Whether the tasks are to end although nobody is there any more to say so. */
static int is_committed(void)
{
    const char *path = getenv("GODWIT_HOOK_JOURNAL");
    char text[sizeof("commit") - 1] = "";
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    return fd >= 0 && read(fd, text, sizeof(text)) == sizeof(text) &&
           memcmp(text, "commit", sizeof(text)) == 0;
}

/* The parent of a process that lives; 0: it does not. */
static pid_t parent_of(pid_t pid)
{
    char path[32], text[512] = "", state;
    int parent;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    const char *name_end = n > 0 ? strrchr(text, ')') : NULL;
    if (!name_end || sscanf(name_end, ") %c %d", &state, &parent) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : parent;
}

static pid_t number_in(const char *variable)
{
    const char *text = getenv(variable);
    return text ? atoi(text) : 0;
}

/*
 * False: criu has ended, and its keeper may have seen that before it has heard from us.  It kills
 * then what criu has built, this process too, or lets it be: its own end tells which, and nobody is
 * to be told by us that the tasks run.  If criu lives when the signal has been sent, the keeper
 * hears it before it learns of criu's end.  One that was killed itself kills nobody.
 */
static bool tell_keeper(void)
{
    pid_t keeper = number_in("GODWIT_HOOK_KEEPER"), kept = number_in("GODWIT_HOOK_KEPT");
    if (keeper <= 0 || kept <= 0)
        return true;
    pid_t parent = parent_of(kept);
    if (parent == keeper)
        kill(keeper, SIGUSR1);
    return parent != 0 && parent_of(kept) != 0;
}

enum outcome { SAID_YES, SAID_NO, LOST, LOST_WHILE_HELD };

/* Waits for an answer on the socket, which is closed then. */
static enum outcome wait_for_answer(int fd, const char *action, int silence_msec)
{
    enum outcome lost = LOST;
    for (;;) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        char answer[sizeof(uint32_t) + 512] = "";
        uint32_t kind;
        int ready = poll(&poll_fd, 1, silence_msec);
        if (ready < 0 && errno == EINTR)
            continue;
        ssize_t n = ready > 0 ? recv(fd, answer, sizeof(answer) - 1, 0) : 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n < (ssize_t)sizeof(kind)) {
            errno = ready == 0 ? ETIMEDOUT : n < 0 ? errno : ECONNRESET;
            refuse("waiting for an answer");
            close(fd);
            return lost;
        }
        memcpy(&kind, answer, sizeof(kind));
        if (kind == HOOK_HOLD)
            lost = LOST_WHILE_HELD;
        if (kind == HOOK_WAIT || kind == HOOK_HOLD)
            continue;
        if (kind != HOOK_YES)
            fprintf(stderr, "godwit-hook: %s: no: %s\n", action, answer + sizeof(kind));
        close(fd);
        return kind == HOOK_YES ? SAID_YES : SAID_NO;
    }
}

/* What the task lacks that criu has built: 0, or -1 with errno set. */
static int complete_memory(void)
{
    const char *memory = getenv("GODWIT_HOOK_MEMORY"), *pid = getenv("CRTOOLS_INIT_PID");
    if (!memory)
        return 0;
    return pid ? hook_write_memory(memory, atoi(pid)) : (errno = ESRCH, -1);
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
    if (strcmp(action, "pre-resume") == 0 && !tell_keeper())
        return errno = ESRCH, refuse("criu");
    /* Without its criu a hook holds nothing. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_DUMPABLE, 0); /* what it writes is secret */
    if (strcmp(action, "post-restore") == 0 && complete_memory() < 0)
        return refuse("writing the memory of the task");
    int fd = ask(directory, name, action);
    if (fd < 0)
        return is_committed() ? 0 : refuse(directory);

    const char *silence = getenv("GODWIT_HOOK_SILENCE");
    int silence_msec = silence ? atoi(silence) : HOOK_SILENCE_MSEC;
    enum outcome outcome = wait_for_answer(fd, action, silence_msec);
    while (outcome == LOST_WHILE_HELD) {
        usleep(COME_BACK_USEC);
        fd = ask(directory, name, action);
        if (fd >= 0)
            outcome = wait_for_answer(fd, action, silence_msec);
        /* Once held, held: what answers now may end before it has said so again. */
        if (outcome == LOST)
            outcome = LOST_WHILE_HELD;
    }
    return outcome == SAID_YES || (outcome == LOST && is_committed()) ? 0 : 1;
}
