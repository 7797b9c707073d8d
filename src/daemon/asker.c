/* SPDX-License-Identifier: Apache-2.0 */
/*
 * criu lazy-pages --page-server: unmodified, on a port of this host (--page-server).  It asks for
 * pages of a task by their addresses, one region after another, and gets them from the snapshot
 * that has this task, which must be one: straight from where they lie, and nothing else is read.
 *
 * From the first request to the end of the connection the snapshot is RESTORING, so that nobody
 * else gets it or removes it; then it is READY as before, as after godwit export.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

#include "base/io.h"
#include "criu/page_server.h"
#include "daemon/cache.h"
#include "migrate/region_index.h"
#include "wire/owner.h"

enum {
    ASKERS_MAX = 64,
    TASKS_MAX = 1 << 16, /* of one connection */
};

struct asked_task {
    struct asked_task *next;
    uint64_t id;
    struct region_index index;
};

struct asker {
    struct cache *cache;
    struct asker *next;
    sd_event_source *io;
    int fd;
    uint64_t since_usec;
    bool known;                /* it is root's */
    bool over;                 /* freed in the next tick */
    struct snapshot *snapshot; /* NULL: it has asked for nothing yet */
    struct asked_task *tasks;
    unsigned task_count;
    unsigned form;
    uint8_t in[PAGE_SERVER_HEADER_MAX], out[PAGE_SERVER_HEADER_MAX];
    size_t have;                   /* of in */
    size_t out_length, out_at;     /* of the answer's header */
    const struct asked_task *task; /* of the answer */
    uint64_t vaddr, pages;         /* what is left of it */
    uint64_t done;                 /* bytes of the next page run that have been sent */
    uint64_t requests, sent_pages; /* for people */
};

/* ---- its life ---- */

static struct asker *asker_free(struct asker *asker)
{
    struct asker *next = asker->next;
    sd_event_source_disable_unref(asker->io);
    while (asker->tasks) {
        struct asked_task *task = asker->tasks;
        asker->tasks = task->next;
        region_index_close(&task->index);
        free(task);
    }
    free(asker);
    return next;
}

/* Nothing more is said on it; |err| NULL: it has come to its end. */
static void asker_end(struct asker *asker, const struct error *err)
{
    struct cache *cache = asker->cache;
    struct snapshot *snapshot = TAKE_PTR(asker->snapshot);
    asker->over = true;
    asker->io = sd_event_source_disable_unref(asker->io);
    if (err)
        log_error(&cache->daemon.log, "page-server: %s%s%s", snapshot ? snapshot->id : "",
                  snapshot ? ": " : "", err->text);
    if (!snapshot)
        return;
    log_info(&cache->daemon.log, "page-server: snapshot %s: %llu requests, %llu pages sent",
             snapshot->id, (unsigned long long)asker->requests,
             (unsigned long long)asker->sent_pages);
    cache_snapshot_release(cache, snapshot);
}

/* ---- whose memory ---- */

