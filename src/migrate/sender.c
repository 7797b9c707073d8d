/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include "base/io.h"
#include "migrate/doors.h"

struct pipe_door {
    struct link_source source;
    struct sender *sender;
    struct pipe_door *next;
    sd_event_source *io;
    int fd;
    struct item item;
};

struct directory_door {
    struct link_source source;
    struct sender *sender;
    int dirfd;
    char **names;
    size_t count, next;
    int fd; /* of the file being sent, or -EBADF */
    struct item item;
};

/* ---- items ---- */

static int item_begin(struct sender *sender, unsigned stream, struct item *item, uint16_t type,
                      const ProtobufCMessage *message)
{
    int r = digest_begin(&item->digest);
    if (r < 0)
        return r;
    item->number = ++sender->streams[stream].last_item;
    item->bytes = 0;
    link_send(sender->streams[stream].link, type, sender->session, item->number, message);
    return 0;
}

static void item_end(struct sender *sender, unsigned stream, struct item *item, uint16_t type,
                     bool listed)
{
    uint8_t digest[DIGEST_BYTES];
    digest_end(&item->digest, digest);
    Godwit__Pb__ItemEnd message = GODWIT__PB__ITEM_END__INIT;
    message.bytes = item->bytes;
    message.digest = (ProtobufCBinaryData){sizeof(digest), digest};
    message.listed = listed;
    link_send(sender->streams[stream].link, type, sender->session, item->number, &message.base);
    sender->streams[stream].bytes += item->bytes;
}

static int image_begin(struct sender *sender, struct item *item, const char *name)
{
    if (!image_name_valid(name))
        return -EINVAL;
    Godwit__Pb__ImageBegin message = GODWIT__PB__IMAGE_BEGIN__INIT;
    message.name = (char *)name;
    int r = item_begin(sender, 0, item, FRAME_IMAGE_BEGIN, &message.base);
    if (r < 0)
        return r;
    sender->images++;
    if (strcmp(name, "inventory.img") == 0)
        sender->inventory = true;
    return 0;
}

/* Reads the next piece of an image into the batch.  Bytes, 0 at the end, or a negative errno. */
static ssize_t image_draw(struct sender *sender, struct item *item, int fd,
                          struct link_batch *batch)
{
    ssize_t n;
    do {
        n = read(fd, batch->buf, LINK_BATCH_BYTES);
    } while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 ? -errno : 0;
    struct frame frame = {
        .type = FRAME_IMAGE_DATA,
        .length = (uint32_t)n,
        .session = sender->session,
        .item = item->number,
        .offset = item->bytes,
    };
    digest_bytes(&item->digest, batch->buf, (size_t)n);
    item->bytes += (uint64_t)n;
    link_batch_add(batch, &frame, batch->buf);
    return n;
}

/* ---- memory ---- */

static struct space *space_find(const struct sender *sender, enum space_kind kind, uint64_t id)
{
    for (size_t i = sender->space_count; i-- > 0;) {
        if (sender->spaces[i]->kind == kind && sender->spaces[i]->id == id)
            return sender->spaces[i];
    }
    return NULL;
}

static void space_free(const struct sender *sender, struct space *space)
{
    for (unsigned i = 0; i < sender->stream_count; i++)
        digest_drop(&space->items[i].digest);
    page_runs_free(&space->criu);
    free(space);
}

