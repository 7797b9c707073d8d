/* SPDX-License-Identifier: Apache-2.0 */
#include "store/arena.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/hidden.h"

#define ROOM_MIN KIB(4)
#define ROOM_STEP_MAX MIB(32)
#define WINDOW_BYTES MIB(32)

int budget_charge(struct budget *budget, uint64_t bytes)
{
    if (bytes > budget->limit || budget->used > budget->limit - bytes)
        return -EDQUOT;
    budget->used += bytes;
    return 0;
}

void budget_refund(struct budget *budget, uint64_t bytes)
{
    budget->used -= bytes;
}

int arena_create(struct arena *arena, int dirfd, const char *name, struct budget *budget)
{
    int fd = openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    *arena = (struct arena){.budget = budget, .fd = fd};
    return 0;
}

int arena_extend(struct arena *arena, int dirfd, const char *name, struct budget *budget)
{
    struct stat st;
    _cleanup_close_ int fd = openat(dirfd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    uint64_t size = (uint64_t)st.st_size;
    *arena = (struct arena){.budget = budget,
                            .fd = TAKE_FD(fd),
                            .extends = true,
                            .base = size,
                            .filled = size,
                            .room = size};
    return 0;
}

/* Small files grow by doubling and large ones by whole steps, so that neither wastes much. */
static int arena_grow(struct arena *arena, uint64_t need)
{
    uint64_t room = MAX(arena->room, ROOM_MIN);
    while (room < need)
        room += MIN(room, ROOM_STEP_MAX);
    int r = budget_charge(arena->budget, room - arena->room);
    if (r == -EDQUOT && need > arena->room) {
        room = need; /* the last bytes below the limit are as good as any */
        r = budget_charge(arena->budget, room - arena->room);
    }
    if (r < 0)
        return r;
    /* The length first, because tmpfs looks at it when it chooses the size of a page; then the
     * memory itself, because whoever touches a page that cannot be had is killed. */
    r = ftruncate(arena->fd, (off_t)room) < 0 ? -errno : 0;
    while (r == 0 && fallocate(arena->fd, 0, (off_t)arena->room, (off_t)(room - arena->room)) < 0) {
        if (errno != EINTR)
            r = -errno;
    }
    if (r < 0) {
        if (ftruncate(arena->fd, (off_t)arena->room) < 0)
            r = -errno;
        budget_refund(arena->budget, room - arena->room);
        return r;
    }
    arena->room = room;
    return 0;
}

int arena_append(struct arena *arena, uint64_t bytes, uint64_t *ret_offset)
{
    if (bytes > INT64_MAX - arena->filled)
        return -EFBIG;
    if (arena->filled + bytes > arena->room) {
        int r = arena_grow(arena, arena->filled + bytes);
        if (r < 0)
            return r;
    }
    *ret_offset = arena->filled;
    arena->filled += bytes;
    return 0;
}

void arena_window_close(struct arena_window *window)
{
    if (window->at)
        munmap(window->at, WINDOW_BYTES);
    window->at = NULL;
}

int arena_at(const struct arena *arena, struct arena_window *window, uint64_t offset,
             void **ret_place, size_t *length)
{
    uint64_t start = offset - offset % WINDOW_BYTES;
    if (!window->at || start != window->start) {
        arena_window_close(window);
        void *at =
            mmap(NULL, WINDOW_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd, (off_t)start);
        if (at == MAP_FAILED)
            return -errno;
        /* A child that lives long would keep the memory of snapshots that are gone. */
        madvise(at, WINDOW_BYTES, MADV_DONTFORK);
        hidden_from_dumps(at, WINDOW_BYTES);
        window->at = at;
        window->start = start;
    }
    *ret_place = window->at + (offset - start);
    *length = MIN(*length, WINDOW_BYTES - (offset - start));
    return 0;
}

int arena_seal(struct arena *arena)
{
    if (ftruncate(arena->fd, (off_t)arena->filled) < 0)
        return -errno;
    budget_refund(arena->budget, arena->room - arena->filled);
    arena->room = arena->filled;
    arena->fd = close_fd(arena->fd);
    return 0;
}

int arena_hand_over(struct arena *arena, uint64_t *charge)
{
    int r = arena->fd < 0 ? 0 : arena_seal(arena);
    if (r < 0)
        return r;
    *charge += arena->room - arena->base;
    *arena = (struct arena){.fd = -EBADF};
    return 0;
}

void arena_drop(struct arena *arena)
{
    if (!arena->budget)
        return;
    /* What cannot be cut off is nobody's, and goes when the file is looked through (chain.h). */
    if (arena->fd >= 0 && arena->extends)
        (void)!ftruncate(arena->fd, (off_t)arena->base);
    close_fd(arena->fd);
    budget_refund(arena->budget, arena->room - arena->base);
    *arena = (struct arena){.fd = -EBADF};
}
