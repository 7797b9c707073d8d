/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/plain_images.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#include "base/io.h"
#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "store/chain.h"

int plain_image_copy(int from, const char *name, void *user)
{
    int to = *(const int *)user;
    struct stat st;
    if (fstatat(to, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return 0; /* pages, which a restore is putting together as well */
    _cleanup_close_ int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (in < 0 || fstat(in, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return 0;
    _cleanup_close_ int out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (out < 0)
        return -errno;
    for (off_t left = st.st_size; left > 0;) {
        ssize_t n = sendfile(out, in, NULL, (size_t)MIN(left, (off_t)MIB(64)));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        left -= n;
    }
    return 0;
}

/* What criu page-server would have written: of a pre-dump there are no images. */
static int write_pagemap(const struct space_map *map, uint32_t number, int to)
{
    char name[64];
    snprintf(name, sizeof(name), map->shared ? "pagemap-shmem-%llu.img" : "pagemap-%llu.img",
             (unsigned long long)map->id);
    _cleanup_close_ int fd = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno == EEXIST ? 0 : -errno;
    struct pagemap_writer *writer = pagemap_begin(fd, number);
    if (!writer)
        return -ENOMEM;
    for (uint64_t i = 0; i < map->count; i++) {
        const struct space_map_entry *entry = &map->entries[i];
        struct pagemap_run run = {
            .vaddr = entry->place - entry->place % PAGE_BYTES,
            .pages = entry->pages,
            .flags = PAGEMAP_PRESENT | (entry->place & SPACE_MAP_LAZY ? PAGEMAP_LAZY : 0),
        };
        if (space_map_has_pages(entry))
            pagemap_add(writer, &run);
    }
    return pagemap_finish(writer);
}

static int write_pagemaps(int memory, int to)
{
    for (uint32_t number = 1;; number++) {
        struct space_map map = {0};
        char name[32];
        snprintf(name, sizeof(name), "space-%u.map", number);
        int r = space_map_open(&map, memory, name);
        if (r == 0)
            r = write_pagemap(&map, number, to);
        space_map_close(&map);
        if (r < 0)
            return r == -ENOENT ? 0 : r;
    }
}

int plain_images_write(int images, int memory, bool moved, int to)
{
    int r = 0;
    if (memory >= 0)
        r = moved ? chain_move_flat(memory, images) : chain_copy_flat(memory, to);
    if (r == 0)
        r = directory_for_each(images, plain_image_copy, &to);
    if (r == 0 && memory >= 0)
        r = write_pagemaps(memory, to);
    return r < 0 ? r : syncfs(to) < 0 ? -errno : 0;
}

static int remove_name(int dirfd, const char *name, void *user)
{
    (void)user;
    return unlinkat(dirfd, name, 0) < 0 ? -errno : 0;
}

int plain_images_remove(int to)
{
    return directory_for_each(to, remove_name, NULL);
}
