/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots that share memory, against a model: what each of them has, by page. */
#include "testing.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "store/chain.h"

enum {
    PAGES = 1400, /* of each space */
    SPACES = 2,   /* a task and a shared object of the same number */
    SNAPSHOTS_MAX = 12,
    ID = 77,
};

#define FULL_OF_ZEROS UINT64_MAX

struct image {
    uint64_t stamps[SPACES][PAGES]; /* 0: absent */
    bool lazy[SPACES][PAGES];
};

struct made {
    char id[16];
    struct image image;
};

struct world {
    char *path;
    struct store *store;
    struct made *made[SNAPSHOTS_MAX];
    unsigned count, numbers;
    uint64_t stamp, seed;
};

/* Across a border of chunks, and far apart. */
static uint64_t vaddr_of(unsigned page)
{
    uint64_t base = page < PAGES / 2 ? 0x10000000 - 100 * PAGE_BYTES : 0x7f0000000000;
    return base + page % (PAGES / 2) * (uint64_t)PAGE_BYTES;
}

static unsigned page_of(uint64_t vaddr)
{
    bool high = vaddr >= 0x7f0000000000;
    uint64_t base = high ? 0x7f0000000000 : 0x10000000 - 100 * PAGE_BYTES;
    return (unsigned)((vaddr - base) / PAGE_BYTES) + (high ? PAGES / 2 : 0);
}

static struct world *world_new(uint64_t limit)
{
    struct world *world = calloc(1, sizeof(*world));
    struct error err;
    assert_non_null(world);
    world->path = directory_make();
    world->store = store_open(world->path, limit, &err);
    assert_non_null(world->store);
    return world;
}

static void world_reopen(struct world *world)
{
    struct error err;
    store_close(world->store);
    world->store = store_open(world->path, GIB(1), &err);
    assert_non_null(world->store);
}

static struct snapshot *world_find(struct world *world, const struct made *made)
{
    struct snapshot *snapshot = store_find(world->store, made->id);
    assert_non_null(snapshot);
    return snapshot;
}

static void world_remove(struct world *world, unsigned i)
{
    snapshot_remove(world_find(world, world->made[i]));
    free(world->made[i]);
    world->made[i] = world->made[--world->count];
}

static void world_free(struct world *world)
{
    while (world->count > 0)
        world_remove(world, world->count - 1);
    assert_true(store_budget(world->store)->used == 0);
    store_close(world->store);
    directory_remove(world->path);
    free(world);
}

/* ---- what is added ---- */

static void put_page(struct world *world, struct arena *arena, struct shadow *shadow,
                     struct image *image, int space, unsigned page, bool lazy)
{
    struct shadow_run run;
    void *place;
    size_t length = PAGE_BYTES;
    assert_int_equal(shadow_place(shadow, vaddr_of(page), 1, lazy ? SHADOW_LAZY : 0, &run), 0);
    struct arena_window window = {0};
    assert_int_equal(arena_at(arena, &window, run.offset, &place, &length), 0);
    for (size_t at = 0; at < PAGE_BYTES; at += 8)
        put_le64((uint8_t *)place + at, world->stamp + 1);
    arena_window_close(&window);
    image->stamps[space][page] = ++world->stamp;
    image->lazy[space][page] = lazy;
}

/* Writes, zeroes, and drops some of the pages. */
static void change(struct world *world, struct arena *arena, struct shadow *shadow,
                   struct image *image, int space, unsigned changes)
{
    for (unsigned i = 0; i < changes; i++) {
        unsigned page = (unsigned)(test_random(&world->seed) % PAGES);
        unsigned count = 1 + (unsigned)(test_random(&world->seed) % 30);
        unsigned kind = (unsigned)(test_random(&world->seed) % 8);
        for (unsigned end = MIN(page + count, PAGES); page < end; page++) {
            if (kind > 1) {
                put_page(world, arena, shadow, image, space, page, kind % 2);
            } else if (kind == 1) {
                assert_int_equal(shadow_zero(shadow, vaddr_of(page), 1), 0);
                image->stamps[space][page] = FULL_OF_ZEROS;
            } else {
                image->stamps[space][page] = 0;
            }
        }
    }
}

