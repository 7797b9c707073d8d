/* SPDX-License-Identifier: Apache-2.0 */
#include "store/chain.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>

#define FRESH_MAP "map.new"

enum { NAME_BYTES = 32, WORD_BITS = 64 };

static void space_name(char name[NAME_BYTES], uint32_t number)
{
    snprintf(name, NAME_BYTES, "space-%u", number);
}

static void map_name(char name[NAME_BYTES], uint32_t number)
{
    snprintf(name, NAME_BYTES, "space-%u.map", number);
}

static void pages_name(char name[NAME_BYTES], uint32_t number)
{
    snprintf(name, NAME_BYTES, "pages-%u.img", number);
}

static int open_map(struct space_map *map, int memoryfd, uint32_t number)
{
    char name[NAME_BYTES];
    map_name(name, number);
    return space_map_open(map, memoryfd, name);
}

/* ---- which pages of a file are somebody's ---- */

struct usage {
    uint64_t *bits;
    uint64_t room;  /* pages that there are bits for */
    uint64_t pages; /* that are somebody's */
};

static int usage_grow(struct usage *usage, uint64_t pages)
{
    if (pages <= usage->room)
        return 0;
    uint64_t words = (pages + WORD_BITS - 1) / WORD_BITS, before = usage->room / WORD_BITS;
    uint64_t *grown = realloc(usage->bits, words * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    memset(grown + before, 0, (words - before) * sizeof(*grown));
    usage->bits = grown;
    usage->room = words * WORD_BITS;
    return 0;
}

static bool usage_has(const struct usage *usage, uint64_t page)
{
    return page < usage->room && usage->bits[page / WORD_BITS] >> (page % WORD_BITS) & 1;
}

static void usage_add(struct usage *usage, uint64_t page)
{
    usage->pages += !usage_has(usage, page);
    usage->bits[page / WORD_BITS] |= 1ull << (page % WORD_BITS);
}

/* A map that is not there has nothing yet. */
static int usage_add_map(struct usage *usage, int memoryfd, const char *name)
{
    struct space_map map = {0};
    int r = space_map_open(&map, memoryfd, name);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    r = usage_grow(usage, map.end);
    for (uint64_t i = 0; r == 0 && i < map.count; i++) {
        const struct space_map_entry *entry = &map.entries[i];
        for (uint32_t p = 0; space_map_has_pages(entry) && p < entry->pages; p++)
            usage_add(usage, (uint64_t)entry->where + p);
    }
    space_map_close(&map);
    return r;
}

static void usage_free(struct usage *usage)
{
    free(usage->bits);
    *usage = (struct usage){0};
}

static uint32_t find_file(const struct snapshot *snapshot, ino_t file)
{
    for (uint32_t i = 0; i < snapshot->space_count; i++) {
        if (snapshot->files[i] == file)
            return i + 1;
    }
    return 0;
}

/* What the snapshots of a store, but for one, have of a file. */
static int usage_of(struct store *store, ino_t file, const struct snapshot *but,
                    struct usage *usage)
{
    int r = 0;
    for (struct snapshot *s = store_first(store); s && r == 0; s = s->next) {
        uint32_t number = s == but ? 0 : find_file(s, file);
        char name[NAME_BYTES];
        map_name(name, number);
        if (number > 0)
            r = usage_add_map(usage, s->memoryfd, name);
    }
    return r;
}

/* Punches out the pages of a range that were somebody's (|was|; NULL: all), and are nobody's now.
 * How many. */
static uint64_t punch(int fd, uint64_t first, uint64_t end, const struct usage *was,
                      const struct usage *is)
{
    uint64_t punched = 0;
    for (uint64_t page = first, next; page < end; page = next) {
        next = page + 1;
        if (usage_has(is, page) || (was && !usage_has(was, page)))
            continue;
        while (next < end && !usage_has(is, next) && (!was || usage_has(was, next)))
            next++;
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page << PAGE_SHIFT),
                  (off_t)((next - page) << PAGE_SHIFT));
        punched += next - page;
    }
    return punched;
}

