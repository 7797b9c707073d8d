/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/confine.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/io.h"
#include "base/pagemap_scan.h"

/* ---- the file system ---- */

/* Makes the current directory the root, and takes all else out of the namespace. */
static int become_root(void)
{
    if (syscall(SYS_pivot_root, ".", ".") == 0)
        return umount2(".", MNT_DETACH);
    /* The root is the kernel's first one, or no mount point: then the rest stays, out of reach. */
    return errno == EINVAL ? chroot(".") : -1;
}

static int enter_directory(const char *path, int *fd)
{
    struct stat before, after;
    if (fstat(*fd, &before) < 0 || unshare(CLONE_NEWNS) < 0)
        return -errno;
    /* Not private: what is unmounted elsewhere is not to stay because of us. */
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0 && errno != EINVAL)
        return -errno;
    if (chdir(path) < 0 || become_root() < 0 || chdir("/") < 0)
        return -errno;
    int inside = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (inside < 0 || fstat(inside, &after) < 0)
        return -errno;
    close_fd(*fd);
    *fd = inside;
    return before.st_dev == after.st_dev && before.st_ino == after.st_ino ? 0 : -EXDEV;
}

/* From an open directory ".." leads out of any root that it is not below. */
static int close_directories(int but)
{
    DIR *dir = opendir("/proc/self/fd");
    if (!dir)
        return -errno;
    struct dirent *entry;
    struct stat st;
    while ((entry = readdir(dir))) {
        int fd = (int)strtol(entry->d_name, NULL, 10);
        if (entry->d_name[0] == '.' || fd == but || fd == dirfd(dir) || fstat(fd, &st) < 0 ||
            !S_ISDIR(st.st_mode))
            continue;
        close(fd);
        if (fd <= STDERR_FILENO && open("/dev/null", O_RDWR) != fd) /* the lowest that is free */
            return -EBADF;
    }
    closedir(dir);
    return 0;
}

/* ---- capabilities ---- */

#define CAPABILITY(name) (UINT64_C(1) << (name))

/* What is executed by those who are not root gets no more than they have, anyway. */
static int bound_capabilities(uint64_t keep)
{
    for (unsigned long capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0;
         capability++) {
        if (!(keep >> capability & 1) && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 &&
            geteuid() == 0)
            return -errno;
    }
    return 0;
}

/* Gives up all but these, of which it may lack some. */
static int keep_capabilities(uint64_t keep)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct has[_LINUX_CAPABILITY_U32S_3];
    int r = bound_capabilities(keep);
    if (r < 0)
        return r;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
        syscall(SYS_capget, &header, has) < 0)
        return -errno;
    for (size_t i = 0; i < ARRAY_SIZE(has); i++) {
        has[i].permitted &= (uint32_t)(keep >> 32 * i);
        has[i].effective = has[i].permitted;
        has[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, has) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0
               ? -errno
               : 0;
}

/* ---- system calls ---- */

/* By name, because not every architecture has all of them. */
static const char *const allowed[] = {
    /* files and descriptors that are open */
    "read",
    "readv",
    "pread64",
    "preadv",
    "write",
    "writev",
    "pwrite64",
    "pwritev",
    "close",
    "close_range",
    "lseek",
    "_llseek",
    "dup",
    "dup2",
    "dup3",
    "flock",
    "fstat",
    "fstat64",
    "fstatat64",
    "newfstatat",
    "stat",
    "lstat",
    "statx",
    "fstatfs",
    "getdents64",
    "splice",
    "vmsplice",
    "sendfile",
    /* memory; see limited[] for more */
    "munmap",
    "mremap",
    "madvise",
    "brk",
    /* connections that others have made */
    "accept",
    "accept4",
    "recvfrom",
    "recvmsg",
    "shutdown",
    "getsockopt",
    "setsockopt",
    "getsockname",
    "getpeername",
    "recv",
    /* waiting */
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "signalfd4",
    "eventfd2",
    "pidfd_open",
    "nanosleep",
    "clock_nanosleep",
    "futex",
    "sched_yield",
    "wait4",
    /* about oneself and the time */
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getrusage",
    "clock_gettime",
    "clock_getres",
    "gettimeofday",
    "time",
    "uname",
    "sysinfo",
    "getrandom",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sigaltstack",
    "restart_syscall",
    "rseq",
    "set_robust_list",
    "exit",
    "exit_group",
};

