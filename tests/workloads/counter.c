/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counter FILE: counts every millisecond and shows it in FILE, mapped shared.
 * FILE: char state[16] ("running", "corrupt"), then u64 counter, time of the last beat and longest
 * gap between beats (ns, wall clock), pid.
 */
#include "workload.h"

#define HISTORY 4096

struct face {
    char state[16];
    uint64_t counter;
    uint64_t beat;
    uint64_t longest_gap;
    uint64_t pid;
};

/* The counter and what follows from it, so that no part of it can change alone. */
struct state {
    uint64_t counter;
    uint64_t sum;              /* 1 + 2 + ... + counter */
    uint64_t history[HISTORY]; /* the last values, hashed */
};

static struct face *open_face(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    struct face *f;

    if (fd < 0 || ftruncate(fd, 4096) < 0)
        die(path);
    f = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (f == MAP_FAILED)
        die(path);
    close(fd);
    return f;
}

static uint64_t triangle(uint64_t n)
{
    return n % 2 ? n * ((n + 1) / 2) : n / 2 * (n + 1);
}

static bool consistent(const struct state *s, uint64_t copy)
{
    uint64_t n = s->counter, oldest = n >= HISTORY ? n - HISTORY + 1 : 0;
    uint64_t any = oldest + mix(n) % (n - oldest + 1);

    return n == copy && s->sum == triangle(n) && s->history[n % HISTORY] == mix(n) &&
           s->history[any % HISTORY] == mix(any) && s->history[oldest % HISTORY] == mix(oldest);
}

static void step(struct state *s)
{
    s->counter++;
    s->sum += s->counter;
    s->history[s->counter % HISTORY] = mix(s->counter);
}

static void show(struct face *f, uint64_t counter)
{
    uint64_t now = now_ns();

    if (f->beat && now > f->beat && now - f->beat > f->longest_gap)
        f->longest_gap = now - f->beat;
    f->beat = now;
    f->counter = counter;
}

int main(int argc, char **argv)
{
    static struct state s;
    volatile uint64_t copy = 0; /* on the stack, a page of its own fate */
    struct face *f;

    if (argc != 2) {
        fprintf(stderr, "usage: counter FILE\n");
        return 2;
    }
    settle();
    f = open_face(argv[1]);
    f->pid = (uint64_t)getpid();
    s.history[0] = mix(0);
    strcpy(f->state, "running");
    for (;;) {
        if (!consistent(&s, copy)) {
            strcpy(f->state, "corrupt");
            return 1;
        }
        step(&s);
        copy++;
        show(f, s.counter);
        sleep_us(1000);
    }
}
