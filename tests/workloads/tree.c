/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tree OUTFILE: a family of processes that watch each other; OUTFILE shows "round N", or "corrupt
 * WHY".
 *
 *   parent ──pipe──▶ child ──pipe──▶ threaded ──pipe──▶ grandchild ──pipe──▶ parent      (the ring)
 *   parent ──pty master/slave── terminal (a session leader on the pty)
 *
 * The grandchild's father is the child.  A token goes round the ring and is checked and changed by
 * every member; the parent also keeps data lying in a pipe, a blocked signal pending, and a timer
 * running.
 */
#include "workload.h"
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <termios.h>

#define THREADS 3 /* besides the first */
#define PARKED 3000
#define TIMER_US 20000
#define ROUND_US 5000

struct token {
    uint64_t round;
    uint64_t hops;
    uint64_t check;
};

static const char *outfile;
static pid_t parent_pid, terminal_sid;
static volatile sig_atomic_t ticks, usr2_seen;

static _Noreturn void corrupt(const char *why)
{
    report(outfile, "corrupt %s", why);
    kill(parent_pid, SIGKILL);
    _exit(1);
}

static void must(bool good, const char *why)
{
    if (!good)
        corrupt(why);
}

/* Returns false at the end of the pipe.  The timer's signal interrupts reads. */
static bool read_all(int fd, void *data, size_t size)
{
    for (size_t have = 0; have < size;) {
        ssize_t n = read(fd, (char *)data + have, size - have);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        have += (size_t)n;
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)data + done, size - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* ---- the ring ---- */

static uint64_t token_check(const struct token *t)
{
    return mix(t->round * 8 + t->hops);
}

/* A member takes a token from its left neighbour, checks it, and hands it on. */
static void member(int in, int out, uint64_t place, pid_t father, void (*also)(void))
{
    uint64_t round = 0;
    struct token t;

    while (read_all(in, &t, sizeof(t))) {
        must(t.round == round + 1 && t.hops == place && t.check == token_check(&t), "token");
        must(getppid() == father, "father");
        must(getsid(0) == parent_pid, "session");
        if (also)
            also();
        round = t.round;
        t.hops++;
        t.check = token_check(&t);
        if (!write_all(out, &t, sizeof(t)))
            break;
    }
    _exit(0); /* the family is gone */
}

/* ---- threads ---- */

static __thread uint64_t own_count;
static volatile uint64_t thread_count[THREADS];
static uint64_t last_count[THREADS];

static void *thread_main(void *arg)
{
    size_t me = (size_t)(uintptr_t)arg;
    volatile uint64_t count = 0; /* on the thread's own stack */

    for (;; sleep_us(ROUND_US)) {
        must(own_count == count && thread_count[me] == count, "thread");
        own_count++;
        count++;
        thread_count[me] = count;
    }
    return NULL;
}

static void start_threads(void)
{
    pthread_t t;

    for (size_t i = 0; i < THREADS; i++)
        if (pthread_create(&t, NULL, thread_main, (void *)(uintptr_t)i) != 0)
            corrupt("cannot make threads");
}

/* In 200 rounds of the ring, about a second, every thread must have moved. */
static void watch_threads(void)
{
    static unsigned rounds;

    if (++rounds % 200)
        return;
    for (size_t i = 0; i < THREADS; i++) {
        must(thread_count[i] > last_count[i], "a thread stands still");
        last_count[i] = thread_count[i];
    }
}

/* ---- the terminal ---- */

static _Noreturn void terminal_main(int fd)
{
    uint64_t n, expect = 1;
    char line[64];

    if (setsid() < 0 || ioctl(fd, TIOCSCTTY, 0) < 0)
        corrupt("controlling terminal");
    for (;; expect++) {
        ssize_t got = read(fd, line, sizeof(line) - 1); /* a line at a time */

        if (got <= 0)
            _exit(0);
        line[got] = 0;
        n = strtoull(line, NULL, 10);
        must(n == expect, "terminal line");
        must(tcgetsid(fd) == getpid() && getsid(0) == getpid(), "terminal session");
        got = snprintf(line, sizeof(line), "%llu\n", (unsigned long long)mix(n));
        if (!write_all(fd, line, (size_t)got))
            _exit(0);
    }
}

/* Returns the master.  A read of it fails while nobody has the slave open. */
static int open_pty(int *slave)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    struct termios mode;
    char name[64];

    if (master < 0 || grantpt(master) < 0 || unlockpt(master) < 0 ||
        ptsname_r(master, name, sizeof(name)) != 0)
        corrupt("no pty");
    *slave = open(name, O_RDWR | O_NOCTTY);
    if (*slave < 0 || tcgetattr(*slave, &mode) < 0)
        corrupt("no pty slave");
    mode.c_lflag &= (tcflag_t) ~(ECHO | ECHONL);
    mode.c_oflag &= (tcflag_t)~OPOST;
    tcsetattr(*slave, TCSANOW, &mode);
    return master;
}

static void talk_to_terminal(int master, uint64_t round)
{
    char line[64], answer[64];
    size_t have = 0;
    int n = snprintf(line, sizeof(line), "%llu\n", (unsigned long long)round);

    must(write_all(master, line, (size_t)n), "terminal gone");
    do
        must(have < sizeof(answer) - 1 && read_all(master, answer + have, 1), "terminal silent");
    while (answer[have++] != '\n');
    answer[have] = 0;
    must(strtoull(answer, NULL, 10) == mix(round), "terminal answer");
}

