/* SPDX-License-Identifier: Apache-2.0 */
/* Judging, starting and explaining criu. */
#include "testing.h"

#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#include "base/io.h"
#include "criu/allow.h"
#include "criu/process.h"
#include "task/task.h"

static int check_words(struct error *err, const char *first, const char *second)
{
    char *args[] = {(char *)first, (char *)second, NULL};
    *err = (struct error){0};
    return criu_check_options(args, criu_count_options(args), err);
}

static void options_of_criu(void **state)
{
    (void)state;
    struct error err;
    static const char *const owned[] = {
        "-t",
        "-t5",
        "-D",
        "-D/tmp",
        "-W",
        "-o",
        "-ofile",
        "-R",
        "-s",
        "-d",
        "-jt",
        "-jR",
        "-Sd",
        "--tree",
        "--tree=5",
        "--tre",
        "--images-dir",
        "--images-dir=/x",
        "--imag",
        "--work-dir",
        "--log-file",
        "--log-file=x",
        "--leave-running",
        "--leave-s",
        "--leave-stopped",
        "--restore-detached",
        "--pidfile",
        "--pidfile=x",
        "--pidf",
        "--page-server",
        "--page-s",
        "--ps-socket",
        "--ps-socket=3",
        "--address",
        "--port",
        "--port=1",
        "--stream",
        "--str",
        "--lazy-pages",
        "--prev-images-dir",
        "--track-mem",
        "--auto-dedup",
        "--remote",
        "--r",
    };
    for (size_t i = 0; i < ARRAY_SIZE(owned); i++) {
        if (check_words(&err, owned[i], NULL) != -1)
            fail_msg("%s was let through", owned[i]);
        assert_int_equal(err.code, FAILURE_USAGE);
        assert_contains(err.text, owned[i]);
        assert_int_equal(check_words(&err, "--shell-job", owned[i]), -1);
    }
    static const char *const others[] = {
        "--shell-job",
        "-j",
        "--tcp-established",
        "--ext-unix-sk",
        "--file-locks",
        "-l",
        "-v4",
        "-vvvv",
        "--external=x[1]:y",
        "--ghost-limit=64M",
        "--manage-cgroups",
        "-L/usr/lib",
        "-rd",
        "-Jmnt[t]:x",
        "-Mt",
        "--tcp-close",
        "--root=/d",
        "--timeout=9",
        "5",
        "t",
        "--skip-in-flight",
        "",
        "-",
        "--action-script=/bin/true",
        "--link-remap",
        "--log-pid",
        "--libdir=/x",
    };
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        if (check_words(&err, others[i], NULL) != 0)
            fail_msg("%s was refused: %s", others[i], err.text);
    }
    assert_int_equal(check_words(&err, NULL, NULL), 0);
}

static void argument_lists(void **state)
{
    (void)state;
    struct criu_args args = {0};
    char *more[] = {(char *)"x", (char *)"y z", NULL};
    criu_args_add(&args, "criu");
    criu_args_add(&args, "--port=%d", 5);
    criu_args_add_all(&args, more);
    assert_int_equal(args.count, 4);
    assert_string_equal(args.list[1], "--port=5");
    assert_string_equal(args.list[3], "y z");
    assert_null(args.list[4]);
    criu_args_free(&args);
    assert_null(args.list);
}

static void exit_statuses(void **state)
{
    (void)state;
    assert_int_equal(criu_exit_status(0), 0);
    assert_int_equal(criu_exit_status(7 << 8), 7);
    assert_int_equal(criu_exit_status(9), 137);
}

static void first_error_of_a_log(void **state)
{
    (void)state;
    static const char text[] = "(00.001) Version: 4.1\n"
                               "(00.002) Error (criu/x.c:1): RLIMIT_NOFILE for self\n"
                               "(00.003) Warn  (criu/y.c:2): hm\n"
                               "(00.004) Error (criu/z.c:3): it \x1b[31mbroke\xff\n"
                               "(00.005) Error (criu/z.c:4): and more\n";
    char *directory = directory_make(), path[256], line[64];
    snprintf(path, sizeof(path), "%s/log", directory);
    assert_false(criu_first_error(path, line, sizeof(line)));
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write_all(fd, text, sizeof(text) - 1), 0);
    close(fd);
    assert_true(criu_first_error(path, line, sizeof(line)));
    assert_string_equal(line, "Error (criu/z.c:3): it ?[31mbroke?");
    assert_true(criu_first_error(path, line, 8));
    assert_string_equal(line, "Error (");
    directory_remove(directory);
}

static void versions(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        int order;
    } pairs[] = {
        {"4.1", "4.1", 0}, {"4.1.1", "4.1", 0}, {"4.2", "4.1.1", 1}, {"4.9", "4.10", -1},
        {"5.0", "4.9", 1}, {"", "4.1", -1},     {"4", "4.1", -1},    {"x", "", 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
        assert_int_equal(criu_version_compare(pairs[i].a, pairs[i].b), pairs[i].order);
        assert_int_equal(criu_version_compare(pairs[i].b, pairs[i].a), -pairs[i].order);
    }
}

/* A program that plays criu; its path is for the caller to free. */
static char *script_make(const char *directory, const char *text)
{
    char *path;
    assert_true(asprintf(&path, "%s/criu", directory) > 0);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\n%s\n", text);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(chmod(path, 0700), 0);
    return path;
}

