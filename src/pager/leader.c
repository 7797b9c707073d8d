/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "pager/leader.h"

enum {
    MESSAGES_AT_ONCE = 64,
    EVENTS = 64,
    IDLE_MSEC = 100,
    SOON_MSEC = 1,
};

/* ---- what is told ---- */

static void set_text(struct pager *pager, const char *text)
{
    struct pager_state *state = pager->state;
    __atomic_add_fetch(&state->text_version, 1, __ATOMIC_SEQ_CST);
    snprintf(state->text, sizeof(state->text), "%s", text);
    __atomic_add_fetch(&state->text_version, 1, __ATOMIC_SEQ_CST);
}

void pager_fail(struct pager *pager, const char *text)
{
    if (pager->state->phase == PAGER_FAILED)
        return;
    set_text(pager, text);
    __atomic_store_n(&pager->state->phase, PAGER_FAILED, __ATOMIC_SEQ_CST);
}

static void on_trouble(void *user, const char *text)
{
    pager_fail(user, text);
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

int pager_watch(struct pager *pager, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = tag};
    return epoll_ctl(pager->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* ---- messages ---- */

static void moved_too_much(struct pager *pager)
{
    pager_fail(pager, "a task's memory has been moved about too much");
}

static int on_fork(struct pager *pager, const struct filler *parent, int uffd)
{
    return record_find(pager, uffd) >= 0 ? 0 : record_add_child(pager, parent, uffd);
}

/* What a message asks for.  False: it is to be tried again. */
static bool do_message(struct pager *pager, struct filler *filler, const struct uffd_msg *message,
                       bool of_backlog)
{
    if (message->event == UFFD_EVENT_FORK && on_fork(pager, filler, (int)message->arg.fork.ufd) < 0)
        return false;
    bool done = filler_do(filler, message, of_backlog) == 0;
    if (!done)
        moved_too_much(pager);
    return done;
}

/* Whether the message in the slot must wait for others: a move that may not say how much. */
static bool must_wait(const struct pager *pager, const struct filler *filler)
{
    uint8_t event = filler->record->slot.event;
    return filler->sheet && event != UFFD_EVENT_PAGEFAULT &&
           (filler_waits(filler) || (event == UFFD_EVENT_REMAP && !pager->state->moves_exact));
}

/* The message in the slot.  False: it has to wait there. */
static bool take_message(struct pager *pager, struct filler *filler)
{
    bool wait = must_wait(pager, filler);
    const struct uffd_msg message = filler->record->slot;
    if (wait && !filler_put_off(filler)) {
        moved_too_much(pager);
        return false;
    }
    if (!wait && !do_message(pager, filler, &message, false))
        return false;
    filler_message_done(filler);
    return true;
}

/* What waits and need not wait any more. */
static void work_off(struct pager *pager, struct filler *filler)
{
    struct uffd_msg message;
    while (filler_next(filler, &message)) {
        if (!do_message(pager, filler, &message, true)) {
            pager->pending = true;
            return;
        }
    }
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
    work_off(pager, filler);
    if (filler->held_count > 0)
        filler_retry_held(filler);
}

/* ---- opening ---- */

void pager_open_book(struct pager *pager)
{
    struct book *book = pager->book;
    pager->report = (struct fill_report){.trouble = on_trouble, .user = pager};
    pager->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (pager->epoll < 0)
        _exit(1);
    copier_start(&pager->copier);
    pager_watch(pager, book->watched, TAG_STANDBY);
    handoff_connected(pager);
    if (book->socket >= 0)
        pager_watch(pager, book->socket, TAG_SOCKET);
    else if (book->listener >= 0)
        pager_watch(pager, book->listener, TAG_SOCKET);
    for (unsigned i = 0; i < RECORDS_MAX; i++)
        pager->used = book->records[i].state == RECORD_USED ? i + 1 : pager->used;
    for (unsigned i = 0; i < pager->used; i++) {
        struct record *record = &book->records[i];
        if (record->state != RECORD_USED)
            continue;
        if (record->commit & COMMIT_APPLIED) {
            record->slot.event = 0;
            record->commit &= ~(uint64_t)COMMIT_APPLIED;
        }
        record_open(pager, i);
    }
    /* What the dead one had read is done before anything is filled. */
    handoff_take_arrival(pager);
    for (unsigned i = 0; i < pager->used; i++) {
        struct filler *filler = pager->fillers[i];
        if (!filler)
            continue;
        if (filler->record->slot.event || filler_waits(filler))
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
        *soon |= filler->retry_usec != 0 || filler->held_count > 0 || filler_waits(filler);
    }
    return false;
}

/* Whether a userfaultfd may be closed. */
static bool may_be_freed(const struct pager *pager, const struct filler *filler)
{
    if (filler->record->slot.event == UFFD_EVENT_FORK || filler_waits(filler))
        return false; /* a child's may be there yet */
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
        if (filler && (filler->held_count > 0 || record->slot.event || filler_waits(filler)))
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

/* The snapshot has been removed, and nobody will ever connect. */
static bool is_forgotten(const struct pager *pager)
{
    struct stat st;
    return pager->book->listener >= 0 && fstat(pager->book->state_fd, &st) == 0 && st.st_nlink == 0;
}

static bool nothing_left(const struct pager *pager)
{
    if (is_forgotten(pager))
        return true;
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

static _Noreturn void leave(struct pager *pager)
{
    struct pager_state *state = pager->state;
    tell(pager);
    state->done_usec = now_usec();
    if (state->phase != PAGER_FAILED)
        __atomic_store_n(&state->phase, PAGER_DONE, __ATOMIC_SEQ_CST);
    pair_end(pager);
}

/* Waits, not at all if there is something to fill, and looks at what has come.  True: this is the
 * standby, and its leader has died. */
static bool look_around(struct pager *pager, int msec)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(pager->epoll, events, EVENTS, msec);
    if (pager->book->watched < 0 && now_usec() >= pager->probe_usec && pair_replace_standby(pager))
        return true;
    for (int i = 0; i < n; i++) {
        uint32_t tag = events[i].data.u32;
        if (tag == TAG_STANDBY) {
            if (pair_replace_standby(pager))
                return true;
        } else if (tag == TAG_SOCKET) {
            if (pager->book->socket >= 0)
                handoff_read(pager);
            else if (pager->book->listener >= 0)
                handoff_accept(pager);
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
        if (filler && (filler->held_count > 0 || filler->gone || filler->record->slot.event ||
                       filler_waits(filler)))
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

void pager_lead(struct pager *pager)
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
            leave(pager);
        if (!more && pager->pending)
            usleep((useconds_t)(SOON_MSEC * USEC_PER_MSEC)); /* epoll would not wait */
        msec = more ? 0 : soon ? SOON_MSEC : IDLE_MSEC;
    }
}
