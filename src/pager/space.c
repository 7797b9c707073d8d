/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/space.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/hidden.h"

#define PIECE_BYTES MIB(2)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

static uint64_t piece_count(const struct space *space)
{
    return (space->length + PIECE_BYTES - 1) / PIECE_BYTES;
}

static void space_free(struct space *space)
{
    if (space->bytes)
        munmap((void *)space->bytes, space->length);
    free(space->pieces);
    free(space);
}

static int space_open(struct space *space, uint32_t number, int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *space = (struct space){.number = number, .fd = fd, .length = (uint64_t)st.st_size};
    if (space->length == 0)
        return 0;
    space->pieces = calloc(piece_count(space), sizeof(*space->pieces));
    if (!space->pieces)
        return -ENOMEM;
    void *bytes = mmap(NULL, space->length, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    hidden_from_dumps(bytes, space->length);
    space->bytes = bytes;
    return 0;
}

int spaces_get(struct spaces *spaces, uint32_t number, int fd, struct space **ret)
{
    struct space *space = spaces->first;
    while (space && space->number != number)
        space = space->next;
    if (!space) {
        space = malloc(sizeof(*space));
        if (!space)
            return -ENOMEM;
        int r = space_open(space, number, fd);
        if (r < 0) {
            space_free(space);
            return r;
        }
        space->next = spaces->first;
        spaces->first = space;
    }
    space->users++;
    *ret = space;
    return 0;
}

void spaces_put(struct spaces *spaces, struct space *space)
{
    if (!space || --space->users > 0)
        return;
    struct space **link = &spaces->first;
    while (*link != space)
        link = &(*link)->next;
    *link = space->next;
    space_free(space);
}

static void piece_return(struct space *space, uint64_t i)
{
    struct piece *piece = &space->pieces[i];
    if (piece->returned || !piece->wanted || piece->lacking > 0)
        return;
    uint64_t start = i * PIECE_BYTES;
    piece->returned = true;
    /* That it cannot be given back costs memory and nothing else. */
    (void)!fallocate(space->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start,
                     (off_t)MIN(PIECE_BYTES, space->length - start));
}

void spaces_release(struct spaces *spaces)
{
    spaces->release = true;
    for (struct space *space = spaces->first; space; space = space->next) {
        for (uint64_t i = 0; i < piece_count(space); i++)
            piece_return(space, i);
    }
}

void space_want(struct space *space, uint64_t offset, uint64_t pages)
{
    for (uint64_t i = offset / PIECE_BYTES; i * PIECE_BYTES < offset + pages * PAGE_BYTES; i++)
        space->pieces[i].wanted = true;
}

void space_lack(struct space *space, uint64_t offset, uint64_t pages)
{
    for (uint64_t n; pages > 0; pages -= n, offset += n * PAGE_BYTES) {
        struct piece *piece = &space->pieces[offset / PIECE_BYTES];
        n = MIN(pages, (PIECE_BYTES - offset % PIECE_BYTES) / PAGE_BYTES);
        piece->lacking += (uint32_t)n;
    }
}

void space_filled(struct spaces *spaces, struct space *space, uint64_t offset, uint64_t pages)
{
    for (uint64_t n; pages > 0; pages -= n, offset += n * PAGE_BYTES) {
        uint64_t i = offset / PIECE_BYTES;
        n = MIN(pages, (PIECE_BYTES - offset % PIECE_BYTES) / PAGE_BYTES);
        space->pieces[i].lacking -= (uint32_t)n;
        if (spaces->release)
            piece_return(space, i);
    }
}

const uint8_t *space_at(const struct space *space, uint64_t offset, uint64_t length)
{
    /* No more than that: to read a hole of a tmpfs would fill it.  An old kernel does not know
     * this, and is slower. */
    (void)!madvise((void *)(space->bytes + offset), length, MADV_POPULATE_READ);
    return space->bytes + offset;
}
