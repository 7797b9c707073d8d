/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each finding is provoked by a real process, or by facts as a hostile source would send them.
 */
#include "testing.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "base/io.h"
#include "child.h"
#include "migrate/preflight.h"
#include "task/task.h"
#include "task/tree.h"
#include "wire/message.h"

#define OK GODWIT__PB__FINDING__SEVERITY__OK
#define WARNING GODWIT__PB__FINDING__SEVERITY__WARNING
#define PROBLEM GODWIT__PB__FINDING__SEVERITY__PROBLEM

/* ---- what is shared ---- */

static char *directory;
static char fake_criu[PATH_MAX];

/* A criu that says this about itself, and whose check ends so. */
static const char *make_criu(const char *version, int status)
{
    char script[256];
    snprintf(fake_criu, sizeof(fake_criu), "%s/criu-%s-%d", directory, version, status);
    int n = snprintf(script, sizeof(script),
                     "#!/bin/sh\n[ \"$1\" = check ] && { echo 'Error (x.c:1): no memory tracking' "
                     ">&2; exit %d; }\necho 'Version: %s'\n",
                     status, version);
    int fd = open(fake_criu, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
    assert_int_equal(write_all(fd, script, (size_t)n), 0);
    close(fd);
    return fake_criu;
}

static const struct error no_criu = {.code = FAILURE_CRIU, .text = "criu was not found"};

static void judge_with(const char *criu, const Godwit__Pb__Facts *part, uint64_t free_bytes,
                       struct findings *findings)
{
    struct preflight_criu known;
    preflight_try_criu(criu, &no_criu, &known);
    preflight_judge(part, &known, free_bytes, &preflight_own_eyes, findings);
}

static int set_up(void **state)
{
    (void)state;
    directory = directory_make();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    directory_remove(directory);
    return 0;
}

static const char *in_directory(const char *name)
{
    static char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

static const Godwit__Pb__Finding *find(const struct findings *findings,
                                       Godwit__Pb__Finding__Severity severity, const char *topic,
                                       const char *part)
{
    for (size_t i = 0; i < findings->count; i++) {
        const Godwit__Pb__Finding *f = findings->list[i];
        if (f->severity == severity && strcmp(f->topic, topic) == 0 &&
            (strstr(f->text, part) || strstr(f->remedy, part)))
            return f;
    }
    return NULL;
}

static void show(const struct findings *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        print_message("%d %s %s [%s]\n", (int)findings->list[i]->severity, findings->list[i]->topic,
                      findings->list[i]->text, findings->list[i]->remedy);
}

static void must_tell(const struct findings *findings, Godwit__Pb__Finding__Severity severity,
                      const char *topic, const char *part)
{
    if (!find(findings, severity, topic, part)) {
        show(findings);
        fail_msg("no finding of severity %d about %s with \"%s\"", (int)severity, topic, part);
    }
}

static void must_not_tell(const struct findings *findings, Godwit__Pb__Finding__Severity severity,
                          const char *topic)
{
    if (find(findings, severity, topic, "")) {
        show(findings);
        fail_msg("a finding of severity %d about %s", (int)severity, topic);
    }
}

static size_t count_severity(const struct findings *findings,
                             Godwit__Pb__Finding__Severity severity)
{
    size_t count = 0;
    for (size_t i = 0; i < findings->count; i++)
        count += findings->list[i]->severity == severity;
    return count;
}

/* ---- the source ---- */

struct seen {
    struct findings findings;
    struct preflight_facts facts;
    struct error err;
    int result;
};

static struct seen look_with(struct preflight_request request)
{
    struct seen seen = {0};
    request.criu = make_criu("4.2.1", 0);
    seen.result = preflight_look(&request, &seen.findings, &seen.facts, &seen.err);
    return seen;
}

static struct seen look(pid_t pid, const char *option, const char *second)
{
    char *options[] = {(char *)option, (char *)second, NULL};
    return look_with((struct preflight_request){.pid = pid, .options = options});
}

static void forget(struct seen *seen)
{
    findings_free(&seen->findings);
    if (seen->result == 0)
        preflight_facts_free(&seen->facts);
}

/* A process that needs an option: a problem without it, none with it. */
static void needs_option(pid_t (*prepare)(void *), void *user, const char *topic,
                         const char *option, const char *second)
{
    pid_t pid = child_start(prepare, user);
    struct seen seen = look(pid, NULL, NULL);
    assert_int_equal(seen.result, 0);
    must_tell(&seen.findings, PROBLEM, topic, "");
    forget(&seen);
    seen = look(pid, option, second);
    must_not_tell(&seen.findings, PROBLEM, topic);
    forget(&seen);
    child_end();
}

static void has_problem(pid_t pid, const char *topic, const char *part)
{
    struct seen seen = look(pid, NULL, NULL);
    assert_int_equal(seen.result, 0);
    must_tell(&seen.findings, PROBLEM, topic, part);
    forget(&seen);
}

static void has_no_problem(pid_t pid)
{
    struct seen seen = look(pid, NULL, NULL);
    assert_int_equal(seen.result, 0);
    if (count_severity(&seen.findings, PROBLEM) > 0) {
        show(&seen.findings);
        fail_msg("a problem where there is none");
    }
    forget(&seen);
}

static void plain_process(void **state)
{
    (void)state;
    static const char *const topics[] = {"criu",   "kernel",    "process", "tty",   "tcp",
                                         "unix",   "pipe",      "lock",    "ghost", "ipc",
                                         "limits", "namespace", "file"};
    struct utsname name;
    char host[65] = "";
    pid_t pid = child_start(NULL, NULL);
    has_no_problem(pid);
    struct seen seen = look(pid, "--shell-job", NULL);
    for (size_t i = 0; i < ARRAY_SIZE(topics); i++)
        must_tell(&seen.findings, OK, topics[i], "");
    gethostname(host, sizeof(host) - 1);
    assert_string_equal(seen.findings.list[0]->host, host);
    assert_int_equal(seen.facts.count, 1);
    const Godwit__Pb__Facts *part = seen.facts.parts[0];
    uname(&name);
    assert_string_equal(part->criu, "4.2.1");
    assert_string_equal(part->kernel, name.release);
    assert_true(part->n_cpu > 0 && part->memory_bytes > 0 && part->n_files > 2);
    assert_int_equal(part->n_pids, 1);
    assert_int_equal(part->pids[0], pid);
    assert_int_equal(part->n_options, 1);
    assert_string_equal(part->options[0], "--shell-job");
    forget(&seen);
    child_end();
}

static void hosts_only(void **state)
{
    (void)state;
    struct seen seen = look(0, NULL, NULL);
    assert_int_equal(seen.result, 0);
    must_tell(&seen.findings, OK, "criu", "4.2.1");
    assert_null(find(&seen.findings, OK, "process", ""));
    assert_int_equal(seen.facts.parts[0]->n_pids, 0);
    forget(&seen);
}

static void look_with_criu(const char *criu, const char *expected)
{
    const struct preflight_request request = {.criu = criu, .no_criu = &no_criu};
    struct seen seen = {0};
    assert_int_equal(preflight_look(&request, &seen.findings, &seen.facts, &seen.err), 0);
    must_tell(&seen.findings, PROBLEM, "criu", expected);
    forget(&seen);
}

static void criu_that_is_of_no_use(void **state)
{
    (void)state;
    look_with_criu(NULL, "criu was not found");
    look_with_criu("/bin/false", "does not run");
    look_with_criu(make_criu("3.17", 0), "is version 3.17");
    look_with_criu(make_criu("4.2", 1), "no memory tracking");
}

static void absurd_options(void **state)
{
    (void)state;
    static char longest[20 << 10];
    memset(longest, 'x', sizeof(longest) - 1);
    struct seen seen = look(0, longest, NULL);
    assert_int_equal(seen.result, -1);
    assert_int_equal(seen.err.code, FAILURE_USAGE);
    forget(&seen);
    seen = look(0, "--a\033b", NULL);
    assert_int_equal(seen.result, -1);
    forget(&seen);
}

/* -- processes that cannot be migrated -- */

static void *wait_for_ever(void *tid)
{
    *(pid_t *)tid = (pid_t)syscall(SYS_gettid);
    for (;;)
        pause();
    return NULL;
}

static pid_t thread_of_it(void *unused)
{
    (void)unused;
    static volatile pid_t tid;
    pthread_t id;
    pthread_create(&id, NULL, wait_for_ever, (void *)&tid);
    while (tid == 0)
        usleep(1000);
    return tid;
}

static pid_t zombie(void *unused)
{
    (void)unused;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    siginfo_t info;
    waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
    return pid;
}

static void never(void **state)
{
    (void)state;
    struct task_stat stat;
    has_problem(getpid(), "process", "is godwit itself");
    if (getppid() > 1)
        has_problem(getppid(), "process", "is an ancestor");
    has_problem(1, "process", "is the init");
    has_problem(child_start(thread_of_it, NULL), "process", "is a thread");
    child_end();
    has_problem(child_start(zombie, NULL), "process", "has ended");
    child_end();
    if (task_read_stat(2, &stat) && stat.kernel)
        has_problem(2, "process", "of the kernel");
    pid_t gone = child_start(NULL, NULL);
    child_end();
    struct seen seen = look(gone, NULL, NULL);
    assert_int_equal(seen.result, -1);
    assert_int_equal(seen.err.code, FAILURE_NOT_FOUND);
    forget(&seen);
}

/* -- terminals -- */

static int new_terminal(char name[64])
{
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    assert_true(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    assert_int_equal(ptsname_r(master, name, 64), 0);
    return master;
}

struct terminal {
    int master;
    char name[64];
};

static pid_t other_side(void *user)
{
    struct terminal *terminal = user;
    open(terminal->name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    close(terminal->master);
    return 0;
}

static pid_t both_sides(void *unused)
{
    (void)unused;
    char name[64];
    new_terminal(name);
    open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return 0;
}

static pid_t member_of_a_session(void *unused)
{
    (void)unused;
    return child_fork();
}

static void terminals(void **state)
{
    (void)state;
    struct terminal terminal;
    terminal.master = new_terminal(terminal.name);
    needs_option(other_side, &terminal, "tty", "--shell-job", NULL);
    needs_option(other_side, &terminal, "tty", "--orphan-pts-master", NULL);
    close(terminal.master);
    has_no_problem(child_start(both_sides, NULL));
    child_end();
    needs_option(member_of_a_session, NULL, "tty", "--shell-job", NULL);
    needs_option(member_of_a_session, NULL, "tty", "-lj", NULL);
}

/* -- sockets -- */

static pid_t tcp_connection(void *unused)
{
    (void)unused;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listening = socket(AF_INET, SOCK_STREAM, 0), one = socket(AF_INET, SOCK_STREAM, 0);
    bind(listening, (struct sockaddr *)&address, length);
    listen(listening, 1);
    getsockname(listening, (struct sockaddr *)&address, &length);
    connect(one, (struct sockaddr *)&address, length);
    accept(listening, NULL, NULL);
    return 0;
}

static pid_t tcp_listener(void *unused)
{
    (void)unused;
    listen(socket(AF_INET6, SOCK_STREAM, 0), 1);
    return 0;
}

static pid_t close_our_end(void *fd)
{
    close(*(int *)fd);
    return 0;
}

static pid_t pair_of_its_own(void *unused)
{
    (void)unused;
    int fds[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, fds);
}

/* The parent keeps one end in a network of its own. */
static pid_t pair_in_another_network(void *unused)
{
    (void)unused;
    int fds[2];
    if (unshare(CLONE_NEWNET) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
        _exit(1);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        close(fds[0]);
        for (;;)
            pause();
    }
    close(fds[1]);
    until_asleep(pid);
    return pid;
}

/* Keeps the end that it is given by number: 0 reads. */
struct half {
    int fds[2];
    int kept;
};

static pid_t keep_half(void *user)
{
    const struct half *half = user;
    close(half->fds[1 - half->kept]);
    return 0;
}

static pid_t pipe_of_its_own(void *unused)
{
    (void)unused;
    int fds[2];
    return pipe(fds);
}

static void pipes(void **state)
{
    (void)state;
    for (int kept = 0; kept < 2; kept++) {
        struct half half = {.kept = kept};
        assert_int_equal(pipe2(half.fds, O_CLOEXEC), 0);
        pid_t pid = child_start(keep_half, &half);
        struct seen seen = look(pid, NULL, NULL);
        must_tell(&seen.findings, PROBLEM, "pipe", "a process that stays behind");
        forget(&seen);
        close(
            half.fds[1 - kept]); /* the same end as its own is left here: nobody is at the other */
        has_no_problem(pid);
        close(half.fds[kept]);
        child_end();
    }
    has_no_problem(child_start(pipe_of_its_own, NULL));
    child_end();
}

static void tcp(void **state)
{
    (void)state;
    needs_option(tcp_connection, NULL, "tcp", "--tcp-established", NULL);
    needs_option(tcp_connection, NULL, "tcp", "--tcp-close", NULL);
    needs_option(tcp_connection, NULL, "tcp", "--tcp-est", NULL);
    has_no_problem(child_start(tcp_listener, NULL));
    child_end();
}

static void unix_sockets(void **state)
{
    (void)state;
    int fds[2];
    char id[64];
    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
    needs_option(close_our_end, &fds[0], "unix", "--ext-unix-sk", NULL);
    needs_option(close_our_end, &fds[0], "unix", "-x", NULL);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    snprintf(id, sizeof(id), "unix[%lu]", (unsigned long)inode_of(fds[1]));
    pid_t pid = child_start(close_our_end, &fds[0]);
    struct seen seen = look(pid, "--ext-unix-sk", NULL);
    must_tell(&seen.findings, PROBLEM, "unix", "half of a stream");
    forget(&seen);
    seen = look(pid, "--external", id);
    must_not_tell(&seen.findings, PROBLEM, "unix");
    forget(&seen);
    child_end();
    close(fds[0]);
    close(fds[1]);
    has_no_problem(child_start(pair_of_its_own, NULL));
    child_end();
    has_problem(child_start(pair_in_another_network, NULL), "unix", "half of a stream");
    child_end();
}

/* -- files -- */

static pid_t flock_file(void *path)
{
    flock(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), LOCK_EX);
    return 0;
}

static pid_t lock_file(void *path)
{
    struct flock lock = {.l_type = F_WRLCK};
    fcntl(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), F_SETLK, &lock);
    return 0;
}

static pid_t ghost(void *path)
{
    static char data[3 << 20];
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    unlink(path);
    memset(data, 1, sizeof(data));
    return write_all(fd, data, sizeof(data));
}

static pid_t mapped_ghost(void *path)
{
    ghost(path);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    posix_fallocate(fd, 0, 2 << 20);
    mmap(NULL, 2 << 20, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    unlink(path);
    return 0;
}

static pid_t renamed(void *path)
{
    char other[PATH_MAX];
    snprintf(other, sizeof(other), "%s-2", (char *)path);
    open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    unlink(other);
    link(path, other);
    unlink(path);
    return 0;
}

static pid_t memfd(void *unused)
{
    (void)unused;
    int fd = memfd_create("large", 0);
    posix_fallocate(fd, 0, 4 << 20);
    mmap(NULL, 4 << 20, PROT_READ, MAP_SHARED, fd, 0);
    return 0;
}

static pid_t odd_name(void *path)
{
    open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    return 0;
}

static void files(void **state)
{
    (void)state;
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/file", directory);
    needs_option(flock_file, path, "lock", "--file-locks", NULL);
    needs_option(lock_file, path, "lock", "-l", NULL);
    needs_option(ghost, path, "ghost", "--ghost-limit=4M", NULL);
    needs_option(mapped_ghost, path, "ghost", "--ghost-limit", "4M");
    needs_option(renamed, path, "file", "--link-remap", NULL);
    struct seen seen = look(child_start(ghost, path), "--ghost-limit=2M", NULL);
    must_tell(&seen.findings, PROBLEM, "ghost", "--ghost-limit");
    forget(&seen);
    child_end();
    seen = look(child_start(memfd, NULL), NULL, NULL);
    assert_int_equal(count_severity(&seen.findings, PROBLEM), 0);
    assert_true(seen.facts.parts[0]->memory_bytes >= 4 << 20);
    forget(&seen);
    child_end();
    snprintf(path, sizeof(path), "%s/od\033d\n", directory);
    seen = look(child_start(odd_name, path), NULL, NULL);
    must_tell(&seen.findings, WARNING, "file", "control characters");
    forget(&seen);
    child_end();
}

/* -- shared memory -- */

static pid_t shared_memory(void *bytes)
{
    void *memory =
        mmap(NULL, *(size_t *)bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(memory, 1, *(size_t *)bytes);
    until_asleep(child_fork()); /* it has the same: counted once */
    return 0;
}

static void memory_that_is_shared(void **state)
{
    (void)state;
    size_t bytes = MIB(3);
    struct seen seen = look(child_start(shared_memory, &bytes), NULL, NULL);
    must_tell(&seen.findings, OK, "shared",
              "3.0 MiB of shared memory, which is read while the process stands still");
    forget(&seen);
    child_end();
    bytes = MIB(64);
    seen = look(child_start(shared_memory, &bytes), NULL, NULL);
    must_tell(&seen.findings, WARNING, "shared",
              "64.0 MiB of shared memory: all of it is read while the process stands still");
    must_not_tell(&seen.findings, OK, "shared");
    forget(&seen);
    child_end();
    seen = look(child_start(memfd, NULL), NULL, NULL);
    must_tell(&seen.findings, OK, "shared", "4.0 MiB of shared memory, which is read");
    forget(&seen);
    child_end();
    seen = look(child_start(NULL, NULL), NULL, NULL);
    must_tell(&seen.findings, OK, "shared", "0 B of shared memory");
    forget(&seen);
    child_end();
}

/* -- the rest -- */

static pid_t system_v(void *own_namespace)
{
    if (own_namespace && unshare(CLONE_NEWIPC) < 0)
        _exit(1);
    int id = shmget(IPC_PRIVATE, 4096, 0600);
    char *at = shmat(id, NULL, 0);
    shmctl(id, IPC_RMID, NULL);
    at[0] = 1;
    return 0;
}

static void ipc(void **state)
{
    (void)state;
    has_problem(child_start(system_v, NULL), "ipc", "System V");
    child_end();
    has_no_problem(child_start(system_v, directory));
    child_end();
}

static pid_t object(void *unused)
{
    (void)unused;
    enum { USER_MODE_ONLY = 1 };
    return syscall(SYS_userfaultfd, O_CLOEXEC | USER_MODE_ONLY) >= 0 ? 0 : -1;
}

static void objects(void **state)
{
    (void)state;
    has_problem(child_start(object, NULL), "object", "[userfaultfd]");
    child_end();
}

/* Registers a page that is missing. */
static pid_t lacking(void *user)
{
    (void)user;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API};
    void *page = mmap(NULL, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register area = {.range = {(uintptr_t)page, PAGE_BYTES},
                                   .mode = UFFDIO_REGISTER_MODE_MISSING};
    return fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &area) < 0 ? -1
                                                                                              : 0;
}

static void missing_pages(void **state)
{
    (void)state;
    has_problem(child_start(lacking, NULL), "fill", "what is missing would be lost");
    child_end();
}

static pid_t reads_directly(void *user)
{
    return open(user, O_RDWR | O_DIRECT | O_CLOEXEC) < 0 ? -1 : 0;
}

static void direct_io(void **state)
{
    (void)state;
    char path[] = "/var/tmp/godwit-direct-XXXXXX";
    int fd = mkstemp(path), direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    assert_true(fd >= 0);
    struct seen seen = look(child_start(direct < 0 ? NULL : reads_directly, path), NULL, NULL);
    assert_int_equal(seen.result, 0);
    assert_int_equal(seen.facts.direct, direct >= 0);
    if (direct >= 0)
        must_tell(&seen.findings, WARNING, "direct", "compared instead");
    forget(&seen);
    child_end();
    unlink(path);
    close_fd(fd);
    close_fd(direct);
    if (direct < 0)
        test_skip("the file system of /var/tmp has no O_DIRECT");
}

static void traced(void **state)
{
    (void)state;
    pid_t pid = child_start(NULL, NULL);
    assert_int_equal(ptrace(PTRACE_SEIZE, pid, NULL, NULL), 0);
    has_problem(pid, "trace", "traced");
    child_end();
}

/* -- processes with one memory -- */

static int pause_for_ever(void *parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == (pid_t)(intptr_t)parent) /* else it had died before */
        pause();
    return 0;
}

static pid_t children_in_its_memory(void *count)
{
    static uint8_t stacks[2][64 << 10];
    for (int i = 0; i < *(int *)count; i++) {
        pid_t pid = clone(pause_for_ever, stacks[i] + sizeof(stacks[i]), CLONE_VM | SIGCHLD,
                          (void *)(intptr_t)getpid());
        if (pid < 0)
            return -1;
        until_asleep(pid);
    }
    return 0;
}

static pid_t child_of_its_own(void *unused)
{
    (void)unused;
    until_asleep(child_fork());
    return 0;
}

static int stay_for_a_moment(void *unused)
{
    (void)unused;
    struct timespec time = {.tv_nsec = 5000000};
    syscall(SYS_nanosleep, &time, NULL);
    return 0;
}

/* One child as by vfork after the other, each of which is there for a moment. */
static pid_t starts_programs(void *unused)
{
    (void)unused;
    static uint8_t stack[64 << 10];
    pid_t parent = getpid(), pid = fork();
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setsid();
    while (getppid() == parent) {
        pid_t child =
            clone(stay_for_a_moment, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
        if (child < 0 || waitpid(child, NULL, 0) < 0)
            _exit(1);
    }
    _exit(0);
}

static void one_memory(void **state)
{
    (void)state;
    int count = 1;
    char with[64];
    pid_t pid = child_start(children_in_its_memory, &count);
    snprintf(with, sizeof(with), "(with process %d): shares its memory", pid);
    has_problem(pid, "memory", with);
    child_end();
    count = 2;
    has_problem(child_start(children_in_its_memory, &count), "memory", "and 1 more: shares");
    child_end();
    struct seen seen = look(child_start(child_of_its_own, NULL), NULL, NULL);
    must_tell(&seen.findings, OK, "memory", "no process shares its memory");
    must_not_tell(&seen.findings, PROBLEM, "memory");
    forget(&seen);
    child_end();
}

static void one_memory_for_a_moment(void **state)
{
    (void)state;
    enum { ATTEMPTS = 5 };
    bool told = true;
    pid_t pid = child_start(starts_programs, NULL);
    for (int i = 0; i < ATTEMPTS && told; i++) { /* on a busy machine a moment may be long */
        struct seen seen = look(pid, NULL, NULL);
        assert_int_equal(seen.result, 0);
        told = find(&seen.findings, PROBLEM, "memory", "shares its memory");
        forget(&seen);
    }
    assert_false(told);
    child_end();
}

/* Whoever is not told says neither that there is such a process nor that there is none. */
static void nobody_tells_of_one_memory(void **state)
{
    (void)state;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_kcmp, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {ARRAY_SIZE(filter), filter};
    int count = 1, status;
    pid_t pid = child_start(children_in_its_memory, &count), looks = fork();
    if (looks == 0) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
            _exit(2);
        struct seen seen = look(pid, NULL, NULL);
        _exit(find(&seen.findings, OK, "memory", "shares") ||
              find(&seen.findings, PROBLEM, "memory", "shares") ||
              !find(&seen.findings, WARNING, "memory", "does not tell"));
    }
    waitpid(looks, &status, 0);
    child_end();
    assert_int_equal(status, 0);
}

/* -- pages that are shared by fork -- */

enum { FORKS = 3 };

static pid_t prefork(void *bytes)
{
    void *memory =
        mmap(NULL, *(size_t *)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(memory, 1, *(size_t *)bytes);
    for (int i = 0; i < FORKS; i++)
        until_asleep(child_fork());
    return 0;
}

static void shared_by_fork(void **state)
{
    (void)state;
    size_t bytes = MIB(32);
    struct tree tree;
    struct error err;
    pid_t pid = child_start(prefork, &bytes);
    assert_int_equal(tree_look(pid, &tree, &err), 0);
    /* What else it has, which may be much with a sanitizer, is shared as well. */
    assert_true(tree.together_bytes >= bytes);
    assert_in_range(tree.apart_bytes, FORKS * tree.together_bytes,
                    (2 + FORKS) * tree.together_bytes);
    assert_true(tree.memory_bytes > (1 + FORKS) * bytes); /* what a snapshot takes has them all */
    tree_free(&tree);
    struct seen seen = look(pid, NULL, NULL);
    must_tell(&seen.findings, WARNING, "memory", "pass --eager");
    forget(&seen);
    seen = look_with((struct preflight_request){.pid = pid, .eager = true});
    must_not_tell(&seen.findings, WARNING, "memory");
    forget(&seen);
    child_end();
    bytes = MIB(1);
    pid = child_start(prefork, &bytes);
    assert_int_equal(tree_look(pid, &tree, &err), 0);
    bool grows = tree.apart_bytes > tree.together_bytes + MIB(16); /* by what a sanitizer has */
    tree_free(&tree);
    seen = look(pid, NULL, NULL);
    if (!grows)
        must_not_tell(&seen.findings, WARNING, "memory");
    must_tell(&seen.findings, grows ? WARNING : OK, "memory", "its processes");
    forget(&seen);
    child_end();
}

/* Takes a capability from this thread's effective set, or gives it back. */
static void set_capability(unsigned number, bool on)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[2];
    assert_int_equal(syscall(SYS_capget, &header, sets), 0);
    uint32_t bit = 1u << number % 32;
    sets[number / 32].effective &= ~bit;
    if (on)
        sets[number / 32].effective |= bit & sets[number / 32].permitted;
    assert_int_equal(syscall(SYS_capset, &header, sets), 0);
}

static pid_t nobody(void *unused)
{
    (void)unused;
    return setgid(65534) == 0 && setuid(65534) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0 ? 0 : -1;
}

static void another_user(void **state)
{
    (void)state;
    pid_t pid = child_start(nobody, NULL);
    set_capability(CAP_SYS_RESOURCE, false);
    has_problem(pid, "limits", "CAP_SYS_RESOURCE");
    set_capability(CAP_SYS_RESOURCE, true);
    child_end();
}

static pid_t own_mounts(void *unused)
{
    (void)unused;
    return unshare(CLONE_NEWNS);
}

/* The init of a pid namespace, or a child of it, as the machine sees their pids. */
static pid_t own_pids(void *second)
{
    int told[2];
    pid_t child = 0;
    if (unshare(CLONE_NEWPID) < 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, told) < 0)
        _exit(1);
    pid_t init = fork();
    if (init == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setsid();
        close(told[0]);
        close(told[1]);
        if (second && fork() == 0)
            setsid();
        for (;;)
            pause();
    }
    close(told[0]);
    close(told[1]);
    until_asleep(init);
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task/%d/children", init, init);
    FILE *children = fopen(path, "re");
    if (children && fscanf(children, "%d", &child) != 1)
        child = 0;
    return second ? child : init;
}

static void namespaces(void **state)
{
    (void)state;
    struct seen seen = look(child_start(own_mounts, NULL), NULL, NULL);
    must_tell(&seen.findings, WARNING, "file", "mount namespace");
    assert_int_equal(seen.facts.parts[0]->n_files, 0);
    forget(&seen);
    child_end();
    seen = look(child_start(own_pids, NULL), NULL, NULL);
    must_tell(&seen.findings, OK, "namespace", " pid");
    assert_int_equal(count_severity(&seen.findings, PROBLEM), 0);
    assert_int_equal(seen.facts.parts[0]->n_pids, 0);
    forget(&seen);
    child_end();
    has_problem(child_start(own_pids, directory), "namespace", "not the init");
    child_end();
}

/* -- many parts -- */

enum { MANY = 3000 };

static void name_of_many(char path[PATH_MAX], size_t i)
{
    snprintf(path, PATH_MAX, "%s/a-file-with-a-rather-long-name-%05zu", directory, i);
}

static pid_t many_files(void *unused)
{
    (void)unused;
    char path[PATH_MAX];
    for (size_t i = 0; i < MANY; i++) {
        name_of_many(path, i);
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (ftruncate(fd, 4096) < 0 ||
            mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED)
            return -1;
        close(fd);
    }
    return 0;
}

static void many_parts(void **state)
{
    (void)state;
    size_t files_found = 0;
    pid_t pid = child_start(many_files, NULL);
    struct seen seen = look(pid, NULL, NULL);
    assert_int_equal(seen.result, 0);
    assert_true(seen.facts.count > 3);
    for (size_t i = 0; i < seen.facts.count; i++) {
        struct findings findings = {0};
        struct error err;
        static uint8_t packed[PREFLIGHT_PART_BYTES];
        size_t size = godwit__pb__facts__get_packed_size(seen.facts.parts[i]);
        assert_true(size <= sizeof(packed));
        godwit__pb__facts__pack(seen.facts.parts[i], packed);
        Godwit__Pb__Facts *part =
            (Godwit__Pb__Facts *)message_unpack(&godwit__pb__facts__descriptor, packed, size, &err);
        assert_non_null(part);
        assert_true((i == 0) == (part->kernel[0] != '\0'));
        files_found += part->n_files;
        judge_with(make_criu("4.2.1", 0), part, UINT64_MAX, &findings);
        must_tell(&findings, OK, "file", "are the same");
        must_not_tell(&findings, PROBLEM, "file");
        must_not_tell(&findings, PROBLEM, "cpu");
        godwit__pb__facts__free_unpacked(part, NULL);
        findings_free(&findings);
    }
    assert_true(files_found > MANY);
    forget(&seen);
    child_end();
}

/* ---- the destination ---- */

static struct findings judge(const Godwit__Pb__Facts *part, uint64_t free_bytes)
{
    struct findings findings = {0};
    judge_with(make_criu("4.2.1", 0), part, free_bytes, &findings);
    return findings;
}

static void distance(void **state)
{
    (void)state;
    struct findings findings = {0};
    preflight_tell_distance("there", 1234, &findings);
    must_tell(&findings, OK, "link", "there answers in 1.2 ms");
    findings_free(&findings);
    preflight_tell_distance("there", 300 * USEC_PER_MSEC, &findings);
    must_tell(&findings, WARNING, "link", "300 ms");
    findings_free(&findings);
}

static void judged_versions(void **state)
{
    (void)state;
    struct utsname name;
    uname(&name);
    static const struct {
        const char *criu;
        Godwit__Pb__Finding__Severity severity;
        const char *text;
    } versions[] = {
        {"4.1.1", OK, "restores what 4.1.1"}, {"4.2", OK, "restores"},   {"4.3", WARNING, "older"},
        {"10.0", WARNING, "older"},           {"4.0", PROBLEM, "older"}, {"3.19", PROBLEM, "older"},
        {"\xff%n", PROBLEM, "older"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(versions); i++) {
        Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
        part.criu = (char *)versions[i].criu;
        part.kernel = name.release;
        struct findings findings = judge(&part, 0);
        must_tell(&findings, versions[i].severity, "criu", versions[i].text);
        must_tell(&findings, OK, "kernel", "not older");
        findings_free(&findings);
    }
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    part.kernel = (char *)"999.1";
    struct findings findings = {0};
    judge_with(NULL, &part, 0, &findings);
    must_tell(&findings, PROBLEM, "criu", "criu was not found");
    must_tell(&findings, WARNING, "kernel", "is older than 999.1");
    findings_free(&findings);
}

static void judged_cpu(void **state)
{
    (void)state;
    static char longest[5000];
    memset(longest, 'x', sizeof(longest) - 1);
    char *flags[100] = {(char *)"avx1024", longest, (char *)"", (char *)"a b"};
    for (size_t i = 4; i < ARRAY_SIZE(flags); i++)
        flags[i] = (char *)"teleport";
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    part.n_cpu = ARRAY_SIZE(flags);
    part.cpu = flags;
    struct findings findings = judge(&part, 0);
    assert_int_equal(findings.count, 1);
    must_tell(&findings, PROBLEM, "cpu", "lacks 100 abilities");
    must_tell(&findings, PROBLEM, "cpu", "avx1024");
    findings_free(&findings);
    struct seen seen = look(0, NULL, NULL);
    part.n_cpu = seen.facts.parts[0]->n_cpu;
    part.cpu = seen.facts.parts[0]->cpu;
    findings = judge(&part, 0);
    must_tell(&findings, OK, "cpu", "");
    findings_free(&findings);
    forget(&seen);
}

static void judged_pids(void **state)
{
    (void)state;
    pid_t pid = child_start(NULL, NULL);
    uint32_t pids[40] = {(uint32_t)pid, 0, UINT32_MAX, (uint32_t)pid, 1};
    for (size_t i = 5; i < ARRAY_SIZE(pids); i++)
        pids[i] = 0x7fffffff;
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    part.pids = pids;
    part.n_pids = ARRAY_SIZE(pids);
    struct findings findings = judge(&part, 0);
    must_tell(&findings, PROBLEM, "pid", "by test_preflight");
    must_tell(&findings, PROBLEM, "pid", "pid 0 cannot be");
    must_tell(&findings, PROBLEM, "pid", "pid 4294967295 cannot be");
    must_tell(&findings, PROBLEM, "pid", "28 more pids");
    assert_int_equal(findings.count, 13);
    findings_free(&findings);
    child_end();
    part.n_pids = 1;
    findings = judge(&part, 0);
    must_tell(&findings, OK, "pid", "are free");
    findings_free(&findings);
}

static uint64_t available(void)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *file = fopen("/proc/meminfo", "re");
    while (fgets(line, sizeof(line), file) && sscanf(line, "MemAvailable: %llu", &kib) != 1)
        ;
    fclose(file);
    return KIB(kib);
}

static void judged_memory(void **state)
{
    (void)state;
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    part.memory_bytes = MIB(1);
    struct findings findings = judge(&part, MIB(1));
    must_tell(&findings, OK, "memory", "there is room");
    assert_int_equal(findings.count, 1);
    findings_free(&findings);
    findings = judge(&part, MIB(1) - 1);
    must_tell(&findings, PROBLEM, "memory", "--memory-limit");
    assert_int_equal(findings.count, 1);
    findings_free(&findings);
    part.memory_bytes = available() / 4 * 3;
    findings = judge(&part, UINT64_MAX);
    must_tell(&findings, WARNING, "memory", "twice");
    findings_free(&findings);
    part.memory_bytes = UINT64_MAX;
    findings = judge(&part, 0);
    must_tell(&findings, PROBLEM, "memory", "image-cache has room");
    must_tell(&findings, PROBLEM, "memory", "this host has");
    findings_free(&findings);
}

/* The findings about one file. */
static struct findings judge_file(Godwit__Pb__FileFact fact)
{
    Godwit__Pb__FileFact *list[] = {&fact};
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    part.files = list;
    part.n_files = 1;
    struct findings findings = judge(&part, 0);
    assert_int_equal(findings.count, 1);
    return findings;
}

static void file_is(Godwit__Pb__FileFact fact, Godwit__Pb__Finding__Severity severity,
                    const char *part)
{
    struct findings findings = judge_file(fact);
    must_tell(&findings, severity, "file", part);
    findings_free(&findings);
}

static void judged_files(void **state)
{
    (void)state;
    static uint8_t id[100];
    struct stat st;
    Godwit__Pb__FileFact fact = GODWIT__PB__FILE_FACT__INIT;
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/five", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write_all(fd, "12345", 5), 0);
    assert_int_equal(fstat(fd, &st), 0);
    close(fd);
    fact.path = path;
    fact.size = 5;
    file_is(fact, OK, "are the same");
    fact.mode = st.st_mode;
    file_is(fact, OK, "are the same");
    fact.mode = S_IFREG | 0644;
    file_is(fact, PROBLEM, "has mode 0100600 here, 0100644");
    fact.mode = 0;
    fact.size = 6;
    file_is(fact, PROBLEM, "has 5 bytes here, 6");
    fact.size = UINT64_MAX;
    fact.written = true;
    file_is(fact, PROBLEM, "restore would fail");
    fact.size = 4;
    file_is(fact, WARNING, "a moment ago");
    fact.any_size = true;
    file_is(fact, OK, "");
    fact = (Godwit__Pb__FileFact)GODWIT__PB__FILE_FACT__INIT;
    fact.path = path;
    fact.size = 5;
    fact.kind = GODWIT__PB__FILE_FACT__KIND__DIRECTORY;
    file_is(fact, PROBLEM, "no directory");
    fact.path = directory;
    file_is(fact, OK, "");
    fact.kind = GODWIT__PB__FILE_FACT__KIND__FILE;
    file_is(fact, PROBLEM, "a directory");
    fact.kind = GODWIT__PB__FILE_FACT__KIND__PROGRAM;
    fact.path = (char *)"/bin/sh";
    fact.build_id.data = id;
    fact.build_id.len = 20;
    file_is(fact, PROBLEM, "another build");
    fact.build_id.len = sizeof(id);
    file_is(fact, PROBLEM, "another build");
}

static void hostile_files(void **state)
{
    (void)state;
    static char longest[8000];
    memset(longest, 'x', sizeof(longest) - 1);
    longest[0] = '/';
    assert_int_equal(mkfifo(in_directory("fifo"), 0600), 0);
    static const struct {
        const char *path, *text;
    } bad[] = {
        {"", "no absolute path"},
        {"etc/passwd", "no absolute path"},
        {"../etc/passwd", "no absolute path"},
        {"/no/such/file", "is not here"},
        {"/dev/zero", "no file or directory"},
        {"/dev/tty", ""},
        {"/proc/kmsg", "no file or directory"},
        {"/proc/self/mem", "no file or directory"},
        {"/proc/self/fd/0", ""},
        {"/sys/kernel/uevent_seqnum", ""},
        {longest, "cannot be looked at"},
    };
    Godwit__Pb__FileFact fact = GODWIT__PB__FILE_FACT__INIT;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        fact.path = (char *)bad[i].path;
        file_is(fact, PROBLEM, bad[i].text);
    }
    fact.path = (char *)in_directory("fifo");
    file_is(fact, PROBLEM, "no file or directory");
    longest[4095] = '\0';
    fact.path = longest;
    struct findings findings = judge_file(fact);
    assert_true(strlen(findings.list[0]->text) < 800);
    findings_free(&findings);
}

