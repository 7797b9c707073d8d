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
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "pager/filler.h"
#include "pager/state.h"

enum {
    MESSAGES_AT_ONCE = 64,
    EVENTS = 64,
    IDLE_MSEC = 100,
    SOON_MSEC = 1,
    KNOWN_MAX = 16 + 5 * RECORDS_MAX,
};

#ifndef P_PIDFD
#define P_PIDFD 3
#endif
#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif

/* Tags of what is not a record, in epoll's data. */
enum { TAG_SOCKET = RECORDS_MAX, TAG_STANDBY };

struct pager {
    struct book *book;         /* shared by both */
    struct pager_state *state; /* shared with whoever looks */
    /* The leader's own. */
    int self; /* its pidfd: what the standby waits for */
    int epoll;
    unsigned short_lives; /* leaders that died without having done anything, one after the other */
    uint64_t filled_at_start;
    struct filler *fillers[RECORDS_MAX];
    unsigned used, turn; /* records in use; whose turn it is to be filled */
    struct spaces spaces;
    struct copier copier;
    struct fill_report report;
    uint64_t probe_usec; /* when to look next whether the tasks live */
    bool pending;        /* something is there to be read that cannot be taken yet */
};

/* ---- what is told ---- */

static void set_text(struct pager *pager, const char *text)
{
    struct pager_state *state = pager->state;
    __atomic_add_fetch(&state->text_version, 1, __ATOMIC_SEQ_CST);
    snprintf(state->text, sizeof(state->text), "%s", text);
    __atomic_add_fetch(&state->text_version, 1, __ATOMIC_SEQ_CST);
}

/* The first reason stays. */
static void fail(struct pager *pager, const char *text)
{
    if (pager->state->phase == PAGER_FAILED)
        return;
    set_text(pager, text);
    __atomic_store_n(&pager->state->phase, PAGER_FAILED, __ATOMIC_SEQ_CST);
}

static void on_trouble(void *user, const char *text)
{
    fail(user, text);
}

static void tell(struct pager *pager)
{
    struct pager_state *state = pager->state;
    uint64_t pages = pager->book->closed_pages, missing = 0;
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state != RECORD_USED)
            continue;
        pages += record->pages;
        missing += pager->fillers[i] ? pager->fillers[i]->missing : record->pages;
    }
    state->pages = pages;
    state->filled = pages - missing;
    state->faults += pager->report.faults;
    pager->report.faults = 0;
}

/* ---- records ---- */

static bool fd_is_used(const struct pager *pager, int fd)
{
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state == RECORD_USED && (record->map == fd || record->space == fd))
            return true;
    }
    return false;
}

static void record_free(struct pager *pager, unsigned i)
{
    struct record *record = &pager->book->records[i];
    struct record was = *record;
    struct filler *filler = pager->fillers[i];
    /* What a task that has gone lacked was never wanted. */
    uint64_t missing = filler ? filler->missing : was.pages;
    pager->fillers[i] = filler ? filler_close(filler) : NULL;
    epoll_ctl(pager->epoll, EPOLL_CTL_DEL, was.uffd, NULL);
    __atomic_store_n(&record->state, RECORD_FREE, __ATOMIC_SEQ_CST);
    pager->book->closed_pages += was.pages - missing;
    close_fd(was.uffd);
    close_fd(was.sheet);
    if (was.map >= 0 && !fd_is_used(pager, was.map))
        close_fd(was.map);
    if (was.space >= 0 && !fd_is_used(pager, was.space))
        close_fd(was.space);
}

static int record_find(const struct pager *pager, int uffd)
{
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state == RECORD_USED && record->uffd == uffd)
            return (int)i;
    }
    return -ENOENT;
}

/* A free record, cleared, as far from use as it was: -ENOSPC if there is none. */
static int record_new(struct pager *pager)
{
    for (unsigned i = 0; i < RECORDS_MAX; i++) {
        struct record *record = &pager->book->records[i];
        if (record->state != RECORD_FREE)
            continue;
        *record = (struct record){.map = -1, .space = -1, .sheet = -1, .uffd = -1};
        pager->used = MAX(pager->used, i + 1);
        return (int)i;
    }
    return -ENOSPC;
}

