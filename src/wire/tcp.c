/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/tcp.h"

#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    if (address->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
    return false;
}

static int resolve(const char *host, const char *port, int flags, bool insecure,
                   struct addrinfo **ret, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    int r = getaddrinfo(host, port, &hints, ret);
    if (r != 0)
        return error_set(err, FAILURE_PEER, "%s, port %s: %s", host, port, gai_strerror(r));
    for (const struct addrinfo *a = *ret; a && !insecure; a = a->ai_next) {
        if (is_loopback(a->ai_addr))
            continue;
        freeaddrinfo(*ret);
        *ret = NULL;
        return error_set(err, FAILURE_USAGE,
                         "%s is beyond this host, and the link is neither encrypted nor "
                         "authenticated yet: go through a tunnel on localhost, or say --insecure",
                         host);
    }
    return 0;
}

static int listen_on(const struct addrinfo *address)
{
    _cleanup_close_ int fd =
        socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (address->ai_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, 16) < 0)
        return -errno;
    return TAKE_FD(fd);
}

int tcp_listen(const char *host, const char *port, bool insecure, int fds[TCP_LISTENERS_MAX],
               struct error *err)
{
    struct addrinfo *addresses;
    if (resolve(host, port, AI_PASSIVE, insecure, &addresses, err) < 0)
        return -1;
    int count = 0, last_error = 0;
    for (const struct addrinfo *a = addresses; a && count < TCP_LISTENERS_MAX; a = a->ai_next) {
        int fd = listen_on(a);
        if (fd >= 0) {
            fds[count++] = fd;
        } else if (fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL) {
            last_error = fd;
            break;
        }
    }
    freeaddrinfo(addresses);
    if (count > 0 && last_error == 0)
        return count;
    while (count > 0)
        close_fd(fds[--count]);
    return error_set_errno(err, FAILURE_SYSTEM, last_error ? last_error : -EADDRNOTAVAIL,
                           "listening on %s, port %s", host, port);
}

int tcp_dial_begin(struct tcp_dial *dial, const char *host, const char *port, bool insecure,
                   struct error *err)
{
    dial->addresses = dial->next = NULL;
    if (resolve(host, port, 0, insecure, &dial->addresses, err) < 0)
        return -1;
    dial->next = dial->addresses;
    error_set(err, FAILURE_PEER, "%s, port %s: no address", host, port);
    return tcp_dial_next(dial, err);
}

int tcp_dial_next(struct tcp_dial *dial, struct error *err)
{
    while (dial->next) {
        const struct addrinfo *a = dial->next;
        dial->next = a->ai_next;
        _cleanup_close_ int fd =
            socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd >= 0 && (connect(fd, a->ai_addr, a->ai_addrlen) == 0 || errno == EINPROGRESS))
            return TAKE_FD(fd);
        error_set_errno(err, FAILURE_PEER, errno, "connecting");
    }
    return -1;
}

void tcp_dial_end(struct tcp_dial *dial)
{
    if (dial->addresses)
        freeaddrinfo(dial->addresses);
    dial->addresses = dial->next = NULL;
}