static void many_bad_files(void **state)
{
    (void)state;
    Godwit__Pb__FileFact fact = GODWIT__PB__FILE_FACT__INIT, *list[500];
    fact.path = (char *)"/no\x1b[2J/such";
    for (size_t i = 0; i < ARRAY_SIZE(list); i++)
        list[i] = &fact;
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    part.files = list;
    part.n_files = ARRAY_SIZE(list);
    struct findings findings = judge(&part, 0);
    assert_int_equal(findings.count, 13);
    must_tell(&findings, PROBLEM, "file", "/no?[2J/such is not here");
    must_tell(&findings, PROBLEM, "file", "488 more files");
    findings_free(&findings);
}

static void nothing_to_judge(void **state)
{
    (void)state;
    Godwit__Pb__Facts part = GODWIT__PB__FACTS__INIT;
    struct findings findings = judge(&part, 0);
    assert_int_equal(findings.count, 0);
    findings_free(&findings);
}

int main(void)
{
    /* What the runner has left open the subjects would have too. */
    close_range(STDERR_FILENO + 1, UINT_MAX, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_process),
        cmocka_unit_test(hosts_only),
        cmocka_unit_test(criu_that_is_of_no_use),
        cmocka_unit_test(absurd_options),
        cmocka_unit_test(never),
        cmocka_unit_test(terminals),
        cmocka_unit_test(pipes),
        cmocka_unit_test(tcp),
        cmocka_unit_test(unix_sockets),
        cmocka_unit_test(files),
        cmocka_unit_test(memory_that_is_shared),
        cmocka_unit_test(ipc),
        cmocka_unit_test(objects),
        cmocka_unit_test(missing_pages),
        cmocka_unit_test(direct_io),
        cmocka_unit_test(traced),
        cmocka_unit_test(one_memory),
        cmocka_unit_test(one_memory_for_a_moment),
        cmocka_unit_test(nobody_tells_of_one_memory),
        cmocka_unit_test(shared_by_fork),
        cmocka_unit_test(another_user),
        cmocka_unit_test(namespaces),
        cmocka_unit_test(many_parts),
        cmocka_unit_test(distance),
        cmocka_unit_test(judged_versions),
        cmocka_unit_test(judged_cpu),
        cmocka_unit_test(judged_pids),
        cmocka_unit_test(judged_memory),
        cmocka_unit_test(judged_files),
        cmocka_unit_test(hostile_files),
        cmocka_unit_test(many_bad_files),
        cmocka_unit_test(nothing_to_judge),
    };
    return test_exit(cmocka_run_group_tests(tests, set_up, tear_down));
}
