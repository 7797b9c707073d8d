/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/map.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

bool fill_map_name(char *buf, size_t size, int32_t pid)
{
    return snprintf(buf, size, "fill-%d.map", pid) < (int)size;
}

bool fill_space_name(char *buf, size_t size, uint32_t space)
{
    return snprintf(buf, size, "space-%u", space) < (int)size;
}

/* Whether an entry is one and lies at or above |least|. */
static bool entry_valid(const struct fill_map_entry *entry, uint64_t least)
{
    return entry->pages > 0 && entry->vaddr % PAGE_BYTES == 0 && entry->offset % PAGE_BYTES == 0 &&
           entry->vaddr >= least && entry->vaddr < FILL_VADDR_END &&
           entry->pages <= (FILL_VADDR_END - entry->vaddr) / PAGE_BYTES &&
           entry->offset <= INT64_MAX - entry->pages * PAGE_BYTES;
}

/* ---- writing ---- */

int fill_map_begin(struct fill_map_writer *writer, int imagefd, int32_t pid, uint32_t space)
{
    char name[FILL_NAME_BYTES];
    if (!fill_map_name(name, sizeof(name), pid))
        return -ENAMETOOLONG;
    _cleanup_close_ int fd =
        openat(imagefd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    *writer = (struct fill_map_writer){.file = fdopen(fd, "w")};
    if (!writer->file)
        return -errno;
    TAKE_FD(fd);
    memcpy(writer->header.magic, FILL_MAP_MAGIC, sizeof(writer->header.magic));
    writer->header.space = space;
    if (fwrite(&writer->header, sizeof(writer->header), 1, writer->file) != 1)
        writer->error = -errno;
    return 0;
}

void fill_map_add(struct fill_map_writer *writer, const struct fill_map_entry *entry)
{
    if (writer->error < 0)
        return;
    if (!entry_valid(entry, writer->last_end))
        writer->error = -EINVAL;
    else if (fwrite(entry, sizeof(*entry), 1, writer->file) != 1)
        writer->error = -errno;
    writer->last_end = entry->vaddr + entry->pages * PAGE_BYTES;
    writer->header.count++;
}

int fill_map_finish(struct fill_map_writer *writer)
{
    /* The count comes last: a map that was left half written has none. */
    if (writer->error == 0 &&
        (fseek(writer->file, 0, SEEK_SET) < 0 ||
         fwrite(&writer->header, sizeof(writer->header), 1, writer->file) != 1))
        writer->error = -errno;
    if (fclose(writer->file) < 0 && writer->error == 0)
        writer->error = -errno;
    writer->file = NULL;
    return writer->error;
}

/* ---- reading ---- */

static int malformed(struct error *err, const char *what)
{
    error_set(err, FAILURE_SYSTEM, "fill map: %s", what);
    return -EPROTO;
}

int fill_map_check(const void *bytes, size_t length, struct fill_map *ret, struct error *err)
{
    struct fill_map_header header;
    if (length < sizeof(header))
        return malformed(err, "cut short");
    memcpy(&header, bytes, sizeof(header));
    if (memcmp(header.magic, FILL_MAP_MAGIC, sizeof(header.magic)) != 0 || header.zero ||
        header.zero2)
        return malformed(err, "not one");
    size_t rest = length - sizeof(header);
    if (rest % sizeof(struct fill_map_entry) ||
        header.count != rest / sizeof(struct fill_map_entry))
        return malformed(err, "its length is not what it says");
    struct fill_map map = {
        .entries = (const void *)((const char *)bytes + sizeof(header)),
        .count = header.count,
        .space = header.space,
    };
    uint64_t last_end = 0;
    for (uint64_t i = 0; i < map.count; i++) {
        const struct fill_map_entry *entry = &map.entries[i];
        if (!entry_valid(entry, last_end))
            return malformed(err, "an entry is out of order or out of the address space");
        last_end = entry->vaddr + entry->pages * PAGE_BYTES;
        map.pages += entry->pages; /* at most 2^45: they do not overlap */
        map.end = MAX(map.end, entry->offset + entry->pages * PAGE_BYTES);
    }
    *ret = map;
    return 0;
}

static size_t map_length(const struct fill_map *map)
{
    return sizeof(struct fill_map_header) + map->count * sizeof(struct fill_map_entry);
}

int fill_map_open(struct fill_map *map, int fd, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        int r = -errno;
        error_set_errno(err, FAILURE_SYSTEM, r, "fill map");
        return r;
    }
    if (st.st_size < (off_t)sizeof(struct fill_map_header))
        return malformed(err, "cut short");
    size_t length = (size_t)st.st_size;
    void *bytes = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) {
        int r = -errno;
        error_set_errno(err, FAILURE_SYSTEM, r, "fill map");
        return r;
    }
    int r = fill_map_check(bytes, length, map, err);
    if (r < 0)
        munmap(bytes, length);
    return r;
}

void fill_map_close(struct fill_map *map)
{
    if (map->entries)
        munmap((char *)map->entries - sizeof(struct fill_map_header), map_length(map));
    *map = (struct fill_map){0};
}

uint64_t fill_map_above(const struct fill_map *map, uint64_t vaddr)
{
    uint64_t low = 0, high = map->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        const struct fill_map_entry *entry = &map->entries[middle];
        if (entry->vaddr + entry->pages * PAGE_BYTES <= vaddr)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}
