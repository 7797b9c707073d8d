/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/journal.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "wire/frame.h"

enum { ENTRY_BYTES = 2048 };

static const char *const decision_names[] = {
    [JOURNAL_OPEN] = "open", [JOURNAL_COMMIT] = "commit", [JOURNAL_ABORT] = "abort"};

const char *journal_decision_name(enum journal_decision decision)
{
    return decision_names[decision];
}

int journal_path(const char *workdir_path, const char *id, char *buf, size_t size)
{
    int n = snprintf(buf, size, "%s/journal/%s", workdir_path, id);
    return n < (int)size ? 0 : -ENAMETOOLONG;
}

static int journal_open(int workdir, bool create)
{
    if (create && mkdirat(workdir, "journal", 0700) < 0 && errno != EEXIST)
        return -errno;
    int fd = openat(workdir, "journal", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* The decision comes first: the hook reads no more than that. */
int journal_write(int workdir, const struct journal_entry *entry)
{
    char text[ENTRY_BYTES];
    int n = snprintf(text, sizeof(text),
                     "%s\nnonce=%llu\npid=%d\nstarted=%llu\ninsecure=%d\ncommand=%s\ntarget=%s\n",
                     decision_names[entry->decision], (unsigned long long)entry->nonce, entry->pid,
                     (unsigned long long)entry->started, entry->insecure, entry->command,
                     entry->target);
    if (n >= (int)sizeof(text))
        return -EMSGSIZE;
    _cleanup_close_ int dirfd = journal_open(workdir, true);
    if (dirfd < 0)
        return dirfd;
    char name[80]; /* no id begins with a dot */
    snprintf(name, sizeof(name), ".%s", entry->id);
    _cleanup_close_ int fd =
        openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int r = write_all(fd, text, (size_t)n);
    if (r == 0 && renameat(dirfd, name, dirfd, entry->id) < 0)
        r = -errno;
    if (r < 0)
        unlinkat(dirfd, name, 0);
    return r;
}

static void entry_take_line(struct journal_entry *entry, char *line)
{
    char *value = strchr(line, '=');
    uint64_t number = 0;
    if (!value)
        return;
    *value++ = '\0';
    if (strcmp(line, "target") == 0)
        snprintf(entry->target, sizeof(entry->target), "%s", value);
    else if (strcmp(line, "command") == 0)
        snprintf(entry->command, sizeof(entry->command), "%s", value);
    else if (parse_number(value, UINT64_MAX, &number) < 0)
        return;
    else if (strcmp(line, "nonce") == 0)
        entry->nonce = number;
    else if (strcmp(line, "pid") == 0)
        entry->pid = (pid_t)MIN(number, (uint64_t)INT32_MAX);
    else if (strcmp(line, "started") == 0)
        entry->started = number;
    else if (strcmp(line, "insecure") == 0)
        entry->insecure = number;
}

int journal_read(int workdir, const char *id, struct journal_entry *ret)
{
    *ret = (struct journal_entry){0};
    if (!snapshot_id_valid(id))
        return -EINVAL;
    _cleanup_close_ int dirfd = journal_open(workdir, false);
    _cleanup_close_ int fd =
        dirfd < 0 ? dirfd : openat(dirfd, id, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return dirfd < 0 ? dirfd : -errno;
    char text[ENTRY_BYTES];
    ssize_t n = read(fd, text, sizeof(text) - 1);
    if (n < 0)
        return -errno;
    text[n] = '\0';
    if (text[0] == '\n')
        return -EBADMSG; /* strtok_r() passes over empty lines */
    char *save = NULL, *line = strtok_r(text, "\n", &save);
    size_t decision = 0;
    while (line && decision < ARRAY_SIZE(decision_names) &&
           strcmp(line, decision_names[decision]) != 0)
        decision++;
    if (!line || decision == ARRAY_SIZE(decision_names))
        return -EBADMSG;
    ret->decision = (enum journal_decision)decision;
    snprintf(ret->id, sizeof(ret->id), "%s", id);
    while ((line = strtok_r(NULL, "\n", &save)))
        entry_take_line(ret, line);
    return 0;
}

void journal_remove(int workdir, const char *id)
{
    _cleanup_close_ int dirfd = journal_open(workdir, false);
    if (dirfd < 0)
        return;
    unlinkat(dirfd, id, 0);
    unlinkat(workdir, "journal", AT_REMOVEDIR); /* if it was the last */
}

int journal_list(int workdir, void (*each)(const struct journal_entry *entry, void *user),
                 void *user)
{
    int dirfd = journal_open(workdir, false);
    if (dirfd < 0)
        return dirfd == -ENOENT ? 0 : dirfd;
    DIR *dir = fdopendir(dirfd);
    if (!dir) {
        close_fd(dirfd);
        return -errno;
    }
    struct dirent *item;
    struct journal_entry entry;
    while ((item = readdir(dir))) {
        if (item->d_name[0] != '.' && journal_read(workdir, item->d_name, &entry) == 0)
            each(&entry, user);
    }
    closedir(dir);
    return 0;
}
