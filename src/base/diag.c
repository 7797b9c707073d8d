/* SPDX-License-Identifier: Apache-2.0 */
#include "base/diag.h"

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/util.h"

int diag_socket(void)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    return fd < 0 ? -errno : fd;
}

int diag_socket_in(int netns)
{
    struct stat theirs, ours;
    _cleanup_close_ int here = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (here < 0 || fstat(netns, &theirs) < 0 || fstat(here, &ours) < 0)
        return -errno;
    if (theirs.st_ino == ours.st_ino)
        return diag_socket();
    if (setns(netns, CLONE_NEWNET) < 0)
        return -errno;
    int fd = diag_socket();
    if (setns(here, CLONE_NEWNET) < 0)
        abort();
    return fd;
}

uint32_t diag_unix_peer(const struct nlmsghdr *header)
{
    const struct unix_diag_msg *told = NLMSG_DATA(header);
    if (header->nlmsg_len < NLMSG_LENGTH(sizeof(*told)))
        return 0;
    size_t left = header->nlmsg_len - NLMSG_LENGTH(sizeof(*told));
    const struct rtattr *part = (const struct rtattr *)(told + 1);
    for (; RTA_OK(part, left); part = RTA_NEXT(part, left)) {
        if (part->rta_type == UNIX_DIAG_PEER && RTA_PAYLOAD(part) >= sizeof(uint32_t))
            return *(const uint32_t *)RTA_DATA(part);
    }
    return 0;
}
