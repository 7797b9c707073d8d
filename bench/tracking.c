/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to follow the memory of a running process: the thread's standstill, the scans, what
 * the first write to a page after a scan takes, and reading it all, compared with a plain
 * process_vm_readv() of the same.
 *
 * usage: bench/tracking [--size MIB] [--dirty MBS] [--json]
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/digest.h"
#include "task/tracker.h"

enum { INTERVAL_USEC = 200000, INTERVALS = 15, BATCH_BYTES = 1 << 20 };

struct face {
    volatile uint64_t written; /* pages, since the start */
    volatile uint64_t rate;    /* pages per second */
    volatile uint64_t
        sweep; /* set by who wants each page written once; then how long it took, ns */
    volatile bool ready;
    uint8_t *volatile memory;
};
static struct face *face;

static uint64_t size_pages = 512 << 8, dirty_pages = 12800;

static uint64_t now_nsec(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void sweep(void)
{
    uint64_t began = now_nsec();
    for (uint64_t i = 0; i < size_pages; i++)
        face->memory[i * PAGE_BYTES]++;
    face->sweep = now_nsec() - began;
}

static _Noreturn void be_busy(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    face->memory = mmap(NULL, size_pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint64_t i = 0; i < size_pages; i++)
        memset(face->memory + i * PAGE_BYTES, (int)(i | 1), PAGE_BYTES);
    face->ready = true;
    uint64_t began = now_usec(), page = 0, written = 0, rate = face->rate;
    for (;;) {
        if (rate != face->rate) {
            rate = face->rate;
            began = now_usec();
            written = 0;
        }
        if (face->sweep == 1)
            sweep();
        if (written >= (now_usec() - began) * rate / USEC_PER_SEC) {
            usleep(1000);
            continue;
        }
        page = (page + 7919) % size_pages; /* a prime: no page twice before all have been written */
        face->memory[page * PAGE_BYTES + written % PAGE_BYTES]++;
        written++;
        face->written++;
    }
}

static void fail(const char *what, int r)
{
    fprintf(stderr, "bench/tracking: %s: %s\n", what, strerror(-r));
    exit(1);
}

/* One scan of the memory: how long it took, and what it found. */
static double scan(struct tracker *tracker, struct page_runs *runs)
{
    uint64_t at = (uint64_t)(uintptr_t)face->memory, began = now_usec();
    struct memory_area area = {.start = at, .end = at + size_pages * PAGE_BYTES, .anonymous = true};
    runs->count = runs->pages = 0;
    int r = tracker_scan(tracker, &area, runs);
    if (r < 0)
        fail("scan", r);
    return (double)(now_usec() - began) / 1000;
}

/* GB/s of reading all runs; with a digest of it, as a migration has. */
static double read_all(pid_t pid, const struct page_runs *runs, uint8_t *buf)
{
    struct page_run got[READ_RUNS_MAX];
    struct page_reader reader;
    struct digest digest;
    uint8_t sum[DIGEST_BYTES];
    int n = page_reader_open(&reader, pid);
    if (n < 0 || (n = digest_begin(&digest)) < 0)
        fail("reading", n);
    page_reader_begin(&reader, runs, NULL);
    uint64_t began = now_usec(), pages = 0;
    while ((n = page_reader_next(&reader, buf, BATCH_BYTES / PAGE_BYTES, got)) > 0) {
        uint64_t batch = 0;
        for (int i = 0; i < n; i++)
            batch += got[i].pages;
        digest_bytes(&digest, buf, batch * PAGE_BYTES);
        pages += batch;
    }
    digest_end(&digest, sum);
    page_reader_close(&reader);
    return (double)(pages * PAGE_BYTES) / 1000.0 / (double)MAX(now_usec() - began, 1);
}

static double read_plain(pid_t pid, uint8_t *buf)
{
    uint64_t began = now_usec();
    for (uint64_t at = 0; at < size_pages * PAGE_BYTES; at += BATCH_BYTES) {
        struct iovec here = {buf, BATCH_BYTES}, there = {face->memory + at, BATCH_BYTES};
        if (process_vm_readv(pid, &here, 1, &there, 1, 0) != BATCH_BYTES)
            fail("process_vm_readv", -errno);
    }
    return (double)(size_pages * PAGE_BYTES) / 1000.0 / (double)MAX(now_usec() - began, 1);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare);
    return values[count / 2];
}

