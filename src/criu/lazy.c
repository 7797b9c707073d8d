/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/lazy.h"

#include <string.h>
#include <sys/socket.h>

#include "base/io.h"

/* Sent where a process id would be: LAZY_PAGES_RESTORE_FINISHED. */
#define FINISHED 0x52535446

/* One byte that carries a descriptor.  -EBADF when none came. */
static int receive_descriptor(int fd)
{
    char byte;
    struct iovec iov = {&byte, 1};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t n;
    do {
        n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    const struct cmsghdr *header = n == 1 ? CMSG_FIRSTHDR(&message) : NULL;
    int received = -EBADF;
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(&received, CMSG_DATA(header), sizeof(received));
    return received;
}

enum lazy_handover lazy_take(int fd, uint32_t *ret_pid, int *ret_uffd)
{
    int32_t pid;
    if (read_all(fd, &pid, sizeof(pid)) < 0)
        return LAZY_GONE;
    if (pid == FINISHED)
        return LAZY_FINISHED;
    if (pid < 0)
        return LAZY_NOTHING;
    *ret_pid = (uint32_t)pid;
    *ret_uffd = receive_descriptor(fd);
    return *ret_uffd < 0 ? LAZY_GONE : LAZY_TASK;
}
