/* SPDX-License-Identifier: Apache-2.0 */
#include "store/space_map.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define VADDR_END (1ull << 57) /* of user space with five-level page tables */

static uint64_t entry_vaddr(const struct space_map_entry *entry)
{
    return entry->place - entry->place % PAGE_BYTES;
}

static unsigned entry_flags(const struct space_map_entry *entry)
{
    return (unsigned)(entry->place % PAGE_BYTES);
}

/* ---- writing ---- */

/* Both kinds of runs, merged: at each step the lower one. */
struct merge {
    const struct shadow *shadow;
    struct shadow_run run;
    uint64_t zeros_vaddr, zeros_pages;
    bool has_run, has_zeros;
};

static void merge_seek_run(struct merge *merge, uint64_t vaddr)
{
    merge->has_run = shadow_next_run(merge->shadow, vaddr, &merge->run);
}

static void merge_seek_zeros(struct merge *merge, uint64_t vaddr)
{
    merge->has_zeros =
        shadow_next_zeros(merge->shadow, vaddr, &merge->zeros_vaddr, &merge->zeros_pages);
}

static bool merge_next(struct merge *merge, struct space_map_entry *ret)
{
    if (!merge->has_run && !merge->has_zeros)
        return false;
    if (merge->has_zeros && (!merge->has_run || merge->zeros_vaddr < merge->run.vaddr)) {
        *ret = (struct space_map_entry){.place = merge->zeros_vaddr | SPACE_MAP_ZERO,
                                        .pages = (uint32_t)merge->zeros_pages};
        merge_seek_zeros(merge, merge->zeros_vaddr + merge->zeros_pages * PAGE_BYTES);
        return true;
    }
    *ret = (struct space_map_entry){
        .place = merge->run.vaddr | (merge->run.lazy ? SPACE_MAP_LAZY : 0),
        .pages = (uint32_t)merge->run.pages,
        .where = (uint32_t)(merge->run.offset >> PAGE_SHIFT),
    };
    merge_seek_run(merge, merge->run.vaddr + merge->run.pages * PAGE_BYTES);
    return true;
}

static int write_entries(const struct shadow *shadow, struct space_map_header *header, FILE *file)
{
    struct merge merge = {.shadow = shadow};
    struct space_map_entry entry;
    merge_seek_run(&merge, 0);
    merge_seek_zeros(&merge, 0);
    fwrite(header, sizeof(*header), 1, file);
    for (; merge_next(&merge, &entry); header->count++)
        fwrite(&entry, sizeof(entry), 1, file);
    /* The count comes last. */
    errno = EIO;
    if (fseek(file, 0, SEEK_SET) < 0 || fwrite(header, sizeof(*header), 1, file) != 1 ||
        fflush(file) != 0 || ferror(file))
        return -errno;
    return 0;
}

int space_map_write(const struct shadow *shadow, bool shared, uint64_t id, int dirfd,
                    const char *name)
{
    struct space_map_header header = {.magic = SPACE_MAP_MAGIC, .shared = shared, .id = id};
    int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");
    if (!file) {
        close_fd(fd);
        return -errno;
    }
    int r = write_entries(shadow, &header, file);
    if (fclose(file) != 0 && r == 0)
        r = -errno;
    return r;
}

/* ---- reading ---- */

static bool is_entry(const struct space_map_entry *entry, uint64_t least)
{
    uint64_t vaddr = entry_vaddr(entry);
    unsigned flags = entry_flags(entry);
    return (flags == 0 || flags == SPACE_MAP_LAZY || flags == SPACE_MAP_ZERO) && entry->pages > 0 &&
           vaddr >= least && vaddr < VADDR_END &&
           entry->pages <= (VADDR_END - vaddr) / PAGE_BYTES &&
           entry->pages - 1 <= UINT32_MAX - entry->where;
}

int space_map_check(const void *bytes, size_t length, struct space_map *ret)
{
    struct space_map_header header;
    if (length < sizeof(header))
        return -EPROTO;
    memcpy(&header, bytes, sizeof(header));
    size_t rest = length - sizeof(header);
    if (memcmp(header.magic, SPACE_MAP_MAGIC, sizeof(header.magic)) != 0 || header.shared > 1 ||
        header.zero || rest % sizeof(struct space_map_entry) ||
        header.count != rest / sizeof(struct space_map_entry))
        return -EPROTO;
    struct space_map map = {
        .entries = (const void *)((const char *)bytes + sizeof(header)),
        .count = header.count,
        .id = header.id,
        .shared = header.shared,
    };
    uint64_t least = 0;
    for (uint64_t i = 0; i < map.count; i++) {
        const struct space_map_entry *entry = &map.entries[i];
        if (!is_entry(entry, least))
            return -EPROTO;
        least = entry_vaddr(entry) + (uint64_t)entry->pages * PAGE_BYTES;
        if (!space_map_has_pages(entry))
            continue;
        map.pages += entry->pages;
        map.end = MAX(map.end, (uint64_t)entry->where + entry->pages);
    }
    *ret = map;
    return 0;
}

