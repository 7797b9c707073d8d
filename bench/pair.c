/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick for godwit's rounds: how fast one process reads the memory of another with
 * process_vm_readv() and sends it, while a third receives it into memory that is there already.
 * Nothing is looked at, and nothing is checked.
 *
 * usage: bench-pair [--size MIB] [--runs N]    both ends here, over loopback
 *        bench-pair --listen ADDRESS ...       the receiver; says "listening"
 *        bench-pair --connect ADDRESS ...      the reader, and whose memory it reads
 *
 * Prints megabytes per second, the median of the runs.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORT = 9003, BATCH_BYTES = 1 << 20, RUNS_MAX = 100 };

static size_t size_bytes = (size_t)512 << 20;
static int runs = 5;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "bench-pair: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static uint8_t *touched_memory(void)
{
    uint8_t *memory =
        mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("memory");
    for (size_t at = 0; at < size_bytes; at += sizeof(uint64_t))
        *(uint64_t *)(memory + at) = at | 1;
    return memory;
}

static struct sockaddr_in address_of(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
        fprintf(stderr, "bench-pair: %s: not an address\n", text);
        exit(2);
    }
    return address;
}

static int listen_at(const char *text)
{
    struct sockaddr_in address = address_of(text);
    int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0)
        fail(text);
    return fd;
}

/* ---- the receiver ---- */

static void receive(int listener)
{
    uint8_t *memory = touched_memory();
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        fail("accept");
    for (int run = 0; run < runs; run++) {
        for (size_t at = 0; at < size_bytes;) {
            ssize_t n = recv(fd, memory + at, size_bytes - at, 0);
            if (n <= 0)
                fail("recv");
            at += (size_t)n;
        }
        if (send(fd, "", 1, 0) != 1) /* it is here */
            fail("send");
    }
    close(fd);
}

/* ---- the reader ---- */

static void send_batch(int fd, const uint8_t *batch)
{
    for (size_t at = 0; at < BATCH_BYTES;) {
        ssize_t n = send(fd, batch + at, BATCH_BYTES - at, 0);
        if (n < 0)
            fail("send");
        at += (size_t)n;
    }
}

/* Seconds until the receiver has it all. */
static double send_all(int fd, pid_t pid, uint8_t *memory, uint8_t *batch)
{
    char here;
    double began = now_seconds();
    for (size_t at = 0; at < size_bytes; at += BATCH_BYTES) {
        struct iovec local = {batch, BATCH_BYTES}, remote = {memory + at, BATCH_BYTES};
        if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != BATCH_BYTES)
            fail("process_vm_readv");
        send_batch(fd, batch);
    }
    if (recv(fd, &here, 1, 0) != 1)
        fail("recv");
    return now_seconds() - began;
}

static pid_t sleeper(void)
{
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    return pid;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The sleeper's memory is what this process filled: shared with it, at the same address. */
static void read_and_send(const char *text)
{
    struct sockaddr_in address = address_of(text);
    uint8_t *memory = touched_memory(), *batch = aligned_alloc(4096, BATCH_BYTES);
    double seconds[RUNS_MAX];
    pid_t pid = sleeper();
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (!batch || fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail(text);
    for (int run = 0; run < runs; run++)
        seconds[run] = send_all(fd, pid, memory, batch);
    qsort(seconds, (size_t)runs, sizeof(*seconds), compare);
    printf("%.0f\n", (double)size_bytes / 1e6 / seconds[runs / 2]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(fd);
    free(batch);
}

static void both_ends(void)
{
    int listener = listen_at("127.0.0.1");
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        receive(listener);
        exit(0);
    }
    read_and_send("127.0.0.1");
    waitpid(pid, NULL, 0);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"size", required_argument, NULL, 's'},
                                            {"runs", required_argument, NULL, 'r'},
                                            {"listen", required_argument, NULL, 'l'},
                                            {"connect", required_argument, NULL, 'c'},
                                            {0}};
    const char *listen_address = NULL, *connect_address = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 's')
            size_bytes = (size_t)strtoul(optarg, NULL, 10) << 20;
        else if (option == 'r')
            runs = atoi(optarg);
        else if (option == 'l')
            listen_address = optarg;
        else if (option == 'c')
            connect_address = optarg;
        else
            return 2;
    }
    if (size_bytes == 0 || runs < 1 || runs > RUNS_MAX || optind != argc)
        return 2;
    if (listen_address) {
        int listener = listen_at(listen_address);
        puts("listening");
        fflush(stdout);
        receive(listener);
    } else if (connect_address) {
        read_and_send(connect_address);
    } else {
        both_ends();
    }
    return 0;
}
