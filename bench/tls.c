/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick for links over TLS: how fast one process sends memory to another by GnuTLS,
 * blocking, in records of 16 KiB, with the cipher that godwit asks for first.
 *
 * usage: bench-tls [--size MIB] [--runs N]
 *
 * Prints megabytes per second over loopback, the median of the runs.
 */
#include <errno.h>
#include <getopt.h>
#include <gnutls/gnutls.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RECORD_BYTES = 16 << 10, MEMORY_BYTES = 32 << 20, RUNS_MAX = 100 };

static const char priority[] =
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:-KX-ALL:+ECDHE-PSK";
static unsigned char secret[32] = "nobody else is to know this key";
static size_t size_bytes = (size_t)512 << 20;
static int runs = 5;

static _Noreturn void fail(const char *what, int r)
{
    fprintf(stderr, "bench-tls: %s: %s\n", what, r ? gnutls_strerror(r) : strerror(errno));
    exit(1);
}

static double now_seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int on_psk(gnutls_session_t session, const char *name, gnutls_datum_t *key)
{
    (void)session;
    (void)name;
    key->data = gnutls_malloc(sizeof(secret));
    key->size = sizeof(secret);
    memcpy(key->data, secret, sizeof(secret));
    return 0;
}

static gnutls_session_t session_open(int fd, unsigned side)
{
    gnutls_session_t session;
    gnutls_psk_client_credentials_t client;
    gnutls_psk_server_credentials_t server;
    const gnutls_datum_t key = {secret, sizeof(secret)};
    int r = gnutls_init(&session, side | GNUTLS_NO_TICKETS);
    if (r < 0 || (r = gnutls_priority_set_direct(session, priority, NULL)) < 0)
        fail("a session", r);
    if (side == GNUTLS_CLIENT) {
        gnutls_psk_allocate_client_credentials(&client);
        gnutls_psk_set_client_credentials(client, "bench", &key, GNUTLS_PSK_KEY_RAW);
        gnutls_credentials_set(session, GNUTLS_CRD_PSK, client);
    } else {
        gnutls_psk_allocate_server_credentials(&server);
        gnutls_psk_set_server_credentials_function(server, on_psk);
        gnutls_credentials_set(session, GNUTLS_CRD_PSK, server);
    }
    gnutls_transport_set_int(session, fd);
    r = gnutls_handshake(session);
    if (r < 0)
        fail("the handshake", r);
    return session;
}

static uint8_t *touched_memory(void)
{
    uint8_t *memory = malloc(MEMORY_BYTES);
    if (!memory)
        fail("memory", 0);
    for (size_t i = 0; i < MEMORY_BYTES; i++)
        memory[i] = (uint8_t)(i * 7 + (i >> 12));
    return memory;
}

static _Noreturn void send_all(int fd)
{
    uint8_t *memory = touched_memory();
    gnutls_session_t session = session_open(fd, GNUTLS_CLIENT);
    for (size_t done = 0; done < size_bytes; done += RECORD_BYTES) {
        ssize_t n = gnutls_record_send(session, memory + done % MEMORY_BYTES, RECORD_BYTES);
        if (n != RECORD_BYTES)
            fail("sending", (int)n);
    }
    exit(0);
}

static double receive_all(int fd)
{
    uint8_t *memory = touched_memory();
    gnutls_session_t session = session_open(fd, GNUTLS_SERVER);
    double began = now_seconds();
    for (size_t done = 0; done < size_bytes;) {
        ssize_t n = gnutls_record_recv(session, memory + done % MEMORY_BYTES, RECORD_BYTES);
        if (n <= 0)
            fail("receiving", (int)n);
        done += (size_t)n;
    }
    double seconds = now_seconds() - began;
    gnutls_deinit(session);
    free(memory);
    return (double)size_bytes / 1e6 / seconds;
}

static double measure(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 ||
        listen(listener, 1) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("a socket", 0);
    pid_t child = fork();
    if (child == 0) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, length) < 0)
            fail("connecting", 0);
        send_all(fd);
    }
    int fd = accept(listener, NULL, NULL);
    if (child < 0 || fd < 0)
        fail("a connection", 0);
    double rate = receive_all(fd);
    close(fd);
    close(listener);
    waitpid(child, NULL, 0);
    return rate;
}

static int compare(const void *a, const void *b)
{
    return *(const double *)a < *(const double *)b ? -1 : 1;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"size", required_argument, NULL, 's'}, {"runs", required_argument, NULL, 'r'}, {0}};
    int found;
    while ((found = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (found == 's')
            size_bytes = (size_t)strtoul(optarg, NULL, 10) << 20;
        else if (found == 'r')
            runs = atoi(optarg);
        else
            return 2;
    }
    double rates[RUNS_MAX];
    if (runs < 1 || runs > RUNS_MAX || size_bytes == 0)
        return 2;
    for (int i = 0; i < runs; i++)
        rates[i] = measure();
    qsort(rates, (size_t)runs, sizeof(rates[0]), compare);
    printf("%.0f\n", rates[runs / 2]);
    return 0;
}
