/* SPDX-License-Identifier: Apache-2.0 */
#include "task/inject.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "base/passing.h"
#include "task/memory.h"
#include "task/task.h"

enum {
    PATIENCE_USEC = 1000000,
    LOOK_USEC = 20,          /* a stop takes that long */
    SEARCH_BYTES = 16 << 10, /* of the vdso */
    SIGSET_BYTES = 8,        /* the kernel's */
    RSEQ_CS_OFFSET = 8,      /* of struct rseq, linux/rseq.h */
};

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

/* What the helper tells. */
struct answer {
    int error_number;
    uint64_t stopped_nsec;
    char step[64]; /* at which it failed */
};

#if defined(__x86_64__)

/* A thread that stands still under our ptrace. */
struct stopped {
    pid_t pid;
    uint64_t syscall_at; /* address of a syscall instruction */
    struct user_regs_struct regs;
    uint64_t mask;             /* of blocked signals */
    uint64_t rseq_at, rseq_cs; /* the word that names its restartable sequence; 0: none */
    bool stop_again;           /* a SIGSTOP has come meanwhile */
};

static uint64_t now_nsec(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* Waits for the next stop: its status, or -ESRCH when the task has ended. */
static int wait_stop(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, __WALL) < 0) {
        if (errno != EINTR)
            return -ESRCH;
    }
    return WIFSTOPPED(status) ? status : -ESRCH;
}

static bool is_interrupt(int status)
{
    return status >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(status) == SIGTRAP;
}

/* The first stop may never come: then -ETIMEDOUT, and the end of this process lets the task be. */
static int wait_first_stop(pid_t pid)
{
    uint64_t end = now_usec() + PATIENCE_USEC;
    int status;
    pid_t r;
    while ((r = waitpid(pid, &status, __WALL | WNOHANG)) == 0) {
        if (now_usec() > end)
            return -ETIMEDOUT;
        usleep(LOOK_USEC);
    }
    return r > 0 && WIFSTOPPED(status) ? status : -ESRCH;
}

/* Lets signals that came first be delivered, then stops it where it can be stopped. */
static int wait_interrupt(pid_t pid)
{
    for (;;) {
        int status = wait_first_stop(pid);
        if (status < 0)
            return status;
        if (is_interrupt(status))
            return 0;
        if (status >> 16 == PTRACE_EVENT_STOP)
            return -EBUSY; /* stopped by SIGSTOP and its like */
        if (ptrace(PTRACE_CONT, pid, NULL, (void *)(long)WSTOPSIG(status)) < 0)
            return -errno;
    }
}

/* The kernel forgets the sequence that a thread is in when it sees the thread elsewhere. */
static void save_rseq(struct stopped *thread)
{
    struct __ptrace_rseq_configuration rseq = {0};
    long n = ptrace(PTRACE_GET_RSEQ_CONFIGURATION, thread->pid, sizeof(rseq), &rseq);
    if (n <= 0 || rseq.rseq_abi_pointer == 0)
        return;
    thread->rseq_at = rseq.rseq_abi_pointer + RSEQ_CS_OFFSET;
    errno = 0;
    long word = ptrace(PTRACE_PEEKDATA, thread->pid, thread->rseq_at, NULL);
    thread->rseq_cs = errno == 0 ? (uint64_t)word : 0;
}

static int thread_stop(struct stopped *thread, bool has_filter, const char **step)
{
    pid_t pid = thread->pid;
    uint64_t all = ~0ull;
    long options = PTRACE_O_TRACESYSGOOD | (has_filter ? PTRACE_O_SUSPEND_SECCOMP : 0);
    *step = "attaching to it";
    if (ptrace(PTRACE_SEIZE, pid, NULL, (void *)options) < 0)
        return -errno;
    *step = "stopping it";
    if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) < 0)
        return -errno;
    int r = wait_interrupt(pid);
    if (r < 0)
        return r;
    *step = "reading its registers";
    if (ptrace(PTRACE_GETREGS, pid, NULL, &thread->regs) < 0 ||
        ptrace(PTRACE_GETSIGMASK, pid, (void *)SIGSET_BYTES, &thread->mask) < 0)
        return -errno;
    enum { USER_CS_64 = 0x33, SYSCALL_INSTRUCTION = 0x050f };
    *step = "it is a 32-bit process";
    if (thread->regs.cs != USER_CS_64)
        return -EOPNOTSUPP;
    *step = "finding a syscall instruction";
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, thread->syscall_at, NULL);
    if (errno != 0 || (word & 0xffff) != SYSCALL_INSTRUCTION)
        return -ENOEXEC;
    save_rseq(thread);
    *step = "blocking its signals";
    return ptrace(PTRACE_SETSIGMASK, pid, (void *)SIGSET_BYTES, &all) < 0 ? -errno : 0;
}

