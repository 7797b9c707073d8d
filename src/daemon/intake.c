/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/intake.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/io.h"
#include "criu/page_server.h"
#include "daemon/lineage.h"
#include "task/task.h"
#include "wire/tcp.h"

enum {
    INTAKES_MAX = 64,
    MEMORIES_MAX = 1000,
    OBJECTS_MAX = 1 << 16,
    FIRST_BYTES = 24,    /* of the first header, in either form */
    FOLLOW_SILENCES = 3, /* criu writes its images before its hook asks */
};

struct intake {
    struct proxy *proxy;
    struct intake *next;
    sd_event_source *io; /* until the first header has come */
    int fd;              /* until the door has it, and again when it waits for the status */
    struct intake_memory *memory; /* what becomes the newest of its process */
    struct intake_memory *parent; /* copied: what it was when this began */
    struct sender *sender;
    uint64_t since_usec; /* the first header is waited for */
    bool closing;        /* criu waits for the status */
    bool over;
};

/* ---- what is known of processes ---- */

struct intake_memory *intake_memory_free(struct intake_memory *memory)
{
    if (memory) {
        free(memory->objects);
        free(memory);
    }
    return NULL;
}

static struct intake_memory **memory_find(struct proxy *proxy, pid_t process, uint64_t started)
{
    struct intake_memory **at = &proxy->memories;
    while (*at && ((*at)->process != process || (*at)->started != started))
        at = &(*at)->next;
    return at;
}

/* What is known of the process that this one is of. */
static struct intake_memory **memory_before(struct proxy *proxy, const struct intake_memory *memory)
{
    return memory_find(proxy, memory->process, memory->started);
}

/* Takes it out of the list, which it is in. */
static struct intake_memory *memory_take(struct intake_memory **at)
{
    struct intake_memory *memory = *at;
    *at = memory->next;
    memory->next = NULL;
    return memory;
}

static void memory_forget(struct intake_memory **at)
{
    if (*at)
        intake_memory_free(memory_take(at));
}

/* Takes the place of what was known before; the oldest makes room. */
static void memory_keep(struct proxy *proxy, struct intake_memory *memory)
{
    memory_forget(memory_before(proxy, memory));
    memory->next = proxy->memories;
    proxy->memories = memory;
    unsigned count = 0;
    for (struct intake_memory **at = &proxy->memories; *at; at = &(*at)->next) {
        if (++count > MEMORIES_MAX) {
            memory_forget(at);
            return;
        }
    }
}

static bool memory_has(const struct intake_memory *memory, enum space_kind kind, uint64_t id)
{
    for (size_t i = 0; memory && i < memory->count; i++) {
        if (memory->objects[i].kind == kind && memory->objects[i].id == id)
            return true;
    }
    return false;
}

static int memory_add(struct intake_memory *memory, enum space_kind kind, uint64_t id)
{
    if (memory_has(memory, kind, id))
        return 0;
    if (memory->count == OBJECTS_MAX)
        return -E2BIG;
    struct intake_object *grown =
        realloc(memory->objects, (memory->count + 1) * sizeof(*memory->objects));
    if (!grown)
        return -ENOMEM;
    memory->objects = grown;
    grown[memory->count++] = (struct intake_object){kind, id};
    return 0;
}

static struct intake_memory *memory_copy(const struct intake_memory *memory)
{
    struct intake_memory *copy = calloc(1, sizeof(*copy));
    if (!copy)
        return NULL;
    *copy = *memory;
    copy->objects = calloc(memory->count + 1, sizeof(*memory->objects));
    if (!copy->objects)
        return intake_memory_free(copy);
    memcpy(copy->objects, memory->objects, memory->count * sizeof(*memory->objects));
    return copy;
}

/* ---- what is no parent any more ---- */

static void memory_lose(struct intake_memory *memory, const char *why)
{
    if (!memory->lost)
        memory->lost = why;
}

