/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/restore_images.h"

#include <fcntl.h>
#include <limits.h>
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

/* On their way to the files of one task after the other. */
struct pieces {
    struct lazy_split split;
    int to; /* directory */
    bool one;
    int fd; /* of the present task's; -EBADF: none yet */
    uint64_t task;
    size_t count; /* not written yet */
    struct hook_piece list[PIECES];
};

static int pieces_flush(struct pieces *pieces)
{
    int r = write_all(pieces->fd, pieces->list, pieces->count * sizeof(*pieces->list));
    pieces->count = 0;
    return r;
}

/* The files of the next task. */
static int begin_task(struct pieces *pieces, const struct region_index *index)
{
    char name[HOOK_NAME_BYTES], space[32];
    int r = pieces->fd >= 0 ? pieces_flush(pieces) : 0;
    int pid = pieces->one ? HOOK_ROOT : (int)index->id;
    close_fd(pieces->fd);
    snprintf(name, sizeof(name), HOOK_PIECES, pid);
    pieces->task = index->id;
    pieces->fd = openat(pieces->to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (r < 0 || pieces->fd < 0)
        return r < 0 ? r : -errno;
    snprintf(name, sizeof(name), HOOK_PAGES, pid);
    snprintf(space, sizeof(space), "../memory/space-%u", index->pages_id);
    return symlinkat(space, pieces->to, name) < 0 ? -errno : 0;
}

static int take_piece(struct lazy_split *split, const struct region_index *index,
                      const struct region *region, struct pagemap_writer *pagemap)
{
    (void)pagemap;
    struct pieces *pieces = (struct pieces *)split;
    int r = pieces->fd < 0 || pieces->task != index->id ? begin_task(pieces, index) : 0;
    if (r < 0)
        return r;
    pieces->list[pieces->count++] =
        (struct hook_piece){region->vaddr, region->offset, region->pages * PAGE_BYTES};
    return pieces->count == PIECES ? pieces_flush(pieces) : 0;
}

static int link_image(int images, const char *name, void *to_fd)
{
    return linkat(images, name, *(const int *)to_fd, name, 0) < 0 ? -errno : 0;
}

/* -E2BIG: it is not for us. */
static int fill_directory(int images, int memory, int to, bool one)
{
    struct pieces pieces = {
        .split = {true, AT_ONCE_PAGES, take_piece, link_image}, .to = to, .one = one, .fd = -EBADF};
    int r = lazy_images_split(images, memory, to, &pieces.split);
    if (r == 0)
        r = pieces.fd >= 0 ? pieces_flush(&pieces) : -E2BIG;
    close_fd(pieces.fd);
    return r;
}

static int make(int images, int memory, const char *path, bool one)
{
    if (mkdirat(images, path, 0700) < 0)
        return -errno;
    _cleanup_close_ int to = openat(images, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return to < 0 ? -errno : fill_directory(images, memory, to, one);
}

struct tasks {
    unsigned count;
    bool has_init;
};

static int note_task(int images, const char *name, void *user)
{
    struct tasks *tasks = user;
    unsigned long long id;
    (void)images;
    if (sscanf(name, "pagemap-%llu.img", &id) != 1)
        return 0;
    tasks->count++;
    tasks->has_init |= id == 1;
    return id > INT_MAX ? -EPROTO : 0;
}

/* The hook finds several tasks by their numbers; those of a pid namespace of their own, which has
 * a first process, are not what they are outside. */
int restore_images_make(int images, int memory, const char *path)
{
    struct tasks tasks = {0};
    restore_images_remove(images, path);
    int r = directory_for_each(images, note_task, &tasks);
    if (r < 0 || tasks.count == 0 || (tasks.count > 1 && tasks.has_init))
        return r;
    r = make(images, memory, path, tasks.count == 1);
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
