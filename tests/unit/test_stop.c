/* SPDX-License-Identifier: Apache-2.0 */
/* Having real processes stand still, whatever they do. */
#include "testing.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "task/page_table.h"
#include "task/stop.h"
#include "task/task.h"

enum { THREADS = 8 };

/* What the process that is stopped shows. */
struct world {
    volatile uint64_t counts[THREADS], threads_made, signals;
};
static struct world *world;

static pid_t subject;

static void *count(void *user)
{
    volatile uint64_t *at = user;
    for (;;)
        ++*at;
    return NULL;
}

static void *make_another(void *user);

/* Threads that end as soon as they have made the next one. */
static void make_thread(void)
{
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 65536);
    while (pthread_create(&thread, &attr, make_another, NULL) != 0)
        usleep(100);
    pthread_attr_destroy(&attr);
}

static void *make_another(void *user)
{
    (void)user;
    __atomic_fetch_add(&world->threads_made, 1, __ATOMIC_RELAXED);
    make_thread();
    return NULL;
}

static void on_signal(int sig)
{
    (void)sig;
    __atomic_fetch_add(&world->signals, 1, __ATOMIC_RELAXED);
}

static void counting(void)
{
    pthread_t thread;
    for (int i = 1; i < THREADS; i++)
        pthread_create(&thread, NULL, count, (void *)&world->counts[i]);
    count((void *)&world->counts[0]);
}

static void making_threads(void)
{
    for (int i = 0; i < 3; i++)
        make_thread();
    for (;;)
        pause();
}

static void first_has_ended(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, count, (void *)&world->counts[1]);
    pthread_exit(NULL);
}

static void in_vfork(void)
{
    if (vfork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        world->counts[0] = 1;
        for (;;)
            pause();
    }
}

static void start(void (*life)(void))
{
    memset(world, 0, sizeof(*world));
    subject = fork();
    if (subject != 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGUSR1, on_signal);
    life();
    _exit(0);
}

static void end(void)
{
    if (subject > 0) {
        kill(subject, SIGKILL);
        waitpid(subject, NULL, 0);
    }
    subject = 0;
}

/* After a test that failed as well: the next one's counts are its own subject's. */
static int end_what_runs(void **state)
{
    (void)state;
    end();
    return 0;
}

static char state_of(pid_t pid)
{
    struct task_stat stat;
    return task_read_stat(pid, &stat) ? stat.state : '-';
}

static uint64_t sum(void)
{
    uint64_t sum = world->threads_made;
    for (int i = 0; i < THREADS; i++)
        sum += world->counts[i];
    return sum;
}

static void must_move(void)
{
    uint64_t before = sum();
    for (int i = 0; i < 5000 && sum() == before; i++)
        usleep(1000);
    assert_true(sum() > before);
}

static void must_stand_still(void)
{
    uint64_t before = sum();
    usleep(3000);
    assert_int_equal(sum(), before);
}

static void must_stop_by(const struct task_helpers *helpers, struct task_stop *stop)
{
    struct error err;
    if (task_stop(subject, helpers, stop, &err) < 0)
        fail_msg("%s", err.text);
}

static void must_stop(struct task_stop *stop)
{
    must_stop_by(NULL, stop);
}

static void must_go_on(struct task_stop *stop)
{
    assert_int_equal(task_go_on(stop), 0);
}

static void stop_often(void (*life)(void), int times)
{
    struct task_stop stop;
    start(life);
    for (int i = 0; i < times; i++) {
        must_move();
        must_stop(&stop);
        must_stand_still();
        must_go_on(&stop);
    }
    must_move();
    end();
}

static void all_threads(void **state)
{
    (void)state;
    stop_often(counting, 20);
}

static void new_threads(void **state)
{
    (void)state;
    stop_often(making_threads, 30);
}

static void without_its_first_thread(void **state)
{
    (void)state;
    struct task_stop stop;
    start(first_has_ended);
    while (state_of(subject) != 'Z')
        usleep(1000);
    must_move();
    must_stop(&stop);
    must_stand_still();
    must_go_on(&stop);
    must_move();
    end();
}

static void until_signals(uint64_t wanted)
{
    for (int i = 0; i < 5000 && world->signals < wanted; i++)
        usleep(1000);
    assert_int_equal(world->signals, wanted);
}

/* None is lost, and none is given twice. */
static void signals(void **state)
{
    (void)state;
    struct task_stop stop;
    start(counting);
    must_move();
    for (uint64_t i = 1; i <= 50; i++) {
        kill(subject, SIGUSR1); /* while it is being stopped, or just before */
        must_stop(&stop);
        must_stand_still();
        must_go_on(&stop);
        until_signals(i);
    }
    must_stop(&stop);
    kill(subject, SIGUSR1);
    must_stand_still();
    assert_int_equal(world->signals, 50);
    must_go_on(&stop);
    must_move();
    until_signals(51);
    end();
}