static bool has_task(const struct snapshot *snapshot, uint64_t id)
{
    char name[32];
    snprintf(name, sizeof(name), "pagemap-%llu.img", (unsigned long long)id);
    return !snapshot->moved && faccessat(snapshot->imagefd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The one snapshot that may be restored and has this task. */
static int asker_find_snapshot(struct asker *asker, uint64_t id, struct error *err)
{
    struct snapshot *found = NULL;
    for (struct snapshot *s = store_first(asker->cache->store); s; s = s->next) {
        if (s->state != SNAPSHOT_READY || !has_task(s, id))
            continue;
        if (found)
            return error_set(err, FAILURE_BUSY,
                             "both snapshot %s and %s have a task %llu: which is asked for is not "
                             "known (godwit forget one)",
                             found->id, s->id, (unsigned long long)id);
        found = s;
    }
    if (!found)
        return error_set(err, FAILURE_NOT_FOUND, "no snapshot that is ready has a task %llu",
                         (unsigned long long)id);
    asker->snapshot = found;
    cache_snapshot_claim(asker->cache, found);
    return 0;
}

static struct asked_task *asker_find_task(struct asker *asker, uint64_t id, struct error *err)
{
    struct asked_task *task = asker->tasks;
    while (task && task->id != id)
        task = task->next;
    if (task)
        return task;
    task = asker->task_count < TASKS_MAX ? calloc(1, sizeof(*task)) : NULL;
    int r = task ? region_index_open(&task->index, asker->snapshot->imagefd,
                                     asker->snapshot->memoryfd, false, id)
                 : -ENOMEM;
    if (r < 0) {
        free(task);
        error_set_errno(err, FAILURE_SYSTEM, r, "the memory of task %llu", (unsigned long long)id);
        return NULL;
    }
    task->id = id;
    task->next = asker->tasks;
    asker->tasks = task;
    asker->task_count++;
    return task;
}

/* ---- requests and answers ---- */

/* How many of the pages that are asked for are there, one behind the other in memory. */
static uint64_t count_pages(const struct region_index *index, uint64_t vaddr, uint64_t most)
{
    uint64_t pages = 0, offset, n;
    while (pages < most &&
           (n = region_index_find(index, vaddr + pages * PAGE_BYTES, most - pages, &offset)) > 0)
        pages += n;
    return pages;
}

static int asker_get(struct asker *asker, const struct page_server_request *get, struct error *err)
{
    if (!asker->snapshot && asker_find_snapshot(asker, get->id, err) < 0)
        return -1;
    asker->task = asker_find_task(asker, get->id, err);
    if (!asker->task)
        return -1;
    /* It takes fewer than it has asked for, and asks again. */
    asker->pages = count_pages(&asker->task->index, get->vaddr, MIN(get->pages, UINT32_MAX));
    if (asker->pages == 0)
        return error_set(err, FAILURE_CRIU, "task %llu has no page at %#llx",
                         (unsigned long long)get->id, (unsigned long long)get->vaddr);
    asker->vaddr = get->vaddr;
    asker->out_length = page_server_answer(asker->form, get, asker->pages, asker->out);
    asker->out_at = 0;
    asker->requests++;
    asker->sent_pages += asker->pages;
    return 0;
}

/* The next piece of an answer.  1: more is to come; 0: that was all; or a negative errno. */
static int asker_send(struct asker *asker)
{
    uint64_t offset, pages;
    ssize_t n;
    if (asker->out_at < asker->out_length) {
        n = send(asker->fd, asker->out + asker->out_at, asker->out_length - asker->out_at,
                 MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE);
        asker->out_at += n > 0 ? (size_t)n : 0;
        return n < 0 ? -errno : 1;
    }
    pages = region_index_find(&asker->task->index, asker->vaddr, asker->pages, &offset);
    off_t at = (off_t)(offset + asker->done);
    n = sendfile(asker->fd, asker->task->index.file, &at, pages * PAGE_BYTES - asker->done);
    if (n <= 0)
        return n < 0 ? -errno : -EIO;
    asker->done += (uint64_t)n;
    if (asker->done == pages * PAGE_BYTES) {
        asker->done = 0;
        asker->vaddr += pages * PAGE_BYTES;
        asker->pages -= pages;
    }
    return asker->pages > 0;
}

/* Takes one request, when it is whole.  1: it has an answer; 0: more is to come; 2: it was the
 * last; -1 with *err. */
static int asker_receive(struct asker *asker, struct error *err)
{
    struct page_server_request request;
    size_t want = asker->form ? asker->form : 24; /* never more than one */
    if (asker->have >= want)
        want = sizeof(asker->in);
    ssize_t n = recv(asker->fd, asker->in + asker->have, want - asker->have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0 && asker->have == 0)
        return 2;
    if (n <= 0)
        return error_set(err, FAILURE_CRIU, "a connection ended in the midst of a request");
    if (!asker->known) {
        int r = tcp_check_owner(asker->fd, err);
        if (r == 0)
            r = error_set(err, FAILURE_CRIU, "a connection ended in the midst of a request");
        if (r < 0)
            return r;
        asker->known = true;
    }
    asker->have += (size_t)n;
    int r = page_server_parse_get(&asker->form, asker->in, asker->have, &request, err);
    if (r <= 0)
        return r < 0 ? -1 : 0;
    asker->have = 0;
    if (request.command == PAGE_SERVER_GET)
        return asker_get(asker, &request, err) < 0 ? -1 : 1;
    int32_t status = 0;
    (void)!send(asker->fd, &status, sizeof(status), MSG_DONTWAIT | MSG_NOSIGNAL);
    return 2;
}

static int on_asker(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)fd;
    struct asker *asker = user;
    struct error err;
    if (events & EPOLLOUT) {
        int r = asker_send(asker);
        if (r > 0 || r == -EAGAIN || r == -EINTR)
            return 0;
        if (r == 0) {
            sd_event_source_set_io_events(source, EPOLLIN);
            return 0;
        }
        error_set_errno(&err, FAILURE_SYSTEM, r, "sending pages");
        asker_end(asker, &err);
        return 0;
    }
    int r = asker_receive(asker, &err);
    if (r == 1)
        sd_event_source_set_io_events(source, EPOLLOUT);
    else if (r != 0)
        asker_end(asker, r < 0 ? &err : NULL);
    return 0;
}

/* ---- listening ---- */

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct cache *cache = user;
    unsigned count = 0;
    int accepted = daemon_accept(fd);
    if (accepted < 0)
        return 0;
    for (struct asker *asker = cache->askers; asker; asker = asker->next)
        count += !asker->over;
    struct asker *asker = count < ASKERS_MAX ? calloc(1, sizeof(*asker)) : NULL;
    if (!asker) {
        close_fd(accepted);
        return 0;
    }
    *asker = (struct asker){
        .cache = cache, .next = cache->askers, .fd = accepted, .since_usec = now_usec()};
    if (sd_event_add_io(cache->daemon.event, &asker->io, accepted, EPOLLIN, on_asker, asker) < 0) {
        close_fd(accepted);
        free(asker);
        return 0;
    }
    sd_event_source_set_io_fd_own(asker->io, true);
    cache->askers = asker;
    return 0;
}