/* The number in a file that such a program has written. */
static int number_told(const char *path)
{
    int number = -1;
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%d", &number), 1);
    fclose(file);
    return number;
}

/* A criu that is killed with a child of its own, of which the number is in a file. */
static void check_is_killed(void **state)
{
    (void)state;
    char *directory = directory_make(), told[256], text[512];
    snprintf(told, sizeof(told), "%s/child", directory);
    snprintf(text, sizeof(text), "sleep 1000 &\necho $! > %s\nkill -9 $$", told);
    char *path = script_make(directory, text);
    struct error err = {0};
    assert_int_equal(criu_check_kernel(path, &err), -1);
    assert_int_equal(err.code, FAILURE_SYSTEM);
    assert_non_null(strstr(err.text, "killed by signal 9"));
    int child = number_told(told);
    struct task_stat stat;
    while (task_read_stat(child, &stat) && stat.state != 'Z') /* until the test's time is over */
        usleep(1000);
    free(path);
    directory_remove(directory);
}

static __attribute__((noinline)) void stop_here(void)
{
    __asm__ volatile("" ::: "memory");
}

/* Whether a child stops where a breakpoint is set in it in the way that criu does. */
static bool breakpoint_stops(void)
{
    /* Of the first address: one byte, when executed, in this task. */
    enum { ENABLE = 1 };
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        stop_here();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[0]), stop_here),
                     0);
    assert_int_equal(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg[7]), ENABLE), 0);
    assert_int_equal(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    bool stops = WIFSTOPPED(status);
    if (stops) {
        assert_int_equal(WSTOPSIG(status), SIGTRAP);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
    }
    return stops;
}

static bool may_use_perf(void)
{
    struct perf_event_attr nothing = {
        .type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_DUMMY, .size = sizeof(nothing)};
    int fd = (int)syscall(SYS_perf_event_open, &nothing, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    close_fd(fd);
    return fd >= 0;
}

/* A criu is told to do without them where they do not work, and only there. */
static void breakpoints(void **state)
{
    (void)state;
    if (!may_use_perf())
        skip();
    char *directory = directory_make(), told[256], text[512];
    snprintf(told, sizeof(told), "%s/fault", directory);
    snprintf(text, sizeof(text), "echo ${CRIU_FAULT:-0} > %s", told);
    char *path = script_make(directory, text);
    unsetenv("CRIU_FAULT");
    struct criu_args args = {0};
    criu_args_add(&args, "%s", path);
    struct criu_spawn how = {.gate_fd = -EBADF};
    struct error err;
    int pidfd, status;
    pid_t pid = criu_start(&args, &how, &pidfd, &err);
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(number_told(told), breakpoint_stops() ? 0 : 130);
    close(pidfd);
    criu_args_free(&args);
    free(path);
    directory_remove(directory);
}

static int allow(const char *list, const char *first, const char *second)
{
    char *args[] = {(char *)first, (char *)second, NULL};
    struct error err = {0};
    int r = criu_allow(list, args, criu_count_options(args), &err);
    assert_true(r == 0 || err.text[0]);
    return r;
}

static void options_of_others(void **state)
{
    (void)state;
    static const struct {
        const char *list, *first, *second;
        int expected;
    } cases[] = {
        {NULL, NULL, NULL, 0},
        {NULL, "--tcp-established", NULL, 0},
        {NULL, "--ghost-limit", "1M", 0},
        {NULL, "--ghost-limit=1M", NULL, 0},
        {NULL, "--ghost-limit=1M", "x", -1}, /* a word that is nobody's value */
        {NULL, "x", NULL, -1},
        {NULL, "-jl", "-v4", 0},
        {NULL, "-v4", "-S", -1},
        {NULL, "-", NULL, -1},
        {NULL, "--", "--tcp-close", -1},
        {NULL, "--tcp", NULL, -1}, /* for criu the beginning of a name */
        {NULL, "--tcp-established-or-not", NULL, -1},
        {NULL, "--action-script", "/bin/sh", -1},
        {NULL, "--ghost-limit", "--libdir=/tmp", -1},
        {NULL, "--images-dir=/", NULL, -1},
        {"root", "--root=/", NULL, 0},
        {"root", "--tcp-close", NULL, -1},
        {"a,root,b", "--root", "/", 0},
        {"a,roots,b", "--root", "/", -1},
        {"a,rooo", "--roo", NULL, -1},
        {"", "--tcp-close", NULL, -1},
        {"any", "--action-script", "/bin/sh", 0},
        {"any", "-D", NULL, -1},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        if (allow(cases[i].list, cases[i].first, cases[i].second) != cases[i].expected)
            fail_msg("case %zu", i);
    }
}

static void lists_of_options(void **state)
{
    (void)state;
    static const char *const good[] = {NULL, "any", "", "root", "root,tcp-close", "file-locks,"};
    static const char *const bad[] = {",", "root,,x", "--root", "-r", "root=/", "tree", "a b"};
    struct error err;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_int_equal(criu_allow_check(good[i], &err), 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(criu_allow_check(bad[i], &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_is_killed),      cmocka_unit_test(breakpoints),
        cmocka_unit_test(options_of_others),    cmocka_unit_test(lists_of_options),
        cmocka_unit_test(options_of_criu),      cmocka_unit_test(argument_lists),
        cmocka_unit_test(exit_statuses),        cmocka_unit_test(versions),
        cmocka_unit_test(first_error_of_a_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