static void one_that_is_stopped(void **state)
{
    (void)state;
    struct task_stop stop;
    start(counting);
    must_move();
    kill(subject, SIGSTOP);
    assert_int_equal(waitpid(subject, NULL, WUNTRACED), subject);
    must_stop(&stop);
    must_go_on(&stop);
    for (int i = 0; i < 1000 && state_of(subject) != 'T'; i++)
        usleep(1000);
    must_stand_still();
    assert_int_equal(state_of(subject), 'T');
    kill(subject, SIGCONT);
    must_move();
    end();
}

/* Its parent is not told either. */
static void nobody_notices(void **state)
{
    (void)state;
    struct task_stop stop;
    siginfo_t info = {0};
    start(counting);
    must_move();
    must_stop(&stop);
    must_go_on(&stop);
    must_move();
    assert_int_equal(waitid(P_PID, (id_t)subject, &info, WSTOPPED | WCONTINUED | WNOHANG), 0);
    assert_int_equal(info.si_pid, 0);
    assert_int_equal(task_tracer(subject), 0);
    end();
}

static void helper_killed(void **state)
{
    (void)state;
    struct task_stop stop;
    start(counting);
    must_move();
    must_stop(&stop);
    kill(stop.helper.pid, SIGKILL);
    must_move();
    assert_true(task_go_on(&stop) < 0);
    must_move();
    end();
}

static void must_fail_by(const struct task_helpers *helpers, enum failure code, const char *why)
{
    struct task_stop stop;
    struct error err;
    assert_int_equal(task_stop(subject, helpers, &stop, &err), -1);
    assert_int_equal(err.code, code);
    if (!strstr(err.text, why))
        fail_msg("%s", err.text);
}

static void must_fail(enum failure code, const char *why)
{
    must_fail_by(NULL, code, why);
}

/* The helper is not our child. */
static int start_elsewhere(void *user, enum task_help help, pid_t pid, int socket)
{
    (void)user;
    pid_t child = fork();
    if (child == 0) {
        if (fork() == 0)
            task_help(help, pid, socket);
        _exit(0);
    }
    assert_int_equal(waitpid(child, NULL, 0), child);
    return 0;
}

static int start_nothing(void *user, enum task_help help, pid_t pid, int socket)
{
    (void)help;
    (void)pid;
    (void)socket;
    return *(int *)user;
}

static void by_others(void **state)
{
    (void)state;
    struct task_stop stop;
    int fine = 0, full = -EAGAIN;
    const struct task_helpers others = {.start = start_elsewhere};
    start(counting);
    for (int i = 0; i < 10; i++) {
        must_move();
        must_stop_by(&others, &stop);
        assert_int_equal(stop.helper.pid, 0);
        must_stand_still();
        must_go_on(&stop);
        assert_int_equal(task_tracer(subject), 0); /* it has let go before that returns */
    }
    must_move();
    must_fail_by(&(struct task_helpers){.start = start_nothing, .user = &full}, FAILURE_SYSTEM,
                 strerror(EAGAIN));
    must_fail_by(&(struct task_helpers){.start = start_nothing, .user = &fine}, FAILURE_SYSTEM,
                 strerror(EIO));
    end();
    must_fail_by(&others, FAILURE_NOT_FOUND, "has ended");
}

static void clear_by_others(void **state)
{
    (void)state;
    struct task_helper helper;
    const struct task_helpers others = {.start = start_elsewhere};
    start(counting);
    must_move();
    assert_int_equal(task_helper_start(&others, TASK_HELP_CLEAR, subject, &helper), 0);
    assert_int_equal(task_helper_result(&helper), page_table_clear(subject));
    task_helper_end(&helper);
    must_move();
    end();
    assert_int_equal(task_helper_start(&others, TASK_HELP_CLEAR, subject, &helper), 0);
    assert_int_equal(task_helper_result(&helper), -ESRCH);
    task_helper_end(&helper);
}

static void those_that_cannot(void **state)
{
    (void)state;
    start(in_vfork);
    while (sum() == 0)
        usleep(1000);
    must_fail(FAILURE_BUSY, "vfork");
    end();
    start(counting);
    must_move();
    assert_int_equal(ptrace(PTRACE_SEIZE, subject, NULL, NULL), 0);
    must_fail(FAILURE_BUSY, "traced");
    end();
    must_fail(FAILURE_NOT_FOUND, "has ended");
}

int main(void)
{
    world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(all_threads, end_what_runs),
        cmocka_unit_test_teardown(new_threads, end_what_runs),
        cmocka_unit_test_teardown(without_its_first_thread, end_what_runs),
        cmocka_unit_test_teardown(signals, end_what_runs),
        cmocka_unit_test_teardown(one_that_is_stopped, end_what_runs),
        cmocka_unit_test_teardown(nobody_notices, end_what_runs),
        cmocka_unit_test_teardown(helper_killed, end_what_runs),
        cmocka_unit_test_teardown(by_others, end_what_runs),
        cmocka_unit_test_teardown(clear_by_others, end_what_runs),
        cmocka_unit_test_teardown(those_that_cannot, end_what_runs),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