static int sheet_create(uint64_t pages)
{
    _cleanup_close_ int fd = memfd_create("godwit-sheet", MFD_CLOEXEC);
    uint64_t bytes = sheet_bytes(pages);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        return -errno;
    /* The bits: whoever sets one must not find that there is no memory for it. */
    if (fallocate(fd, 0, sizeof(struct sheet), (off_t)(bytes - sizeof(struct sheet)) + 1) < 0)
        return -errno;
    return TAKE_FD(fd);
}

static int sheet_begin(int fd)
{
    struct sheet *sheet = mmap(NULL, sizeof(*sheet), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (sheet == MAP_FAILED)
        return -errno;
    views_begin(&sheet->views[0]);
    munmap(sheet, sizeof(*sheet));
    return 0;
}

static int watch(struct pager *pager, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    return epoll_ctl(pager->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* The leader's side of a record that is in use. */
static void record_open(struct pager *pager, unsigned i)
{
    struct record *record = &pager->book->records[i];
    struct error err = {.text = "epoll refuses a userfaultfd"};
    if (record->broken)
        return;
    if (filler_open(&pager->fillers[i], record, &pager->spaces, &pager->report, &err) < 0 ||
        watch(pager, record->uffd, i) < 0) {
        /* From here it is not answered, and not closed: its task waits. */
        fail(pager, err.text);
        pager->fillers[i] = filler_forget(pager->fillers[i]);
        record->broken = 1;
    }
}

/* ---- tasks that criu hands over ---- */

static int open_space(struct pager *pager, uint32_t number)
{
    char name[FILL_NAME_BYTES];
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state == RECORD_USED && record->space >= 0 && record->space_number == number)
            return record->space;
    }
    fill_space_name(name, sizeof(name), number);
    int fd = openat(pager->book->imagefd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? -errno : fd;
}

/* What the task's files say, into a record that is not in use yet. */
static int record_read_map(struct pager *pager, struct record *record, struct error *err)
{
    char name[FILL_NAME_BYTES];
    struct fill_map map;
    fill_map_name(name, sizeof(name), record->pid);
    record->map = openat(pager->book->imagefd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (record->map < 0 && errno == ENOENT)
        return 0; /* all of it is zero */
    if (record->map < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", name);
    if (fill_map_open(&map, record->map, err) < 0)
        return error_prefix(err, "%s", name);
    record->space_number = map.space;
    record->pages = map.pages;
    record->space = open_space(pager, map.space);
    fill_map_close(&map);
    if (record->space < 0)
        return error_set_errno(err, FAILURE_SYSTEM, record->space, "space-%u",
                               record->space_number);
    record->sheet = sheet_create(record->pages);
    int r = record->sheet < 0 ? record->sheet : sheet_begin(record->sheet);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "a sheet for %s", name) : 0;
}

static void end_handoff(struct pager *pager)
{
    int fd = pager->book->socket;
    __atomic_store_n(&pager->book->socket, -1, __ATOMIC_SEQ_CST);
    close_fd(fd);
}

static void fail_handoff(struct pager *pager, const char *text)
{
    fail(pager, text);
    end_handoff(pager); /* criu fails when it goes on, and removes what it has built */
}

/* The task in the book's arrival gets its record. */
static void take_arrival(struct pager *pager)
{
    int32_t pid;
    int uffd;
    if (lazy_arrival_task(&pager->book->arrival, &pid, &uffd) && record_find(pager, uffd) < 0) {
        struct error err;
        int i = record_new(pager);
        if (i < 0) {
            fail_handoff(pager, "too many tasks");
            return; /* it stays in the book, and open */
        }
        struct record *record = &pager->book->records[i];
        record->pid = pid;
        record->uffd = uffd;
        if (record_read_map(pager, record, &err) < 0) {
            record->broken = 1;
            fail(pager, err.text);
        }
        __atomic_store_n(&record->state, RECORD_USED, __ATOMIC_SEQ_CST);
        record_open(pager, (unsigned)i);
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
        take_arrival(pager);
    if (item->kind == LAZY_FINISHED)
        end_handoff(pager);
}

static void on_socket(struct pager *pager)
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

static void on_listener(struct pager *pager)
{
    struct book *book = pager->book;
    int fd = accept4(book->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    __atomic_store_n(&book->socket, fd, __ATOMIC_SEQ_CST);
    unlinkat(book->workdir, LAZY_SOCKET, 0);
    int listener = book->listener, workdir = book->workdir;
    __atomic_store_n(&book->listener, -1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&book->workdir, -1, __ATOMIC_SEQ_CST);
    close_fd(listener);
    close_fd(workdir);
    pager->state->began_usec = now_usec();
    if (pager->state->phase == PAGER_WAITING)
        __atomic_store_n(&pager->state->phase, PAGER_FILLING, __ATOMIC_SEQ_CST);
    watch(pager, fd, TAG_SOCKET);
}

/* ---- forks ---- */

/* A child lacks what its parent lacks. */
static int sheet_copy(const struct filler *parent, struct record *record)
{
    if (!parent->sheet)
        return 0;
    record->sheet = sheet_create(parent->map.pages);
    if (record->sheet < 0)
        return record->sheet;
    uint64_t bytes = sheet_bytes(parent->map.pages);
    struct sheet *sheet = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, record->sheet, 0);
    if (sheet == MAP_FAILED)
        return -errno;
    const struct views *views = &parent->sheet->views[parent->record->commit & COMMIT_VIEWS];
    sheet->views[0].count = views->count;
    memcpy(sheet->views[0].list, views->list, views->count * sizeof(views->list[0]));
    memcpy(sheet_bits(sheet), sheet_bits(parent->sheet), bytes - sizeof(*sheet));
    munmap(sheet, bytes);
    return 0;
}

/* 0, or a negative errno: it is to be tried again, and stays in the slot. */
static int on_fork(struct pager *pager, struct filler *parent)
{
    int uffd = (int)parent->record->slot.arg.fork.ufd;
    if (record_find(pager, uffd) >= 0)
        return 0;
    int i = record_new(pager);
    if (i < 0)
        return i;
    struct record *record = &pager->book->records[i];
    record->child = 1;
    record->pid = parent->record->pid;
    record->uffd = uffd;
    record->map = parent->record->map;
    record->space = parent->record->space;
    record->space_number = parent->record->space_number;
    record->pages = parent->missing;
    int r = sheet_copy(parent, record);
    if (r < 0) {
        record->sheet = close_fd(record->sheet);
        return r;
    }
    __atomic_store_n(&record->state, RECORD_USED, __ATOMIC_SEQ_CST);
    record_open(pager, (unsigned)i);
    return 0;
}

/* ---- messages ---- */

/* The message in the slot.  False: it has to wait. */
static bool take_message(struct pager *pager, struct filler *filler)
{
    bool fork = filler->record->slot.event == UFFD_EVENT_FORK;
    int r = fork ? on_fork(pager, filler) : filler_message(filler);
    if (r < 0 && !fork)
        fail(pager, "a task's memory has been moved about too much");
    if (r == 0)
        filler_message_done(filler);
    return r == 0;
}

static void on_uffd(struct pager *pager, struct filler *filler)
{
    if (filler->record->slot.event && !take_message(pager, filler)) {
        pager->pending = true;
        return;
    }
    for (unsigned i = 0; i < MESSAGES_AT_ONCE && !filler->gone; i++) {
        int r = filler_read(filler);
        /* -EMFILE: a fork, which stays in the kernel until there is room. */
        pager->pending |= r < 0;
        if (r <= 0 || !take_message(pager, filler))
            break;
    }
    if (filler->held_count > 0)
        filler_retry_held(filler);
}

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
            watch(pager, book->watched, TAG_STANDBY);
    }
    if (pid != 0)
        return false;
    struct pollfd leader = {.fd = pager->self, .events = POLLIN};
    while (poll(&leader, 1, -1) < 1)
        ;
    if (book->over || __atomic_load_n(&pager->state->stopping, __ATOMIC_SEQ_CST))
        _exit(0);
    return true;
}

/* The same, when one of the two has died.  It counts when there are two again. */
static bool replace_dead(struct pager *pager)
{
    bool next = start_standby(pager);
    pager->state->takeovers += !next;
    return next;
}

static bool on_standby_death(struct pager *pager)
{
    siginfo_t info;
    int fd = pager->book->watched;
    waitid(P_PIDFD, (id_t)fd, &info, WEXITED);
    close_fd(fd);
    return replace_dead(pager);
}

/* ---- taking over ---- */

static int compare_ints(const void *a, const void *b)
{
    return *(const int *)a < *(const int *)b ? -1 : *(const int *)a > *(const int *)b;
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
    }
    return count;
}

/* Closes what a dead leader had opened and not written down. */
static void sweep(const struct pager *pager)
{
    int *known = malloc(KNOWN_MAX * sizeof(*known));
    if (!known)
        return; /* they are few, and do no harm */
    size_t count = known_descriptors(pager, known);
    qsort(known, count, sizeof(*known), compare_ints);
    unsigned from = 0;
    for (size_t i = 0; i < count; i++) {
        if (known[i] < 0)
            continue;
        if ((unsigned)known[i] > from)
            syscall(SYS_close_range, from, known[i] - 1, 0);
        from = MAX(from, (unsigned)known[i] + 1);
    }
    syscall(SYS_close_range, from, ~0u, 0);
    free(known);
}

/* What this process knows of a time when it was a copy of another. */
static void forget(struct pager *pager)
{
    for (unsigned i = 0; i < RECORDS_MAX; i++)
        pager->fillers[i] = filler_forget(pager->fillers[i]);
    pager->spaces = (struct spaces){0};
    pager->report = (struct fill_report){.trouble = on_trouble, .user = pager};
    pager->used = pager->turn = 0;
    pager->epoll = -1;
}

/* Makes this process the leader.  True: it was, and has died, and this is the next. */
static bool take_over(struct pager *pager)
{
    struct book *book = pager->book;
    pager->state->leader = getpid();
    mlock(book, sizeof(*book)); /* the kernel writes there when it must not wait */
    sweep(pager);
    return replace_dead(pager);
}

/* Finds everything as the book has it. */
static void open_book(struct pager *pager)
{
    struct book *book = pager->book;
    pager->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (pager->epoll < 0)
        _exit(1);
    copier_start(&pager->copier);
    watch(pager, book->watched, TAG_STANDBY);
    if (book->socket >= 0)
        watch(pager, book->socket, TAG_SOCKET);
    else if (book->listener >= 0)
        watch(pager, book->listener, TAG_SOCKET);
    for (unsigned i = 0; i < RECORDS_MAX; i++)
        pager->used = book->records[i].state == RECORD_USED ? i + 1 : pager->used;
    for (unsigned i = 0; i < pager->used; i++) {
        struct record *record = &book->records[i];
        if (record->state != RECORD_USED)
            continue;
        if (record->commit & COMMIT_APPLIED) {
            record->slot.event = 0;
            record->commit &= ~(uint32_t)COMMIT_APPLIED;
        }
        record_open(pager, i);
    }
    /* What the dead one had read is done before anything is filled. */
    take_arrival(pager);
    for (unsigned i = 0; i < pager->used; i++) {
        struct filler *filler = pager->fillers[i];
        if (!filler)
            continue;
        if (filler->record->slot.event)
            on_uffd(pager, filler);
        filler_wake_all(filler);
    }
}

/* ---- the leader's round ---- */

/* Fills something of the next who lacks something.  False if there is nothing to do at once; *soon:
 * but before long. */
static bool fill_some(struct pager *pager, bool *soon)
{
    for (unsigned tried = 0; tried < pager->used; tried++) {
        pager->turn = pager->turn + 1 < pager->used ? pager->turn + 1 : 0;
        struct filler *filler = pager->fillers[pager->turn];
        if (!filler || filler->record->slot.event)
            continue;
        if (filler_step(filler, &pager->copier, pager->book->finished))
            return true;
        *soon |= filler->retry_usec != 0 || filler->held_count > 0;
    }
    return false;
}

/* Whether a userfaultfd may be closed. */
static bool may_be_freed(const struct pager *pager, const struct filler *filler)
{
    if (filler->record->slot.event == UFFD_EVENT_FORK)
        return false; /* the child's is in the slot yet */
    if (pager->book->finished)
        return filler_over(filler);
    /* Before criu has finished it may touch memory that is registered. */
    return filler->gone && pager->state->phase == PAGER_FAILED;
}

/* What could not be done yet, tasks that have gone, records that are done with. */
static void look_after(struct pager *pager)
{
    bool probe = now_usec() >= pager->probe_usec;
    for (unsigned i = 0; i < pager->used; i++) {
        struct filler *filler = pager->fillers[i];
        struct record *record = &pager->book->records[i];
        if (filler && (filler->held_count > 0 || record->slot.event))
            on_uffd(pager, filler);
        if (filler && probe)
            filler_probe(filler);
        if (filler && may_be_freed(pager, filler))
            record_free(pager, i);
        if (record->state == RECORD_USED && record->broken && probe) {
            struct filler bare = {.record = record};
            filler_probe(&bare);
            if (bare.gone)
                record_free(pager, i);
        }
    }
    if (probe)
        pager->probe_usec = now_usec() + IDLE_MSEC * USEC_PER_MSEC;
}

static bool nothing_left(const struct pager *pager)
{
    if (!pager->book->finished && pager->state->phase != PAGER_FAILED)
        return false;
    if (pager->book->listener >= 0)
        return false;
    for (unsigned i = 0; i < pager->used; i++) {
        if (pager->book->records[i].state == RECORD_USED)
            return false;
    }
    return true;
}

static _Noreturn void end(struct pager *pager)
{
    struct pager_state *state = pager->state;
    siginfo_t info;
    tell(pager);
    state->done_usec = now_usec();
    if (state->phase != PAGER_FAILED)
        __atomic_store_n(&state->phase, PAGER_DONE, __ATOMIC_SEQ_CST);
    __atomic_store_n(&pager->book->over, 1, __ATOMIC_SEQ_CST);
    if (pager->book->watched >= 0) {
        syscall(SYS_pidfd_send_signal, pager->book->watched, SIGKILL, NULL, 0);
        waitid(P_PIDFD, (id_t)pager->book->watched, &info, WEXITED);
    }
    _exit(0);
}

/* Waits, not at all if there is something to fill, and looks at what has come.  True: this is the
 * standby, and its leader has died. */
static bool look_around(struct pager *pager, int msec)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(pager->epoll, events, EVENTS, msec);
    for (int i = 0; i < n; i++) {
        uint32_t tag = events[i].data.u32;
        if (tag == TAG_STANDBY) {
            if (on_standby_death(pager))
                return true;
        } else if (tag == TAG_SOCKET) {
            if (pager->book->socket >= 0)
                on_socket(pager);
            else if (pager->book->listener >= 0)
                on_listener(pager);
        } else if (tag < RECORDS_MAX && pager->fillers[tag]) {
            on_uffd(pager, pager->fillers[tag]);
        }
    }
    return false;
}

