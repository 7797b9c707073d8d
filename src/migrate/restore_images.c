/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/restore_images.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/io.h"
#include "criu/hook_memory.h"
#include "migrate/lazy_images.h"
#include "migrate/plain_images.h"

enum {
    AT_ONCE_PAGES = 4096, /* what criu reads is there twice until the process runs */
    PIECES = 4096,        /* written in one go */
};

struct pieces {
    struct lazy_split split;
    int fd;
    uint32_t space;
    size_t count; /* not written yet */
    struct hook_piece list[PIECES];
};

static int pieces_flush(struct pieces *pieces)
{
    int r = write_all(pieces->fd, pieces->list, pieces->count * sizeof(*pieces->list));
    pieces->count = 0;
    return r;
}

static int take_piece(struct lazy_split *split, const struct region_index *index,
                      const struct region *region, struct pagemap_writer *pagemap)
{
    (void)pagemap;
    struct pieces *pieces = (struct pieces *)split;
    pieces->space = index->pages_id;
    pieces->list[pieces->count++] =
        (struct hook_piece){region->vaddr, region->offset, region->pages * PAGE_BYTES};
    return pieces->count == PIECES ? pieces_flush(pieces) : 0;
}

static int link_image(int images, const char *name, void *to_fd)
{
    return linkat(images, name, *(const int *)to_fd, name, 0) < 0 ? -errno : 0;
}

/* -E2BIG: it is not for us. */
static int fill_directory(int images, int memory, int to)
{
    char space[32];
    struct pieces pieces = {.split = {true, AT_ONCE_PAGES, take_piece, link_image}};
    pieces.fd = openat(to, HOOK_PIECES, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (pieces.fd < 0)
        return -errno;
    int r = lazy_images_split(images, memory, to, &pieces.split);
    if (r == 0)
        r = pieces.space ? pieces_flush(&pieces) : -E2BIG;
    close_fd(pieces.fd);
    snprintf(space, sizeof(space), "../memory/space-%u", pieces.space);
    return r == 0 && symlinkat(space, to, HOOK_PAGES) < 0 ? -errno : r;
}

static int make(int images, int memory, const char *path)
{
    if (mkdirat(images, path, 0700) < 0)
        return -errno;
    _cleanup_close_ int to = openat(images, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return to < 0 ? -errno : fill_directory(images, memory, to);
}

static int count_task(int images, const char *name, void *count)
{
    unsigned long long id;
    (void)images;
    *(unsigned *)count += sscanf(name, "pagemap-%llu.img", &id) == 1;
    return 0;
}

int restore_images_make(int images, int memory, const char *path)
{
    unsigned tasks = 0;
    restore_images_remove(images, path);
    int r = directory_for_each(images, count_task, &tasks);
    if (r < 0 || tasks != 1)
        return r;
    r = make(images, memory, path);
    if (r == 0)
        return 1;
    restore_images_remove(images, path);
    return r == -E2BIG ? 0 : r;
}

void restore_images_remove(int images, const char *path)
{
    int fd = openat(images, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    plain_images_remove(fd);
    close_fd(fd);
    unlinkat(images, path, AT_REMOVEDIR);
}