static int open_space(const struct snapshot *snapshot, uint32_t number)
{
    char name[NAME_BYTES];
    space_name(name, number);
    return openat(snapshot->memoryfd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
}

/* ---- joining ---- */

int chain_join(struct snapshot *snapshot, const struct snapshot *parent)
{
    if (parent) {
        snapshot->chain = parent->chain;
    } else {
        if (getrandom(&snapshot->chain, sizeof(snapshot->chain), 0) < 0)
            return -errno;
        snapshot->chain |= 1;
    }
    if (mkdirat(snapshot->dirfd, "memory", 0700) < 0)
        return -errno;
    snapshot->memoryfd =
        openat(snapshot->dirfd, "memory", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return snapshot->memoryfd < 0 ? -errno : 0;
}

static int add_file(struct snapshot *snapshot, ino_t file)
{
    ino_t *grown = realloc(snapshot->files, (snapshot->space_count + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    snapshot->files = grown;
    grown[snapshot->space_count++] = file;
    return 0;
}

/* Notes the file of the next space, which exists. */
static int note_file(struct snapshot *snapshot)
{
    struct stat st;
    char name[NAME_BYTES];
    space_name(name, snapshot->space_count + 1);
    if (fstatat(snapshot->memoryfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    return add_file(snapshot, st.st_ino);
}

/* The parent's space of a task or object: its map is open then. */
static int find_space(const struct snapshot *parent, bool shared, uint64_t id,
                      struct space_map *map, uint32_t *ret_number)
{
    for (uint32_t number = 1; number <= parent->space_count; number++) {
        int r = open_map(map, parent->memoryfd, number);
        if (r < 0)
            return r;
        if (map->shared == shared && map->id == id) {
            *ret_number = number;
            return 0;
        }
        space_map_close(map);
    }
    return -ENODATA;
}

/* Until the space is closed, it has what the parent's has. */
static int link_space(const struct snapshot *snapshot, const struct snapshot *parent,
                      uint32_t number)
{
    char from[NAME_BYTES], to[NAME_BYTES];
    space_name(from, number);
    space_name(to, snapshot->space_count + 1);
    if (linkat(parent->memoryfd, from, snapshot->memoryfd, to, 0) < 0)
        return -errno;
    map_name(from, number);
    map_name(to, snapshot->space_count + 1);
    return linkat(parent->memoryfd, from, snapshot->memoryfd, to, 0) < 0 ? -errno : 0;
}

static int open_based(struct snapshot *snapshot, const struct snapshot *parent, bool shared,
                      uint64_t id, struct arena *arena, struct shadow **ret_shadow)
{
    struct space_map map = {0};
    char name[NAME_BYTES];
    uint32_t number;
    int r = find_space(parent, shared, id, &map, &number);
    if (r < 0)
        return r;
    space_name(name, number);
    if (find_file(snapshot, parent->files[number - 1]) > 0)
        r = -EEXIST; /* each file is in a snapshot once */
    if (r == 0)
        r = arena_extend(arena, parent->memoryfd, name, store_budget(snapshot->store));
    if (r == 0)
        r = link_space(snapshot, parent, number);
    *ret_shadow = r < 0 ? NULL : shadow_new(arena);
    if (r == 0)
        r = *ret_shadow ? space_map_inherit(&map, *ret_shadow) : -ENOMEM;
    space_map_close(&map);
    return r;
}

int chain_open_space(struct snapshot *snapshot, const struct snapshot *parent, bool shared,
                     uint64_t id, struct arena *arena, struct shadow **ret_shadow)
{
    int r;
    if (parent) {
        r = open_based(snapshot, parent, shared, id, arena, ret_shadow);
    } else {
        char name[NAME_BYTES];
        space_name(name, snapshot->space_count + 1);
        r = arena_create(arena, snapshot->memoryfd, name, store_budget(snapshot->store));
        if (r == 0 && !(*ret_shadow = shadow_new(arena)))
            r = -ENOMEM;
    }
    return r < 0 ? r : note_file(snapshot);
}

/* ---- what it takes ---- */

static int charge_map(struct snapshot *snapshot, const char *name)
{
    struct stat st;
    if (fstatat(snapshot->memoryfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    int r = budget_charge(store_budget(snapshot->store), (uint64_t)st.st_size);
    if (r == 0)
        snapshot->charge += (uint64_t)st.st_size;
    return r;
}

/* All that can fail comes before the map takes its place: then the pages are the file's. */
static int replace_map(struct snapshot *snapshot, uint32_t number, struct arena *arena,
                       uint64_t *own)
{
    char name[NAME_BYTES];
    map_name(name, number);
    int r = charge_map(snapshot, FRESH_MAP);
    if (r == 0)
        r = arena_seal(arena);
    if (r == 0 && renameat(snapshot->memoryfd, FRESH_MAP, snapshot->memoryfd, name) < 0)
        r = -errno;
    return r < 0 ? r : arena_hand_over(arena, own);
}

int chain_close_space(struct snapshot *snapshot, uint32_t number, bool shared, uint64_t id,
                      struct arena *arena, struct shadow **shadow)
{
    struct store *store = snapshot->store;
    struct usage before = {0}, after = {0};
    ino_t file = snapshot->files[number - 1];
    uint64_t base = arena->base >> PAGE_SHIFT, end = arena->filled >> PAGE_SHIFT, own = 0;
    int fd = open_space(snapshot, number);
    int r = fd < 0 ? -errno : usage_of(store, file, NULL, &before);
    if (r == 0)
        r = space_map_write(*shadow, shared, id, snapshot->memoryfd, FRESH_MAP);
    if (r == 0)
        r = usage_of(store, file, snapshot, &after);
    if (r == 0)
        r = usage_add_map(&after, snapshot->memoryfd, FRESH_MAP);
    *shadow = shadow_free(*shadow); /* it refunds by its arena */
    if (r == 0)
        r = replace_map(snapshot, number, arena, &own);
    if (r == 0) {
        uint64_t nobodys = punch(fd, 0, base, &before, &after) + punch(fd, base, end, NULL, &after);
        budget_refund(store_budget(store), nobodys << PAGE_SHIFT);
    }
    usage_free(&before);
    usage_free(&after);
    close_fd(fd);
    return r;
}

static void leave_file(struct snapshot *snapshot, uint32_t number)
{
    struct store *store = snapshot->store;
    struct usage before = {0}, after = {0};
    ino_t file = snapshot->files[number - 1];
    int fd = open_space(snapshot, number);
    /* Without memory to look it through, the pages stay until the last of the chain has gone. */
    if (fd >= 0 && usage_of(store, file, NULL, &before) == 0 &&
        usage_of(store, file, snapshot, &after) == 0) {
        punch(fd, 0, before.room, &before, &after);
        budget_refund(store_budget(store), (before.pages - after.pages) << PAGE_SHIFT);
    }
    usage_free(&before);
    usage_free(&after);
    close_fd(fd);
}

void chain_leave(struct snapshot *snapshot)
{
    for (uint32_t number = 1; number <= snapshot->space_count; number++)
        leave_file(snapshot, number);
    snapshot->space_count = 0;
}

/* ---- all chains ---- */

/* Whether no snapshot in front of it in the list has the file. */
static bool is_first_with(struct store *store, const struct snapshot *snapshot, ino_t file)
{
    for (struct snapshot *s = store_first(store); s != snapshot; s = s->next) {
        if (find_file(s, file) > 0)
            return false;
    }
    return true;
}

static void for_files(struct store *store,
                      void (*each)(struct snapshot *snapshot, uint32_t number, void *user),
                      void *user)
{
    for (struct snapshot *s = store_first(store); s; s = s->next) {
        for (uint32_t number = 1; number <= s->space_count; number++) {
            if (is_first_with(store, s, s->files[number - 1]))
                each(s, number, user);
        }
    }
}

static void add_bytes(struct snapshot *snapshot, uint32_t number, void *user)
{
    struct usage usage = {0};
    if (usage_of(snapshot->store, snapshot->files[number - 1], NULL, &usage) == 0)
        *(uint64_t *)user += usage.pages << PAGE_SHIFT;
    usage_free(&usage);
}

uint64_t chains_bytes(struct store *store)
{
    uint64_t bytes = 0;
    for_files(store, add_bytes, &bytes);
    return bytes;
}

/* What a cache that was killed had begun to append is nobody's. */
static void load_file(struct snapshot *snapshot, uint32_t number, void *user)
{
    struct stat st;
    struct usage usage = {0};
    (void)user;
    int fd = open_space(snapshot, number);
    if (fd >= 0 && fstat(fd, &st) == 0 &&
        usage_of(snapshot->store, snapshot->files[number - 1], NULL, &usage) == 0) {
        punch(fd, 0, (uint64_t)st.st_size >> PAGE_SHIFT, NULL, &usage);
        store_budget(snapshot->store)->used += usage.pages << PAGE_SHIFT;
    }
    usage_free(&usage);
    close_fd(fd);
}

/* Copies of a restore that is over are of no use; pages that were moved are the only ones. */
void chains_load(struct store *store)
{
    for (struct snapshot *s = store_first(store); s; s = s->next) {
        while (s->memoryfd >= 0 && note_file(s) == 0)
            ;
        chain_remove_flat(s);
    }
    for_files(store, load_file, NULL);
}

/* ---- for criu ---- */

/* Whether nobody else has anything of its files. */
static bool is_alone(struct snapshot *snapshot)
{
    bool alone = true;
    for (uint32_t number = 1; alone && number <= snapshot->space_count; number++) {
        struct usage others = {0};
        alone = usage_of(snapshot->store, snapshot->files[number - 1], snapshot, &others) == 0 &&
                others.pages == 0;
        usage_free(&others);
    }
    return alone;
}

static int charge_flat(struct snapshot *snapshot)
{
    uint64_t pages = 0;
    for (uint32_t number = 1; number <= snapshot->space_count; number++) {
        struct space_map map = {0};
        int r = open_map(&map, snapshot->memoryfd, number);
        if (r < 0)
            return r;
        pages += map.pages;
        space_map_close(&map);
    }
    int r = budget_charge(store_budget(snapshot->store), pages << PAGE_SHIFT);
    if (r == 0) {
        snapshot->flat_bytes = pages << PAGE_SHIFT;
        snapshot->charge += snapshot->flat_bytes;
    }
    return r;
}

int chain_prepare_flat(struct snapshot *snapshot, bool keep)
{
    if (!snapshot->chain || snapshot->moved)
        return 0;
    if (keep || !is_alone(snapshot))
        return charge_flat(snapshot);
    /* Whoever comes after us has to know before the first page goes. */
    snapshot->moved = true;
    int r = snapshot_set_state(snapshot, snapshot->state);
    snapshot->moved = r == 0;
    return r;
}

void chain_remove_flat(struct snapshot *snapshot)
{
    char name[NAME_BYTES];
    if (snapshot->moved)
        return;
    for (uint32_t number = 1; number <= snapshot->space_count; number++) {
        pages_name(name, number);
        unlinkat(snapshot->imagefd, name, 0);
    }
    budget_refund(store_budget(snapshot->store), snapshot->flat_bytes);
    snapshot->charge -= snapshot->flat_bytes;
    snapshot->flat_bytes = 0;
}

int chain_open_pages(const struct snapshot *snapshot, const char *name, struct space_map *ret)
{
    char expected[NAME_BYTES];
    for (uint32_t number = 1; number <= snapshot->space_count; number++) {
        pages_name(expected, number);
        if (strcmp(name, expected) != 0)
            continue;
        int r = open_map(ret, snapshot->memoryfd, number);
        if (r < 0)
            return r;
        int fd = open_space(snapshot, number);
        if (fd < 0) {
            r = -errno;
            space_map_close(ret);
            return r;
        }
        return fd;
    }
    return -ENOENT;
}

static int copy_space(int memoryfd, int imagefd, uint32_t number, const struct space_map *map)
{
    char name[NAME_BYTES];
    space_name(name, number);
    _cleanup_close_ int from = openat(memoryfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    pages_name(name, number);
    _cleanup_close_ int to =
        openat(imagefd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    return from < 0 || to < 0 ? -errno : space_map_copy(map, from, to);
}

static int move_space(int memoryfd, int imagefd, uint32_t number, const struct space_map *map)
{
    char name[NAME_BYTES];
    space_name(name, number);
    _cleanup_close_ int from = openat(memoryfd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    pages_name(name, number);
    _cleanup_close_ int to =
        openat(imagefd, name, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    snprintf(name, sizeof(name), "space-%u.moved", number);
    _cleanup_close_ int progress =
        openat(memoryfd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    return from < 0 || to < 0 || progress < 0 ? -errno : space_map_move(map, from, to, progress);
}

static int for_spaces(int memoryfd, int imagefd,
                      int (*each)(int memoryfd, int imagefd, uint32_t number,
                                  const struct space_map *map))
{
    for (uint32_t number = 1;; number++) {
        struct space_map map = {0};
        int r = open_map(&map, memoryfd, number);
        if (r < 0)
            return r == -ENOENT ? 0 : r;
        r = each(memoryfd, imagefd, number, &map);
        space_map_close(&map);
        if (r < 0)
            return r;
    }
}

int chain_copy_flat(int memoryfd, int imagefd)
{
    return for_spaces(memoryfd, imagefd, copy_space);
}

int chain_move_flat(int memoryfd, int imagefd)
{
    if (flock(memoryfd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    return for_spaces(memoryfd, imagefd, move_space);
}
