/* SPDX-License-Identifier: Apache-2.0 */
#include "task/stop.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/io.h"
#include "task/task.h"

enum {
    PATIENCE_USEC = 1000000,
    LOOK_USEC = 20,     /* a stop takes that long */
    ENDING_USEC = 5000, /* then it may be that it has ended, and others of its process have not */
};

struct thread {
    pid_t tid;
    int signal; /* it was about to be given */
};

struct threads {
    struct thread *list;
    size_t count, room;
};

/* ---- in the helper ---- */

static bool is_zombie(pid_t tid)
{
    struct task_stat stat;
    return !task_read_stat(tid, &stat) || stat.state == 'Z';
}

/* Waits until a thread stands still.  0, -ESRCH when it has ended, or -ETIMEDOUT. */
static int wait_for_stop(struct thread *thread, uint64_t end_usec)
{
    uint64_t began = now_usec(), now;
    int status;
    pid_t r;
    while ((r = waitpid(thread->tid, &status, __WALL | WNOHANG)) == 0) {
        now = now_usec();
        if (now > began + ENDING_USEC && is_zombie(thread->tid))
            return -ESRCH;
        if (now > end_usec)
            return -ETIMEDOUT;
        usleep(LOOK_USEC);
    }
    if (r < 0 || !WIFSTOPPED(status))
        return -ESRCH;
    thread->signal = status >> 16 == 0 ? WSTOPSIG(status) : 0;
    return 0;
}

static int add_thread(struct threads *threads, pid_t tid)
{
    if (threads->count == threads->room) {
        size_t room = MAX(16, 2 * threads->room);
        struct thread *grown = realloc(threads->list, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        threads->list = grown;
        threads->room = room;
    }
    threads->list[threads->count++] = (struct thread){.tid = tid};
    return 0;
}

static bool is_known(const struct threads *threads, pid_t tid)
{
    for (size_t i = 0; i < threads->count; i++) {
        if (threads->list[i].tid == tid)
            return true;
    }
    return false;
}

/* Has a thread begin to stop.  0, also if it has ended, or a negative errno. */
static int interrupt(struct threads *threads, pid_t tid)
{
    if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0) {
        int r = -errno;
        return r == -ESRCH || is_zombie(tid) ? 0 : r;
    }
    if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) < 0)
        return errno == ESRCH ? 0 : -errno;
    return add_thread(threads, tid);
}

/* Has those stop that are not known yet.  0 or a negative errno. */
static int interrupt_new(struct threads *threads, pid_t pid)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    if (!dir)
        return -ESRCH;
    const struct dirent *entry;
    int r = 0;
    while (r == 0 && (entry = readdir(dir))) {
        pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (tid > 0 && !is_known(threads, tid))
            r = interrupt(threads, tid);
    }
    closedir(dir);
    return r;
}

/*
 * While a thread runs it may make another one and end, unseen: the directory ends early where one
 * that is being looked at ends.  The kernel's count of them has no such gap.
 */
static bool all_stand_still(const struct threads *threads, pid_t pid)
{
    struct task_stat stat;
    unsigned count = 0;
    for (size_t i = 0; i < threads->count; i++)
        count += threads->list[i].tid != 0;
    if (!task_read_stat(pid, &stat))
        return false;
    return count > 0 && stat.threads == count + (stat.state == 'Z');
}

static int stop_all(struct threads *threads, pid_t pid)
{
    uint64_t end = now_usec() + PATIENCE_USEC;
    size_t stopped = 0;
    do {
        int r = interrupt_new(threads, pid);
        for (; stopped < threads->count && r == 0; stopped++) {
            r = wait_for_stop(&threads->list[stopped], end);
            if (r == -ESRCH) {
                threads->list[stopped].tid = 0; /* it has ended */
                r = 0;
            }
        }
        if (r < 0)
            return r;
        if (all_stand_still(threads, pid))
            return 0;
    } while (now_usec() < end);
    return -ETIMEDOUT;
}

static void release_all(const struct threads *threads)
{
    for (size_t i = 0; i < threads->count; i++) {
        const struct thread *thread = &threads->list[i];
        if (thread->tid)
            ptrace(PTRACE_DETACH, thread->tid, NULL, (void *)(long)thread->signal);
    }
}

void task_help_stop(pid_t pid, int socket)
{
    struct threads threads = {0};
    uint8_t byte = 0;
    int r = stop_all(&threads, pid);
    if (send(socket, &r, sizeof(r), MSG_NOSIGNAL) == sizeof(r) && r == 0 &&
        recv(socket, &byte, 1, 0) == 1)
        send(socket, &r, sizeof(r), MSG_NOSIGNAL);
    release_all(&threads);
    free(threads.list);
}

/* ---- for the caller ---- */

static int explain(pid_t pid, int r, struct error *err)
{
    if (r == -ESRCH || task_started(pid) == 0)
        return error_set(err, FAILURE_NOT_FOUND, "process %d has ended", pid);
    if (r == -EPERM && task_tracer(pid) > 0)
        return error_set(err, FAILURE_BUSY, "process %d is traced by process %d", pid,
                         task_tracer(pid));
    if (r == -ETIMEDOUT)
        return error_set(err, FAILURE_BUSY,
                         "process %d cannot be stopped: it waits in vfork, or for a device", pid);
    return error_set_errno(err, FAILURE_SYSTEM, r, "stopping process %d", pid);
}

int task_stop(pid_t pid, const struct task_helpers *helpers, struct task_stop *ret,
              struct error *err)
{
    int r = task_helper_start(helpers, TASK_HELP_STOP, pid, &ret->helper);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "stopping process %d", pid);
    r = task_helper_result(&ret->helper);
    if (r == 0)
        return 0;
    task_helper_end(&ret->helper);
    return explain(pid, r, err);
}

int task_go_on(struct task_stop *stop)
{
    uint8_t byte = 0;
    bool said = send(stop->helper.socket, &byte, 1, MSG_NOSIGNAL) == 1;
    int r = said ? task_helper_result(&stop->helper) : -EIO;
    task_helper_end(&stop->helper);
    return r;
}
