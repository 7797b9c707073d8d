/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The two processes.  One leads: it listens, reads, fills.  The other waits for its death, closes
 * what no record names, starts another to wait for its own, and goes on from the book.
 */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "pager/leader.h"

enum {
    KNOWN_OF_BOOK = 16,
    KNOWN_OF_RECORD = 5,
    SHORT_LIVES_MAX = 100,
    PAUSE_USEC = 100000,
};

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif

/* ---- standby ---- */

/*
 * Starts the other process.  False in the leader; true in the other, when the leader has died and
 * it is to lead.
 */
static bool start_standby(struct pager *pager)
{
    struct book *book = pager->book;
    if (__atomic_load_n(&pager->state->stopping, __ATOMIC_SEQ_CST))
        return false;
    book->watched = -1;
    long pid =
        syscall(SYS_clone, CLONE_FILES | CLONE_PIDFD | SIGCHLD, NULL, &book->watched, NULL, NULL);
    if (pid > 0) {
        pager->state->standby = (int32_t)pid;
        if (pager->epoll >= 0)
            pager_watch(pager, book->watched, TAG_STANDBY);
    }
    if (pid != 0)
        return false;
    struct pollfd leader = {.fd = pager->self, .events = POLLIN};
    while (poll(&leader, 1, -1) < 1 || !(leader.revents & POLLIN))
        usleep(PAUSE_USEC); /* never a second leader beside the first */
    if (book->over || __atomic_load_n(&pager->state->stopping, __ATOMIC_SEQ_CST))
        _exit(0);
    return true;
}

/* The same, when one of the two has died.  It counts when there are two again. */
static bool replace_dead(struct pager *pager)
{
    bool next = start_standby(pager);
    if (!next && pager->book->watched >= 0)
        pager->state->takeovers++;
    return next;
}

bool pair_replace_standby(struct pager *pager)
{
    siginfo_t info;
    int fd = pager->book->watched;
    if (fd >= 0) { /* or it could not be started */
        waitid(P_PIDFD, (id_t)fd, &info, WEXITED);
        close_fd(fd);
    }
    return replace_dead(pager);
}

_Noreturn void pair_end(struct pager *pager)
{
    siginfo_t info;
    __atomic_store_n(&pager->book->over, 1, __ATOMIC_SEQ_CST);
    if (pager->book->watched >= 0) {
        syscall(SYS_pidfd_send_signal, pager->book->watched, SIGKILL, NULL, 0);
        waitid(P_PIDFD, (id_t)pager->book->watched, &info, WEXITED);
    }
    _exit(0);
}

/* ---- taking over ---- */

static size_t known_max(const struct book *book)
{
    size_t count = KNOWN_OF_BOOK;
    for (unsigned i = 0; i < RECORDS_MAX; i++)
        count += KNOWN_OF_RECORD + backlog_count(book->records[i].commit);
    return count;
}

/* Of children of whom no record is made yet. */
static size_t known_of_backlog(const struct record *record, int *known)
{
    size_t count = 0;
    for (uint32_t i = 0; i < backlog_count(record->commit); i++) {
        struct uffd_msg message;
        size_t at = offsetof(struct sheet, backlog.list) +
                    backlog_index(record->commit, i) * sizeof(message);
        if (pread(record->sheet, &message, sizeof(message), (off_t)at) == sizeof(message) &&
            message.event == UFFD_EVENT_FORK)
            known[count++] = (int)message.arg.fork.ufd;
    }
    return count;
}

static size_t known_descriptors(const struct pager *pager, int *known)
{
    const struct book *book = pager->book;
    const int fixed[] = {0,
                         1,
                         2,
                         book->listener,
                         book->workdir,
                         book->socket,
                         book->imagefd,
                         book->state_fd,
                         pager->self};
    size_t count = 0;
    int32_t pid;
    for (size_t i = 0; i < ARRAY_SIZE(fixed); i++)
        known[count++] = fixed[i];
    if (lazy_arrival_task(&book->arrival, &pid, &known[count]))
        count++;
    for (unsigned i = 0; i < RECORDS_MAX; i++) {
        const struct record *record = &book->records[i];
        if (record->state != RECORD_USED)
            continue;
        known[count++] = record->uffd;
        known[count++] = record->map;
        known[count++] = record->space;
        known[count++] = record->sheet;
        if (record->slot.event == UFFD_EVENT_FORK)
            known[count++] = (int)record->slot.arg.fork.ufd;
        count += known_of_backlog(record, known + count);
    }
    return count;
}

