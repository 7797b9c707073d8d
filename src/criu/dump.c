/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/dump.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/socket.h>

enum { PAGES_ROOM = 2 << 20 }; /* bytes in criu's page-server connection */

/*
 * A directory that is memory whatever the work-dir is on, not limited by the size of /run, and that
 * vanishes with the processes that hold it: a tmpfs that is never attached (Linux >= 5.2).
 */
static int private_tmpfs(void)
{
    _cleanup_close_ int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
    if (fs < 0 || fsconfig(fs, FSCONFIG_SET_STRING, "size", "100%", 0) < 0 ||
        fsconfig(fs, FSCONFIG_SET_STRING, "mode", "0700", 0) < 0 ||
        fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
        return -errno;
    int fd = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    return fd < 0 ? -errno : fd;
}

int criu_dump_open(struct criu_dump *dump, struct error *err)
{
    *dump = (struct criu_dump)CRIU_DUMP_CLOSED;
    dump->images_fd = private_tmpfs();
    if (dump->images_fd < 0)
        return error_set_errno(err, FAILURE_SYSTEM, dump->images_fd,
                               "a private tmpfs for the images");
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "a socket for criu");
    dump->pages_peer_fd = pair[0];
    dump->pages_fd = pair[1];
    /* Room for what criu splices in while we are at the network: fewer and longer turns. */
    int room = PAGES_ROOM;
    setsockopt(dump->pages_fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
    return 0;
}

void criu_dump_close(struct criu_dump *dump)
{
    dump->images_fd = close_fd(dump->images_fd);
    dump->pages_fd = close_fd(dump->pages_fd);
    dump->pages_peer_fd = close_fd(dump->pages_peer_fd);
}

void criu_dump_arguments(const struct criu_dump *dump, const char *criu, pid_t pid,
                         const char *workdir, const char *log, const char *hook,
                         struct criu_args *args)
{
    criu_args_add(args, "%s", criu);
    criu_args_add(args, "dump");
    criu_args_add(args, "-t%d", pid);
    criu_args_add(args, "-D/proc/self/fd/%d", dump->images_fd);
    criu_args_add(args, "-W%s", workdir);
    criu_args_add(args, "-o%s", log);
    criu_args_add(args, "--page-server");
    criu_args_add(args, "--ps-socket=%d", dump->pages_fd);
    criu_args_add(args, "--action-script=%s", hook);
}

void criu_dump_break(struct criu_dump *dump)
{
    shutdown(dump->pages_fd, SHUT_RDWR);
}
