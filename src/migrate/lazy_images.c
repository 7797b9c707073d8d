/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/lazy_images.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>

#include "base/io.h"
#include "criu/lazy_areas.h"
#include "criu/page_server.h"
#include "migrate/plain_images.h"
#include "store/chain.h"

static int copy_pages(int from, uint64_t offset, uint64_t length, int to)
{
    for (off_t at = (off_t)offset; length > 0;) {
        ssize_t n = sendfile(to, from, &at, MIN(length, MIB(64)));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        length -= (uint64_t)n;
    }
    return 0;
}

/* Images on their way. */
struct writer {
    int memory, to;
    struct lazy_split *split;
};

/* A task or object. */
struct part {
    struct region_index index;
    struct lazy_areas areas;
    struct pagemap_writer *pagemap;
    int pages;
};

static int write_at_once(const struct part *part, const struct region *region,
                         struct lazy_split *split)
{
    if (region->pages > split->at_once)
        return -E2BIG;
    split->at_once -= region->pages;
    pagemap_add(part->pagemap,
                &(struct pagemap_run){region->vaddr, region->pages, PAGEMAP_PRESENT});
    return copy_pages(part->index.file, region->offset, region->pages * PAGE_BYTES, part->pages);
}

/* Whether it may come later, as all up to *ret_next.  criu does not bear a task that has no page at
 * all: the first never may. */
static bool is_later(const struct part *part, const struct region *region, uint64_t vaddr,
                     uint64_t *ret_next)
{
    bool later = lazy_areas_have(&part->areas, vaddr, ret_next) && region->lazy;
    if (!later || vaddr != part->index.list->vaddr)
        return later;
    *ret_next = vaddr + PAGE_BYTES;
    return false;
}

/* A region, in parts of which criu takes all at once or leaves all to others. */
static int write_region(const struct part *part, const struct region *region,
                        struct lazy_split *split)
{
    uint64_t end = region->vaddr + region->pages * PAGE_BYTES;
    int r = 0;
    for (uint64_t vaddr = region->vaddr, next; r == 0 && vaddr < end; vaddr = next) {
        bool later = is_later(part, region, vaddr, &next);
        next = MIN(next, end);
        struct region piece = {.vaddr = vaddr,
                               .pages = (next - vaddr) / PAGE_BYTES,
                               .offset = region->offset + (vaddr - region->vaddr)};
        r = later ? split->take(split, &part->index, &piece, part->pagemap)
                  : write_at_once(part, &piece, split);
    }
    return r;
}

static int write_part(struct part *part, const char *name, const struct writer *writer)
{
    char pages_name[32];
    snprintf(pages_name, sizeof(pages_name), "pages-%u.img", part->index.pages_id);
    _cleanup_close_ int pages =
        openat(writer->to, pages_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    _cleanup_close_ int fd =
        openat(writer->to, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    part->pages = pages;
    part->pagemap = pages < 0 || fd < 0 ? NULL : pagemap_begin(fd, part->index.pages_id);
    if (!part->pagemap)
        return -errno;
    int r = 0;
    for (size_t i = 0; r == 0 && i < part->index.count; i++)
        r = write_region(part, &part->index.list[i], writer->split);
    int finished = pagemap_finish(part->pagemap);
    return r < 0 ? r : finished;
}

static int write_image(int from, const char *name, void *user)
{
    struct writer *writer = user;
    unsigned long long id;
    bool shared = sscanf(name, "pagemap-shmem-%llu.img", &id) == 1;
    if (strncmp(name, "pages-", 6) == 0)
        return 0;
    if (!shared && sscanf(name, "pagemap-%llu.img", &id) != 1)
        return writer->split->bring(from, name, &writer->to);
    struct part part = {0};
    int r = region_index_open(&part.index, from, writer->memory, shared, id);
    if (r < 0)
        return r;
    r = shared ? 0 : lazy_areas_read(from, id, writer->split->outside, &part.areas);
    if (r == -ENOENT && part.index.count == 0)
        r = 0; /* a task that ended before the freeze, of which nothing is left */
    if (r == 0)
        r = write_part(&part, name, writer);
    lazy_areas_free(&part.areas);
    region_index_close(&part.index);
    return r;
}

int lazy_images_split(int images, int memory, int to, struct lazy_split *split)
{
    struct writer writer = {memory, to, split};
    return directory_for_each(images, write_image, &writer);
}

static int list_lazy(struct lazy_split *split, const struct region_index *index,
                     const struct region *region, struct pagemap_writer *pagemap)
{
    (void)split;
    (void)index;
    pagemap_add(pagemap, &(struct pagemap_run){region->vaddr, region->pages, PAGEMAP_LAZY});
    return 0;
}

int lazy_images_write(int images, int memory, bool moved, int to)
{
    struct lazy_split split = {.at_once = UINT64_MAX, .take = list_lazy, .bring = plain_image_copy};
    int r = memory >= 0 && moved ? chain_move_flat(memory, images) : 0;
    if (r == 0 && faccessat(images, "inventory.img", F_OK, 0) < 0)
        r = -errno;
    if (r == 0)
        r = lazy_images_split(images, memory, to, &split);
    return r < 0 ? r : syncfs(to) < 0 ? -errno : 0;
}
