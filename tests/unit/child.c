/* SPDX-License-Identifier: Apache-2.0 */
#include "child.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "task/task.h"
#include "testing.h"

static pid_t running;

pid_t child_start(pid_t (*prepare)(void *user), void *user)
{
    int ready[2];
    assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
    running = fork();
    if (running == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        for (int fd = 0; fd <= 2; fd++)
            dup2(null, fd);
        close(null);
        pid_t shown = prepare ? prepare(user) : 0;
        shown = shown ? shown : getpid();
        if (write(ready[1], &shown, sizeof(shown)) != sizeof(shown))
            _exit(1);
        close(ready[0]);
        close(ready[1]);
        for (;;)
            pause();
    }
    close(ready[1]);
    pid_t shown = 0;
    assert_int_equal(read(ready[0], &shown, sizeof(shown)), sizeof(shown));
    close(ready[0]);
    until_asleep(running); /* it has closed its end of the pipe */
    return shown;
}

void until_asleep(pid_t pid)
{
    enum { PATIENCE = 200000 };
    struct task_stat stat = {0};
    for (unsigned i = 0; i < PATIENCE && task_read_stat(pid, &stat) && stat.state != 'S'; i++)
        usleep(100);
    assert_int_equal(stat.state, 'S');
}

void child_end(void)
{
    kill(running, SIGKILL);
    waitpid(running, NULL, 0);
}

pid_t child_fork(void)
{
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == parent) /* else it had died before */
            pause();
        _exit(0);
    }
    return pid;
}

/* ---- servants ---- */

static _Noreturn void serve(struct orders *orders)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        void (*job)(struct orders *) = orders->job;
        if (job) {
            job(orders);
            orders->job = NULL;
        }
        usleep(100);
    }
}

void servant_start(struct servant *servant, void (*prepare)(struct orders *orders))
{
    servant->orders = mmap(NULL, sizeof(*servant->orders), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    servant->orders->job = prepare;
    servant->pid = fork();
    if (servant->pid == 0)
        serve(servant->orders);
    servant_wait(servant);
}

void servant_begin(struct servant *servant, void (*job)(struct orders *orders))
{
    servant->orders->job = job;
}

void servant_wait(struct servant *servant)
{
    enum { PATIENCE = 200000 };
    for (unsigned i = 0; servant->orders->job && i < PATIENCE; i++)
        usleep(100);
    assert_null(servant->orders->job);
}

void servant_do(struct servant *servant, void (*job)(struct orders *orders))
{
    servant_begin(servant, job);
    servant_wait(servant);
}

void servant_kill(struct servant *servant)
{
    kill(servant->pid, SIGKILL);
    waitpid(servant->pid, NULL, 0);
    munmap(servant->orders, sizeof(*servant->orders));
}
