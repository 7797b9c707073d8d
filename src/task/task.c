/* SPDX-License-Identifier: Apache-2.0 */
#include "task/task.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Opens /proc/PID/name; NULL when there is no such process. */
static FILE *open_proc(pid_t pid, const char *name)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    return fopen(path, "re");
}

pid_t task_of_pidfd(int pidfd)
{
    char name[32], line[128];
    int pid = 0;
    snprintf(name, sizeof(name), "fdinfo/%d", pidfd);
    FILE *file = open_proc(getpid(), name);
    while (file && fgets(line, sizeof(line), file) && sscanf(line, "Pid: %d", &pid) != 1)
        ;
    if (file)
        fclose(file);
    return MAX(pid, 0);
}

/* What is read of /proc/PID/stat, see proc(5). */
struct task_stat {
    pid_t parent;
    unsigned flags;
};

static bool task_read_stat(pid_t pid, struct task_stat *ret)
{
    char line[512];
    FILE *file = open_proc(pid, "stat");
    if (!file)
        return false;
    const char *end = fgets(line, sizeof(line), file) ? strrchr(line, ')') : NULL;
    fclose(file);
    /* Behind the command, which may hold anything: state, parent, group, session, tty, its group.
     */
    return end && sscanf(end + 1, " %*c %d %*d %*d %*d %*d %u", &ret->parent, &ret->flags) == 2;
}

bool task_is_dying(pid_t pid)
{
    /* Bits of proc(5): of the pending signals SIGKILL, of the flags PF_EXITING. */
    enum { PENDING_KILL = 1 << (SIGKILL - 1), FLAG_EXITING = 4 };
    char line[512];
    unsigned long long pending = 0, part;
    FILE *file = open_proc(pid, "status");
    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "SigPnd: %llx", &part) == 1 || sscanf(line, "ShdPnd: %llx", &part) == 1)
            pending |= part;
    }
    if (file)
        fclose(file);
    struct task_stat stat;
    return pending & PENDING_KILL || (task_read_stat(pid, &stat) && stat.flags & FLAG_EXITING);
}

pid_t task_parent(pid_t pid)
{
    struct task_stat stat;
    return task_read_stat(pid, &stat) ? stat.parent : 0;
}