/* Lets it run to the entry into the next system call, or the exit from it. */
static int run_to_syscall(struct stopped *thread)
{
    for (;;) {
        if (ptrace(PTRACE_SYSCALL, thread->pid, NULL, NULL) < 0)
            return -errno;
        int status = wait_stop(thread->pid);
        if (status < 0)
            return status;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80))
            return 0;
        if (status >> 16 == PTRACE_EVENT_STOP)
            continue; /* all threads are being stopped: the kernel stops this one after us */
        if (WSTOPSIG(status) != SIGSTOP)
            return -EIO;
        thread->stop_again = true; /* it cannot be blocked */
    }
}

/* What the system call returns, or -ESRCH or so when it could not be made. */
static long thread_call(struct stopped *thread, long number, unsigned long a, unsigned long b,
                        unsigned long c)
{
    struct user_regs_struct regs = thread->regs;
    regs.rip = thread->syscall_at;
    regs.rax = (unsigned long)number;
    regs.orig_rax = ~0ul; /* or the kernel would restart the system call that was interrupted */
    regs.rdi = a;
    regs.rsi = b;
    regs.rdx = c;
    if (ptrace(PTRACE_SETREGS, thread->pid, NULL, &regs) < 0)
        return -errno;
    int r = run_to_syscall(thread);
    if (r == 0)
        r = run_to_syscall(thread);
    if (r == 0 && ptrace(PTRACE_GETREGS, thread->pid, NULL, &regs) < 0)
        r = -errno;
    return r < 0 ? r : (long)regs.rax;
}

/*
 * Puts everything back and lets it go.  The registers are set in a stop like the first one: only
 * there does the kernel restart the system call that was interrupted.
 */
static void thread_release(struct stopped *thread)
{
    pid_t pid = thread->pid;
    ptrace(PTRACE_INTERRUPT, pid, NULL, NULL);
    ptrace(PTRACE_CONT, pid, NULL, NULL);
    int status = wait_stop(pid);
    while (status >= 0 && !is_interrupt(status)) {
        if (status >> 16 != PTRACE_EVENT_STOP && WSTOPSIG(status) == SIGSTOP)
            thread->stop_again = true;
        ptrace(PTRACE_CONT, pid, NULL, NULL);
        status = wait_stop(pid);
    }
    ptrace(PTRACE_SETREGS, pid, NULL, &thread->regs);
    if (thread->rseq_cs)
        ptrace(PTRACE_POKEDATA, pid, thread->rseq_at, thread->rseq_cs);
    ptrace(PTRACE_SETSIGMASK, pid, (void *)SIGSET_BYTES, &thread->mask);
    ptrace(PTRACE_DETACH, pid, NULL, NULL);
    if (thread->stop_again)
        kill(pid, SIGSTOP);
}

/* In the helper.  The descriptor, or a negative errno. */
static int take(struct stopped *thread, int pidfd, bool has_filter, uint64_t *ret_stopped_nsec,
                const char **step)
{
    uint64_t began = now_nsec();
    int r = thread_stop(thread, has_filter, step), fd = -EBADF;
    if (r < 0) {
        ptrace(PTRACE_DETACH, thread->pid, NULL, NULL);
        return r;
    }
    *step = "userfaultfd in it";
    long there =
        thread_call(thread, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, 0, 0);
    if (there >= 0) {
        fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)there, 0);
        if (fd < 0) {
            *step = "taking its userfaultfd";
            fd = -errno;
        }
        thread_call(thread, SYS_close, (unsigned long)there, 0, 0);
    } else {
        fd = (int)there;
    }
    thread_release(thread);
    *ret_stopped_nsec = now_nsec() - began;
    return fd;
}