static int sender_add_space(struct sender *sender, struct space *space)
{
    if (sender->space_count == SPACES_MAX)
        return -E2BIG;
    if (sender->space_count == sender->space_room) {
        size_t room = MAX(8, 2 * sender->space_room);
        struct space **grown = realloc(sender->spaces, room * sizeof(struct space *));
        if (!grown)
            return -ENOMEM;
        sender->spaces = grown;
        sender->space_room = room;
    }
    Godwit__Pb__SpaceBegin message = GODWIT__PB__SPACE_BEGIN__INIT;
    message.kind = space->kind == SPACE_TASK ? GODWIT__PB__SPACE_BEGIN__KIND__TASK
                                             : GODWIT__PB__SPACE_BEGIN__KIND__SHARED;
    message.id = space->id;
    message.based = space->based;
    /* On every stream at once: this goes before whatever is drawn for it. */
    int r = 0;
    for (unsigned i = 0; i < sender->stream_count && r == 0; i++)
        r = item_begin(sender, i, &space->items[i], FRAME_SPACE_BEGIN, &message.base);
    if (r == 0)
        sender->spaces[sender->space_count++] = space;
    return r;
}

struct space *sender_space(struct sender *sender, enum space_kind kind, uint64_t id,
                           enum space_want want)
{
    struct space *space = space_find(sender, kind, id);
    if (space || want == SPACE_IF_BEGUN)
        return space;
    space = calloc(1, sizeof(*space) + sender->stream_count * sizeof(struct item));
    if (!space)
        return NULL;
    space->kind = kind;
    space->id = id;
    space->based = want == SPACE_BASED;
    int r = sender_add_space(sender, space);
    if (r < 0) {
        space_free(sender, space);
        return errno = -r, NULL;
    }
    return space;
}

int sender_add_based(struct sender *sender, enum space_kind kind, uint64_t id)
{
    return sender_space(sender, kind, id, SPACE_BASED) ? 0 : -errno;
}

/* Adds a frame of a space to a batch, and what is in it to the digest. */
static bool space_add(struct sender *sender, unsigned stream, struct space *space,
                      struct link_batch *batch, struct frame *frame, uint64_t place,
                      const void *payload)
{
    struct item *item = &space->items[stream];
    frame->session = sender->session;
    frame->item = item->number;
    if (!link_batch_add(batch, frame, payload))
        return false;
    digest_place(&item->digest, place, frame->length);
    digest_bytes(&item->digest, payload, frame->length);
    item->bytes += frame->length;
    return true;
}

bool space_add_pages(struct sender *sender, unsigned stream, struct space *space,
                     struct link_batch *batch, uint64_t vaddr, const void *payload, uint64_t pages,
                     uint16_t flags)
{
    struct frame frame = {
        .type = FRAME_PAGES,
        .flags = flags,
        .length = (uint32_t)(pages * PAGE_BYTES),
        .offset = vaddr,
    };
    return space_add(sender, stream, space, batch, &frame, vaddr, payload);
}

bool space_add_list(struct sender *sender, unsigned stream, struct space *space,
                    struct link_batch *batch, enum frame_type type, uint16_t flags,
                    const uint8_t *list, size_t bytes)
{
    struct frame frame = {.type = type, .flags = flags, .length = (uint32_t)bytes};
    return space_add(sender, stream, space, batch, &frame, flags, list);
}

bool space_add_copies(struct sender *sender, unsigned stream, struct space *space,
                      struct link_batch *batch, const struct space *of, const uint8_t *list,
                      size_t bytes)
{
    struct frame frame = {.type = FRAME_PAGE_RUNS,
                          .flags = RUNS_COPY,
                          .length = (uint32_t)bytes,
                          .offset = of->items[stream].number};
    return space_add(sender, stream, space, batch, &frame, RUNS_COPY, list);
}

static void sender_free_spaces(struct sender *sender)
{
    for (size_t i = 0; i < sender->space_count; i++)
        space_free(sender, sender->spaces[i]);
    free(sender->spaces);
    sender->spaces = NULL;
    sender->space_count = sender->space_room = 0;
}

/* ---- the end of it ---- */

static struct pipe_door *pipe_door_free(struct pipe_door *door)
{
    link_source_remove(&door->source);
    sd_event_source_disable_unref(door->io);
    close_fd(door->fd);
    digest_drop(&door->item.digest);
    free(door);
    return NULL;
}

