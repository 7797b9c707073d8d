/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/tcp.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "wire/tls.h"

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == 127;
    if (address->sa_family != AF_INET6)
        return false;
    const struct in6_addr *in6 = &((const struct sockaddr_in6 *)address)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(in6) || (IN6_IS_ADDR_V4MAPPED(in6) && in6->s6_addr[12] == 127);
}

static int refuse_beyond(const char *host, const struct protection *protection, struct error *err)
{
    if (protection->problem.code) {
        *err = protection->problem;
        return error_prefix(err, "%s is beyond this host, and the credentials are no good", host);
    }
    return error_set(err, FAILURE_USAGE,
                     "%s is beyond this host, and there are no credentials to encrypt with and to "
                     "be known by: " CREDENTIALS_ADVICE "; or go by ssh, or say --insecure",
                     host);
}

static int resolve(const char *host, const char *port, int flags,
                   const struct protection *protection, struct addrinfo **ret, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    int r = getaddrinfo(host, port, &hints, ret);
    if (r != 0)
        return error_set(err, FAILURE_PEER, "%s, port %s: %s", host, port, gai_strerror(r));
    bool protected = protection->insecure || protection->credentials;
    for (const struct addrinfo *a = *ret; a && !protected; a = a->ai_next) {
        if (is_loopback(a->ai_addr))
            continue;
        freeaddrinfo(*ret);
        *ret = NULL;
        return refuse_beyond(host, protection, err);
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

int tcp_listen(const char *host, const char *port, const struct protection *protection,
               int fds[TCP_LISTENERS_MAX], struct error *err)
{
    struct addrinfo *addresses;
    if (resolve(host, port, AI_PASSIVE, protection, &addresses, err) < 0)
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

/* Both ends look at the server's address, and so come to the same. */
static bool goes_beyond(int fd, bool is_server)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    struct sockaddr *at = (struct sockaddr *)&address;
    int r = is_server ? getsockname(fd, at, &length) : getpeername(fd, at, &length);
    return r < 0 || !is_loopback(at);
}

static bool is_internet(int fd)
{
    int family = AF_UNSPEC;
    socklen_t length = sizeof(family);
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length);
    return family == AF_INET || family == AF_INET6;
}

struct transport *tcp_transport(int fd, const struct protection *protection, const char *peer)
{
    bool beyond = goes_beyond(fd, !peer), internet = is_internet(fd);
    if (internet && protection->credentials && (beyond || protection->everywhere))
        return transport_tls(fd, protection->credentials, peer);
    struct transport *transport = transport_plain(fd);
    if (transport) {
        transport->exposed = internet && beyond;
        transport->shared = internet && !beyond && !protection->insecure;
    }
    return transport;
}

/* Not by getnameinfo(), which makes a socket to find the name of a link-local address's interface:
 * that would kill a parser (daemon/confine.h). */
void tcp_peer_name(int fd, char name[TCP_NAME_BYTES])
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    *name = '\0';
    if (!is_internet(fd) || getpeername(fd, (struct sockaddr *)&address, &length) < 0)
        return;
    const void *at = address.ss_family == AF_INET
                         ? (const void *)&((const struct sockaddr_in *)&address)->sin_addr
                         : &((const struct sockaddr_in6 *)&address)->sin6_addr;
    if (!inet_ntop(address.ss_family, at, name, TCP_NAME_BYTES))
        *name = '\0';
}

int tcp_check(const char *host, const char *port, const struct protection *protection,
              struct error *err)
{
    struct addrinfo *addresses;
    if (resolve(host, port, 0, protection, &addresses, err) < 0)
        return -1;
    freeaddrinfo(addresses);
    return 0;
}

int tcp_dial_begin(struct tcp_dial *dial, const char *host, const char *port,
                   const struct protection *protection, struct error *err)
{
    dial->addresses = dial->next = NULL;
    if (resolve(host, port, 0, protection, &dial->addresses, err) < 0)
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
