/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/pager.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
    BATCH_PAGES = 64, /* placed between two looks for faults */
    TASKS_MAX = 1 << 15,
    RETRY_USEC = 10000, /* when memory has run out */
    STOPPED = 0,        /* exit status of a worker that was asked to end */
    FILLED = 1,         /* ... that has nothing left to do */
    FAILED = 2,
    CHANGED = 3, /* ... that has told of a change */
};

struct pager {
    const struct pager_ops *ops;
    void *user;
    int connection; /* -EBADF: all has been handed over */
    struct fill *fills;
    size_t count, room;
    struct fill_shared *shared;

    pid_t worker; /* 0: none */
    int worker_pidfd;
    int leash; /* a byte tells the worker to end, a break that it is alone; back come changes */
};

/* ---- tasks ---- */

static int add_fill(struct pager *pager, const struct fill *fill)
{
    if (pager->count == TASKS_MAX)
        return -E2BIG;
    if (pager->count == pager->room) {
        size_t room = MAX(16, 2 * pager->room);
        struct fill *grown = realloc(pager->fills, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        pager->fills = grown;
        pager->room = room;
    }
    pager->fills[pager->count++] = *fill;
    return 0;
}

static bool is_filled(const struct pager *pager)
{
    for (size_t i = 0; i < pager->count; i++) {
        if (fill_left(&pager->fills[i]) > 0)
            return false;
    }
    return true;
}

static void pager_free(struct pager *pager)
{
    for (size_t i = 0; i < pager->count; i++)
        fill_close(&pager->fills[i]);
    free(pager->fills);
    close_fd(pager->connection);
    munmap(pager->shared, sizeof(*pager->shared));
}

/* ---- changes: the worker tells them to the guardian, who starts another worker ---- */

struct change_message {
    size_t index; /* of the task */
    struct fill_change change;
};

static int send_change(int fd, const struct change_message *message)
{
    struct iovec iov = {(void *)message, sizeof(*message)};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct msghdr packet = {.msg_iov = &iov, .msg_iovlen = 1};
    if (message->change.uffd >= 0) {
        packet.msg_control = &control;
        packet.msg_controllen = sizeof(control);
        control.header = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), &message->change.uffd, sizeof(int));
    }
    return sendmsg(fd, &packet, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* False when there is none. */
static bool receive_change(int fd, struct change_message *ret)
{
    struct iovec iov = {ret, sizeof(*ret)};
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr packet = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = &control,
                            .msg_controllen = sizeof(control)};
    if (recvmsg(fd, &packet, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != sizeof(*ret))
        return false;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&packet);
    ret->change.uffd = -EBADF;
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(&ret->change.uffd, CMSG_DATA(header), sizeof(int));
    return true;
}

static int apply_change(struct pager *pager, const struct change_message *message)
{
    struct fill *fill = &pager->fills[message->index], child;
    const struct fill_change *change = &message->change;
    if (change->kind == FILL_MOVED)
        return fill_move(fill, change->from, change->to, change->length);
    int r = fill_fork(&child, fill, change->uffd);
    if (r == 0 && (r = add_fill(pager, &child)) < 0)
        fill_close(&child);
    return r;
}

/* ---- the worker ---- */

static int guard(struct pager *pager);

struct worker {
    struct pager *pager;
    int epoll;
    size_t next; /* task to fill */
};

static int watch(int epoll, int fd, uint64_t data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = data};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* The guardian was killed: this process is what it was. */
static _Noreturn void become_guardian(struct pager *pager)
{
    pager->leash = close_fd(pager->leash);
    _exit(guard(pager) < 0 ? FAILED : FILLED);
}

static _Noreturn void pass_on(struct pager *pager, const struct change_message *message)
{
    int r = send_change(pager->leash, message);
    bool alone = r == -EPIPE || r == -ECONNRESET;
    if (alone)
        r = apply_change(pager, message);
    if (r == 0)
        pager->shared->unrecorded = false;
    if (alone && r == 0)
        become_guardian(pager);
    _exit(r == 0 ? CHANGED : FAILED);
}

static int on_event(struct worker *worker, size_t index)
{
    struct pager *pager = worker->pager;
    struct change_message message = {.index = index};
    int r = fill_event(&pager->fills[index], pager->shared, &message.change);
    if (r == 1)
        pass_on(pager, &message);
    if (r == -ENOMEM)
        usleep(RETRY_USEC);
    return r == -EAGAIN || r == -ENOMEM ? 0 : r;
}

/* Answers all that is asked.  0 or a negative errno; *ret_told: something was. */
static int worker_listen(struct worker *worker, int timeout_msec, bool *ret_told)
{
    enum { AT_ONCE = 64 };
    struct epoll_event events[AT_ONCE];
    int n = epoll_wait(worker->epoll, events, AT_ONCE, timeout_msec);
    *ret_told = n > 0;
    for (int i = 0; i < n; i++) {
        if (events[i].data.u64 == 0) {
            char byte;
            if (read(worker->pager->leash, &byte, 1) == 1)
                _exit(STOPPED);
            become_guardian(worker->pager);
        }
        int r = on_event(worker, events[i].data.u64 - 1);
        if (r < 0)
            return r;
    }
    return 0;
}

/* The next pages of the next task that lacks some.  False when none does. */
static bool worker_fill(struct worker *worker, int *ret)
{
    struct pager *pager = worker->pager;
    for (size_t i = 0; i < pager->count; i++) {
        struct fill *fill = &pager->fills[worker->next++ % pager->count];
        if (fill->over || fill->at_run >= fill->count)
            continue;
        *ret = fill_some(fill, BATCH_PAGES);
        return true;
    }
    return false;
}