static struct directory_door *directory_door_free(struct directory_door *door)
{
    if (!door)
        return NULL;
    link_source_remove(&door->source);
    close_fd(door->dirfd);
    close_fd(door->fd);
    digest_drop(&door->item.digest);
    for (size_t i = 0; i < door->count; i++)
        free(door->names[i]);
    free(door->names);
    free(door);
    return NULL;
}

static void sender_close_doors(struct sender *sender)
{
    sender->pages = page_door_free(sender->pages);
    sender->rounds = rounds_door_close(sender->rounds);
    sender->directory = directory_door_free(sender->directory);
    while (sender->pipes) {
        struct pipe_door *door = sender->pipes;
        sender->pipes = door->next;
        pipe_door_free(door);
    }
    sender_free_spaces(sender);
}

static void sender_enter(struct sender *sender, enum sender_state state)
{
    sender->state = state;
    sender->ops->changed(sender, sender->user);
}

void sender_fail(struct sender *sender, const struct error *err)
{
    if (sender->state == SENDER_FAILED || sender->state == SENDER_ACKED)
        return;
    sender->error = *err;
    sender_close_doors(sender);
    /* Behind the end of the snapshot the session is over: then only a verdict helps. */
    if (sender_link(sender) && sender->state != SENDER_ENDING) {
        Godwit__Pb__Failure failure = failure_message(err);
        link_send(sender_link(sender), FRAME_SNAPSHOT_ABORT, sender->session, 0, &failure.base);
    }
    sender_enter(sender, SENDER_FAILED);
}

void sender_fail_errno(struct sender *sender, int error_number, const char *what)
{
    struct error err;
    error_set_errno(&err, FAILURE_SYSTEM, error_number, "%s", what);
    sender_fail(sender, &err);
}

/* What came over a stream is summed up on it. */
static void stream_end(struct sender *sender, unsigned stream)
{
    for (size_t i = 0; i < sender->space_count; i++) {
        struct space *space = sender->spaces[i];
        item_end(sender, stream, &space->items[stream], FRAME_SPACE_END, space->listed);
    }
    Godwit__Pb__SnapshotEnd message = GODWIT__PB__SNAPSHOT_END__INIT;
    message.images = stream == 0 ? sender->images : 0;
    message.spaces = (uint32_t)sender->space_count;
    message.bytes = sender->streams[stream].bytes;
    link_send(sender->streams[stream].link, FRAME_SNAPSHOT_END, sender->session, 0, &message.base);
}

void sender_check_end(struct sender *sender)
{
    if (!sender->finishing || sender->state != SENDER_SENDING || sender->pages ||
        rounds_door_is_busy(sender->rounds) || sender->directory || sender->pipes)
        return;
    for (unsigned i = 0; i < sender->stream_count; i++)
        stream_end(sender, i);
    sender_free_spaces(sender);
    sender->end_sent = true;
    sender_enter(sender, SENDER_ENDING);
}

void sender_finish(struct sender *sender)
{
    sender->finishing = true;
    sender_check_end(sender);
}

/* Whether it takes more: the cache has accepted, and nobody has said that this was all. */
static bool sender_is_open(const struct sender *sender)
{
    return sender_link(sender) && sender->state <= SENDER_SENDING && !sender->finishing;
}

void *door_new(const struct sender *sender, size_t size, int fd)
{
    void *door = sender_is_open(sender) ? calloc(1, size) : NULL;
    if (!door) {
        close_fd(fd);
        errno = sender_is_open(sender) ? ENOMEM : EPROTO;
    }
    return door;
}

/* ---- pipes ---- */

static int on_pipe(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct pipe_door *door = user;
    link_source_ready(sender_link(door->sender), &door->source);
    return 0;
}

static void pipe_door_close(struct pipe_door *door)
{
    struct sender *sender = door->sender;
    struct pipe_door **at = &sender->pipes;
    while (*at != door)
        at = &(*at)->next;
    *at = door->next;
    pipe_door_free(door);
    sender_check_end(sender);
}