/* Calls back with all that is known, or is going to be. */
static void memories_each(struct proxy *proxy, void (*look)(struct intake_memory *, const void *),
                          const void *with)
{
    for (struct intake_memory *memory = proxy->memories; memory; memory = memory->next)
        look(memory, with);
    for (struct intake *intake = proxy->intakes; intake; intake = intake->next) {
        if (intake->memory && !intake->over)
            look(intake->memory, with);
    }
}

static void lose_number(struct intake_memory *memory, const void *number)
{
    uint64_t id = *(const uint64_t *)number;
    if (memory->process > 0 && (memory->number == id || memory_has(memory, SPACE_TASK, id)))
        memory_lose(memory, "criu has begun to track a process of its number anew, and which one "
                            "could not be told");
}

static bool overlaps(const struct intake_memory *memory, pid_t process)
{
    return memory->process > 0 && task_started(memory->process) == memory->started &&
           task_trees_overlap(memory->process, process);
}

static void lose_cleared(struct intake_memory *memory, const void *process)
{
    if (!memory->lost && overlaps(memory, *(const pid_t *)process))
        memory_lose(memory, "godwit has begun to follow the process by its soft-dirty bits");
}

void intakes_lose(struct proxy *proxy, pid_t process)
{
    memories_each(proxy, lose_cleared, &process);
}

/* Of the same process it is still what this one may be based on. */
static void lose_overlapping(struct intake_memory *memory, const void *next)
{
    const struct intake_memory *by = next;
    if (memory->process != by->process && !memory->lost && overlaps(memory, by->process))
        memory_lose(memory, "criu has begun to track another tree anew that has processes of it");
}

struct intake_memory *intake_take_dumped(struct proxy *proxy, pid_t process)
{
    uint64_t patience = FOLLOW_SILENCES * proxy->daemon.options->silence_usec;
    struct intake_memory **at = memory_find(proxy, process, task_started(process));
    return *at && (*at)->of_dump && now_usec() - (*at)->closed_usec <= patience ? memory_take(at)
                                                                                : NULL;
}

/* ---- the end of it ---- */

/* From the loop, in its next turn: a failure may be told from inside the sender. */
static void intake_over(struct intake *intake)
{
    intake->over = true;
    intake->io = sd_event_source_disable_unref(intake->io);
}

static struct intake *intake_free(struct intake *intake)
{
    struct intake *next = intake->next;
    sd_event_source_disable_unref(intake->io);
    sender_free(intake->sender);
    close_fd(intake->fd);
    intake_memory_free(intake->memory);
    intake_memory_free(intake->parent);
    free(intake);
    return next;
}

/* What criu waits for: four bytes, which the socket has room for. */
static void intake_answer(struct intake *intake, int32_t status)
{
    if (intake->closing)
        (void)!send(intake->fd, &status, sizeof(status), MSG_DONTWAIT | MSG_NOSIGNAL);
    intake->fd = close_fd(intake->fd);
}

static void intake_fail(struct intake *intake, const struct error *err)
{
    struct proxy *proxy = intake->proxy;
    if (intake->over)
        return;
    log_error(&proxy->daemon.log, "page-server: %s%s%s", intake->memory ? intake->memory->id : "",
              intake->memory ? ": " : "", err->text);
    intake_over(intake);
    if (intake->sender && sender_end_is_sent(intake->sender))
        proxy_add_verdict(proxy, intake->memory->id, intake->memory->nonce, false, err->text);
    intake_answer(intake, -1);
    /* What this one was to have, no later one has either. */
    if (intake->memory && intake->memory->process > 0) {
        intake->memory->lost = "the snapshot before has failed";
        intake->memory->of_dump = false;
        memory_keep(proxy, TAKE_PTR(intake->memory));
    }
}

static void intake_done(struct intake *intake)
{
    struct proxy *proxy = intake->proxy;
    log_info(&proxy->daemon.log, "page-server: snapshot %s: complete, %llu bytes%s%s",
             intake->memory->id, (unsigned long long)sender_bytes(intake->sender),
             intake->parent ? ", based on " : "", intake->parent ? intake->parent->id : "");
    intake->memory->closed_usec = now_usec();
    if (intake->memory->process > 0)
        memory_keep(proxy, TAKE_PTR(intake->memory));
    intake_over(intake);
    intake_answer(intake, 0);
}

