/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/place.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/io.h"

/* By name and never recursively: criu may have left mounts in its work-dir. */
static void remove_directory(int workdir, const char *name, bool keep_log)
{
    static const char *const leavings[] = {"stats-dump", "irmap-cache", "proxy.sock"};
    int dirfd = openat(workdir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dirfd < 0)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(leavings); i++)
        unlinkat(dirfd, leavings[i], 0);
    if (!keep_log)
        unlinkat(dirfd, "dump.log", 0);
    close_fd(dirfd);
    unlinkat(workdir, name, AT_REMOVEDIR);
}

/* Takes a lock file, which is made if missing.  A descriptor, or a negative errno; -EWOULDBLOCK: it
 * is somebody's. */
static int lock_open(int workdir, const char *name)
{
    for (;;) {
        struct stat here, there;
        _cleanup_close_ int fd =
            openat(workdir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0 || fstat(fd, &here) < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
            return -errno;
        /* Whoever had it before may have removed it meanwhile. */
        if (fstatat(workdir, name, &there, 0) == 0 && here.st_ino == there.st_ino)
            return TAKE_FD(fd);
    }
}

/* Removes what a dead migration of that process has left. */
static void clear_up_process(int workdir, pid_t pid)
{
    char lock_name[48], prefix[48];
    snprintf(lock_name, sizeof(lock_name), "migrate-%d.lock", pid);
    int lock = lock_open(workdir, lock_name);
    if (lock < 0)
        return; /* it lives */
    int length = snprintf(prefix, sizeof(prefix), "migrate-%d-", pid);
    int copy = openat(workdir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        if (strncmp(entry->d_name, prefix, (size_t)length) == 0)
            remove_directory(workdir, entry->d_name, false);
    }
    if (dir)
        closedir(dir);
    unlinkat(workdir, lock_name, 0);
    close_fd(lock);
}

void place_clear_up(int workdir)
{
    int copy = openat(workdir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        int pid, length = 0;
        if (sscanf(entry->d_name, "migrate-%d.lock%n", &pid, &length) == 1 && length > 0 &&
            !entry->d_name[length])
            clear_up_process(workdir, pid);
    }
    if (dir)
        closedir(dir);
}

int place_open(struct place *place, const char *workdir, struct error *err)
{
    *place = (struct place)PLACE_CLOSED;
    place->workdir = workdir_open(workdir, true, &place->workdir_path, err);
    if (place->workdir < 0)
        return -1;
    place_clear_up(place->workdir);
    return 0;
}

int place_lock(struct place *place, pid_t pid, struct error *err)
{
    snprintf(place->lock_name, sizeof(place->lock_name), "migrate-%d.lock", pid);
    place->lock = lock_open(place->workdir, place->lock_name);
    if (place->lock >= 0)
        return 0;
    if (place->lock == -EWOULDBLOCK)
        return error_set(err, FAILURE_BUSY, "process %d is being migrated already", pid);
    return error_set_errno(err, FAILURE_SYSTEM, place->lock, "%s/%s", place->workdir_path,
                           place->lock_name);
}

int place_make_directory(struct place *place, const char *id, struct error *err)
{
    snprintf(place->directory, sizeof(place->directory), "migrate-%s", id);
    int n =
        snprintf(place->path, sizeof(place->path), "%s/%s", place->workdir_path, place->directory);
    if (n >= (int)sizeof(place->path))
        return error_set_errno(err, FAILURE_SYSTEM, ENAMETOOLONG, "%s", place->workdir_path);
    if (mkdirat(place->workdir, place->directory, 0700) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", place->path);
    return 0;
}

void place_close(struct place *place, bool keep_log)
{
    if (place->path[0])
        remove_directory(place->workdir, place->directory, keep_log);
    if (place->lock >= 0)
        unlinkat(place->workdir, place->lock_name, 0);
    close_fd(place->lock);
    close_fd(place->workdir);
    free(place->workdir_path);
    *place = (struct place)PLACE_CLOSED;
}
