/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/process.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "criu/scan_questions.h"

enum { CRIU_MAJOR_MIN = 4, CRIU_MINOR_MIN = 1 };

/* Where scripts/setup puts a newer criu beside an older system. */
#define CRIU_UNPACKED "/var/lib/godwit/criu/criu"

/* ---- finding it ---- */

static char *find_in_path(const char *name)
{
    const char *path = getenv("PATH");
    _cleanup_free_ char *copy = strdup(path ? path : "/usr/sbin:/usr/bin:/sbin:/bin");
    char *save = NULL, *found = NULL;
    for (char *dir = copy ? strtok_r(copy, ":", &save) : NULL; dir;
         dir = strtok_r(NULL, ":", &save)) {
        if (asprintf(&found, "%s/%s", dir, name) < 0)
            return NULL;
        if (access(found, X_OK) == 0)
            return found;
        free(found);
    }
    return NULL;
}

/* What a program prints first, at most size - 1 bytes. */
static int first_output(const char *path, const char *argument, char *buf, size_t size)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], STDOUT_FILENO);
        execl(path, path, argument, NULL);
        _exit(127);
    }
    close_fd(fds[1]);
    size_t used = 0;
    ssize_t n;
    while (pid > 0 && used < size - 1 &&
           ((n = read(fds[0], buf + used, size - 1 - used)) > 0 || (n < 0 && errno == EINTR)))
        used += n > 0 ? (size_t)n : 0;
    buf[used] = '\0';
    close_fd(fds[0]);
    int status = -1;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return pid > 0 && status == 0 ? 0 : -ENOEXEC;
}

/* Major and minor; false when the text does not begin with them. */
static bool version_parse(const char *text, unsigned version[2])
{
    return sscanf(text, "%u.%u", &version[0], &version[1]) == 2;
}

int criu_version_compare(const char *a, const char *b)
{
    unsigned left[2] = {0}, right[2] = {0};
    version_parse(a, left);
    version_parse(b, right);
    size_t i = left[0] == right[0];
    return left[i] < right[i] ? -1 : left[i] > right[i];
}

int criu_version(const char *path, char ret[CRIU_VERSION_BYTES], struct error *err)
{
    static const char label[] = "Version: ";
    char text[256];
    unsigned is[2];
    int r = first_output(path, "--version", text, sizeof(text));
    const char *version = r == 0 ? strstr(text, label) : NULL;
    if (!version || !version_parse(version += strlen(label), is))
        return error_set(err, FAILURE_CRIU, "%s: does not run or tells no version", path);
    if (is[0] < CRIU_MAJOR_MIN || (is[0] == CRIU_MAJOR_MIN && is[1] < CRIU_MINOR_MIN))
        return error_set(
            err, FAILURE_CRIU,
            "%s: is version %u.%u; godwit needs %u.%u or newer: name one with --criu or "
            "GODWIT_CRIU",
            path, is[0], is[1], CRIU_MAJOR_MIN, CRIU_MINOR_MIN);
    snprintf(ret, CRIU_VERSION_BYTES, "%.*s", (int)strcspn(version, " \n"), version);
    return 0;
}

static int check_version(const char *path, struct error *err)
{
    char version[CRIU_VERSION_BYTES];
    return criu_version(path, version, err);
}

char *criu_find(const char *chosen, struct error *err)
{
    if (!chosen)
        chosen = getenv("GODWIT_CRIU");
    if (chosen && *chosen)
        return check_version(chosen, err) < 0 ? NULL : strdup(chosen);
    _cleanup_free_ char *path = find_in_path("criu");
    if (path && check_version(path, err) == 0)
        return TAKE_PTR(path);
    if (access(CRIU_UNPACKED, X_OK) == 0)
        return check_version(CRIU_UNPACKED, err) < 0 ? NULL : strdup(CRIU_UNPACKED);
    if (!path)
        error_set(err, FAILURE_CRIU,
                  "criu is not installed: install criu >= %u.%u, or name one with --criu or "
                  "GODWIT_CRIU",
                  CRIU_MAJOR_MIN, CRIU_MINOR_MIN);
    return NULL;
}