static int work(struct worker *worker)
{
    struct pager *pager = worker->pager;
    bool idle = false;
    for (;;) {
        bool told;
        int r = worker_listen(worker, idle ? -1 : 0, &told);
        if (r < 0)
            return r;
        if (told) {
            idle = false;
            continue; /* faults before anything else */
        }
        if (worker_fill(worker, &r)) {
            if (r == -ENOMEM)
                usleep(RETRY_USEC);
            else if (r < 0 && r != -EAGAIN)
                return r;
        } else if (pager->shared->finished && is_filled(pager)) {
            return FILLED;
        } else {
            idle = true;
        }
    }
}

static _Noreturn void be_worker(struct pager *pager)
{
    struct worker worker = {.pager = pager, .epoll = epoll_create1(EPOLL_CLOEXEC)};
    int r = worker.epoll < 0 ? -errno : watch(worker.epoll, pager->leash, 0);
    for (size_t i = 0; i < pager->count && r == 0; i++) {
        /* It goes through all again: the bitmap knows what is done. */
        pager->fills[i].at_run = 0;
        pager->fills[i].at_page = 0;
        r = watch(worker.epoll, pager->fills[i].uffd, i + 1);
        fill_ask_again(&pager->fills[i]);
    }
    if (r == 0)
        r = work(&worker);
    _exit(r < 0 ? FAILED : r);
}

/* ---- the guardian ---- */

static int start_worker(struct pager *pager)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        close_fd(pair[1]);
        pager->leash = pair[0];
        be_worker(pager);
    }
    close_fd(pair[0]);
    if (pid < 0) {
        close_fd(pair[1]);
        return -errno;
    }
    pager->worker = pid;
    pager->leash = pair[1];
    pager->worker_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    return pager->worker_pidfd < 0 ? -errno : 0;
}

/* What a worker that has ended leaves: 0 when another can go on where it was, 1 when there is
 * nothing left to do, or a negative errno. */
static int reap_worker(struct pager *pager)
{
    struct change_message message;
    int status = 0, r = 0;
    while (waitpid(pager->worker, &status, 0) < 0 && errno == EINTR)
        ;
    while (r == 0 && receive_change(pager->leash, &message)) {
        r = apply_change(pager, &message);
        pager->shared->unrecorded = false;
    }
    pager->worker = 0;
    pager->worker_pidfd = close_fd(pager->worker_pidfd);
    pager->leash = close_fd(pager->leash);
    if (r < 0)
        return r;
    if (WIFEXITED(status) && WEXITSTATUS(status) == FILLED)
        return 1;
    bool failed = WIFEXITED(status) && WEXITSTATUS(status) == FAILED;
    return failed || pager->shared->unrecorded ? -EIO : 0;
}

/* Between two workers nobody answers: a fault waits for as long. */
static int replace_worker(struct pager *pager)
{
    int r = 0;
    if (pager->worker > 0) {
        if (send(pager->leash, "", 1, MSG_NOSIGNAL) != 1)
            kill(pager->worker, SIGKILL);
        r = reap_worker(pager);
    }
    return r < 0 ? r : start_worker(pager);
}

static int take_task(struct pager *pager, uint32_t pid, int uffd)
{
    struct pager_source source = {.fd = -EBADF};
    struct fill fill;
    int r = pager->ops->source(pager->user, pid, &source);
    if (r < 0) {
        close_fd(uffd);
        return r;
    }
    r = fill_open(&fill, (pid_t)pid, uffd, source.fd, source.runs, source.count);
    free(source.runs);
    if (r == 0 && (r = add_fill(pager, &fill)) < 0)
        fill_close(&fill);
    return r < 0 ? r : replace_worker(pager);
}

/* What criu hands over next.  0, or a negative errno. */
static int on_connection(struct pager *pager)
{
    uint32_t pid;
    int uffd;
    switch (pager->ops->take(pager->connection, &pid, &uffd)) {
    case PAGER_TASK:
        return take_task(pager, pid, uffd);
    case PAGER_FINISHED:
        pager->shared->finished = true;
        pager->connection = close_fd(pager->connection);
        return replace_worker(pager); /* one that was idle looks again */
    case PAGER_GONE:
        return -ECANCELED;
    default:
        return 0;
    }
}

static int on_worker(struct pager *pager)
{
    int r = reap_worker(pager);
    return r == 0 ? start_worker(pager) : r;
}

/* Until all is filled: 0.  Or a negative errno. */
static int guard(struct pager *pager)
{
    pager->worker = 0;
    int r = pager->shared->unrecorded ? -EIO : start_worker(pager);
    while (r == 0) {
        struct pollfd fds[] = {{.fd = pager->worker_pidfd, .events = POLLIN},
                               {.fd = pager->connection, .events = POLLIN}};
        if (poll(fds, ARRAY_SIZE(fds), -1) < 0)
            continue;
        if (fds[0].revents)
            r = on_worker(pager);
        else if (fds[1].revents)
            r = on_connection(pager);
    }
    if (pager->worker > 0) {
        kill(pager->worker, SIGKILL);
        reap_worker(pager);
    }
    if (r < 0 && r != -ECANCELED && pager->count > 0) {
        pager->ops->lost(pager->user, strerror(-r));
        r = -EIO;
    }
    pager_free(pager);
    return r < 0 ? r : 0;
}

int pager_run(int connection, const struct pager_ops *ops, void *user)
{
    struct pager pager = {.ops = ops,
                          .user = user,
                          .connection = connection,
                          .worker_pidfd = -EBADF,
                          .leash = -EBADF};
    void *shared = mmap(NULL, sizeof(*pager.shared), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        close_fd(connection);
        return -errno;
    }
    pager.shared = shared;
    return guard(&pager);
}
