/* SPDX-License-Identifier: Apache-2.0 */
/* tcpecho ADDRESS PORT OUTFILE: a TCP echo server; OUTFILE shows "listening", then "echoed BYTES".
 */
#include "tcp.h"
#include <poll.h>

#define CONNECTIONS 64

static struct pollfd fds[CONNECTIONS + 1];
static nfds_t n_fds = 1;

static void welcome(void)
{
    int fd = accept4(fds[0].fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd >= 0 && n_fds == CONNECTIONS + 1)
        close(fd);
    else if (fd >= 0)
        fds[n_fds++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

/* Echoes what is there; returns the number of bytes, 0 when the peer has gone. */
static size_t echo(int fd)
{
    char data[65536];
    ssize_t n = recv(fd, data, sizeof(data), 0);

    return n > 0 && send_all(fd, data, (size_t)n) ? (size_t)n : 0;
}

int main(int argc, char **argv)
{
    unsigned long long echoed = 0;
    struct address a;

    if (argc != 4 || !parse_address(argv[1], argv[2], &a)) {
        fprintf(stderr, "usage: tcpecho ADDRESS PORT OUTFILE\n");
        return 2;
    }
    settle();
    fds[0] = (struct pollfd){.fd = listen_on(&a), .events = POLLIN};
    report(argv[3], "listening");
    for (;;) {
        if (poll(fds, n_fds, -1) < 0)
            continue;
        for (nfds_t i = n_fds - 1; i > 0; i--) {
            size_t n = fds[i].revents ? echo(fds[i].fd) : 1;

            if (n == 0) {
                close(fds[i].fd);
                fds[i] = fds[--n_fds];
            } else if (fds[i].revents) {
                report(argv[3], "echoed %llu", echoed += n);
            }
        }
        if (fds[0].revents)
            welcome();
    }
}