static bool all_is_quiet(const struct pager *pager)
{
    for (unsigned i = 0; i < pager->used; i++) {
        const struct filler *filler = pager->fillers[i];
        if (filler && (filler->held_count > 0 || filler->gone || filler->record->slot.event))
            return false;
    }
    return true;
}

static void look_for_release(struct pager *pager)
{
    /* Not before criu has finished: maps that are still to come may speak of the same pieces. */
    if (!pager->spaces.release && pager->book->finished &&
        __atomic_load_n(&pager->state->release, __ATOMIC_SEQ_CST))
        spaces_release(&pager->spaces);
}

/* Leads until everything is done.  Returns only in another process, which is to lead now. */
static void lead(struct pager *pager)
{
    int msec = 0;
    for (unsigned round = 0;; round++) {
        bool soon = false;
        pager->pending = false;
        if (look_around(pager, msec))
            return;
        look_for_release(pager);
        bool more = fill_some(pager, &soon);
        if (!more || round % 64 == 0 || !all_is_quiet(pager))
            look_after(pager);
        tell(pager);
        if (nothing_left(pager))
            end(pager);
        if (!more && pager->pending)
            usleep((useconds_t)(SOON_MSEC * USEC_PER_MSEC)); /* epoll would not wait */
        msec = more ? 0 : soon ? SOON_MSEC : IDLE_MSEC;
    }
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
    if (++pager->short_lives > 100)
        usleep((useconds_t)(IDLE_MSEC * USEC_PER_MSEC));
}

_Noreturn void pager_run(struct pager_state *state, int state_fd, int listener, int imagefd,
                         int workdir, int ready)
{
    detach();
    struct pager *pager = calloc(1, sizeof(*pager));
    struct book *book = mmap(NULL, sizeof(*book), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (!pager || book == MAP_FAILED)
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
        open_book(pager);
        lead(pager);
        next = true;
    }
}