/* The parser of an image-cache has a root of its own. */
static const char *const allowed_cache[] = {
    "openat",          "mkdirat",   "unlinkat",    "renameat",   "renameat2",
    "linkat",          "ftruncate", "ftruncate64", "fallocate",  "fadvise64",
    "copy_file_range", "msync",     "faccessat",   "faccessat2",
};

/* That of an image-proxy looks into processes. */
static const char *const allowed_proxy[] = {"process_vm_readv", "readlink",   "readlinkat",
                                            "faccessat",        "faccessat2", "socketpair"};

/* With some arguments only. */
struct limited {
    const char *name;
    unsigned count;
    struct scmp_arg_cmp when[2];
};

#define WITHOUT(number, bits)                                                                      \
    {                                                                                              \
        .arg = (number), .op = SCMP_CMP_MASKED_EQ, .datum_a = (bits), .datum_b = 0                 \
    }
#define COMMAND(command)                                                                           \
    {                                                                                              \
        .arg = 1, .op = SCMP_CMP_EQ, .datum_a = (command)                                          \
    }

/* Not those by which signals are sent to others: F_SETOWN, F_SETSIG, F_SETLEASE. */
static const int fcntl_commands[] = {
    F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD,      F_SETFD,     F_GETFL,     F_GETLK,
    F_SETLK, F_GETPIPE_SZ,    F_SETPIPE_SZ, F_GET_SEALS, F_ADD_SEALS,
};

/* UFFDIO_COPY and its like would write into the process. */
static const unsigned long proxy_ioctls[] = {
    SCAN, MAP_QUERY, UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT,
};

static int allow(scmp_filter_ctx filter, const char *name, const struct scmp_arg_cmp *when,
                 unsigned count)
{
    int number = seccomp_syscall_resolve_name(name);
    return number == __NR_SCMP_ERROR
               ? 0 /* newer than the library: nobody here can know it */
               : seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, count, when);
}

static int allow_names(scmp_filter_ctx filter, const char *const *names, size_t count)
{
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++)
        r = allow(filter, names[i], NULL, 0);
    return r;
}

/* With this value of its second argument. */
static int allow_command(scmp_filter_ctx filter, const char *name, scmp_datum_t command)
{
    return allow(filter, name,
                 &(struct scmp_arg_cmp){.arg = 1, .op = SCMP_CMP_EQ, .datum_a = command}, 1);
}

/* What both parsers need. */
static int allow_common(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp not_executable = WITHOUT(2, PROT_EXEC);
    /* A descriptor can have the kernel send any signal to any process. */
    const struct scmp_arg_cmp without_signals = WITHOUT(2, O_ASYNC);
    const struct limited limited[] = {
        {"mmap", 1, {not_executable}},
        {"mmap2", 1, {not_executable}},
        {"mprotect", 1, {not_executable}},
        {"fcntl", 2, {COMMAND(F_SETFL), without_signals}},
        {"fcntl64", 2, {COMMAND(F_SETFL), without_signals}},
        /* to whom a connection leads, and nobody else */
        {"send", 1, {WITHOUT(3, MSG_FASTOPEN)}},
        {"sendto", 2, {WITHOUT(3, MSG_FASTOPEN), {.arg = 4, .op = SCMP_CMP_EQ, .datum_a = 0}}},
        {"sendmsg", 1, {WITHOUT(2, MSG_FASTOPEN)}},
        /* whose a connection is */
        {"socket",
         2,
         {{.arg = 0, .op = SCMP_CMP_EQ, .datum_a = AF_NETLINK},
          {.arg = 2, .op = SCMP_CMP_EQ, .datum_a = NETLINK_SOCK_DIAG}}},
        /* what waits to be sent */
        {"ioctl", 1, {{.arg = 1, .op = SCMP_CMP_EQ, .datum_a = SIOCOUTQ}}},
        /* abort() */
        {"tgkill", 1, {{.arg = 0, .op = SCMP_CMP_EQ, .datum_a = (scmp_datum_t)getpid()}}},
    };
    int r = allow_names(filter, allowed, ARRAY_SIZE(allowed));
    for (size_t i = 0; i < ARRAY_SIZE(limited) && r == 0; i++)
        r = allow(filter, limited[i].name, limited[i].when, limited[i].count);
    for (size_t i = 0; i < ARRAY_SIZE(fcntl_commands) && r == 0; i++) {
        r = allow_command(filter, "fcntl", (scmp_datum_t)fcntl_commands[i]);
        if (r == 0)
            r = allow_command(filter, "fcntl64", (scmp_datum_t)fcntl_commands[i]);
    }
    return r;
}