/* ---- its pages ---- */

static bool has_parent(enum space_kind kind, uint64_t id, void *user)
{
    struct intake *intake = user;
    if (intake->memory->process == 0 && kind == SPACE_TASK)
        memories_each(intake->proxy, lose_number, &id);
    /* An object that is not noted is not a parent next time: that is all. */
    memory_add(intake->memory, kind, id);
    return memory_has(intake->parent, kind, id);
}

static void is_pre_dump(void *user)
{
    struct intake *intake = user;
    intake->memory->of_dump = false;
}

static void on_closed(int fd, void *user)
{
    struct intake *intake = user;
    intake->fd = fd;
    intake->closing = true;
    sender_finish(intake->sender);
}

static const struct page_door_ops door_ops = {
    .has_parent = has_parent, .is_pre_dump = is_pre_dump, .closed = on_closed};

static void on_sender_changed(struct sender *sender, void *user)
{
    struct intake *intake = user;
    struct error err;
    int r = 0;
    if (intake->over)
        return;
    switch (sender_state(sender)) {
    case SENDER_SENDING:
        r = sender_open_page_door(sender, TAKE_FD(intake->fd), &door_ops, intake);
        break;
    case SENDER_ACKED:
        intake_done(intake);
        return;
    case SENDER_FAILED:
        intake_fail(intake, sender_error(sender));
        return;
    default:
        return;
    }
    error_set_errno(&err, FAILURE_SYSTEM, r, "criu's pages");
    if (r < 0)
        intake_fail(intake, &err);
}

static const struct sender_ops sender_ops = {.changed = on_sender_changed};

/* ---- its beginning ---- */

/* criu waits for an answer meanwhile, so what it traces stays.  0, or -1 with *err set. */
static int find_process(const struct intake *intake, struct intake_memory *memory,
                        struct error *err)
{
    uint64_t socket;
    int r = helper_peer_inode(intake->proxy->helper, intake->fd, &socket);
    if (r < 0)
        return error_set_errno(err, FAILURE_CRIU, r, "the other end");
    pid_t process = task_find_traced((pid_t)memory->number, socket);
    uint64_t started = process > 0 ? task_started(process) : 0;
    if (started == 0)
        return error_set(err, FAILURE_CRIU,
                         "nobody is seen who has connected and traces a process");
    memory->process = process;
    memory->started = started;
    memory->number = (uint64_t)task_inner_pid(process);
    memory->images_error = criu_images_look(task_tracer(process), memory->number, &memory->images);
    return 0;
}

static int intake_prepare(struct intake *intake, uint64_t number)
{
    struct intake_memory *memory = calloc(1, sizeof(*memory));
    intake->memory = memory;
    if (!memory || getrandom(&memory->nonce, sizeof(memory->nonce), 0) < 0)
        return -ENOMEM;
    memory->nonce |= 1;
    memory->number = number;
    memory->of_dump = true; /* until criu asks whether there is a parent */
    struct error err;
    bool found = find_process(intake, memory, &err) == 0;
    snprintf(memory->id, sizeof(memory->id), "%llu-%06x", (unsigned long long)memory->number,
             (unsigned)(memory->nonce >> 40));
    if (!found)
        log_error(&intake->proxy->daemon.log,
                  "page-server: %s: whose memory it is cannot be told, so all memory is sent, and "
                  "it is no parent: %s",
                  memory->id, err.text);
    return 0;
}

/* Nobody else may be sending meanwhile what criu is about to track anew.  0, or -1 with *err set:
 * then criu is refused before it has cleared anything. */
static int intake_be_alone(const struct intake *intake, struct error *err)
{
    struct proxy *proxy = intake->proxy;
    pid_t process = intake->memory->process;
    for (const struct intake *other = proxy->intakes; other; other = other->next) {
        if (other != intake && !other->over && other->memory && process > 0 &&
            overlaps(other->memory, process))
            return error_set(err, FAILURE_BUSY,
                             "process %d: another connection of criu brings its memory, as %s, "
                             "and that has not ended",
                             process, other->memory->id);
    }
    if (lineages_lose_dirty(proxy, process, NULL, "criu", err) < 0)
        return -1;
    if (process > 0)
        memories_each(proxy, lose_overlapping, intake->memory);
    return 0;
}

