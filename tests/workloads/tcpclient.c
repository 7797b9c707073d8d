/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcpclient ADDRESS PORT OUTFILE: keeps one connection to an echo server, sends growing numbers and
 * checks what comes back.  OUTFILE shows "ok N gap MS" (numbers echoed, longest wait for one),
 * "corrupt ..." or "lost ..." when the connection broke.
 */
#include "tcp.h"

#define BATCH 16

static bool exchange(int fd, uint64_t first, const char *out)
{
    uint64_t sent[BATCH], got[BATCH];
    size_t have = 0;

    for (size_t i = 0; i < BATCH; i++)
        sent[i] = first + i;
    if (!send_all(fd, sent, sizeof(sent)))
        return false;
    while (have < sizeof(got)) {
        ssize_t n = recv(fd, (char *)got + have, sizeof(got) - have, 0);

        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = ECONNRESET;
        if (n <= 0)
            return false;
        have += (size_t)n;
    }
    if (memcmp(sent, got, sizeof(got)) == 0)
        return true;
    report(out, "corrupt at %llu", (unsigned long long)first);
    exit(1);
}

int main(int argc, char **argv)
{
    uint64_t longest = 0;
    struct address a;
    int fd;

    if (argc != 4 || !parse_address(argv[1], argv[2], &a)) {
        fprintf(stderr, "usage: tcpclient ADDRESS PORT OUTFILE\n");
        return 2;
    }
    settle();
    fd = connect_to(&a);
    for (uint64_t n = 0;; n += BATCH) {
        uint64_t start = now_ns(), took;

        if (!exchange(fd, n, argv[3])) {
            report(argv[3], "lost at %llu: %s", (unsigned long long)n, strerror(errno));
            return 1;
        }
        took = now_ns() - start;
        if (took < UINT64_MAX / 2 && took > longest)
            longest = took;
        report(argv[3], "ok %llu gap %llu", (unsigned long long)(n + BATCH),
               (unsigned long long)(longest / 1000000));
        sleep_us(2000);
    }
}