/* What is not absent exists, all else is dropped. */
static void settle_shadow(struct shadow *shadow, const struct image *image, int space)
{
    for (unsigned page = 0; page < PAGES; page++) {
        if (image->stamps[space][page])
            assert_int_equal(shadow_list(shadow, vaddr_of(page), 1), 0);
    }
    assert_true(shadow_drop_unlisted(shadow) == 0);
}

static int add_space(struct world *world, struct snapshot *snapshot, struct snapshot *parent,
                     struct image *image, int space, unsigned changes, bool abandoned)
{
    struct arena arena = {0};
    struct shadow *shadow = NULL;
    int r = chain_open_space(snapshot, parent, space, ID, &arena, &shadow);
    if (r == 0) {
        change(world, &arena, shadow, image, space, changes);
        if (!abandoned) {
            settle_shadow(shadow, image, space);
            r = chain_close_space(snapshot, snapshot->space_count, space, ID, &arena, &shadow);
        }
    }
    shadow_free(shadow);
    arena_drop(&arena);
    return r;
}

/* A snapshot based on one that is there, or (-1) on none. */
static void add(struct world *world, int parent_index, unsigned changes, bool abandoned)
{
    struct made *made = calloc(1, sizeof(*made));
    struct error err;
    assert_non_null(made);
    struct snapshot *parent = NULL;
    if (parent_index >= 0) {
        parent = world_find(world, world->made[parent_index]);
        made->image = world->made[parent_index]->image;
    }
    snprintf(made->id, sizeof(made->id), "s%u", ++world->numbers);
    struct snapshot *snapshot = snapshot_create(world->store, made->id, &err);
    assert_non_null(snapshot);
    assert_int_equal(chain_join(snapshot, parent), 0);
    for (int space = 0; space < SPACES; space++)
        assert_int_equal(add_space(world, snapshot, parent, &made->image, space, changes,
                                   abandoned && space == SPACES - 1),
                         0);
    if (abandoned) {
        snapshot_remove(snapshot);
        free(made);
        return;
    }
    assert_int_equal(snapshot_set_state(snapshot, SNAPSHOT_READY), 0);
    world->made[world->count++] = made;
}

/* ---- what there is ---- */