/* Why the snapshot before is no parent of this one; NULL: it is.  A criu that is told of a parent,
 * and has no images of it itself, fails; and behind a dump it has mostly none. */
static const char *why_full(const struct intake_memory *memory, const struct intake_memory *known)
{
    if (memory->images_error < 0)
        return "which images criu has cannot be seen";
    if (!memory->images.based)
        return "criu has no images of a snapshot before (--prev-images-dir)";
    if (!known)
        return "no snapshot before of the process is known here";
    if (known->lost)
        return known->lost;
    if (known->of_dump)
        return "the snapshot before was that of a dump";
    if (!criu_images_follow(&memory->images, &known->images))
        return "what criu takes for the snapshot before (--prev-images-dir) is not what has come "
               "here last";
    return NULL;
}

static int intake_choose_parent(struct intake *intake)
{
    const struct intake_memory *memory = intake->memory;
    if (memory->process == 0)
        return 0; /* that has been told */
    const struct intake_memory *known = *memory_before(intake->proxy, memory);
    const char *why = why_full(memory, known);
    if (why)
        log_info(&intake->proxy->daemon.log, "page-server: %s: all memory is sent%s%s: %s",
                 memory->id, known ? ", and nothing is left to " : "", known ? known->id : "", why);
    else if (!(intake->parent = memory_copy(known)))
        return -ENOMEM;
    return 0;
}

static int intake_send(struct intake *intake)
{
    struct proxy *proxy = intake->proxy;
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    begin.id = intake->memory->id;
    begin.nonce = intake->memory->nonce;
    begin.pid = (uint32_t)intake->memory->number;
    begin.command = (char *)"criu --page-server";
    begin.pre_dump = true;
    if (intake->parent) {
        begin.parent = intake->parent->id;
        begin.parent_nonce = intake->parent->nonce;
    }
    intake->sender = sender_new(proxy->daemon.event, proxy->link, ++proxy->last_session, &begin,
                                &sender_ops, intake);
    return intake->sender ? 0 : -ENOMEM;
}

static void intake_begin(struct intake *intake, uint64_t number)
{
    struct error err;
    int r = intake_prepare(intake, number);
    if (r == 0 && !intake->proxy->link_up) {
        error_set(&err, FAILURE_PEER, "no image-cache is linked");
        intake_fail(intake, &err);
        return;
    }
    if (r == 0 && intake_be_alone(intake, &err) < 0) {
        intake->memory = intake_memory_free(intake->memory); /* what is known stays true */
        intake_fail(intake, &err);
        return;
    }
    if (r == 0)
        r = intake_choose_parent(intake);
    if (r == 0)
        r = intake_send(intake);
    if (r < 0) {
        error_set_errno(&err, FAILURE_SYSTEM, r, "a connection of criu");
        intake_fail(intake, &err);
    }
}

/* The first header tells whose memory it is; it is left where it is. */
static int on_first(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct intake *intake = user;
    struct page_server_request request;
    struct error err;
    uint8_t bytes[FIRST_BYTES + 8];
    unsigned form = 0;
    ssize_t n = recv(fd, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    int r = n <= 0 ? -1 : page_server_parse(&form, bytes, (size_t)n, &request, &err);
    if (n <= 0 || (r == 0 && events & EPOLLHUP)) {
        error_set(&err, FAILURE_CRIU, "a connection ended before its first request");
        r = -1;
    } else if (r > 0 && !page_server_opens(request.command)) {
        r = error_set(&err, FAILURE_CRIU,
                      "a connection begins with command %u, which opens nothing", request.command);
    }
    if (r == 0) {
        int want = form == 0 ? FIRST_BYTES : (int)form; /* be woken when it is whole */
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &want, sizeof(want));
        return 0;
    }
    intake->io = sd_event_source_disable_unref(intake->io);
    int one = 1;
    setsockopt(intake->fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
    if (r < 0)
        intake_fail(intake, &err);
    else
        intake_begin(intake, request.id);
    return 0;
}

static void intake_open(struct proxy *proxy, int fd)
{
    unsigned count = 0;
    for (struct intake *intake = proxy->intakes; intake; intake = intake->next)
        count++;
    struct intake *intake = count < INTAKES_MAX ? calloc(1, sizeof(*intake)) : NULL;
    if (!intake) {
        close_fd(fd);
        return;
    }
    *intake =
        (struct intake){.proxy = proxy, .next = proxy->intakes, .fd = fd, .since_usec = now_usec()};
    proxy->intakes = intake;
    int r = sd_event_add_io(proxy->daemon.event, &intake->io, fd, EPOLLIN, on_first, intake);
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, r, "a connection of criu");
    if (r < 0)
        intake_fail(intake, &err);
}

