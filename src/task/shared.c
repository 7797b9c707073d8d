/* SPDX-License-Identifier: Apache-2.0 */
#include "task/shared.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MEMFD "/memfd:"

static bool has_prefix(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* ---- what is mapped ---- */

static bool parse_map(pid_t pid, const char *line, struct shared_memory *ret)
{
    unsigned long long start, end, inode;
    unsigned major;
    char shared;
    int at = 0;
    if (sscanf(line, "%llx-%llx %*c%*c%*c%c %*x %x:%*x %llu %n", &start, &end, &shared, &major,
               &inode, &at) != 5 ||
        shared != 's' || major != 0 || at == 0)
        return false;
    const char *name = line + at;
    *ret = (struct shared_memory){.inode = inode};
    snprintf(ret->path, sizeof(ret->path), "/proc/%d/map_files/%llx-%llx", pid, start, end);
    /* criu restores all of them as memfds. */
    return has_prefix(name, MEMFD) || has_prefix(name, "/SYSV") ||
           strcmp(name, "/dev/zero (deleted)\n") == 0;
}

static int each_map(pid_t pid, int (*found)(const struct shared_memory *memory, void *user),
                    void *user)
{
    char path[64], line[PATH_MAX + 128];
    struct shared_memory memory;
    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return errno == ENOENT ? -ESRCH : -errno;
    int r = 0;
    while (r == 0 && fgets(line, sizeof(line), file)) {
        if (parse_map(pid, line, &memory))
            r = found(&memory, user);
    }
    fclose(file);
    return r;
}

/* ---- what is open ---- */

static bool look_at_fd(pid_t pid, const char *number, struct shared_memory *ret)
{
    char name[sizeof(MEMFD)];
    struct stat st;
    *ret = (struct shared_memory){0};
    snprintf(ret->path, sizeof(ret->path), "/proc/%d/fd/%.16s", pid, number);
    ssize_t n = readlink(ret->path, name, sizeof(name) - 1);
    if (n != sizeof(name) - 1 || memcmp(name, MEMFD, sizeof(name) - 1) != 0 ||
        stat(ret->path, &st) < 0)
        return false;
    ret->inode = st.st_ino;
    return true;
}

static int each_fd(pid_t pid, int (*found)(const struct shared_memory *memory, void *user),
                   void *user)
{
    char path[64];
    struct shared_memory memory;
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return errno == ENOENT ? -ESRCH : -errno;
    struct dirent *entry;
    int r = 0;
    while (r == 0 && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.' && look_at_fd(pid, entry->d_name, &memory))
            r = found(&memory, user);
    }
    closedir(dir);
    return r;
}

int shared_memory_each(pid_t pid, int (*found)(const struct shared_memory *memory, void *user),
                       void *user)
{
    int r = each_fd(pid, found, user);
    return r == 0 ? each_map(pid, found, user) : r;
}
