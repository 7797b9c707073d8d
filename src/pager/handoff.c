/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include "pager/leader.h"

enum { MESSAGES_AT_ONCE = 64, FDS_WITHOUT_TASKS = 256 };

static void end_handoff(struct pager *pager)
{
    int fd = pager->book->socket;
    __atomic_store_n(&pager->book->socket, -1, __ATOMIC_SEQ_CST);
    close_fd(fd);
}

static void fail_handoff(struct pager *pager, const char *text)
{
    pager_fail(pager, text);
    end_handoff(pager); /* criu fails when it goes on, and removes what it has built */
}

void handoff_take_arrival(struct pager *pager)
{
    int32_t pid;
    int uffd;
    if (lazy_arrival_task(&pager->book->arrival, &pid, &uffd) && record_find(pager, uffd) < 0 &&
        record_add_task(pager, pid, uffd) < 0) {
        fail_handoff(pager, "too many tasks");
        return; /* it stays in the book, and open */
    }
    lazy_arrival_clear(&pager->book->arrival);
}

/* Whether a descriptor more can be had: one that comes and finds no place is lost. */
static bool room_for_descriptor(const struct pager *pager)
{
    int fd = fcntl(pager->book->state_fd, F_DUPFD_CLOEXEC, 0);
    close_fd(fd);
    return fd >= 0;
}

static void take_item(struct pager *pager, const struct lazy_item *item)
{
    struct error err;
    if (item->kind == LAZY_FINISHED)
        __atomic_store_n(&pager->book->finished, 1, __ATOMIC_SEQ_CST);
    if (item->kind == LAZY_TASK && !room_for_descriptor(pager)) {
        fail_handoff(pager, "too many open files");
        return;
    }
    if (lazy_take(pager->book->socket, item, &pager->book->arrival, &err) < 0) {
        fail_handoff(pager, err.text);
        return;
    }
    if (item->kind == LAZY_TASK)
        handoff_take_arrival(pager);
    if (item->kind == LAZY_FINISHED)
        end_handoff(pager);
}

void handoff_read(struct pager *pager)
{
    struct lazy_item item;
    struct error err;
    if (pager->book->finished)
        end_handoff(pager); /* it was read by a leader that is dead now */
    for (unsigned i = 0; i < MESSAGES_AT_ONCE && pager->book->socket >= 0; i++) {
        int r = lazy_peek(pager->book->socket, &item, &err);
        if (r == -EAGAIN) {
            /* What is there already would wake us for ever. */
            struct pollfd poller = {.fd = pager->book->socket, .events = POLLIN};
            pager->pending |= poll(&poller, 1, 0) > 0;
            return;
        }
        if (r == -ENODATA)
            fail_handoff(pager, "criu has given the restore up");
        else if (r < 0)
            fail_handoff(pager, err.text);
        else
            take_item(pager, &item);
    }
}

void handoff_connected(struct pager *pager)
{
    struct book *book = pager->book;
    int listener = book->listener, workdir = book->workdir;
    if (book->socket < 0 || listener < 0)
        return;
    if (pager->state->phase == PAGER_WAITING)
        __atomic_store_n(&pager->state->phase, PAGER_FILLING, __ATOMIC_SEQ_CST);
    pager->state->began_usec = now_usec();
    unlinkat(workdir, LAZY_SOCKET, 0);
    __atomic_store_n(&book->workdir, -1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&book->listener, -1, __ATOMIC_SEQ_CST);
    close_fd(listener);
    close_fd(workdir);
}

void handoff_accept(struct pager *pager)
{
    struct book *book = pager->book;
    int fd = accept4(book->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    __atomic_store_n(&book->socket, fd, __ATOMIC_SEQ_CST);
    handoff_connected(pager);
    pager_watch(pager, fd, TAG_SOCKET);
}

/* Before criu is there only a handful is open. */
void handoff_find(struct book *book)
{
    for (int fd = 0; fd < FDS_WITHOUT_TASKS && book->listener >= 0 && book->socket < 0; fd++) {
        int listens;
        socklen_t length = sizeof(listens);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && !listens)
            __atomic_store_n(&book->socket, fd, __ATOMIC_SEQ_CST);
    }
}
