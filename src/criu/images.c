/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/images.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREVIOUS_LINK "parent" /* CR_PARENT_LINK of CRIU's criu/include/image.h */

static bool is_same(const struct images_directory *one, const struct images_directory *other)
{
    return one->device == other->device && one->inode == other->inode;
}

static bool is_open(const struct criu_images *images, const struct images_directory *directory)
{
    for (size_t i = 0; i < images->count; i++) {
        if (is_same(&images->open[i], directory))
            return true;
    }
    return false;
}

static int identify(int fd, struct images_directory *ret)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *ret = (struct images_directory){st.st_dev, st.st_ino};
    return 0;
}

/* Where a link leads, as that process sees it.  A descriptor or a negative errno; -ENOENT: there is
 * no such link. */
static int open_previous(pid_t criu, int directory)
{
    char target[PATH_MAX], path[PATH_MAX + 32];
    ssize_t n = readlinkat(directory, PREVIOUS_LINK, target, sizeof(target));
    if (n < 0)
        return -ENOENT;
    if (n == sizeof(target))
        return -ENAMETOOLONG;
    target[n] = '\0';
    if (*target == '/')
        snprintf(path, sizeof(path), "/proc/%d/root%s", criu, target);
    else
        snprintf(path, sizeof(path), "%s", target);
    int fd = openat(directory, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd >= 0 ? fd : errno == ENOENT ? -ENOLINK : -errno;
}

static int look_at_previous(pid_t criu, int directory, uint64_t task, struct criu_images *images)
{
    char name[64];
    struct images_directory previous;
    _cleanup_close_ int fd = open_previous(criu, directory);
    if (fd < 0)
        return fd == -ENOENT ? 0 : fd;
    int r = identify(fd, &previous);
    if (r < 0)
        return r;
    if (images->based && !is_same(&previous, &images->previous))
        return -EMLINK;
    snprintf(name, sizeof(name), "pagemap-%llu.img", (unsigned long long)task);
    images->based = true;
    images->previous = previous;
    images->previous_has_pages |= faccessat(fd, name, F_OK, 0) == 0;
    return 0;
}

/* By way of /proc/PID/fd, where what is open in another mount namespace is found too.  What is no
 * directory is not opened. */
static int look_at(pid_t criu, int fds, const char *name, uint64_t task, struct criu_images *images)
{
    struct images_directory directory;
    _cleanup_close_ int fd = openat(fds, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    int r = identify(fd, &directory);
    if (r < 0 || is_open(images, &directory))
        return r;
    if (images->count == IMAGES_OPEN_MAX)
        return -E2BIG;
    images->open[images->count++] = directory;
    return look_at_previous(criu, fd, task, images);
}

int criu_images_look(pid_t criu, uint64_t task, struct criu_images *ret)
{
    char path[64];
    struct dirent *entry;
    int r = 0;
    *ret = (struct criu_images){0};
    snprintf(path, sizeof(path), "/proc/%d/fd", criu);
    DIR *fds = opendir(path);
    if (!fds)
        return -errno;
    while (r == 0 && (entry = readdir(fds))) {
        if (entry->d_name[0] != '.')
            r = look_at(criu, dirfd(fds), entry->d_name, task, ret);
    }
    closedir(fds);
    if (r < 0)
        *ret = (struct criu_images){0}; /* nothing follows what has not been seen whole */
    return r;
}

bool criu_images_follow(const struct criu_images *images, const struct criu_images *before)
{
    return images->based && !images->previous_has_pages && is_open(before, &images->previous);
}
