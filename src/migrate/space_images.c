/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/space_images.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "criu/lazy_areas.h"
#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "pager/map.h"

struct space_writer {
    const struct space_images *images;
    struct pagemap_writer *pagemap;
    struct pagemap_run entry; /* not written yet: what follows may lengthen it */
    struct arena pages;       /* lazy: those that criu wants at once */
    struct fill_map_writer map;
    bool lazy;
    const struct lazy_areas *areas;
};

static void writer_add_entry(struct space_writer *writer, uint64_t vaddr, uint64_t pages,
                             uint32_t flags)
{
    struct pagemap_run *entry = &writer->entry;
    if (entry->pages > 0 && entry->vaddr + entry->pages * PAGE_BYTES == vaddr &&
        entry->flags == flags) {
        entry->pages += pages;
        return;
    }
    if (entry->pages > 0)
        pagemap_add(writer->pagemap, entry);
    *entry = (struct pagemap_run){.vaddr = vaddr, .pages = pages, .flags = flags};
}

static int copy_out(const struct arena *from, uint64_t at, uint64_t length, struct arena *to)
{
    uint64_t offset;
    int r = arena_append(to, length, &offset);
    while (r == 0 && length > 0) {
        off_t in = (off_t)at, out = (off_t)offset;
        ssize_t n = copy_file_range(from->fd, &in, to->fd, &out, length, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        at += (uint64_t)n;
        offset += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return r;
}

/* A run of a task's memory that may be filled in later, in areas where criu leaves that to us. */
static int writer_add_lazy(struct space_writer *writer, const struct shadow_run *run)
{
    uint64_t end = run->vaddr + run->pages * PAGE_BYTES;
    for (uint64_t vaddr = run->vaddr, next; vaddr < end; vaddr = next) {
        bool later = lazy_areas_have(writer->areas, vaddr, &next) && run->lazy;
        next = MIN(next, end);
        uint64_t pages = (next - vaddr) / PAGE_BYTES, offset = run->offset + (vaddr - run->vaddr);
        writer_add_entry(writer, vaddr, pages, later ? PAGEMAP_LAZY : PAGEMAP_PRESENT);
        int r = 0;
        if (later)
            fill_map_add(&writer->map, &(struct fill_map_entry){vaddr, pages, offset, run->round});
        else
            r = copy_out(writer->images->arena, offset, next - vaddr, &writer->pages);
        if (r < 0)
            return r;
    }
    return 0;
}

static int writer_add_runs(struct space_writer *writer)
{
    struct shadow_run run;
    int r = 0;
    for (uint64_t vaddr = 0; r == 0 && shadow_next_run(writer->images->shadow, vaddr, &run);
         vaddr = run.vaddr + run.pages * PAGE_BYTES) {
        if (writer->lazy)
            r = writer_add_lazy(writer, &run);
        else
            writer_add_entry(writer, run.vaddr, run.pages,
                             PAGEMAP_PRESENT | (run.lazy ? PAGEMAP_LAZY : 0));
    }
    if (r == 0 && writer->entry.pages > 0)
        pagemap_add(writer->pagemap, &writer->entry);
    return r;
}

/* Charges for a file that has been written beside the arenas. */
static int charge_file(const struct space_images *images, const char *name)
{
    struct stat st;
    if (fstatat(images->imagefd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    int r = budget_charge(images->budget, (uint64_t)st.st_size);
    if (r == 0)
        *images->charge += (uint64_t)st.st_size;
    return r;
}

static int write_pagemap(struct space_writer *writer)
{
    const struct space_images *images = writer->images;
    char name[64];
    snprintf(name, sizeof(name), images->shared ? "pagemap-shmem-%llu.img" : "pagemap-%llu.img",
             (unsigned long long)images->id);
    _cleanup_close_ int fd =
        openat(images->imagefd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    writer->pagemap = pagemap_begin(fd, images->pages_id);
    if (!writer->pagemap)
        return -ENOMEM;
    int r = writer_add_runs(writer);
    int finished = pagemap_finish(writer->pagemap);
    if (r == 0)
        r = finished;
    return r < 0 ? r : charge_file(images, name);
}

/* Pagemap, the pages that criu wants at once, and where the pager finds the others. */
static int write_with_map(const struct space_images *images, const struct lazy_areas *areas)
{
    char name[32];
    struct space_writer writer = {.images = images, .lazy = true, .areas = areas};
    snprintf(name, sizeof(name), "pages-%u.img", images->pages_id);
    int r = arena_create(&writer.pages, images->imagefd, name, images->budget);
    if (r < 0)
        return r;
    r = fill_map_begin(&writer.map, images->imagefd, (int32_t)images->id, images->pages_id);
    if (r == 0) {
        r = write_pagemap(&writer);
        int finished = fill_map_finish(&writer.map);
        r = r < 0 ? r : finished;
    }
    fill_map_name(name, sizeof(name), (int32_t)images->id);
    if (r == 0)
        r = charge_file(images, name);
    if (r == 0)
        r = arena_hand_over(&writer.pages, images->charge);
    arena_drop(&writer.pages);
    return r;
}

static int write_lazy(const struct space_images *images)
{
    struct lazy_areas areas = {0};
    int r = lazy_areas_read(images->imagefd, images->id, false, &areas);
    if (r == -ENOENT && shadow_pages(images->shadow) == 0)
        r = 0; /* a task that ended before the freeze, of which nothing is left */
    if (r == 0)
        r = write_with_map(images, &areas);
    lazy_areas_free(&areas);
    return r;
}

int space_images_write_pagemap(const struct space_images *images)
{
    struct space_writer writer = {.images = images};
    return write_pagemap(&writer);
}

static int write_eager(const struct space_images *images)
{
    int r = 0;
    if (!shadow_is_ascending(images->shadow)) {
        char name[32];
        snprintf(name, sizeof(name), "pages-%u.img", images->pages_id);
        r = shadow_sort(images->shadow, images->imagefd, name);
    }
    return r < 0 ? r : space_images_write_pagemap(images);
}

int space_images_write(const struct space_images *images, bool lazy)
{
    return lazy ? write_lazy(images) : write_eager(images);
}
