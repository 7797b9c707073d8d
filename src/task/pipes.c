/* SPDX-License-Identifier: Apache-2.0 */
#include "task/pipes.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

struct pipe_end *pipes_find(const struct pipes *pipes, uint64_t device, uint64_t inode)
{
    for (size_t i = 0; i < pipes->count; i++) {
        if (pipes->list[i].device == device && pipes->list[i].inode == inode)
            return &pipes->list[i];
    }
    return NULL;
}

static bool is_half(const struct pipe_end *end)
{
    return end->reads != end->writes;
}

static bool is_in_tree(const struct tree *tree, pid_t pid)
{
    for (size_t i = 0; i < tree->process_count; i++) {
        if (tree->processes[i] == pid)
            return true;
    }
    return false;
}

/* Whether descriptor |name| in that directory of them is open for what the tree does not do. */
static bool is_other_end(int fds, const char *name, const struct pipe_end *end)
{
    struct stat st;
    if (fstatat(fds, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return false;
    /* The link tells by its own permissions what it is open for, see proc(5). */
    return st.st_mode & (end->reads ? S_IWUSR : S_IRUSR);
}

static void look_at_stranger(struct pipes *pipes, const char *pid)
{
    char path[300];
    struct stat st;
    struct dirent *entry;
    snprintf(path, sizeof(path), "/proc/%s/fd", pid);
    DIR *dir = opendir(path);
    while (dir && (entry = readdir(dir))) {
        if (fstatat(dirfd(dir), entry->d_name, &st, 0) < 0 || !S_ISFIFO(st.st_mode))
            continue;
        struct pipe_end *end = pipes_find(pipes, st.st_dev, st.st_ino);
        if (end && is_half(end))
            end->outside |= is_other_end(dirfd(dir), entry->d_name, end);
    }
    if (dir)
        closedir(dir);
}

void pipes_find_outside(struct pipes *pipes, const struct tree *tree)
{
    bool any = false;
    for (size_t i = 0; i < pipes->count; i++)
        any |= is_half(&pipes->list[i]);
    DIR *dir = any ? opendir("/proc") : NULL;
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (pid > 0 && !is_in_tree(tree, pid))
            look_at_stranger(pipes, entry->d_name);
    }
    if (dir)
        closedir(dir);
}
