/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/owner.h"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/diag.h"
#include "wire/credentials.h"

/* The socket at the other end. */
struct far_end {
    uid_t uid;
    uint64_t inode;
};

struct tcp_question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 ask;
};

struct unix_question {
    struct nlmsghdr header;
    struct unix_diag_req ask;
};

enum { ANSWER_MAX = 1024 };

/* Asks, and takes the answer, which has at least so many bytes behind its header.  0, or a negative
 * errno. */
static int diag_ask(int diag, const struct nlmsghdr *question, void *answer, size_t least)
{
    ssize_t n;
    if (send(diag, question, question->nlmsg_len, 0) < 0)
        return -errno;
    do {
        n = recv(diag, answer, ANSWER_MAX, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    const struct nlmsghdr *header = answer;
    if (!NLMSG_OK(header, (size_t)n))
        return -EPROTO;
    if (header->nlmsg_type == NLMSG_ERROR) {
        const struct nlmsgerr *error = NLMSG_DATA(header);
        return header->nlmsg_len >= NLMSG_LENGTH(sizeof(*error)) && error->error < 0 ? error->error
                                                                                     : -EPROTO;
    }
    return header->nlmsg_type == SOCK_DIAG_BY_FAMILY && header->nlmsg_len >= NLMSG_LENGTH(least)
               ? 0
               : -EPROTO;
}

/* ---- TCP ---- */

static void take_address(const struct sockaddr_storage *address, uint32_t ret[4], uint16_t *port)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
    bool six = address->ss_family == AF_INET6;
    *port = six ? in6->sin6_port : in->sin_port;
    if (six)
        memcpy(ret, &in6->sin6_addr, sizeof(in6->sin6_addr));
    else
        memcpy(ret, &in->sin_addr, sizeof(in->sin_addr));
}

/* Asks for the socket whose far end is ours. */
static int tcp_question_make(int fd, struct tcp_question *ret)
{
    struct sockaddr_storage here = {0}, there = {0};
    socklen_t here_length = sizeof(here), there_length = sizeof(there);
    if (getsockname(fd, (struct sockaddr *)&here, &here_length) < 0 ||
        getpeername(fd, (struct sockaddr *)&there, &there_length) < 0)
        return -errno;
    *ret = (struct tcp_question){
        .header = {.nlmsg_len = sizeof(*ret),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .ask = {.sdiag_family = (uint8_t)here.ss_family,
                .sdiag_protocol = IPPROTO_TCP,
                .idiag_states = UINT32_MAX,
                .id.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}},
    };
    take_address(&there, ret->ask.id.idiag_src, &ret->ask.id.idiag_sport);
    take_address(&here, ret->ask.id.idiag_dst, &ret->ask.id.idiag_dport);
    return 0;
}

/* A socket that has not been accepted, or is closed, is told of as if it were root's. */
static int tcp_far_end(int fd, struct far_end *ret)
{
    char answer[ANSWER_MAX] __attribute__((aligned(NLMSG_ALIGNTO)));
    struct tcp_question question;
    int r = tcp_question_make(fd, &question);
    if (r < 0)
        return r;
    _cleanup_close_ int diag = diag_socket();
    const struct inet_diag_msg *told = NLMSG_DATA((struct nlmsghdr *)answer);
    r = diag < 0 ? diag : diag_ask(diag, &question.header, answer, sizeof(*told));
    if (r < 0)
        return r;
    bool open = told->idiag_state == TCP_ESTABLISHED || told->idiag_state == TCP_CLOSE_WAIT;
    if (!open || told->idiag_inode == 0)
        return -ENOENT;
    *ret = (struct far_end){.uid = told->idiag_uid, .inode = told->idiag_inode};
    return 0;
}

int tcp_owner(int fd, uid_t *ret)
{
    struct far_end end;
    int r = tcp_far_end(fd, &end);
    if (r == 0)
        *ret = end.uid;
    return r;
}

int tcp_check_owner(int fd, struct error *err)
{
    uid_t uid;
    int r = tcp_owner(fd, &uid);
    if (r == -ENOENT)
        return 0;
    if (r < 0)
        return error_set_errno(err, FAILURE_PEER, r,
                               "loopback is every user's, and whose the other end is cannot be told"
                               " (credentials would tell: " CREDENTIALS_ADVICE ")");
    if (uid == 0 || uid == geteuid())
        return 1;
    return error_set(err, FAILURE_PEER,
                     "loopback is every user's, and the other end belongs to user %u, who is not "
                     "trusted without credentials: " CREDENTIALS_ADVICE,
                     (unsigned)uid);
}

/* ---- UNIX ---- */

int unix_check_owner(int fd, struct error *err)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return error_set_errno(err, FAILURE_PEER, errno, "whose the other end is cannot be told");
    if (peer.uid == 0 || peer.uid == geteuid())
        return 0;
    return error_set(err, FAILURE_PEER, "it belongs to user %u, who is not trusted",
                     (unsigned)peer.uid);
}

/* An accepted socket belongs to the network namespace of who has connected. */
static int unix_peer_inode(int fd, uint64_t *ret)
{
    char answer[ANSWER_MAX] __attribute__((aligned(NLMSG_ALIGNTO)));
    struct stat st;
    _cleanup_close_ int netns = ioctl(fd, SIOCGSKNS);
    if (netns < 0 || fstat(fd, &st) < 0)
        return -errno;
    struct unix_question question = {
        .header = {.nlmsg_len = sizeof(question),
                   .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                   .nlmsg_flags = NLM_F_REQUEST},
        .ask = {.sdiag_family = AF_UNIX,
                .udiag_states = UINT32_MAX,
                .udiag_ino = (uint32_t)st.st_ino,
                .udiag_show = UDIAG_SHOW_PEER,
                .udiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}},
    };
    _cleanup_close_ int diag = diag_socket_in(netns);
    int r =
        diag < 0 ? diag : diag_ask(diag, &question.header, answer, sizeof(struct unix_diag_msg));
    if (r < 0)
        return r;
    uint32_t peer = diag_unix_peer((struct nlmsghdr *)answer);
    if (peer == 0)
        return -ENOENT;
    *ret = peer;
    return 0;
}

/* ---- either ---- */

int socket_peer_inode(int fd, uint64_t *ret)
{
    int domain;
    socklen_t length = sizeof(domain);
    struct far_end end;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0)
        return -errno;
    if (domain == AF_UNIX)
        return unix_peer_inode(fd, ret);
    int r = tcp_far_end(fd, &end);
    if (r == 0)
        *ret = end.inode;
    return r;
}