static int allow_cache(scmp_filter_ctx filter)
{
    int r = allow_common(filter);
    return r < 0 ? r : allow_names(filter, allowed_cache, ARRAY_SIZE(allowed_cache));
}

static int allow_proxy(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp to_read = {.arg = 2,
                                         .op = SCMP_CMP_MASKED_EQ,
                                         .datum_a = O_ACCMODE | O_CREAT | O_TRUNC,
                                         .datum_b = O_RDONLY};
    int r = allow_common(filter);
    if (r == 0)
        r = allow_names(filter, allowed_proxy, ARRAY_SIZE(allowed_proxy));
    if (r == 0)
        r = allow(filter, "openat", &to_read, 1);
    for (size_t i = 0; i < ARRAY_SIZE(proxy_ioctls) && r == 0; i++)
        r = allow_command(filter, "ioctl", proxy_ioctls[i]);
    return r;
}

static int filter_calls(int (*allow_some)(scmp_filter_ctx filter))
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter)
        return -ENOMEM;
    int r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    /* Sorted into a tree; and no slower at other things than without: there is nothing in here that
     * a thread of its own could not read. */
    seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    seccomp_attr_set(filter, SCMP_FLTATR_CTL_SSB, 1);
    if (r == 0)
        r = allow_some(filter);
    if (r == 0)
        r = seccomp_load(filter);
    seccomp_release(filter);
    return r;
}

/* ---- all of it ---- */

/* What is left to a process: these capabilities and, unless that is NULL, what is allowed. */
static int limit(uint64_t capabilities, int (*allow_some)(scmp_filter_ctx filter),
                 struct error *err)
{
    int r = keep_capabilities(capabilities);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "giving up capabilities");
    r = allow_some ? filter_calls(allow_some) : 0;
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "the filter of system calls") : 0;
}

int confine_cache(const char *path, int *fd, struct error *err)
{
    tzset(); /* reads a file, for the times in the log */
    int r = close_directories(*fd);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "/proc/self/fd");
    r = enter_directory(path, fd);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s as the root of what serves others",
                               path);
    return limit(0, allow_cache, err);
}

int confine_proxy(struct error *err)
{
    tzset();
    return limit(CAPABILITY(CAP_SYS_PTRACE) |          /* memory, pages, open files */
                     CAPABILITY(CAP_DAC_READ_SEARCH) | /* what others' files in /proc are */
                     CAPABILITY(CAP_SYS_ADMIN),        /* frames of pages; /proc/PID/map_files */
                 allow_proxy, err);
}

int confine_helper(struct error *err)
{
    return limit(CAPABILITY(CAP_SYS_PTRACE) |
                     CAPABILITY(CAP_SYS_ADMIN) |    /* to suspend a seccomp filter */
                     CAPABILITY(CAP_KILL) |         /* a SIGSTOP that came meanwhile */
                     CAPABILITY(CAP_DAC_OVERRIDE) | /* clear_refs; a socket, log, of another user */
                     CAPABILITY(CAP_NET_ADMIN),     /* room for local clients */
                 NULL, err);
}