/* Microseconds for one write to each page, per page. */
static double sweep_usec(void)
{
    face->sweep = 1;
    while (face->sweep == 1)
        usleep(1000);
    return (double)face->sweep / 1000 / (double)size_pages;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"size", required_argument, NULL, 's'},
                                            {"dirty", required_argument, NULL, 'd'},
                                            {"json", no_argument, NULL, 'j'},
                                            {0}};
    bool json = false;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 's')
            size_pages = MAX(strtoull(optarg, NULL, 10), 1) << 8;
        else if (option == 'd')
            dirty_pages = MAX(strtoull(optarg, NULL, 10), 1) * 1000000 / PAGE_BYTES;
        else if (option == 'j')
            json = true;
        else
            return 2;
    }
    face = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    face->rate = 1;
    uint8_t *buf = aligned_alloc(PAGE_BYTES, BATCH_BYTES);
    pid_t pid = fork();
    if (pid == 0)
        be_busy();
    while (!face->ready)
        usleep(1000);

    struct page_runs runs = {0};
    struct tracker tracker;
    struct error err;
    double still[INTERVALS], later[INTERVALS], seen[INTERVALS];
    double plain = read_plain(pid, buf);
    plain = MAX(plain, read_plain(pid, buf));
    for (int i = 0; i < INTERVALS; i++) {
        if (tracker_open(&tracker, pid, NULL, &err) < 0) {
            fprintf(stderr, "bench/tracking: %s\n", err.text);
            return 1;
        }
        still[i] = (double)tracker.stopped_nsec / 1e6;
        if (i < INTERVALS - 1)
            tracker_close(&tracker);
    }
    double first = scan(&tracker, &runs), speed = read_all(pid, &runs, buf);
    speed = MAX(speed, read_all(pid, &runs, buf));
    face->rate = dirty_pages;
    scan(&tracker, &runs);
    for (int i = 0; i < INTERVALS; i++) {
        uint64_t before = face->written;
        usleep(INTERVAL_USEC);
        later[i] = scan(&tracker, &runs);
        seen[i] = (double)runs.pages / (double)MAX(face->written - before, 1);
    }
    face->rate = 1;
    scan(&tracker, &runs);
    double first_write = sweep_usec(), second_write = sweep_usec();
    uint64_t began = now_usec();
    tracker_close(&tracker);
    double close_ms = (double)(now_usec() - began) / 1000;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);

    double still_ms = median(still, INTERVALS), later_ms = median(later, INTERVALS);
    double seen_ratio = median(seen, INTERVALS);
    unsigned long mib = size_pages >> 8, mbs = dirty_pages * PAGE_BYTES / 1000000;
    if (json)
        printf("{\"size_mib\": %lu, \"dirty_mb_s\": %lu, \"stopped_ms\": %.3f, "
               "\"first_scan_ms\": %.3f, \"scan_ms\": %.3f, \"seen\": %.3f, \"read_gb_s\": %.2f, "
               "\"plain_gb_s\": %.2f, \"first_write_us\": %.3f, \"second_write_us\": %.3f, "
               "\"close_ms\": %.3f}\n",
               mib, mbs, still_ms, first, later_ms, seen_ratio, speed, plain, first_write,
               second_write, close_ms);
    else
        printf("%lu MiB, %lu MB/s dirtied, a scan each %d ms\n"
               "  a thread stands still     %8.3f ms, once\n"
               "  first scan                %8.3f ms\n"
               "  later scans               %8.3f ms\n"
               "  pages seen / written      %8.3f\n"
               "  reading and digest        %8.2f GB/s\n"
               "  process_vm_readv alone    %8.2f GB/s, ratio %.2f\n"
               "  first write to a page     %8.3f us; the second %.3f us\n"
               "  letting go                %8.3f ms\n",
               mib, mbs, INTERVAL_USEC / 1000, still_ms, first, later_ms, seen_ratio, speed, plain,
               speed / plain, first_write, second_write, close_ms);
    return 0;
}
