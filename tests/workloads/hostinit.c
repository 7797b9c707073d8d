/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the test bed needs to be written in C: the first process of a test host, and a way in.
 *
 *   hostinit init NAME [--base PID] [--first-pid N] [--keep DIR]...
 *       makes new namespaces and a host's mounts in them, prints "ready PID", reaps, and ends when
 * its standard input ends, which it does when the test process dies: then the kernel kills the
 * rest.
 *       --base: start from that process's mounts and share its /run/shared.  --keep: a directory
 * that stays reachable though a fresh mount hides it. hostinit enter PID [--net-only] [--cwd DIR]
 * [--report FD] -- COMMAND... runs a command in that host, ends as it ends.  "MACHINE-PID HOST-PID
 * ERRNO" goes to FD. hostinit spawn PID [--cwd DIR] [--stdout FILE] -- COMMAND... starts a command
 * in that host as a session of its own under the host's init, with nothing open but what was opened
 * inside; prints its pid there.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEEP_MAX 8
#define SHARED "/run/shared"

struct options {
    const char *name;
    pid_t target;
    pid_t base;
    int first_pid;
    int report;
    bool net_only;
    const char *cwd;
    const char *out;
    const char *keep[KEEP_MAX];
    int n_keep;
    char **command;
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "hostinit: %s: %s\n", what, strerror(errno));
    _exit(126);
}

static void enter_namespaces(pid_t pid, int kinds)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);

    if (fd < 0 || setns(fd, kinds) < 0)
        die("enter the host");
    close(fd);
}

/* ---- the first process of a host ---- */

static void mount_fresh(const char *type, const char *at, const char *options)
{
    if (mount(type, at, type, MS_NOSUID, options) < 0)
        die(at);
}

static void make_directories(const char *path)
{
    char partial[4096];

    for (const char *p = strchr(path + 1, '/'); p; p = strchr(p + 1, '/')) {
        snprintf(partial, sizeof(partial), "%.*s", (int)(p - path), path);
        mkdir(partial, 0755);
    }
    mkdir(path, 0755);
}

/* Mounts what fd stands for at path, unless path leads to it anyway. */
static void bind_fd(int fd, const char *path)
{
    struct stat there, wanted;
    char source[64];

    if (fstat(fd, &wanted) < 0)
        die(path);
    if (stat(path, &there) < 0 || there.st_dev != wanted.st_dev || there.st_ino != wanted.st_ino) {
        make_directories(path);
        snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
        if (mount(source, path, NULL, MS_BIND | MS_REC, NULL) < 0)
            die(path);
    }
    close(fd);
}

static int open_path(const char *path)
{
    int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0)
        die(path);
    return fd;
}

/* Must run as the namespace's first process: a fresh /proc shows the pids of its mounter. */
static void make_mounts(const struct options *o)
{
    int shared = o->base ? open_path(SHARED) : -1, keep[KEEP_MAX];

    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        die("/");
    for (int i = 0; i < o->n_keep; i++)
        keep[i] = open_path(o->keep[i]);
    mount_fresh("proc", "/proc", NULL);
    mount_fresh("tmpfs", "/run", "mode=0755,size=100%");
    mount_fresh("tmpfs", "/tmp", "mode=1777,size=100%");
    mount_fresh("tmpfs", "/dev/shm", "mode=1777,size=100%");
    mount_fresh("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620");
    mkdir(SHARED, 0755);
    if (o->base)
        bind_fd(shared, SHARED);
    else
        mount_fresh("tmpfs", SHARED, "mode=1777,size=100%");
    for (int i = 0; i < o->n_keep; i++)
        bind_fd(keep[i], o->keep[i]);
}

static void loopback_up(void)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo) < 0)
        die("lo");
    close(fd);
}

/* Hosts count their pids from different numbers, so that a pid of one is free on the others. */
static void set_first_pid(int pid)
{
    FILE *f = fopen("/proc/sys/kernel/ns_last_pid", "we");

    if (!f || fprintf(f, "%d", pid - 1) < 0 || fclose(f) != 0)
        die("ns_last_pid");
}

static void reap_until_input_ends(void)
{
    struct pollfd p[2] = {{.fd = 0, .events = POLLIN}, {.events = POLLIN}};
    struct signalfd_siginfo info;
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    p[1].fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (p[1].fd < 0)
        die("signalfd");
    while (!p[0].revents) {
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
        if (poll(p, 2, -1) < 0 && errno != EINTR)
            die("poll");
        while (read(p[1].fd, &info, sizeof(info)) > 0)
            ;
    }
}

static _Noreturn void be_init(const struct options *o, int ready)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (setsid() < 0 || sethostname(o->name, strlen(o->name)) < 0)
        die(o->name);
    make_mounts(o);
    loopback_up();
    if (o->first_pid)
        set_first_pid(o->first_pid);
    umask(022);
    if (chdir("/") < 0 || write(ready, "", 1) != 1)
        die("ready");
    close(ready);
    /* The pipes of the test process are not this one's to keep open; stderr stays for trouble. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    dup2(null, 1);
    reap_until_input_ends();
    _exit(0);
}

static int host_start(const struct options *o)
{
    int ready[2], status;
    char byte;
    pid_t init;

    if (o->base)
        enter_namespaces(o->base, CLONE_NEWNS);
    if (pipe2(ready, O_CLOEXEC) < 0 ||
        unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID) < 0)
        die("make namespaces");
    init = fork();
    if (init < 0)
        die("fork");
    if (init == 0)
        be_init(o, ready[1]);
    close(ready[1]);
    if (read(ready[0], &byte, 1) == 1) {
        printf("ready %d\n", (int)init);
        fflush(stdout);
    }
    while (waitpid(init, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* ---- ways in ---- */