/* What criu would read, page by page in the order of the map. */
static void check_flat(struct snapshot *snapshot, const struct image *image, int space)
{
    char name[32];
    struct space_map map;
    unsigned page = 0;
    off_t at = 0;
    snprintf(name, sizeof(name), "space-%d.map", space + 1);
    assert_int_equal(space_map_open(&map, snapshot->memoryfd, name), 0);
    assert_true(map.id == ID && map.shared == (bool)space);
    snprintf(name, sizeof(name), "pages-%d.img", space + 1);
    int fd = openat(snapshot->imagefd, name, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (uint64_t i = 0; i < map.count; i++) {
        const struct space_map_entry *entry = &map.entries[i];
        unsigned first = page_of(entry->place - entry->place % PAGE_BYTES);
        for (; page < first; page++)
            assert_true(image->stamps[space][page] == 0);
        for (; page < first + entry->pages; page++) {
            uint8_t bytes[PAGE_BYTES];
            if (entry->place & SPACE_MAP_ZERO) {
                assert_true(image->stamps[space][page] == FULL_OF_ZEROS);
                continue;
            }
            assert_int_equal(pread(fd, bytes, PAGE_BYTES, at), PAGE_BYTES);
            assert_true(get_le64(bytes) == image->stamps[space][page]);
            assert_true(get_le64(bytes + PAGE_BYTES - 8) == image->stamps[space][page]);
            assert_int_equal(entry->place & SPACE_MAP_LAZY ? 1 : 0, image->lazy[space][page]);
            at += PAGE_BYTES;
        }
    }
    for (; page < PAGES; page++)
        assert_true(image->stamps[space][page] == 0);
    struct stat st;
    assert_true(fstat(fd, &st) == 0 && st.st_size == at);
    assert_true((uint64_t)at == map.pages * PAGE_BYTES);
    close(fd);
    space_map_close(&map);
}

static void check_snapshot(struct world *world, const struct made *made)
{
    struct snapshot *snapshot = world_find(world, made);
    uint64_t used = store_budget(world->store)->used;
    assert_int_equal(chain_prepare_flat(snapshot, true), 0);
    assert_int_equal(chain_copy_flat(snapshot->memoryfd, snapshot->imagefd), 0);
    for (int space = 0; space < SPACES; space++)
        check_flat(snapshot, &made->image, space);
    chain_remove_flat(snapshot);
    assert_true(store_budget(world->store)->used == used);
}

/* Memory that the files have; the directory may be on any file system. */
static uint64_t bytes_allocated(struct world *world)
{
    uint64_t bytes = 0;
    ino_t seen[SNAPSHOTS_MAX * SPACES];
    size_t count = 0;
    for (struct snapshot *s = store_first(world->store); s; s = s->next) {
        for (uint32_t i = 0; i < s->space_count; i++) {
            char name[32];
            struct stat st;
            size_t at = 0;
            snprintf(name, sizeof(name), "space-%u", i + 1);
            assert_int_equal(fstatat(s->memoryfd, name, &st, 0), 0);
            while (at < count && seen[at] != st.st_ino)
                at++;
            if (at < count)
                continue;
            seen[count++] = st.st_ino;
            bytes += (uint64_t)st.st_blocks * 512;
        }
    }
    return bytes;
}

static void check(struct world *world)
{
    uint64_t charge = 0, shared = chains_bytes(world->store);
    for (unsigned i = 0; i < world->count; i++)
        check_snapshot(world, world->made[i]);
    for (struct snapshot *s = store_first(world->store); s; s = s->next)
        charge += s->charge;
    assert_true(store_budget(world->store)->used == charge + shared);
    assert_in_range(bytes_allocated(world), shared, shared + KIB(64) * SPACES * SNAPSHOTS_MAX);
}

/* ---- tests ---- */

static void one_after_the_other(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    world->seed = test_seed();
    add(world, -1, 100, false);
    for (int i = 0; i < 9; i++)
        add(world, i, 3, false);
    check(world);
    /* Any of them can go, the first, the last and one in the midst, and the others are whole. */
    world_remove(world, 0);
    check(world);
    world_remove(world, 4);
    check(world);
    while (world->count > 1) {
        world_remove(world, 0);
        check(world);
    }
    world_free(world);
}

/* A chain of any length whose older ones are forgotten takes what one does. */
static void forgotten_behind(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    world->seed = test_seed();
    add(world, -1, 200, false);
    for (int i = 0; i < 60; i++) {
        add(world, 0, 5, false);
        world_remove(world, 0);
        assert_true(chains_bytes(world->store) <= (uint64_t)SPACES * PAGES * PAGE_BYTES);
    }
    check(world);
    world_free(world);
}

static void at_random(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    world->seed = test_seed();
    for (int i = 0; i < 150; i++) {
        unsigned what = (unsigned)(test_random(&world->seed) % 10);
        int parent = world->count ? (int)(test_random(&world->seed) % world->count) : -1;
        unsigned changes = (unsigned)(test_random(&world->seed) % 20);
        if (what < 5 && world->count < SNAPSHOTS_MAX)
            add(world, what == 0 ? -1 : parent, changes, false);
        else if (what == 5)
            add(world, parent, changes, true);
        else if (what == 6)
            world_reopen(world);
        else if (world->count > 0)
            world_remove(world, (unsigned)(test_random(&world->seed) % world->count));
        if (i % 5 == 0)
            check(world);
    }
    check(world);
    world_free(world);
}

/* The parent goes while its child arrives. */
static void forgotten_meanwhile(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    struct error err;
    struct arena arena = {0};
    struct shadow *shadow;
    struct made *child = calloc(1, sizeof(*child));
    world->seed = test_seed();
    add(world, -1, 100, false);
    child->image = world->made[0]->image;
    strcpy(child->id, "child");
    struct snapshot *parent = world_find(world, world->made[0]);
    struct snapshot *snapshot = snapshot_create(world->store, child->id, &err);
    assert_int_equal(chain_join(snapshot, parent), 0);
    assert_int_equal(add_space(world, snapshot, parent, &child->image, 0, 5, false), 0);
    assert_int_equal(chain_open_space(snapshot, parent, true, ID, &arena, &shadow), 0);
    change(world, &arena, shadow, &child->image, 1, 4);
    world_remove(world, 0);
    change(world, &arena, shadow, &child->image, 1, 4);
    settle_shadow(shadow, &child->image, 1);
    assert_int_equal(chain_close_space(snapshot, 2, true, ID, &arena, &shadow), 0);
    assert_int_equal(snapshot_set_state(snapshot, SNAPSHOT_READY), 0);
    world->made[world->count++] = child;
    check(world);
    world_free(world);
}

/* What a cache that was killed had begun is found to be nobody's. */
static void killed_meanwhile(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    struct error err;
    struct arena arena = {0};
    struct shadow *shadow;
    world->seed = test_seed();
    add(world, -1, 100, false);
    struct snapshot *parent = world_find(world, world->made[0]);
    struct snapshot *snapshot = snapshot_create(world->store, "child", &err);
    struct image image = world->made[0]->image;
    assert_int_equal(chain_join(snapshot, parent), 0);
    assert_int_equal(chain_open_space(snapshot, parent, false, ID, &arena, &shadow), 0);
    change(world, &arena, shadow, &image, 0, 10);
    assert_true(arena.filled > arena.base);
    shadow_free(shadow);
    close(arena.fd); /* as the kernel would: nothing is cut off */
    world_reopen(world);
    assert_null(store_find(world->store, "child"));
    check(world);
    add(world, 0, 5, false); /* and the file can be added to */
    check(world);
    world_free(world);
}

static void one_at_a_time(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    struct error err;
    struct arena arena = {0}, second = {0};
    struct shadow *shadow, *none = NULL;
    world->seed = test_seed();
    add(world, -1, 50, false);
    struct snapshot *parent = world_find(world, world->made[0]);
    struct snapshot *a = snapshot_create(world->store, "a", &err);
    struct snapshot *b = snapshot_create(world->store, "b", &err);
    assert_int_equal(chain_join(a, parent), 0);
    assert_int_equal(chain_join(b, parent), 0);
    assert_int_equal(chain_open_space(a, parent, false, ID, &arena, &shadow), 0);
    assert_int_equal(chain_open_space(b, parent, false, ID, &second, &none), -EBUSY);
    assert_int_equal(chain_open_space(b, parent, false, ID + 1, &second, &none), -ENODATA);
    assert_null(none);
    arena_drop(&second);
    shadow_free(shadow);
    arena_drop(&arena);
    snapshot_remove(a);
    snapshot_remove(b);
    check(world);
    world_free(world);
}

/* Over the limit at any moment: what was there is whole, and nothing stays charged. */
static void over_budget(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    struct error err;
    world->seed = test_seed();
    add(world, -1, 100, false);
    struct snapshot *parent = world_find(world, world->made[0]);
    uint64_t used = store_budget(world->store)->used;
    for (uint64_t more = KIB(16); more < MIB(4); more += KIB(100)) {
        struct arena arena = {0};
        struct shadow *shadow = NULL;
        store_budget(world->store)->limit = used + more;
        struct snapshot *snapshot = snapshot_create(world->store, "more", &err);
        assert_non_null(snapshot);
        assert_int_equal(chain_join(snapshot, parent), 0);
        int r = chain_open_space(snapshot, parent, false, ID, &arena, &shadow);
        struct shadow_run run;
        for (unsigned page = 0; page < PAGES && r == 0; page++)
            r = shadow_place(shadow, vaddr_of(page), 1, 0, &run);
        if (r == 0)
            r = chain_close_space(snapshot, 1, false, ID, &arena, &shadow);
        assert_true(r == 0 || r == -EDQUOT);
        shadow_free(shadow);
        arena_drop(&arena);
        snapshot_remove(snapshot);
        assert_true(store_budget(world->store)->used == used);
    }
    store_budget(world->store)->limit = used;
    assert_int_equal(chain_prepare_flat(parent, true), -EDQUOT);
    assert_true(store_budget(world->store)->used == used);
    store_budget(world->store)->limit = GIB(1);
    check(world);
    world_free(world);
}

/* Puts it together by moving, in a process that is killed after so long. */
static bool move_and_be_killed(const struct snapshot *snapshot, unsigned usec)
{
    pid_t pid = fork();
    if (pid == 0) {
        int memory = openat(snapshot->dirfd, "memory", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        _exit(chain_move_flat(memory, snapshot->imagefd) == 0 ? 0 : 1);
    }
    int status;
    usleep(usec);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    return WIFEXITED(status);
}

/* A large space, so that there is something to be killed in: many steps. */
static struct snapshot *add_large(struct world *world, uint64_t pages)
{
    struct error err;
    struct arena arena = {0};
    struct shadow *shadow = NULL;
    struct shadow_run run;
    struct arena_window window = {0};
    struct snapshot *snapshot = snapshot_create(world->store, "large", &err);
    assert_non_null(snapshot);
    assert_int_equal(chain_join(snapshot, NULL), 0);
    assert_int_equal(chain_open_space(snapshot, NULL, false, ID, &arena, &shadow), 0);
    for (uint64_t i = 0; i < pages; i++) {
        uint64_t page = i * 7919 % pages; /* all of them, and no two together */
        void *place;
        size_t length = PAGE_BYTES;
        assert_int_equal(shadow_place(shadow, page * PAGE_BYTES, 1, 0, &run), 0);
        assert_int_equal(arena_at(&arena, &window, run.offset, &place, &length), 0);
        put_le64(place, page + 1);
        put_le64((uint8_t *)place + PAGE_BYTES - 8, ~page);
    }
    arena_window_close(&window);
    assert_int_equal(chain_close_space(snapshot, 1, false, ID, &arena, &shadow), 0);
    assert_int_equal(snapshot_set_state(snapshot, SNAPSHOT_READY), 0);
    return snapshot;
}

static void check_large(const struct snapshot *snapshot, uint64_t pages)
{
    int fd = openat(snapshot->imagefd, "pages-1.img", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (uint64_t page = 0; page < pages; page++) {
        uint8_t bytes[PAGE_BYTES];
        assert_int_equal(pread(fd, bytes, PAGE_BYTES, (off_t)(page * PAGE_BYTES)), PAGE_BYTES);
        assert_true(get_le64(bytes) == page + 1);
        assert_true(get_le64(bytes + PAGE_BYTES - 8) == ~page);
    }
    close(fd);
}

/* Whoever moves pages is killed again and again, and so is the cache: nothing is lost, and no
 * memory is taken besides. */
static void moved_and_killed(void **state)
{
    (void)state;
    enum { LARGE = 5 * SPACE_MAP_STEP + 100 };
    struct world *world = world_new(GIB(1));
    world->seed = test_seed();
    for (int round = 0; round < 4; round++) {
        struct snapshot *snapshot = add_large(world, LARGE);
        uint64_t used = store_budget(world->store)->used;
        unsigned kills = 0;
        store_budget(world->store)->limit = used;
        assert_int_equal(chain_prepare_flat(snapshot, false), 0);
        assert_true(snapshot->moved && store_budget(world->store)->used == used);
        /* Later and later, so that it comes to an end on a machine that is busy. */
        uint64_t latest = 8000;
        while (!move_and_be_killed(snapshot, (unsigned)(test_random(&world->seed) % latest))) {
            latest += 500;
            if (++kills % 3 == 0) {
                world_reopen(world);
                snapshot = store_find(world->store, "large");
                assert_true(snapshot && snapshot->moved);
            }
        }
        check_large(snapshot, LARGE);
        assert_in_range(bytes_allocated(world), 0, KIB(64));
        assert_true(move_and_be_killed(snapshot, 1000000)); /* once more is no harm */
        check_large(snapshot, LARGE);
        snapshot_remove(snapshot);
        assert_true(store_budget(world->store)->used == 0);
    }
    world_free(world);
}

/* One at a time; and what shares memory, or is kept, is copied. */
static void moved_or_copied(void **state)
{
    (void)state;
    struct world *world = world_new(GIB(1));
    world->seed = test_seed();
    add(world, -1, 100, false);
    add(world, 0, 3, false);
    struct snapshot *snapshot = world_find(world, world->made[1]);
    assert_int_equal(chain_prepare_flat(snapshot, false), 0);
    assert_true(!snapshot->moved && snapshot->flat_bytes > 0);
    chain_remove_flat(snapshot);
    world_remove(world, 0);
    snapshot = world_find(world, world->made[0]);
    assert_int_equal(chain_prepare_flat(snapshot, true), 0);
    assert_false(snapshot->moved);
    chain_remove_flat(snapshot);
    assert_int_equal(chain_prepare_flat(snapshot, false), 0);
    assert_true(snapshot->moved);
    int memory = openat(snapshot->dirfd, "memory", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(chain_move_flat(memory, snapshot->imagefd), 0);
    assert_int_equal(chain_move_flat(snapshot->memoryfd, snapshot->imagefd), -EBUSY);
    close(memory);
    chain_remove_flat(snapshot); /* which are no copies */
    for (int space = 0; space < SPACES; space++)
        check_flat(snapshot, &world->made[0]->image, space);
    world_free(world);
}

static void maps_that_are_none(void **state)
{
    (void)state;
    struct {
        struct space_map_header header;
        struct space_map_entry entries[2];
    } file = {.header = {.magic = SPACE_MAP_MAGIC, .count = 2},
              .entries = {{0x1000, 2, 7}, {0x3000 | SPACE_MAP_LAZY, 1, 0}}},
      bad;
    struct space_map map;
    assert_int_equal(space_map_check(&file, sizeof(file), &map), 0);
    assert_true(map.count == 2 && map.pages == 3 && map.end == 9);
    assert_int_equal(space_map_check(&file, sizeof(file) - 1, &map), -EPROTO);
    assert_int_equal(space_map_check(&file, sizeof(file.header) - 1, &map), -EPROTO);
    assert_int_equal(space_map_check(&file, sizeof(file.header), &map), -EPROTO);
    static const struct space_map_entry entries[] = {
        {0x2000, 1, 0},          {0x3000, 0, 0},     {0x3003, 1, 0},
        {0x3004, 1, 0},          {1ull << 57, 1, 0}, {(1ull << 57) - PAGE_BYTES, 2, 0},
        {0x3000, 2, UINT32_MAX},
    };
    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        bad = file;
        bad.entries[1] = entries[i];
        assert_int_equal(space_map_check(&bad, sizeof(bad), &map), -EPROTO);
    }
    bad = file;
    bad.header.shared = 2;
    assert_int_equal(space_map_check(&bad, sizeof(bad), &map), -EPROTO);
    bad = file;
    bad.header.magic[0] = 'G';
    assert_int_equal(space_map_check(&bad, sizeof(bad), &map), -EPROTO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_after_the_other), cmocka_unit_test(forgotten_behind),
        cmocka_unit_test(at_random),           cmocka_unit_test(forgotten_meanwhile),
        cmocka_unit_test(killed_meanwhile),    cmocka_unit_test(one_at_a_time),
        cmocka_unit_test(over_budget),         cmocka_unit_test(maps_that_are_none),
        cmocka_unit_test(moved_and_killed),    cmocka_unit_test(moved_or_copied),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
