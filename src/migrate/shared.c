/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/shared.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "task/page_hashes.h"
#include "task/shared.h"

enum {
    BREATH_BYTES = 16 << 20, /* read and found to be as they were, in one turn of the loop */
    OBJECTS_MAX = 1024,      /* each takes a descriptor; criu has the others */
};

struct object {
    uint64_t inode, bytes;
    int fd;    /* -EBADF: not looked at yet for this snapshot */
    bool seen; /* in the latest look */
    bool kept; /* the snapshot before has it */
    struct page_hashes sent;
};

/* How far a stream has come in a round. */
struct cursor {
    size_t object;
    uint64_t offset;
};

struct shared {
    struct sender *sender; /* NULL: it is done with */
    bool listed;           /* its snapshot has no more than criu has told */
    struct object **objects;
    size_t count, room;
    struct cursor cursors[WIRE_STREAMS_MAX];
};

/* ---- objects ---- */

static struct space *object_space(const struct shared *shared, const struct object *object,
                                  enum space_want want)
{
    return sender_space(shared->sender, SPACE_SHARED, object->inode, want);
}

/* Of what criu sends of it everything is sent from now on. */
static void object_release(const struct shared *shared, struct object *object)
{
    struct space *space = object_space(shared, object, SPACE_IF_BEGUN);
    if (space)
        space->sent = NULL;
    object->fd = close_fd(object->fd);
}

static struct object *object_free(struct object *object)
{
    close_fd(object->fd);
    page_hashes_free(&object->sent);
    free(object);
    return NULL;
}

static struct object *shared_find(const struct shared *shared, uint64_t inode)
{
    for (size_t i = 0; i < shared->count; i++) {
        if (shared->objects[i]->inode == inode)
            return shared->objects[i];
    }
    return NULL;
}

static int shared_make_room(struct shared *shared)
{
    if (shared->count < shared->room)
        return 0;
    size_t room = MAX(8, 2 * shared->room);
    struct object **grown = realloc(shared->objects, room * sizeof(struct object *));
    if (!grown)
        return -ENOMEM;
    shared->objects = grown;
    shared->room = room;
    return 0;
}

static struct object *shared_add(struct shared *shared, uint64_t inode)
{
    struct object *object = shared_make_room(shared) < 0 ? NULL : calloc(1, sizeof(*object));
    if (!object)
        return NULL;
    *object = (struct object){.inode = inode, .fd = -EBADF};
    shared->objects[shared->count++] = object;
    return object;
}

/* It has been opened: what was sent of it is in the snapshot, or is going to be. */
static int object_begin(const struct shared *shared, struct object *object, int fd)
{
    object->fd = fd;
    object->seen = true;
    struct space *space = object_space(shared, object, object->kept ? SPACE_BASED : SPACE_MAKE);
    if (!space)
        return -errno;
    space->sent = &object->sent;
    return 0;
}

static int found_memory(const struct shared_memory *memory, void *user)
{
    struct shared *shared = user;
    struct object *object = shared_find(shared, memory->inode);
    if (object && object->fd >= 0) {
        object->seen = true;
        return 0;
    }
    _cleanup_close_ int fd =
        object || shared->count < OBJECTS_MAX ? open(memory->path, O_RDONLY | O_CLOEXEC) : -EMFILE;
    if (fd < 0)
        return 0;
    if (!object)
        object = shared_add(shared, memory->inode);
    return object ? object_begin(shared, object, TAKE_FD(fd)) : -ENOMEM;
}

void shared_look_begin(struct shared *shared)
{
    for (size_t i = 0; i < shared->count; i++)
        shared->objects[i]->seen = false;
    memset(shared->cursors, 0, sizeof(shared->cursors));
}

int shared_look(struct shared *shared, pid_t pid)
{
    int r = shared_memory_each(pid, found_memory, shared);
    return r == -ENOMEM || r == -E2BIG ? r : 0; /* one that has ended has none */
}