/* A /dev/null opened outside is of another mount namespace, which dumps do not like. */
static void reopen_null(void)
{
    for (int fd = 0; fd < 3; fd++) {
        struct stat st;
        int null;

        if (fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != 0x103)
            continue;
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(null, fd);
        close(null);
    }
}

static void open_stdio(const char *out)
{
    int in = open("/dev/null", O_RDWR | O_CLOEXEC);
    int fd = out ? open(out, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : in;

    if (in < 0 || fd < 0)
        die(out ? out : "/dev/null");
    dup2(in, 0);
    dup2(fd, 1);
    dup2(fd, 2);
}

/* Tells the own pid, then becomes the command; an errno follows if that cannot be. */
static _Noreturn void become(const struct options *o, int tell)
{
    int say = getpid();

    if (write(tell, &say, sizeof(say)) < 0)
        _exit(126);
    execvp(o->command[0], o->command);
    say = errno;
    if (write(tell, &say, sizeof(say)) < 0)
        _exit(126);
    _exit(127);
}

/* Reads what become() tells: its pid and the errno, 0 if the command runs. */
static void hear(int fd, int *ret_pid, int *ret_errno)
{
    *ret_pid = *ret_errno = 0;
    if (read(fd, ret_pid, sizeof(*ret_pid)) != sizeof(*ret_pid))
        *ret_errno = ECHILD;
    else if (read(fd, ret_errno, sizeof(*ret_errno)) != sizeof(*ret_errno))
        *ret_errno = 0;
    close(fd);
}

static void go_in(const struct options *o)
{
    enter_namespaces(o->target, o->net_only ? CLONE_NEWNET
                                            : CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS |
                                                  CLONE_NEWIPC | CLONE_NEWPID);
    if (!o->net_only)
        reopen_null();
    if (o->cwd && chdir(o->cwd) < 0)
        die(o->cwd);
}

/* Ends the way the command ended, so that the caller sees a signal as a signal. */
static int end_like(int status)
{
    struct rlimit none = {0, 0};

    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    setrlimit(RLIMIT_CORE, &none);
    signal(WTERMSIG(status), SIG_DFL);
    raise(WTERMSIG(status));
    return 128 + WTERMSIG(status);
}

static int host_enter(const struct options *o)
{
    int tell[2], host_pid, error, status;
    pid_t child;

    if (o->report >= 0)
        fcntl(o->report, F_SETFD, FD_CLOEXEC);
    go_in(o);
    if (pipe2(tell, O_CLOEXEC) < 0 || (child = fork()) < 0)
        die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        become(o, tell[1]);
    }
    close(tell[1]);
    hear(tell[0], &host_pid, &error);
    if (o->report >= 0) {
        dprintf(o->report, "%d %d %d\n", (int)child, host_pid, error);
        close(o->report);
    }
    /* The command's end of its pipes must be the only one. */
    syscall(SYS_close_range, 0U, ~0U, 0U);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return end_like(status);
}

static int host_spawn(const struct options *o)
{
    int tell[2], host_pid, error;
    pid_t child;

    go_in(o);
    if (pipe2(tell, O_CLOEXEC) < 0 || (child = fork()) < 0)
        die("fork");
    if (child == 0) {
        /* The child's parent is outside; its child's will be the host's init once this is gone. */
        child = fork();
        if (child != 0)
            _exit(child < 0);
        setsid();
        open_stdio(o->out);
        syscall(SYS_close_range, 3U, ~0U, CLOSE_RANGE_CLOEXEC);
        become(o, tell[1]);
    }
    close(tell[1]);
    waitpid(child, NULL, 0);
    hear(tell[0], &host_pid, &error);
    if (error) {
        errno = error;
        die(o->command[0]);
    }
    printf("%d\n", host_pid);
    return 0;
}

/* ---- arguments ---- */

static _Noreturn void usage(void)
{
    fprintf(stderr, "usage: hostinit init NAME [options] | enter PID [options] -- COMMAND... | "
                    "spawn PID [options] -- COMMAND...\n");
    _exit(2);
}

static void take_option(struct options *o, const char *name, const char *value)
{
    if (strcmp(name, "--base") == 0)
        o->base = atoi(value);
    else if (strcmp(name, "--first-pid") == 0)
        o->first_pid = atoi(value);
    else if (strcmp(name, "--keep") == 0 && o->n_keep < KEEP_MAX)
        o->keep[o->n_keep++] = value;
    else if (strcmp(name, "--cwd") == 0)
        o->cwd = value;
    else if (strcmp(name, "--report") == 0)
        o->report = atoi(value);
    else if (strcmp(name, "--stdout") == 0)
        o->out = value;
    else
        usage();
}

static void take_options(struct options *o, char **arg)
{
    for (; *arg && strcmp(*arg, "--") != 0; arg++) {
        if (strcmp(*arg, "--net-only") == 0) {
            o->net_only = true;
            continue;
        }
        if (!arg[1])
            usage();
        take_option(o, arg[0], arg[1]);
        arg++;
    }
    o->command = *arg ? arg + 1 : arg;
}

int main(int argc, char **argv)
{
    struct options o = {.report = -1};

    if (argc < 3)
        usage();
    o.name = argv[2];
    o.target = atoi(argv[2]);
    take_options(&o, argv + 3);
    if (strcmp(argv[1], "init") == 0)
        return host_start(&o);
    if (o.target <= 0 || !o.command[0])
        usage();
    if (strcmp(argv[1], "enter") == 0)
        return host_enter(&o);
    if (strcmp(argv[1], "spawn") == 0)
        return host_spawn(&o);
    usage();
}