static int on_connection(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    int accepted = daemon_accept(fd);
    if (accepted >= 0)
        intake_open(user, accepted);
    return 0;
}

static int intakes_add_listener(struct proxy *proxy, int index, int fd)
{
    int r = sd_event_add_io(proxy->daemon.event, &proxy->page_listeners[index], fd, EPOLLIN,
                            on_connection, proxy);
    if (r < 0) {
        close_fd(fd);
        return r;
    }
    return sd_event_source_set_io_fd_own(proxy->page_listeners[index], true);
}

int intakes_listen(struct proxy *proxy, struct error *err)
{
    const char *where = proxy->daemon.options->page_server;
    int fds[TCP_LISTENERS_MAX], count = 1, r = 0;
    if (strncmp(where, "unix:", 5) == 0) {
        fds[0] = unix_listen_path(where + 5, SOCK_STREAM);
        if (fds[0] < 0)
            return error_set_errno(err, FAILURE_SYSTEM, fds[0], "listening on %s", where);
    } else {
        /* Of this host only: whoever gets there can put memory into the next snapshot. */
        count = tcp_listen("localhost", where, &(struct protection){0}, fds, err);
    }
    for (int i = 0; i < count; i++) {
        if (r >= 0)
            r = intakes_add_listener(proxy, i, fds[i]);
        else
            close_fd(fds[i]);
    }
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "listening for criu");
    return count < 0 ? -1 : 0;
}

/* ---- the daemon ---- */

bool intakes_control(struct proxy *proxy, const struct frame *frame, const uint8_t *payload,
                     int *ret, struct error *err)
{
    for (struct intake *intake = proxy->intakes; intake; intake = intake->next) {
        if (intake->sender && sender_session(intake->sender) == frame->session) {
            *ret = sender_control(intake->sender, frame, payload, err);
            return true;
        }
    }
    return false;
}

void intakes_link_down(struct proxy *proxy, const struct error *err)
{
    for (struct intake *intake = proxy->intakes; intake; intake = intake->next) {
        if (intake->sender)
            sender_link_down(intake->sender, err);
    }
}

void intakes_tick(struct proxy *proxy)
{
    struct error err;
    error_set(&err, FAILURE_CRIU, "a connection said nothing");
    for (struct intake **at = &proxy->intakes; *at;) {
        struct intake *intake = *at;
        if (intake->io && now_usec() - intake->since_usec > proxy->daemon.options->silence_usec)
            intake_fail(intake, &err);
        if (intake->over)
            *at = intake_free(intake);
        else
            at = &intake->next;
    }
}

void intakes_remove(const struct daemon_options *options)
{
    if (options->page_server && strncmp(options->page_server, "unix:", 5) == 0)
        unlink(options->page_server + 5);
}

void intakes_free(struct proxy *proxy)
{
    for (size_t i = 0; i < ARRAY_SIZE(proxy->page_listeners); i++)
        sd_event_source_disable_unref(proxy->page_listeners[i]);
    while (proxy->intakes)
        proxy->intakes = intake_free(proxy->intakes);
    while (proxy->memories)
        memory_forget(&proxy->memories);
}