/* Closes what a dead leader had opened and not written down. */
static void sweep(const struct pager *pager)
{
    int *known = malloc(known_max(pager->book) * sizeof(*known));
    if (!known)
        return; /* they are few, and do no harm */
    close_all_but(known, known_descriptors(pager, known));
    free(known);
}

/* What this process knows of a time when it was a copy of another. */
static void forget(struct pager *pager)
{
    for (unsigned i = 0; i < RECORDS_MAX; i++)
        pager->fillers[i] = filler_forget(pager->fillers[i]);
    pager->spaces = (struct spaces){0};
    pager->used = pager->turn = 0;
    pager->epoll = -1;
}

/* Makes this process the leader.  True: it was, and has died, and this is the next. */
static bool take_over(struct pager *pager)
{
    struct book *book = pager->book;
    pager->state->leader = getpid();
    mlock(book, sizeof(*book)); /* the kernel writes there when it must not wait */
    handoff_find(book);
    sweep(pager);
    return replace_dead(pager);
}

/* ---- becoming it ---- */

static void set_oom_score(void)
{
    /* Without CAP_SYS_RESOURCE it can only go as low as it has been before. */
    for (int score = -1000; score < 0; score += 100) {
        char text[16];
        int n = snprintf(text, sizeof(text), "%d", score);
        _cleanup_close_ int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
        if (fd < 0 || write(fd, text, (size_t)n) == n)
            return;
    }
}

static void detach(void)
{
    sigset_t all;
    sigfillset(&all);
    for (int i = 1; i < NSIG; i++)
        signal(i, SIG_DFL);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_PDEATHSIG, 0);
    prctl(PR_SET_NAME, "godwit-pager");
    set_oom_score();
    raise_nofile_limit();
    (void)!chdir("/");
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
        dup2(null, fd);
    close_fd(null);
}

static _Noreturn void not_ready(int ready, const char *what)
{
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, errno, "the pager: %s", what);
    write_all(ready, &err, sizeof(err));
    _exit(1);
}

/* A leader that dies at once, and its successor too, must not take the machine along. */
static void pause_if_short_lived(struct pager *pager)
{
    if (pager->state->filled != pager->filled_at_start)
        pager->short_lives = 0;
    pager->filled_at_start = pager->state->filled;
    if (++pager->short_lives > SHORT_LIVES_MAX)
        usleep(PAUSE_USEC);
}

_Noreturn void pager_run(struct pager_state *state, int state_fd, int listener, int imagefd,
                         int workdir, int ready)
{
    detach();
    struct pager *pager = calloc(1, sizeof(*pager));
    struct book *book = mmap(NULL, sizeof(*book), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (!pager)
        not_ready(ready, "memory");
    if (book == MAP_FAILED)
        not_ready(ready, "its book");
    *book = (struct book){.listener = listener,
                          .workdir = workdir,
                          .socket = -1,
                          .imagefd = imagefd,
                          .state_fd = state_fd};
    *pager = (struct pager){.book = book, .state = state, .epoll = -1};
    forget(pager);
    pager->self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (pager->self < 0)
        not_ready(ready, "pidfd_open");
    pager->state->leader = getpid();
    mlock(book, sizeof(*book));
    bool next = start_standby(pager);
    if (!next && book->watched < 0)
        not_ready(ready, "its second process");
    if (!next) {
        char zero = 0;
        write_all(ready, &zero, 1);
        close_fd(ready);
    }
    for (;;) {
        if (next) {
            pager->self = book->watched; /* that was our own */
            pause_if_short_lived(pager);
            forget(pager);
            if (take_over(pager))
                continue;
        }
        pager_open_book(pager);
        pager_lead(pager);
        next = true;
    }
}