/* What is installed with godwit: as the environment says, else beside this program, else where
 * `make install` puts it. */
static int find_part(const char *name, const char *variable, char *buf, size_t size,
                     struct error *err)
{
    const char *chosen = getenv(variable);
    ssize_t n =
        chosen ? snprintf(buf, size, "%s", chosen) : readlink("/proc/self/exe", buf, size - 1);
    if (!chosen && n > 0) {
        buf[n] = '\0';
        char *slash = strrchr(buf, '/');
        snprintf(slash + 1, size - (size_t)(slash + 1 - buf), "%s", name);
        if (access(buf, R_OK) == 0)
            return 0;
    }
    if (!chosen)
        n = snprintf(buf, size, "%s/%s", GODWIT_LIBEXECDIR, name);
    if (n < 0 || (size_t)n >= size)
        return error_set_errno(err, FAILURE_SYSTEM, ENAMETOOLONG, "the path of %s", name);
    return access(buf, R_OK) == 0 ? 0 : error_set_errno(err, FAILURE_SYSTEM, errno, "%s", buf);
}

int criu_find_hook(char *buf, size_t size, struct error *err)
{
    if (find_part("godwit-hook", "GODWIT_HOOK", buf, size, err) < 0)
        return -1;
    return access(buf, X_OK) == 0 ? 0 : error_set_errno(err, FAILURE_SYSTEM, errno, "%s", buf);
}

int criu_find_scan_filter(char *buf, size_t size, struct error *err)
{
    if (find_part("godwit-scan-filter.so", "GODWIT_SCAN_FILTER", buf, size, err) < 0)
        return -1;
    return strpbrk(buf, " :") ? error_set(err, FAILURE_SYSTEM, "%s: cannot be preloaded", buf) : 0;
}

bool criu_can_be_preloaded(const char *path)
{
    Elf64_Ehdr head;
    Elf64_Phdr part;
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, &head, sizeof(head), 0) != sizeof(head) ||
        memcmp(head.e_ident, ELFMAG, SELFMAG) != 0)
        return true; /* a script, which starts another */
    for (unsigned i = 0; i < head.e_phnum; i++) {
        off_t at = (off_t)(head.e_phoff + i * sizeof(part));
        if (pread(fd, &part, sizeof(part), at) == sizeof(part) && part.p_type == PT_INTERP)
            return true;
    }
    return false;
}

/* ---- options that are godwit's ---- */

static const struct {
    char letter;
    const char *name;
    const char *instead;
} owned[] = {
    {'t', "tree", "use godwit's -t"},
    {'D', "images-dir", "there is none with --remote"},
    {'W', "work-dir", "use godwit's -W"},
    {'o', "log-file", "its log is in the work-dir, or where -o of godwit dump and restore says"},
    {'R', "leave-running", "godwit dump has its own --leave-running"},
    {'s', "leave-stopped", "godwit dump has its own --leave-stopped"},
    {'d', "restore-detached", "godwit restore has its own -d"},
    {0, "pidfile", "godwit restore has its own --pidfile"},
    {0, "page-server", "godwit carries the pages"},
    {0, "ps-socket", "godwit carries the pages"},
    {0, "address", "godwit carries the pages"},
    {0, "port", "godwit carries the pages"},
    {0, "stream", "godwit carries the images"},
    {0, "lazy-pages", "godwit carries the pages"},
    {0, "prev-images-dir", "the snapshot would be incomplete"},
    {0, "track-mem", "the snapshot would be incomplete"},
    {0, "auto-dedup", "it changes images that are not criu's"},
    {0, "remote", "it is godwit's"},
};

/* criu's short options that take an argument: what follows in the same word is that. */
static const char letters_with_argument[] = "tDorJWLMvx";

static int refuse(const char *argument, size_t i, struct error *err)
{
    return error_set(err, FAILURE_USAGE, "%s: cannot be passed on to criu: %s", argument,
                     owned[i].instead);
}