static size_t map_length(const struct space_map *map)
{
    return sizeof(struct space_map_header) + map->count * sizeof(struct space_map_entry);
}

int space_map_open(struct space_map *map, int dirfd, const char *name)
{
    struct stat st;
    _cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < (off_t)sizeof(struct space_map_header))
        return -EPROTO;
    size_t length = (size_t)st.st_size;
    void *bytes = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    int r = space_map_check(bytes, length, map);
    if (r < 0)
        munmap(bytes, length);
    return r;
}

void space_map_close(struct space_map *map)
{
    if (map->entries)
        munmap((char *)map->entries - sizeof(struct space_map_header), map_length(map));
    *map = (struct space_map){0};
}

int space_map_inherit(const struct space_map *map, struct shadow *shadow)
{
    int r = 0;
    for (uint64_t i = 0; i < map->count && r == 0; i++) {
        const struct space_map_entry *entry = &map->entries[i];
        struct shadow_run run = {
            .vaddr = entry_vaddr(entry),
            .pages = entry->pages,
            .offset = (uint64_t)entry->where << PAGE_SHIFT,
            .lazy = entry_flags(entry) == SPACE_MAP_LAZY,
        };
        r = space_map_has_pages(entry) ? shadow_inherit(shadow, &run)
                                       : shadow_zero(shadow, run.vaddr, run.pages);
    }
    return r;
}

/* ---- the pages, in the order of addresses ---- */

bool space_map_take(const struct space_map *map, struct space_map_cursor *cursor, uint64_t most,
                    struct space_map_entry *ret)
{
    while (cursor->entry < map->count && !space_map_has_pages(&map->entries[cursor->entry]))
        cursor->entry++;
    if (cursor->entry == map->count || most == 0)
        return false;
    const struct space_map_entry *entry = &map->entries[cursor->entry];
    *ret = (struct space_map_entry){.where = entry->where + cursor->done,
                                    .pages = (uint32_t)MIN(most, entry->pages - cursor->done)};
    cursor->done += ret->pages;
    if (cursor->done == entry->pages)
        *cursor = (struct space_map_cursor){.entry = cursor->entry + 1};
    return true;
}

void space_map_skip(const struct space_map *map, struct space_map_cursor *cursor, uint64_t pages)
{
    struct space_map_entry part;
    while (space_map_take(map, cursor, pages, &part))
        pages -= part.pages;
}