static bool pipe_fill(struct link_source *source, struct link_batch *batch)
{
    struct pipe_door *door = (struct pipe_door *)source;
    struct sender *sender = door->sender;
    ssize_t n = image_draw(sender, &door->item, door->fd, batch);
    if (n > 0)
        return true;
    if (n == -EAGAIN) {
        sd_event_source_set_enabled(door->io, SD_EVENT_ONESHOT);
    } else if (n < 0) {
        sender_fail_errno(sender, (int)n, "reading an image from criu");
    } else {
        item_end(sender, 0, &door->item, FRAME_IMAGE_END, false);
        pipe_door_close(door);
    }
    return false;
}

int sender_open_pipe(struct sender *sender, const char *name, int fd)
{
    struct pipe_door *door = door_new(sender, sizeof(*door), fd);
    if (!door)
        return -errno;
    *door = (struct pipe_door){.source.fill = pipe_fill, .sender = sender, .fd = fd};
    int r = set_nonblocking(fd, true);
    if (r >= 0)
        r = sd_event_add_io(sender->event, &door->io, fd, EPOLLIN, on_pipe, door);
    if (r >= 0)
        r = sd_event_source_set_enabled(door->io, SD_EVENT_ONESHOT);
    if (r >= 0)
        r = image_begin(sender, &door->item, name);
    if (r < 0) {
        pipe_door_free(door);
        return r;
    }
    door->next = sender->pipes;
    sender->pipes = door;
    return 0;
}

/* ---- a directory ---- */