static int check_long(const char *argument, struct error *err)
{
    /* getopt_long takes any beginning of a name for the whole. */
    size_t length = strcspn(argument + 2, "=");
    for (size_t i = 0; i < ARRAY_SIZE(owned); i++) {
        if (length > 0 && strncmp(argument + 2, owned[i].name, length) == 0)
            return refuse(argument, i, err);
    }
    return 0;
}

static int check_short(const char *argument, struct error *err)
{
    for (const char *letter = argument + 1; *letter; letter++) {
        for (size_t i = 0; i < ARRAY_SIZE(owned); i++) {
            if (owned[i].letter == *letter)
                return refuse(argument, i, err);
        }
        if (strchr(letters_with_argument, *letter))
            break;
    }
    return 0;
}

size_t criu_count_options(char *const *args)
{
    size_t count = 0;
    while (args && args[count])
        count++;
    return count;
}

int criu_check_options(char *const *args, size_t count, struct error *err)
{
    for (; count > 0; args++, count--) {
        int r = strncmp(*args, "--", 2) == 0 ? check_long(*args, err)
                : (*args)[0] == '-'          ? check_short(*args, err)
                                             : 0;
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- running it ---- */

static void criu_args_append(struct criu_args *args, char *copy)
{
    args->list = realloc(args->list, (args->count + 2) * sizeof(char *));
    if (!copy || !args->list)
        abort();
    args->list[args->count++] = copy;
    args->list[args->count] = NULL;
}

void criu_args_add(struct criu_args *args, const char *format, ...)
{
    char *copy = NULL;
    va_list ap;
    va_start(ap, format);
    if (vasprintf(&copy, format, ap) < 0)
        copy = NULL;
    va_end(ap);
    criu_args_append(args, copy);
}

void criu_args_add_all(struct criu_args *args, char *const *list)
{
    for (; *list; list++)
        criu_args_append(args, strdup(*list));
}

void criu_args_free(struct criu_args *args)
{
    for (size_t i = 0; i < args->count; i++)
        free(args->list[i]);
    free(args->list);
    *args = (struct criu_args){0};
}

static void keep_descriptor(int fd)
{
    fcntl(fd, F_SETFD, fcntl(fd, F_GETFD) & ~FD_CLOEXEC);
}

static void set_number(const char *name, int value)
{
    char number[16];
    snprintf(number, sizeof(number), "%d", value);
    setenv(name, number, 1);
}

/* In front of what is to be preloaded already. */
static void preload(const struct criu_spawn *how)
{
    const char *before = getenv("LD_PRELOAD");
    _cleanup_free_ char *list = NULL;
    if (asprintf(&list, "%s%s%s", how->scan_filter, before ? ":" : "", before ? before : "") < 0)
        return;
    setenv("LD_PRELOAD", list, 1);
    set_number("GODWIT_SCAN_FILTER_FD", how->scan_filter_fd);
    if (how->scan_filter_table >= 0)
        set_number("GODWIT_SCAN_FILTER_TABLE", how->scan_filter_table);
    if (!how->scan_filter_hidden)
        return;
    setenv("GODWIT_SCAN_FILTER_HIDE", how->scan_filter_hidden, 1);
    unsetenv("CRIU_TRACK_SHMEM"); /* it would have criu go by that scan for shared memory too */
}

/*
 * Before it lets tasks go criu sets a hardware breakpoint in each (CRIU compel/arch/x86/src/lib/
 * infect.c, ptrace_set_breakpoint()).  The first event of perf that belongs to a task has the
 * kernel wait for an RCU grace period, 5 to 20 ms in which the process stands still (Linux
 * kernel/events/core.c, account_event()).  With one that counts nothing, and that criu inherits,
 * that wait is over before it begins.  Where perf is not allowed nothing is lost but the time.
 */
static void have_breakpoints_ready(void)
{
    struct perf_event_attr nothing = {
        .type = PERF_TYPE_SOFTWARE,
        .config = PERF_COUNT_SW_DUMMY,
        .size = sizeof(nothing),
        .disabled = 1,
        .exclude_kernel = 1,
    };
    (void)!syscall(SYS_perf_event_open, &nothing, 0, -1, -1, 0UL);
}

static void pass_here(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Whether a hardware breakpoint is set without an error, and then never reached: so it is in a
 * virtual machine that has no debug registers of its own.  Where perf is not allowed nobody knows.
 */
static bool breakpoints_are_dead(void)
{
    struct perf_event_attr passes = {
        .type = PERF_TYPE_BREAKPOINT,
        .size = sizeof(passes),
        .bp_type = HW_BREAKPOINT_X,
        .bp_addr = (uintptr_t)pass_here,
        .bp_len = sizeof(long),
        .exclude_kernel = 1,
        .exclude_hv = 1,
    };
    void (*volatile pass)(void) = pass_here;
    uint64_t count = 1;
    _cleanup_close_ int fd =
        (int)syscall(SYS_perf_event_open, &passes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0)
        return false;
    pass();
    return read(fd, &count, sizeof(count)) == sizeof(count) && count == 0;
}

/*
 * CRIU before 4.2 does not see that, and waits for its breakpoint for ever, with the process frozen
 * (checkpoint-restore/criu issue 2658).  This has it stop tasks at system calls instead, as 4.2
 * does by itself (CRIU criu/include/fault-injection.h, FI_NO_BREAKPOINTS).
 */
static void do_without_breakpoints(void)
{
    if (breakpoints_are_dead())
        setenv("CRIU_FAULT", "130", 0);
}

static _Noreturn void criu_exec(const struct criu_args *args, const struct criu_spawn *how)
{
    have_breakpoints_ready();
    do_without_breakpoints();
    for (size_t i = 0; i < how->keep_count; i++)
        keep_descriptor(how->keep[i]);
    if (how->hook_workdir) {
        char number[32];
        snprintf(number, sizeof(number), "%llx", (unsigned long long)how->hook_token);
        setenv("GODWIT_HOOK_TOKEN", number, 1);
        snprintf(number, sizeof(number), "%llu",
                 (unsigned long long)(how->hook_silence_usec / USEC_PER_MSEC));
        setenv("GODWIT_HOOK_SILENCE", number, 1);
        setenv("GODWIT_HOOK_WORKDIR", how->hook_workdir, 1);
        if (how->hook_journal)
            setenv("GODWIT_HOOK_JOURNAL", how->hook_journal, 1);
        if (how->hook_memory)
            setenv("GODWIT_HOOK_MEMORY", how->hook_memory, 1);
    }
    if (how->scan_filter)
        preload(how);
    if (how->ignore_interrupt)
        signal(SIGINT, SIG_IGN);
    execv(args->list[0], args->list);
    fprintf(stderr, "%s: %s\n", args->list[0], strerror(errno));
    _exit(127);
}

static pid_t pidfd_of_child(pid_t pid, int *ret_pidfd, struct error *err)
{
    if (pid < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "starting criu");
    *ret_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (*ret_pidfd >= 0)
        return pid;
    error_set_errno(err, FAILURE_SYSTEM, errno, "pidfd_open");
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    return -1;
}

pid_t criu_start(const struct criu_args *args, const struct criu_spawn *how, int *ret_pidfd,
                 struct error *err)
{
    int fds[2] = {-EBADF, -EBADF};
    if (how->ret_questions && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "socketpair");
    _cleanup_close_ int ours = fds[0];
    pid_t pid = fork();
    if (pid == 0) {
        if (how->ret_questions)
            scan_questions_offer(fds[1], how->scan_filter_hidden);
        criu_exec(args, how);
    }
    close_fd(fds[1]);
    pid = pidfd_of_child(pid, ret_pidfd, err);
    if (pid >= 0 && how->ret_questions)
        *how->ret_questions = scan_questions_take(ours);
    return pid;
}

/* ---- with a keeper ---- */

void criu_kill_children(void)
{
    for (;;) {
        pid_t children[64];
        size_t count = 0;
        FILE *file = fopen("/proc/thread-self/children", "re");
        while (file && count < ARRAY_SIZE(children) && fscanf(file, "%d", &children[count]) == 1)
            count++;
        if (file)
            fclose(file);
        if (count == 0)
            return;
        for (size_t i = 0; i < count; i++) {
            kill(children[i], SIGKILL);
            while (waitpid(children[i], NULL, 0) < 0 && errno == EINTR)
                ;
        }
    }
}

/* In a keeper: criu, and whether what it has built has been let go. */
static volatile pid_t kept;
static volatile sig_atomic_t released;

static void on_keeper_signal(int signal_number)
{
    if (signal_number == SIGUSR1)
        released = 1;
    else if (kept > 0)
        kill(kept, SIGKILL);
}

static pid_t keep_start_criu(const struct criu_args *args, const struct criu_spawn *how)
{
    pid_t keeper = getpid(), criu = fork();
    if (criu != 0)
        return criu;
    static const int defaults[] = {SIGTERM, SIGHUP, SIGUSR1};
    for (size_t i = 0; i < ARRAY_SIZE(defaults); i++)
        signal(defaults[i], SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    set_number("GODWIT_HOOK_KEEPER", keeper);
    set_number("GODWIT_HOOK_KEPT", getpid());
    criu_exec(args, how);
}

/* What criu reads as its configuration comes to its end when the keeper closes the other end. */
struct gate {
    int word_fd; /* where the word comes from; -EBADF: there is no gate */
    int fd;      /* to close */
};

/* Closes what is the caller's, but for the word: its peers have to see when it dies. */
static struct gate keep_only_gate(const struct criu_spawn *how)
{
    enum { WORD_FD = STDERR_FILENO + 1 };
    struct gate gate = {-EBADF, -EBADF};
    int fds[2];
    if (how->gate_fd < 0) {
        close_range(STDERR_FILENO + 1, ~0u, 0);
        return gate;
    }
    gate.word_fd = dup2(how->gate_fd, WORD_FD);
    close_range(WORD_FD + 1, ~0u, 0);
    fcntl(WORD_FD, F_SETFD, FD_CLOEXEC);
    if (pipe2(fds, O_CLOEXEC) < 0 || fds[0] != CRIU_GATE_FD)
        _exit(127);
    fcntl(CRIU_GATE_FD, F_SETFD, 0); /* criu inherits it */
    gate.fd = fds[1];
    return gate;
}

/* Until the word comes; or criu ends, or is killed because nobody is there to give the word. */
static void watch_gate(const struct gate *gate, pid_t criu)
{
    char word;
    close_fd(CRIU_GATE_FD);
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, criu, 0);
    struct pollfd fds[] = {{.fd = gate->word_fd, .events = POLLIN},
                           {.fd = pidfd, .events = POLLIN}};
    while (poll(fds, ARRAY_SIZE(fds), -1) < 0 && errno == EINTR)
        ;
    if (!fds[1].revents && read(gate->word_fd, &word, 1) != 1)
        kill(criu, SIGKILL);
    close_fd(gate->fd);
    close_fd(gate->word_fd);
}

static _Noreturn void keep(const struct criu_args *args, const struct criu_spawn *how)
{
    struct gate gate = keep_only_gate(how);
    sigset_t all, none;
    sigfillset(&all);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &all, NULL);
    struct sigaction heard = {.sa_handler = on_keeper_signal}, ignored = {.sa_handler = SIG_IGN};
    sigaction(SIGTERM, &heard, NULL);
    sigaction(SIGUSR1, &heard, NULL);
    sigaction(SIGINT, &ignored, NULL);
    sigaction(SIGHUP, &ignored, NULL);
    prctl(PR_SET_NAME, "godwit-keeper");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    kept = keep_start_criu(args, how);
    pid_t criu = kept;
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (criu > 0 && gate.fd >= 0)
        watch_gate(&gate, criu);
    int status = 0;
    while (criu > 0 && waitpid(criu, &status, 0) < 0 && errno == EINTR)
        ;
    kept = 0;
    int code = criu > 0 ? criu_exit_status(status) : 127;
    if (released)
        _exit(0); /* whatever has become of criu: it runs */
    if (code != 0)
        criu_kill_children();
    _exit(code);
}

pid_t criu_start_kept(const struct criu_args *args, const struct criu_spawn *how, int *ret_pidfd,
                      struct error *err)
{
    pid_t pid = fork();
    if (pid == 0)
        keep(args, how);
    return pidfd_of_child(pid, ret_pidfd, err);
}

int criu_exit_status(int wait_status)
{
    return WIFEXITED(wait_status) ? WEXITSTATUS(wait_status) : 128 + WTERMSIG(wait_status);
}

int criu_killed_by(int exit_status)
{
    return exit_status > 128 && exit_status <= 128 + 64 ? exit_status - 128 : 0;
}

/* ---- its log ---- */

static bool is_error_line(const char *line)
{
    /* CRIU says this at every start without CAP_SYS_RESOURCE, and goes on. */
    return strstr(line, "Error (") && !strstr(line, "RLIMIT_NOFILE for self");
}

bool criu_first_error(const char *log, char *buf, size_t size)
{
    FILE *file = fopen(log, "re");
    char line[1024];
    bool found = false;
    while (file && !found && fgets(line, sizeof(line), file)) {
        if (!is_error_line(line))
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(buf, size, "%s", strstr(line, "Error ("));
        make_plain(buf); /* it may have names in it that a process chose */
        found = true;
    }
    if (file)
        fclose(file);
    return found;
}

void criu_explain(const char *what, int exit_status, const char *log, struct error *ret)
{
    char line[300];
    bool found = criu_first_error(log, line, sizeof(line));
    int sig = criu_killed_by(exit_status);
    if (sig)
        error_set(ret, FAILURE_CRIU, "%s was killed by signal %d", what, sig);
    else if (found)
        error_set(ret, FAILURE_CRIU, "%s failed", what);
    else
        error_set(ret, FAILURE_CRIU, "%s ended with status %d", what, exit_status);
    if (found)
        error_append(ret, ": %s", line);
    if (found || !sig)
        error_append(ret, " (log: %.*s)", found ? 100 : 200,
                     log); /* more is to be said behind it */
}

/* ---- criu check ---- */

/* Waits for a child, killing it after that long, and with it what it has left of its group: criu
 * tries some things with children that wait for ever.  Its wait status. */
static int wait_at_most(pid_t pid, int pidfd, int msec)
{
    struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
    uint64_t end = now_usec() + (uint64_t)msec * USEC_PER_MSEC;
    while (poll(&poll_fd, 1, msec) < 0 && errno == EINTR && now_usec() < end)
        ;
    kill(-pid, SIGKILL); /* it is not reaped yet, so nobody else has its number */
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

int criu_check_kernel(const char *path, struct error *err)
{
    enum { CHECK_MSEC = 10000 };
    _cleanup_close_ int log = memfd_create("criu-check", MFD_CLOEXEC);
    if (log < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "memfd_create");
    pid_t pid = fork();
    if (pid == 0) {
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
        setpgid(0, 0);
        execl(path, path, "check", NULL);
        _exit(127);
    }
    if (pid < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "starting criu");
    setpgid(pid, pid); /* here too: it is to be one when it is killed */
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    int status = wait_at_most(pid, pidfd, CHECK_MSEC);
    if (status == 0)
        return 0;
    int sig = criu_killed_by(criu_exit_status(status));
    if (sig)
        return error_set(err, FAILURE_SYSTEM, "%s check was killed by signal %d", path, sig);
    char name[32], line[256] = "it does not say why";
    snprintf(name, sizeof(name), "/proc/self/fd/%d", log);
    criu_first_error(name, line, sizeof(line));
    return error_set(err, FAILURE_CRIU, "%s check: status %d: %s", path, criu_exit_status(status),
                     line);
}