/* Address of a syscall instruction in the vdso, or 0. */
static uint64_t find_syscall(pid_t pid)
{
    static const uint8_t instruction[] = {0x0f, 0x05};
    uint8_t code[SEARCH_BYTES];
    struct memory_map map;
    uint64_t found = 0;
    if (memory_map_read(pid, &map) < 0)
        return 0;
    for (size_t i = 0; i < map.count && !found; i++) {
        const struct memory_area *area = &map.areas[i];
        if (area->kind != AREA_VDSO)
            continue;
        size_t length = MIN(sizeof(code), area->end - area->start);
        if (memory_read(pid, area->start, code, length) != (ssize_t)length)
            continue;
        const uint8_t *at = memmem(code, length, instruction, sizeof(instruction));
        found = at ? area->start + (uint64_t)(at - code) : 0;
    }
    memory_map_free(&map);
    return found;
}

/* The descriptor, or a negative errno. */
static int make(pid_t pid, struct answer *answer, const char **step)
{
    struct stopped thread = {.pid = pid, .syscall_at = find_syscall(pid)};
    if (!thread.syscall_at) {
        /* A process that is just executing another program has none for a moment. */
        *step = "finding a syscall instruction in it";
        return -ENOEXEC;
    }
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return -errno;
    return take(&thread, pidfd, task_has_seccomp_filter(pid), &answer->stopped_nsec, step);
}

#else

static int make(pid_t pid, struct answer *answer, const char **step)
{
    (void)pid;
    (void)answer;
    *step = "this processor";
    return -EOPNOTSUPP;
}

#endif

void task_help_userfaultfd(pid_t pid, int socket)
{
    struct answer answer = {0};
    const char *step = "";
    int fd = make(pid, &answer, &step);
    if (fd < 0) {
        answer.error_number = -fd;
        strncpy(answer.step, step, sizeof(answer.step) - 1);
    }
    struct iovec iov = {&answer, sizeof(answer)};
    send_passing(socket, &iov, 1, &fd, fd >= 0);
    close_fd(fd);
}

/* ---- for the caller ---- */

/* The descriptor, or a negative errno. */
static int take_answer(int socket, struct answer *answer)
{
    struct iovec iov = {answer, sizeof(*answer)};
    struct passed passed;
    ssize_t n = receive_passed(socket, 0, &iov, 1, &passed);
    int fd = n < 0 ? -EBADF : passed_take_first(&passed);
    answer->step[sizeof(answer->step) - 1] = '\0';
    if (n != sizeof(*answer) || (fd < 0 && answer->error_number <= 0)) {
        close_fd(fd);
        return -EIO;
    }
    return answer->error_number ? -answer->error_number : fd;
}

static int take_by_helper(pid_t pid, const struct task_helpers *helpers, struct answer *answer)
{
    struct task_helper helper;
    int r = task_helper_start(helpers, TASK_HELP_USERFAULTFD, pid, &helper);
    if (r < 0)
        return r;
    r = take_answer(helper.socket, answer);
    task_helper_end(&helper);
    return r;
}

/* What a person can make of it. */
static int explain(pid_t pid, int r, const struct answer *answer, struct error *err)
{
    struct task_stat stat;
    if (r == -ESRCH || !task_read_stat(pid, &stat))
        return error_set(err, FAILURE_NOT_FOUND, "process %d has ended", pid);
    if (r == -EPERM && task_tracer(pid) > 0)
        return error_set(err, FAILURE_BUSY, "process %d is traced by process %d", pid,
                         task_tracer(pid));
    if (r == -EBUSY || stat.state == 'T')
        return error_set(err, FAILURE_BUSY, "process %d is stopped by a signal", pid);
    if (r == -ETIMEDOUT)
        return error_set(err, FAILURE_BUSY,
                         "process %d cannot be stopped: it waits in vfork, or for a device", pid);
    return error_set_errno(err, FAILURE_SYSTEM, r, "process %d: %s", pid,
                           answer->step[0] ? answer->step : "making a userfaultfd in it");
}

int task_take_userfaultfd(pid_t pid, const struct task_helpers *helpers, uint64_t *ret_stopped_nsec,
                          struct error *err)
{
    struct answer answer = {0};
    struct task_stat stat;
    int r = -ESRCH;
    if (task_read_stat(pid, &stat))
        r = stat.state == 'T' ? -EBUSY : take_by_helper(pid, helpers, &answer);
    if (r < 0)
        return explain(pid, r, &answer, err);
    *ret_stopped_nsec = answer.stopped_nsec;
    return r;
}