static int directory_open_next(struct directory_door *door)
{
    struct sender *sender = door->sender;
    const char *name = door->names[door->next++];
    door->fd = openat(door->dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (door->fd < 0)
        return -errno;
    return image_begin(sender, &door->item, name);
}

static bool directory_fill(struct link_source *source, struct link_batch *batch)
{
    struct directory_door *door = (struct directory_door *)source;
    struct sender *sender = door->sender;
    ssize_t n;
    if (door->fd >= 0) {
        n = image_draw(sender, &door->item, door->fd, batch);
        if (n == 0) {
            item_end(sender, 0, &door->item, FRAME_IMAGE_END, false);
            door->fd = close_fd(door->fd);
        }
    } else if (door->next < door->count) {
        n = directory_open_next(door);
    } else {
        sender->directory = directory_door_free(door);
        sender_check_end(sender);
        return false;
    }
    if (n < 0) {
        sender_fail_errno(sender, (int)n, "reading an image that criu wrote");
        return false;
    }
    return true;
}

/* Notes a file that is to be sent. */
static int directory_add(int dirfd, const char *name, void *user)
{
    struct directory_door *door = user;
    struct stat st;
    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
        return 0;
    char **grown = realloc(door->names, (door->count + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    door->names = grown;
    door->names[door->count] = strdup(name);
    if (!door->names[door->count])
        return -ENOMEM;
    door->count++;
    return 0;
}

int sender_open_directory(struct sender *sender, int dirfd)
{
    struct directory_door *door = door_new(sender, sizeof(*door), dirfd);
    if (!door)
        return -errno;
    *door = (struct directory_door){
        .source.fill = directory_fill, .sender = sender, .dirfd = dirfd, .fd = -EBADF};
    int r = directory_for_each(dirfd, directory_add, door);
    if (r < 0) {
        directory_door_free(door);
        return r;
    }
    sender->directory = door;
    link_source_ready(sender_link(sender), &door->source);
    return 0;
}

/* ---- the cache's answers ---- */

/* Only a cache that has been asked for streams, and knows of them, gives one. */
static int sender_take_token(struct sender *sender, const struct frame *frame,
                             const uint8_t *payload, struct error *err)
{
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__snapshot_accept__descriptor, payload, frame->length, err);
    if (!message)
        return -1;
    const Godwit__Pb__SnapshotAccept *accept = (const Godwit__Pb__SnapshotAccept *)message;
    sender->has_token = accept->token.len == WIRE_TOKEN_BYTES;
    if (sender->has_token)
        memcpy(sender->token, accept->token.data, WIRE_TOKEN_BYTES);
    return 0;
}

int sender_control(struct sender *sender, const struct frame *frame, const uint8_t *payload,
                   struct error *err)
{
    if (frame->type == FRAME_SNAPSHOT_REFUSE) {
        _cleanup_message_ ProtobufCMessage *message =
            message_unpack(&godwit__pb__failure__descriptor, payload, frame->length, err);
        if (!message)
            return -1;
        struct error reason;
        failure_to_reason((const Godwit__Pb__Failure *)message,
                          "the image-cache refused the snapshot and gave no reason", &reason);
        /* The criu whose failure is waited for is the one here. */
        if (reason.code == FAILURE_CRIU)
            reason.code = FAILURE_PEER;
        sender->end_sent = false; /* whatever it was about, the cache has nothing of it */
        sender_fail(sender, &reason);
        return 0;
    }
    if (sender->state == SENDER_FAILED)
        return 0; /* it crossed our abort */
    if (frame->type == FRAME_SNAPSHOT_ACCEPT && sender->state == SENDER_BEGUN) {
        if (sender_take_token(sender, frame, payload, err) < 0)
            return -1;
        sender_enter(sender, SENDER_SENDING);
        sender_check_end(sender);
        return 0;
    }
    if (frame->type == FRAME_SNAPSHOT_ACK && sender->state == SENDER_ENDING) {
        sender_close_doors(sender); /* the streams may go now */
        sender_enter(sender, SENDER_ACKED);
        return 0;
    }
    return error_set(err, FAILURE_PEER, "the peer broke the protocol: %s frame now",
                     frame_name(frame->type));
}

void sender_link_down(struct sender *sender, const struct error *err)
{
    sender->streams[0].link = NULL;
    sender_fail(sender, err);
}

/* ---- its life ---- */

struct sender *sender_new(sd_event *event, struct link *link, uint32_t session,
                          const Godwit__Pb__SnapshotBegin *begin, const struct sender_ops *ops,
                          void *user)
{
    struct sender *sender = calloc(1, sizeof(*sender));
    if (!sender)
        return NULL;
    *sender = (struct sender){
        .event = sd_event_ref(event),
        .streams = {{.link = link}},
        .stream_count = 1,
        .session = session,
        .ops = ops,
        .user = user,
    };
    link_send(link, FRAME_SNAPSHOT_BEGIN, session, 0, &begin->base);
    return sender;
}

struct sender *sender_free(struct sender *sender)
{
    if (!sender)
        return NULL;
    sender_close_doors(sender);
    sd_event_unref(sender->event);
    free(sender);
    return NULL;
}

enum sender_state sender_state(const struct sender *sender)
{
    return sender->state;
}

const struct error *sender_error(const struct sender *sender)
{
    return &sender->error;
}

uint32_t sender_session(const struct sender *sender)
{
    return sender->session;
}

uint64_t sender_bytes(const struct sender *sender)
{
    uint64_t bytes = 0;
    for (unsigned stream = 0; stream < sender->stream_count; stream++) {
        bytes += sender->streams[stream].bytes;
        for (size_t i = 0; i < sender->space_count; i++)
            bytes += sender->spaces[i]->items[stream].bytes;
    }
    return bytes;
}

const uint8_t *sender_token(const struct sender *sender)
{
    return sender->has_token ? sender->token : NULL;
}

void sender_add_stream(struct sender *sender, struct link *link)
{
    sender->streams[sender->stream_count++] = (struct stream){.link = link};
}

bool sender_end_is_sent(const struct sender *sender)
{
    return sender->end_sent;
}

bool sender_has_inventory(const struct sender *sender)
{
    return sender->inventory;
}