int space_map_arena(const struct space_map *map, int file, uint8_t **ret)
{
    struct stat st;
    uint64_t size = map->end << PAGE_SHIFT;
    if (fstat(file, &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size < size)
        return -EPROTO;
    void *bytes = mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    *ret = bytes;
    return 0;
}

/* ---- put together ---- */

enum { PIECES_MAX = 512 }; /* written at once */

struct gather {
    uint8_t *bytes; /* of the arena */
    uint64_t size;  /* of the mapping */
    int fd;         /* where to */
    off_t at;       /* what comes next goes there */
    int count;
    struct iovec pieces[PIECES_MAX];
};

static int gather_write(struct gather *gather)
{
    struct iovec *piece = gather->pieces;
    while (gather->count > 0) {
        ssize_t n = pwritev(gather->fd, piece, gather->count, gather->at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        gather->at += n;
        for (; gather->count > 0 && (size_t)n >= piece->iov_len; piece++, gather->count--)
            n -= (ssize_t)piece->iov_len;
        if (gather->count > 0) {
            piece->iov_base = (uint8_t *)piece->iov_base + n;
            piece->iov_len -= (size_t)n;
        }
    }
    return 0;
}

/* Writes that many pages from the cursor on, or what there is. */
static int gather_pages(const struct space_map *map, struct space_map_cursor *cursor,
                        uint64_t pages, struct gather *gather)
{
    struct space_map_entry part;
    int r = 0;
    for (; r == 0 && space_map_take(map, cursor, pages, &part); pages -= part.pages) {
        gather->pieces[gather->count++] = (struct iovec){
            gather->bytes + ((uint64_t)part.where << PAGE_SHIFT), (size_t)part.pages * PAGE_BYTES};
        if (gather->count == PIECES_MAX)
            r = gather_write(gather);
    }
    return r < 0 ? r : gather_write(gather);
}

/* Maps the arena and makes room for its pages in the other file. */
static int gather_open(const struct space_map *map, int from, int to, struct gather *gather)
{
    *gather = (struct gather){.fd = to, .size = map->end << PAGE_SHIFT};
    int r = space_map_arena(map, from, &gather->bytes);
    if (r < 0)
        return r;
    /* The length first, because tmpfs looks at it when it chooses the size of a page. */
    if (ftruncate(to, (off_t)(map->pages << PAGE_SHIFT)) == 0)
        return 0;
    r = -errno;
    munmap(gather->bytes, gather->size);
    return r;
}

int space_map_copy(const struct space_map *map, int from, int to)
{
    struct gather gather;
    struct space_map_cursor cursor = {0};
    int r = map->pages > 0 ? gather_open(map, from, to, &gather) : 0;
    if (r < 0 || map->pages == 0)
        return r;
    r = gather_pages(map, &cursor, map->pages, &gather);
    munmap(gather.bytes, gather.size);
    return r;
}

static int write_steps(int fd, uint64_t steps)
{
    ssize_t n = pwrite(fd, &steps, sizeof(steps), 0);
    return n == sizeof(steps) ? 0 : n < 0 ? -errno : -EIO;
}

/* Pages of the arena that have not been given back. */
struct rest {
    uint64_t *bits;
};

enum { WORD_BITS = 64 };

static int rest_begin(struct rest *rest, const struct space_map *map)
{
    rest->bits = calloc(map->end / WORD_BITS + 1, sizeof(*rest->bits));
    return rest->bits ? 0 : -ENOMEM;
}

static void rest_set(struct rest *rest, uint64_t first, uint64_t pages, bool value)
{
    for (uint64_t page = first; page < first + pages; page++) {
        uint64_t mask = 1ull << (page % WORD_BITS), *word = &rest->bits[page / WORD_BITS];
        *word = value ? *word | mask : *word & ~mask;
    }
}

static bool rest_has_any(const struct rest *rest, uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page = (page / WORD_BITS + 1) * WORD_BITS) {
        uint64_t word = rest->bits[page / WORD_BITS] >> (page % WORD_BITS);
        if (end - page < WORD_BITS)
            word &= (1ull << (end - page)) - 1;
        if (word)
            return true;
    }
    return false;
}

/* From the cursor on. */
static void rest_add(struct rest *rest, const struct space_map *map, struct space_map_cursor cursor)
{
    struct space_map_entry part;
    while (space_map_take(map, &cursor, UINT32_MAX, &part))
        rest_set(rest, part.where, part.pages, true);
}

static int compare_where(const void *one, const void *other)
{
    const struct space_map_entry *a = one, *b = other;
    return a->where < b->where ? -1 : a->where > b->where;
}

/*
 * Gives the pages of a step back, and what lies between them if it is nobody's: the fewer and the
 * longer the holes are, the fewer huge pages have to be split for them.
 */
static int give_back(const struct space_map *map, struct space_map_cursor cursor, int from,
                     struct rest *rest)
{
    struct space_map_entry parts[SPACE_MAP_STEP];
    size_t count = 0;
    for (uint64_t left = SPACE_MAP_STEP; space_map_take(map, &cursor, left, &parts[count]);
         count++) {
        rest_set(rest, parts[count].where, parts[count].pages, false);
        left -= parts[count].pages;
    }
    qsort(parts, count, sizeof(*parts), compare_where);
    for (size_t i = 0; i < count; i++) {
        uint64_t first = parts[i].where, end = first + parts[i].pages;
        for (; i + 1 < count && !rest_has_any(rest, end, parts[i + 1].where); i++)
            end = (uint64_t)parts[i + 1].where + parts[i + 1].pages;
        if (fallocate(from, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)(first << PAGE_SHIFT), (off_t)((end - first) << PAGE_SHIFT)) < 0)
            return -errno;
    }
    return 0;
}

/* Goes on behind so many steps. */
static int move_steps(const struct space_map *map, int from, int to, int progress, uint64_t steps,
                      struct rest *rest)
{
    struct gather gather;
    struct space_map_cursor cursor = {0};
    uint64_t all = (map->pages + SPACE_MAP_STEP - 1) / SPACE_MAP_STEP;
    int r = 0;
    if (steps > 0)
        space_map_skip(map, &cursor, (steps - 1) * SPACE_MAP_STEP);
    rest_add(rest, map, cursor);
    if (steps > 0) {
        /* Whoever was killed may have had no time for that. */
        r = give_back(map, cursor, from, rest);
        space_map_skip(map, &cursor, SPACE_MAP_STEP);
    }
    if (r < 0 || steps >= all)
        return r;
    r = gather_open(map, from, to, &gather);
    if (r < 0)
        return r;
    gather.at = (off_t)(steps * SPACE_MAP_STEP << PAGE_SHIFT);
    for (; r == 0 && steps < all; steps++) {
        struct space_map_cursor begin = cursor;
        r = gather_pages(map, &cursor, SPACE_MAP_STEP, &gather);
        if (r == 0)
            r = write_steps(progress, steps + 1);
        if (r == 0)
            r = give_back(map, begin, from, rest);
    }
    munmap(gather.bytes, gather.size);
    return r;
}

int space_map_move(const struct space_map *map, int from, int to, int progress)
{
    uint64_t steps = 0;
    struct rest rest;
    if (pread(progress, &steps, sizeof(steps), 0) < 0)
        return -errno;
    int r = rest_begin(&rest, map);
    if (r == 0)
        r = move_steps(map, from, to, progress, steps, &rest);
    free(rest.bits);
    return r;
}
