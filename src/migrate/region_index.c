/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/region_index.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "store/space_map.h"

static int add(struct region_index *index, const struct region *region)
{
    if ((index->count & (index->count - 1)) == 0) { /* it doubles */
        size_t room = index->count ? 2 * index->count : 1;
        struct region *grown = realloc(index->list, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        index->list = grown;
    }
    index->list[index->count++] = *region;
    return 0;
}

/* What is present lies there one behind the other. */
static int add_runs(struct region_index *index, struct pagemap_reader *reader)
{
    struct pagemap_run run;
    struct error err;
    uint64_t offset = 0;
    int r;
    while ((r = pagemap_read_next(reader, &run, &err)) > 0) {
        if (!(run.flags & PAGEMAP_PRESENT))
            continue;
        r = add(index,
                &(struct region){run.vaddr, run.pages, offset, (run.flags & PAGEMAP_LAZY) != 0});
        if (r < 0)
            return r;
        offset += run.pages * PAGE_BYTES;
    }
    return r;
}

static int add_entries(struct region_index *index, const struct space_map *map)
{
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < map->count; i++) {
        const struct space_map_entry *entry = &map->entries[i];
        if (space_map_has_pages(entry))
            r = add(index, &(struct region){entry->place - entry->place % PAGE_BYTES, entry->pages,
                                            (uint64_t)entry->where << PAGE_SHIFT,
                                            (entry->place & SPACE_MAP_LAZY) != 0});
    }
    return r;
}

static int open_space(struct region_index *index, int memoryfd, bool shared, uint64_t id)
{
    char name[32];
    struct space_map map = {0};
    snprintf(name, sizeof(name), "space-%u.map", index->pages_id);
    int r = space_map_open(&map, memoryfd, name);
    if (r < 0)
        return r;
    snprintf(name, sizeof(name), "space-%u", index->pages_id);
    index->file = openat(memoryfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (index->file < 0)
        r = -errno;
    else
        r = map.shared == shared && map.id == id ? add_entries(index, &map) : -EPROTO;
    space_map_close(&map);
    return r;
}

static int open_pages(struct region_index *index, int imagefd, int memoryfd, bool shared,
                      uint64_t id, struct pagemap_reader *reader)
{
    char name[32];
    snprintf(name, sizeof(name), "pages-%u.img", index->pages_id);
    index->file = openat(imagefd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (index->file >= 0)
        return add_runs(index, reader);
    if (errno != ENOENT || memoryfd < 0)
        return -errno;
    return open_space(index, memoryfd, shared, id);
}

int region_index_open(struct region_index *index, int imagefd, int memoryfd, bool shared,
                      uint64_t id)
{
    char name[64];
    struct stat st;
    struct error err;
    struct pagemap_reader reader;
    *index = (struct region_index){.file = -EBADF};
    snprintf(name, sizeof(name), shared ? "pagemap-shmem-%llu.img" : "pagemap-%llu.img",
             (unsigned long long)id);
    _cleanup_close_ int fd = openat(imagefd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    void *bytes =
        st.st_size > 0 ? mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    if (bytes == MAP_FAILED)
        return st.st_size > 0 ? -errno : -EPROTO;
    int r = pagemap_read_begin(&reader, bytes, (size_t)st.st_size, &index->pages_id, &err);
    if (r == 0)
        r = open_pages(index, imagefd, memoryfd, shared, id, &reader);
    munmap(bytes, (size_t)st.st_size);
    if (r < 0)
        region_index_close(index);
    return r;
}

void region_index_close(struct region_index *index)
{
    close_fd(index->file);
    free(index->list);
    *index = (struct region_index){.file = -EBADF};
}

uint64_t region_index_find(const struct region_index *index, uint64_t vaddr, uint64_t most,
                           uint64_t *ret_offset)
{
    size_t low = 0, high = index->count; /* the first that ends above the address */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct region *region = &index->list[middle];
        if (region->vaddr + region->pages * PAGE_BYTES > vaddr)
            high = middle;
        else
            low = middle + 1;
    }
    const struct region *found = &index->list[low];
    if (low == index->count || found->vaddr > vaddr)
        return 0;
    *ret_offset = found->offset + (vaddr - found->vaddr);
    return MIN(most, found->pages - (vaddr - found->vaddr) / PAGE_BYTES);
}