/* ---- signals, timer, parked data ---- */

static void on_alarm(int sig)
{
    (void)sig;
    ticks++;
}

static void on_usr2(int sig)
{
    (void)sig;
    usr2_seen = 1;
}

static void prepare_signals(void)
{
    struct sigaction alarm = {.sa_handler = on_alarm},
                     usr2 = {.sa_handler = on_usr2, .sa_flags = SA_RESTART};
    struct itimerval every = {{0, TIMER_US}, {0, TIMER_US}};
    sigset_t set;

    sigemptyset(&alarm.sa_mask);
    sigemptyset(&usr2.sa_mask);
    sigaddset(&usr2.sa_mask, SIGHUP);
    sigaction(SIGALRM, &alarm, NULL);
    sigaction(SIGUSR2, &usr2, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    kill(getpid(), SIGUSR2);
    setitimer(ITIMER_REAL, &every, NULL);
}

static void watch_signals(uint64_t round)
{
    static sig_atomic_t last_ticks;
    struct sigaction sa;
    struct itimerval it;
    sigset_t set;

    sigpending(&set);
    must(sigismember(&set, SIGUSR2) == 1 && !usr2_seen, "pending signal");
    sigaction(SIGUSR2, NULL, &sa);
    must(sa.sa_handler == on_usr2 && (sa.sa_flags & SA_RESTART) &&
             sigismember(&sa.sa_mask, SIGHUP) == 1,
         "handler");
    getitimer(ITIMER_REAL, &it);
    /* The kernel may round the interval up to its clock. */
    must(it.it_interval.tv_sec == 0 && it.it_interval.tv_usec >= TIMER_US &&
             it.it_interval.tv_usec < 2 * TIMER_US,
         "timer");
    if (round % 100 == 0) {
        must(ticks != last_ticks, "timer stands still");
        last_ticks = ticks;
    }
}

static void park(int fd, uint64_t round)
{
    unsigned char data[PARKED];

    for (size_t i = 0; i < PARKED; i++)
        data[i] = (unsigned char)mix(round * PARKED + i);
    must(write_all(fd, data, PARKED), "parking pipe");
}

static void unpark(int fd, uint64_t round)
{
    unsigned char data[PARKED];

    must(read_all(fd, data, PARKED), "parked data gone");
    for (size_t i = 0; i < PARKED; i++)
        must(data[i] == (unsigned char)mix(round * PARKED + i), "parked data");
}

/* ---- the family ---- */

static pid_t child_of_me(void)
{
    pid_t pid = fork();

    if (pid < 0)
        corrupt("fork");
    return pid;
}

static void close_but(int (*ring)[2], int in, int out)
{
    for (int i = 0; i < 4; i++) {
        if (i != in)
            close(ring[i][0]);
        if (i != out)
            close(ring[i][1]);
    }
}

/* Pipe i leads to member i; member 0 is the parent. */
static void make_ring(int (*ring)[2], pid_t *ret_child, pid_t *ret_threaded)
{
    for (int i = 0; i < 4; i++)
        if (pipe(ring[i]) < 0)
            corrupt("pipe");
    *ret_child = child_of_me();
    if (*ret_child == 0) {
        pid_t me = getpid();

        if (child_of_me() == 0) {
            close_but(ring, 3, 0);
            member(ring[3][0], ring[0][1], 3, me, NULL);
        }
        close_but(ring, 1, 2);
        member(ring[1][0], ring[2][1], 1, parent_pid, NULL);
    }
    *ret_threaded = child_of_me();
    if (*ret_threaded == 0) {
        close_but(ring, 2, 3);
        start_threads();
        member(ring[2][0], ring[3][1], 2, parent_pid, watch_threads);
    }
    close_but(ring, 0, 1);
}

static void send_round(int out, int in, uint64_t round)
{
    struct token t = {.round = round, .hops = 1};

    t.check = token_check(&t);
    must(write_all(out, &t, sizeof(t)), "ring broken");
    must(read_all(in, &t, sizeof(t)), "ring broken");
    must(t.round == round && t.hops == 4 && t.check == token_check(&t), "token came back wrong");
}

int main(int argc, char **argv)
{
    int ring[4][2], parked[2], master, slave;
    pid_t child, threaded, terminal;

    if (argc != 2) {
        fprintf(stderr, "usage: tree OUTFILE\n");
        return 2;
    }
    outfile = argv[1];
    settle();
    parent_pid = getpid();
    signal(SIGPIPE, SIG_IGN);
    make_ring(ring, &child, &threaded);
    master = open_pty(&slave);
    terminal = child_of_me();
    if (terminal == 0) {
        close(master);
        close(ring[0][0]);
        close(ring[1][1]);
        terminal_main(slave);
    }
    close(slave);
    terminal_sid = terminal;
    prepare_signals();
    if (pipe(parked) < 0)
        corrupt("pipe");
    park(parked[1], 1);
    for (uint64_t round = 1;; round++) {
        unpark(parked[0], round);
        park(parked[1], round + 1);
        send_round(ring[1][1], ring[0][0], round);
        talk_to_terminal(master, round);
        watch_signals(round);
        must(getsid(terminal) == terminal_sid && getsid(child) == parent_pid &&
                 getsid(threaded) == parent_pid,
             "sessions");
        report(outfile, "round %llu", (unsigned long long)round);
        sleep_us(ROUND_US);
    }
}
