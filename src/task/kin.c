/* SPDX-License-Identifier: Apache-2.0 */
#include "task/kin.h"

#include <dirent.h>
#include <linux/kcmp.h>
#include <search.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "task/task.h"

#define LOOK_AGAIN_USEC (100 * USEC_PER_MSEC)

/* 0: they have the same, 1 or 2: which comes first in some order that the kernel has, or -1. */
static long compare_memory(pid_t a, pid_t b)
{
    return syscall(SYS_kcmp, a, b, KCMP_VM, 0UL, 0UL);
}

static bool has_memory(pid_t pid)
{
    struct task_stat stat;
    return task_read_stat(pid, &stat) && !stat.exiting;
}

/* Those that are ending have none, which is the same for all of them. */
static bool is_same(pid_t a, pid_t b)
{
    return a != b && compare_memory(a, b) == 0 && has_memory(a) && has_memory(b);
}

static int compare(const void *a, const void *b)
{
    pid_t one = *(const pid_t *)a, other = *(const pid_t *)b;
    switch (compare_memory(one, other)) {
    case 0:
        return 0;
    case 1:
        return -1;
    case 2:
        return 1;
    default: /* it has gone */
        return one < other ? -1 : one > other;
    }
}

static void keep_pid(void *pid)
{
    (void)pid; /* it is the caller's */
}

static size_t find_pairs(const pid_t *pids, size_t count, struct kin_pair *ret, bool *ret_unknown)
{
    void *seen = NULL; /* one of each memory */
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (compare_memory(pids[i], pids[i]) < 0) {
            *ret_unknown |= errno != ESRCH;
            continue;
        }
        const pid_t **first = tsearch(&pids[i], &seen, compare);
        if (first && is_same(pids[i], **first))
            ret[found++] = (struct kin_pair){.pid = pids[i], .with = **first};
    }
    tdestroy(seen, keep_pid);
    return found;
}

size_t kin_find(const pid_t *pids, size_t count, struct kin_pair *ret, bool *ret_unknown)
{
    *ret_unknown = false;
    if (count < 2)
        return 0;
    size_t found = find_pairs(pids, count, ret, ret_unknown), kept = 0;
    if (found > 0)
        usleep(LOOK_AGAIN_USEC);
    for (size_t i = 0; i < found; i++) {
        if (is_same(ret[i].pid, ret[i].with))
            ret[kept++] = ret[i];
    }
    return kept;
}

pid_t kin_of(pid_t pid)
{
    DIR *dir = opendir("/proc");
    struct dirent *entry;
    pid_t found = 0;
    while (dir && found == 0 && (entry = readdir(dir))) {
        pid_t other = (pid_t)strtol(entry->d_name, NULL, 10);
        found = other > 0 && is_same(pid, other) ? other : 0;
    }
    if (dir)
        closedir(dir);
    return found;
}