void shared_look_end(struct shared *shared)
{
    size_t kept = 0;
    for (size_t i = 0; i < shared->count; i++) {
        struct object *object = shared->objects[i];
        struct stat st;
        if (!object->seen || fstat(object->fd, &st) < 0) {
            object_release(shared, object);
            object_free(object);
            continue;
        }
        object->bytes = (uint64_t)st.st_size;
        page_hashes_begin(&object->sent);
        shared->objects[kept++] = object;
    }
    shared->count = kept;
}

void shared_list(struct shared *shared)
{
    for (size_t i = 0; i < shared->count; i++) {
        struct space *space = object_space(shared, shared->objects[i], SPACE_IF_BEGUN);
        if (space)
            space->listed = true;
    }
    shared->listed = true;
}

void shared_join(struct shared *shared, struct sender *sender)
{
    for (size_t i = 0; i < shared->count; i++) {
        shared->objects[i]->kept = true;
        if (shared->listed)
            page_hashes_keep_told(&shared->objects[i]->sent);
    }
    shared->listed = false;
    shared->sender = sender;
}

void shared_leave(struct shared *shared)
{
    for (size_t i = 0; i < shared->count; i++)
        object_release(shared, shared->objects[i]);
    shared->sender = NULL;
}

struct shared *shared_new(void)
{
    return calloc(1, sizeof(struct shared));
}

struct shared *shared_free(struct shared *shared)
{
    for (size_t i = 0; shared && i < shared->count; i++)
        object_free(shared->objects[i]);
    if (shared)
        free(shared->objects);
    free(shared);
    return NULL;
}

/* ---- sending ---- */

/* Adds those of the pages in the batch's buffer that are not what was sent. */
static void add_changed(const struct shared *shared, unsigned stream, struct object *object,
                        struct link_batch *batch, uint64_t offset, uint64_t pages,
                        uint64_t *written)
{
    struct space *space = object_space(shared, object, SPACE_IF_BEGUN);
    uint64_t first = 0;
    for (uint64_t i = 0; i <= pages; i++) {
        const uint8_t *page = batch->buf + i * PAGE_BYTES;
        if (i < pages && page_hashes_note(&object->sent, offset + i * PAGE_BYTES, false, page))
            continue;
        if (i > first)
            space_add_pages(shared->sender, stream, space, batch, offset + first * PAGE_BYTES,
                            batch->buf + first * PAGE_BYTES, i - first, 0);
        *written += i - first;
        first = i + 1;
    }
}

/* Where the next bytes for a stream begin that are no hole, and how many may be read at once; 0:
 * there are no more. */
static uint64_t find_stretch(const struct shared *shared, unsigned stream,
                             const struct object *object, uint64_t *offset)
{
    while (*offset < object->bytes) {
        off_t data = lseek(object->fd, (off_t)*offset, SEEK_DATA);
        if (data < 0)
            return 0;
        *offset = (uint64_t)data / PAGE_BYTES * PAGE_BYTES;
        uint64_t end = (*offset / STRETCH_BYTES + 1) * STRETCH_BYTES;
        if (stream_of(shared->sender, *offset) == stream)
            return MIN(end, object->bytes) - *offset;
        *offset = end;
    }
    return 0;
}

int shared_fill(struct shared *shared, unsigned stream, struct link_batch *batch, uint64_t *written)
{
    struct cursor *at = &shared->cursors[stream];
    uint64_t read = 0;
    while (at->object < shared->count) {
        struct object *object = shared->objects[at->object];
        uint64_t length = find_stretch(shared, stream, object, &at->offset);
        ssize_t n = length ? pread(object->fd, batch->buf, length, (off_t)at->offset) : 0;
        if (n < PAGE_BYTES) { /* it may have become shorter */
            *at = (struct cursor){.object = at->object + 1};
            continue;
        }
        uint64_t pages = (uint64_t)n / PAGE_BYTES;
        add_changed(shared, stream, object, batch, at->offset, pages, written);
        at->offset += pages * PAGE_BYTES;
        read += pages * PAGE_BYTES;
        if (batch->frames > 0)
            return 1;
        if (read >= BREATH_BYTES)
            return -EAGAIN;
    }
    return 0;
}
