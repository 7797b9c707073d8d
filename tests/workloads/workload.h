/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all workloads share.  A workload is a program to be migrated: it knows what its own state
 * must be, looks at it all the time or when asked, and says in a file what it found.
 */
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXIT_SKIP 77 /* this machine cannot run the workload */

static inline _Noreturn void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* An fd of another mount namespace, or a terminal of another session, makes a dump fail. */
static inline void leave_foreign_fds(void)
{
    for (int fd = 0; fd < 3; fd++) {
        struct stat st;

        if (fstat(fd, &st) == 0 &&
            (S_ISREG(st.st_mode) || (S_ISCHR(st.st_mode) && st.st_rdev == 0x103)))
            continue;
        int null = open("/dev/null", O_RDWR);
        if (null < 0)
            _exit(1);
        if (null != fd) {
            dup2(null, fd);
            close(null);
        }
    }
    syscall(SYS_close_range, 3U, ~0U, 0U);
}

/* Makes the process fit to be dumped: a session of its own and no fd from outside. */
static inline void settle(void)
{
    setsid(); /* fails if it is a leader already, which is as good */
    leave_foreign_fds();
}

static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* Wall clock: it goes on through a migration and is the same on both sides. */
static inline uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline void sleep_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};

    nanosleep(&t, NULL);
}

/* Replaces the file at once, so that a reader never sees half a line. */
__attribute__((format(printf, 2, 3))) static inline void report(const char *path,
                                                                const char *format, ...)
{
    char fresh[4096], line[512];
    va_list ap;
    int n, fd;

    va_start(ap, format);
    n = vsnprintf(line, sizeof(line) - 1, format, ap);
    va_end(ap);
    if (n < 0)
        return;
    if ((size_t)n > sizeof(line) - 2)
        n = sizeof(line) - 2;
    line[n++] = '\n';
    snprintf(fresh, sizeof(fresh), "%s.%d", path, (int)getpid());
    fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        die(fresh);
    if (write(fd, line, (size_t)n) != n || rename(fresh, path) < 0)
        die(path);
    close(fd);
}

static volatile sig_atomic_t check_wanted;

static inline void want_check(int sig)
{
    (void)sig;
    check_wanted = 1;
}

/* SIGUSR1 asks for a check of everything. */
static inline void check_on_signal(void)
{
    struct sigaction sa = {.sa_handler = want_check};

    sigemptyset(&sa.sa_mask);
    sigaction(SIGUSR1, &sa, NULL);
}
