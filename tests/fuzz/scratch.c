/* SPDX-License-Identifier: Apache-2.0 */
#include "scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/io.h"
#include "fuzz.h"

static char path[] = "/dev/shm/fuzz-XXXXXX";
static int directory = -1;
static pid_t owner;

static int remove_file(int dirfd, const char *name, void *user)
{
    (void)user;
    return unlinkat(dirfd, name, 0);
}

static void scratch_remove(void)
{
    if (getpid() != owner)
        return;
    directory_for_each(directory, remove_file, NULL);
    rmdir(path);
}

int scratch_fd(void)
{
    if (directory < 0) {
        must(mkdtemp(path));
        directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        must(directory >= 0);
        owner = getpid();
        atexit(scratch_remove);
    }
    return directory;
}

const char *scratch_path(void)
{
    scratch_fd();
    return path;
}

void scratch_put(const char *name, const void *bytes, size_t size)
{
    int fd = openat(scratch_fd(), name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && write_all(fd, bytes, size) == 0);
    close(fd);
}