int askers_listen(struct cache *cache, struct error *err)
{
    int fds[TCP_LISTENERS_MAX], r = 0;
    /* Of this host only: what is asked for is the memory of processes. */
    int count = tcp_listen("localhost", cache->daemon.options->page_server, &(struct protection){0},
                           fds, err);
    for (int i = 0; i < count; i++) {
        if (r >= 0)
            r = sd_event_add_io(cache->daemon.event, &cache->page_listeners[i], fds[i], EPOLLIN,
                                on_connection, cache);
        if (r >= 0)
            sd_event_source_set_io_fd_own(cache->page_listeners[i], true);
        else
            close_fd(fds[i]);
    }
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "listening for criu");
    return count < 0 ? -1 : 0;
}

void askers_tick(struct cache *cache)
{
    struct error err;
    error_set(&err, FAILURE_CRIU, "a connection said nothing");
    for (struct asker **at = &cache->askers; *at;) {
        struct asker *asker = *at;
        if (!asker->over && !asker->snapshot &&
            now_usec() - asker->since_usec > cache->daemon.options->silence_usec)
            asker_end(asker, &err);
        if (asker->over)
            *at = asker_free(asker);
        else
            at = &asker->next;
    }
}

void askers_free(struct cache *cache)
{
    for (size_t i = 0; i < ARRAY_SIZE(cache->page_listeners); i++)
        cache->page_listeners[i] = sd_event_source_disable_unref(cache->page_listeners[i]);
    while (cache->askers)
        cache->askers = asker_free(cache->askers);
}
