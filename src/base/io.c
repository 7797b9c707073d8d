/* SPDX-License-Identifier: Apache-2.0 */
#include "base/io.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

int write_all(int fd, const void *buf, size_t len)
{
    const char *p = buf;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int read_all(int fd, void *buf, size_t len)
{
    char *p = buf;
    while (len > 0) {
        ssize_t n = read(fd, p, len);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (n == 0)
            return -ENODATA;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int directory_for_each(int dirfd, int (*each)(int dirfd, const char *name, void *user), void *user)
{
    int copy = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir) {
        close_fd(copy);
        return -errno;
    }
    int r = 0;
    struct dirent *entry;
    while (r == 0 && (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = each(dirfd, entry->d_name, user);
    }
    closedir(dir);
    return r;
}

static int found_one(int dirfd, const char *name, void *user)
{
    (void)dirfd;
    (void)name;
    (void)user;
    return 1;
}

int directory_is_empty(int dirfd)
{
    int r = directory_for_each(dirfd, found_one, NULL);
    return r < 0 ? r : !r;
}

int set_nonblocking(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
    return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

static int compare_ints(const void *a, const void *b)
{
    return *(const int *)a < *(const int *)b ? -1 : *(const int *)a > *(const int *)b;
}

void close_all_but(int *keep, size_t count)
{
    unsigned from = 0;
    qsort(keep, count, sizeof(*keep), compare_ints);
    for (size_t i = 0; i < count; i++) {
        if (keep[i] < 0)
            continue;
        if ((unsigned)keep[i] > from)
            syscall(SYS_close_range, from, keep[i] - 1, 0);
        from = MAX(from, (unsigned)keep[i] + 1);
    }
    syscall(SYS_close_range, from, ~0u, 0);
}

static int address_at(int dirfd, const char *name, struct sockaddr_un *ret)
{
    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    int n = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", dirfd, name);
    return n < (int)sizeof(ret->sun_path) ? 0 : -ENAMETOOLONG;
}

int unix_listen_at(int dirfd, const char *name, int type)
{
    struct sockaddr_un address;
    int r = address_at(dirfd, name, &address);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    struct stat st;
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISSOCK(st.st_mode))
        return -EEXIST;
    if (unlinkat(dirfd, name, 0) < 0 && errno != ENOENT)
        return -errno;
    mode_t mask = umask(0077);
    r = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
    umask(mask);
    if (r < 0)
        return r;
    if (listen(fd, 128) < 0)
        return -errno;
    return TAKE_FD(fd);
}

int unix_connect_at(int dirfd, const char *name, int type)
{
    struct sockaddr_un address;
    int r = address_at(dirfd, name, &address);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    return TAKE_FD(fd);
}

/* Calls one of the two above for a path. */
static int unix_at_path(const char *path, int type, int (*open_at)(int, const char *, int))
{
    char directory[PATH_MAX] = ".";
    const char *slash = strrchr(path, '/');
    size_t length = slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof(directory))
        return -ENAMETOOLONG;
    if (slash)
        snprintf(directory, sizeof(directory), "%.*s/", (int)length, path);
    _cleanup_close_ int dirfd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return dirfd < 0 ? -errno : open_at(dirfd, slash ? slash + 1 : path, type);
}

int unix_listen_path(const char *path, int type)
{
    return unix_at_path(path, type, unix_listen_at);
}

int unix_connect_path(const char *path, int type)
{
    return unix_at_path(path, type, unix_connect_at);
}

/* Whether nobody but root and this user can put something else in the place of what is in it. */
static bool is_safe(const struct stat *st, bool above)
{
    bool others = st->st_mode & (S_IWGRP | S_IWOTH);
    return (st->st_uid == geteuid() || (above && st->st_uid == 0)) &&
           (!others || (above && st->st_mode & S_ISVTX));
}

/* Looks at all that is above an open directory: whoever owns that could move it away under us. */
static int check_above(int dirfd)
{
    struct stat st, above;
    if (fstat(dirfd, &st) < 0)
        return -errno;
    _cleanup_close_ int at = -EBADF;
    for (;;) {
        int up = openat(at < 0 ? dirfd : at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (up < 0 || fstat(up, &above) < 0) {
            int r = -errno;
            close_fd(up);
            return r;
        }
        close_fd(at);
        at = up;
        if (st.st_dev == above.st_dev && st.st_ino == above.st_ino)
            return 0; /* the root is its own parent */
        if (!is_safe(&above, true))
            return -EACCES;
        st = above;
    }
}

/* Makes the directories of a path that are not there. */
static int make_directories(const char *path)
{
    char above[PATH_MAX];
    if (mkdir(path, 0700) == 0 || errno == EEXIST)
        return 0;
    if (errno != ENOENT)
        return -errno;
    if (snprintf(above, sizeof(above), "%s", path) >= (int)sizeof(above))
        return -ENAMETOOLONG;
    char *slash = strrchr(above, '/');
    if (!slash || slash == above)
        return -ENOENT;
    *slash = '\0';
    int r = make_directories(above);
    return r < 0 || mkdir(path, 0700) == 0 || errno == EEXIST ? r : -errno;
}

/* what: in front of the path in errors. */
static int open_own(const char *what, const char *path, bool create, struct error *err)
{
    int r = create ? make_directories(path) : 0;
    _cleanup_close_ int fd =
        r < 0 ? r : open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (r == 0 && (fd < 0 || fstat(fd, &st) < 0))
        r = -errno;
    if (r == -ELOOP || r == -ENOTDIR) {
        error_set(err, FAILURE_SYSTEM, "%s%s: is no directory, or a symbolic link to one", what,
                  path);
        return r;
    }
    if (r < 0) {
        error_set_errno(err, FAILURE_SYSTEM, r, "%s%s", what, path);
        return r;
    }
    if (is_safe(&st, false))
        return TAKE_FD(fd);
    error_set(err, FAILURE_SYSTEM, "%s%s: must belong to this user, and be writable by nobody else",
              what, path);
    return -EPERM;
}

int directory_open_beneath(int dirfd, const char *path)
{
    const struct open_how how = {
        .flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
    };
    int fd = (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
    return fd < 0 ? -errno : fd;
}

int directory_open(const char *path, bool create, struct error *err)
{
    return open_own("", path, create, err);
}

int safe_directory_open(const char *what, const char *path, bool create, char **ret_path,
                        struct error *err)
{
    int r = open_own(what, path, create, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = r;
    _cleanup_free_ char *absolute = realpath(path, NULL);
    struct stat st, named;
    r = check_above(fd);
    if (r == 0 && (!absolute || fstat(fd, &st) < 0 || lstat(absolute, &named) < 0))
        r = -errno;
    else if (r == 0 && (st.st_dev != named.st_dev || st.st_ino != named.st_ino))
        r = -EACCES; /* somebody is at it */
    if (r == -EACCES)
        error_set(err, FAILURE_SYSTEM,
                  "%s%s: a directory above it belongs to another user, or others may write there",
                  what, path);
    else if (r < 0)
        error_set_errno(err, FAILURE_SYSTEM, r, "%s%s", what, path);
    if (r < 0)
        return r;
    if (ret_path)
        *ret_path = TAKE_PTR(absolute);
    return TAKE_FD(fd);
}

int workdir_open(const char *path, bool create, char **ret_path, struct error *err)
{
    return safe_directory_open("work-dir ", path, create, ret_path, err);
}

void raise_nofile_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

int parse_number(const char *text, uint64_t max, uint64_t *ret_value)
{
    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || value > max)
        return -EINVAL;
    *ret_value = value;
    return 0;
}

int parse_size(const char *text, uint64_t *ret_bytes)
{
    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno)
        return -EINVAL;
    static const char units[] = "KMGT";
    unsigned shift = 0;
    if (*end) {
        const char *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit || end[1])
            return -EINVAL;
        shift = 10 * (unsigned)(unit - units + 1);
    }
    if (value > UINT64_MAX >> shift)
        return -EINVAL;
    *ret_bytes = (uint64_t)value << shift;
    return 0;
}

int parse_seconds(const char *text, uint64_t *ret_usec)
{
    if (!isdigit((unsigned char)text[0]))
        return -EINVAL;
    char *end;
    double seconds = strtod(text, &end);
    if (*end || !(seconds >= 0) || seconds > 1e6)
        return -EINVAL;
    *ret_usec = (uint64_t)(seconds * (double)USEC_PER_SEC);
    return 0;
}

void make_plain(char *text)
{
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f)
            *c = '?';
    }
}

const char *format_bytes(uint64_t bytes, char buf[24])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1024 && unit + 1 < ARRAY_SIZE(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(buf, 24, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return buf;
}
