/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dirty MIB MBS FILE [IDLE]: MIB of private memory with content, of which MBS megabytes each second
 * are written to: a word each time, in a page chosen at random, which makes all 4096 bytes of it
 * dirty. Another thread beats every half millisecond and keeps the longest pause between two beats:
 * what a migration takes from the process.  IDLE further threads sleep for ever.
 *
 * FILE shows a struct face, mapped shared.  SIGUSR1 has the pause begin anew; SIGUSR2 has every
 * page looked at, whether it is the one that belongs there and holds all that was written.
 *
 * The wall clock, because criu has the monotonic one of a restored process go on where it stopped.
 */
#include <pthread.h>

#include "pages.h"

enum { WORDS = PAGE_WORDS, TICK_USEC = 1000, BEAT_USEC = 500 };

#define MISSED_NSEC 10000000 /* what is not written for longer than this is not made up for */

struct face {
    char state[16];               /* "filling", "running" */
    uint64_t longest_pause, beat; /* ns, wall clock */
    uint64_t written;             /* pages, since the start */
    uint64_t checks, bad;         /* checks done; pages that were wrong in the last */
    uint64_t quiet;               /* set from outside: nothing is to be written */
};

/* Word 0 of a page says which it is, word 1 how often it was written; the rest fills it. */
static struct {
    uint64_t *memory;
    size_t pages;
    double pages_per_nsec;
    uint64_t written;
    pthread_mutex_t lock; /* over memory and written */
    volatile struct face *face;
} here = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t *page_at(size_t page)
{
    return here.memory + page * WORDS;
}

static void fill(void)
{
    here.memory =
        mmap(NULL, here.pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (here.memory == MAP_FAILED)
        die("memory");
    for (size_t page = 0; page < here.pages; page++) {
        uint64_t *words = page_at(page), key = mix(page);

        page_fill(words, key);
        words[0] = key;
        words[1] = 0;
    }
}

static bool is_right(const uint64_t *words, uint64_t key)
{
    uint64_t want[WORDS];

    page_fill(want, key);
    return words[0] == key && memcmp(words + 2, want + 2, PAGE - 16) == 0;
}

static size_t count_bad(void)
{
    size_t bad = 0;
    uint64_t written = 0;

    for (size_t page = 0; page < here.pages; page++) {
        bad += !is_right(page_at(page), mix(page));
        written += page_at(page)[1];
    }
    return bad || written == here.written ? bad : 1; /* a page with an older content */
}

static _Noreturn void *keep_writing(void *unused)
{
    uint64_t last = now_ns(), random = 1;
    double owed = 0;

    (void)unused;
    for (;;) {
        uint64_t now = now_ns(), passed = now > last ? now - last : 0;

        last = now;
        if (here.face->quiet)
            passed = 0;
        owed += (double)(passed < MISSED_NSEC ? passed : MISSED_NSEC) * here.pages_per_nsec;
        pthread_mutex_lock(&here.lock);
        for (; owed >= 1; owed -= 1) {
            random = mix(random);
            page_at(random % here.pages)[1]++;
            here.written++;
        }
        pthread_mutex_unlock(&here.lock);
        here.face->written = here.written;
        sleep_us(TICK_USEC);
    }
}

static volatile sig_atomic_t anew_wanted;

static void want_anew(int sig)
{
    (void)sig;
    anew_wanted = 1;
}

static _Noreturn void *keep_beating(void *unused)
{
    volatile struct face *face = here.face;

    (void)unused;
    for (uint64_t last = now_ns();;) {
        uint64_t now = now_ns();

        if (anew_wanted) {
            anew_wanted = 0;
            face->longest_pause = 0;
        } else if (now > last && now - last > face->longest_pause) {
            face->longest_pause = now - last;
        }
        face->beat = last = now;
        sleep_us(BEAT_USEC);
    }
}

static _Noreturn void *keep_idle(void *unused)
{
    (void)unused;
    for (;;)
        pause();
}

static volatile struct face *open_face(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);

    if (fd < 0 || ftruncate(fd, PAGE) < 0)
        die(path);
    struct face *face = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (face == MAP_FAILED)
        die(path);
    close(fd);
    strcpy(face->state, "filling");
    return face;
}

static void start(void *(*run)(void *))
{
    pthread_t thread;

    errno = pthread_create(&thread, NULL, run, NULL);
    if (errno)
        die("thread");
}

int main(int argc, char **argv)
{
    bool told = argc == 4 || argc == 5;
    double mbs = told ? atof(argv[2]) : -1;

    here.pages = told ? strtoul(argv[1], NULL, 10) * 256 : 0;
    here.pages_per_nsec = mbs * 1e6 / PAGE / 1e9;
    if (here.pages == 0 || mbs < 0) {
        fprintf(stderr, "usage: dirty MIB MBS FILE [IDLE]\n");
        return 2;
    }
    settle();
    here.face = open_face(argv[3]);
    fill();
    struct sigaction action = {.sa_handler = want_anew};
    sigaction(SIGUSR1, &action, NULL);
    sigset_t checks;
    sigemptyset(&checks);
    sigaddset(&checks, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &checks, NULL);
    start(keep_writing);
    start(keep_beating);
    for (long idle = argc == 5 ? atol(argv[4]) : 0; idle > 0; idle--)
        start(keep_idle);
    strcpy((char *)here.face->state, "running");
    for (int sig; sigwait(&checks, &sig) == 0;) {
        pthread_mutex_lock(&here.lock);
        here.face->bad = count_bad();
        pthread_mutex_unlock(&here.lock);
        here.face->checks++;
    }
}
