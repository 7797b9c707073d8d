/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/io.h"
#include "store/store.h"

#define CHUNK_BYTES ((uint64_t)CHUNK_PAGES * PAGE_BYTES)
#define ADDRESS_END (1ull << 57)

/* A directory with one arena in it. */
struct ground {
    char *path;
    int dirfd;
    struct budget budget;
    struct arena arena;
};

static struct ground *ground_new(uint64_t limit)
{
    struct ground *ground = calloc(1, sizeof(*ground));
    assert_non_null(ground);
    ground->path = directory_make();
    ground->dirfd = open(ground->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ground->budget.limit = limit;
    assert_int_equal(arena_create(&ground->arena, ground->dirfd, "arena", &ground->budget), 0);
    return ground;
}

/* Everything that was charged has been given back when all is gone. */
static void ground_free(struct ground *ground)
{
    arena_drop(&ground->arena);
    assert_true(ground->budget.used == 0);
    close(ground->dirfd);
    directory_remove(ground->path);
    free(ground);
}

static uint64_t file_size(const struct ground *ground)
{
    struct stat st;
    assert_int_equal(fstatat(ground->dirfd, "arena", &st, 0), 0);
    return (uint64_t)st.st_size;
}

/* ---- budgets ---- */

static void budgets(void **state)
{
    (void)state;
    struct budget budget = {.limit = 100};
    assert_int_equal(budget_charge(&budget, 100), 0);
    assert_int_equal(budget_charge(&budget, 1), -EDQUOT);
    assert_true(budget.used == 100);
    budget_refund(&budget, 60);
    assert_int_equal(budget_charge(&budget, 61), -EDQUOT);
    assert_int_equal(budget_charge(&budget, UINT64_MAX), -EDQUOT);
    assert_int_equal(budget_charge(&budget, 60), 0);
    budget.used = 150; /* taken over from an earlier cache with another limit */
    assert_int_equal(budget_charge(&budget, 1), -EDQUOT);
    assert_int_equal(budget_charge(&budget, 0), -EDQUOT);
}

/* ---- arenas ---- */

static void arena_fills(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(300));
    struct arena *arena = &ground->arena;
    uint64_t offset, expected = 0;
    for (int i = 0; i < 300; i++) {
        uint64_t bytes = (uint64_t)(i * 977 % 400000);
        assert_int_equal(arena_append(arena, bytes, &offset), 0);
        assert_true(offset == expected);
        expected += bytes;
        assert_true(ground->budget.used >= expected);
        assert_true(file_size(ground) >= expected);
    }
    /* places: cut to the window, one after the other the whole file */
    struct arena_window window = {0}, other = {0};
    for (uint64_t at = 0; at < expected;) {
        void *place;
        size_t length = expected - at;
        assert_int_equal(arena_at(arena, &window, at, &place, &length), 0);
        assert_true(length > 0 && length <= expected - at);
        put_le64(place, at);
        at += length;
    }
    void *place;
    size_t length = 8;
    assert_int_equal(arena_at(arena, &other, MIB(32), &place, &length), 0);
    assert_true(get_le64(place) == MIB(32));
    /* one window stays where it is while another moves */
    void *elsewhere;
    assert_int_equal(arena_at(arena, &window, 0, &elsewhere, &length), 0);
    put_le64(place, 5);
    assert_int_equal(arena_at(arena, &window, MIB(32), &elsewhere, &length), 0);
    assert_true(get_le64(elsewhere) == 5);
    arena_window_close(&window);
    arena_window_close(&other);
    assert_int_equal(arena_seal(arena), 0);
    assert_true(file_size(ground) == expected);
    assert_true(ground->budget.used == expected);
    ground_free(ground);
}

/* Above 4 GiB: the first of them are a hole that is taken for filled, to need no memory for them.
 */
static void arena_above_four_gib(void **state)
{
    (void)state;
    struct ground *ground = ground_new(GIB(9));
    struct arena *arena = &ground->arena;
    assert_int_equal(ftruncate(arena->fd, (off_t)(GIB(4) - 8)), 0);
    assert_int_equal(budget_charge(&ground->budget, GIB(4) - 8), 0);
    arena->filled = arena->room = GIB(4) - 8;
    uint64_t offset;
    struct arena_window window = {0};
    void *place;
    size_t length = 16;
    assert_int_equal(arena_append(arena, MIB(40), &offset), 0);
    assert_true(offset == GIB(4) - 8);
    /* across the border, which is one of windows too: cut there */
    assert_int_equal(arena_at(arena, &window, offset, &place, &length), 0);
    assert_int_equal(length, 8);
    put_le64(place, 1);
    length = 8;
    assert_int_equal(arena_at(arena, &window, GIB(4), &place, &length), 0);
    put_le64(place, 2);
    assert_int_equal(arena_at(arena, &window, GIB(4) + MIB(40) - 16, &place, &length), 0);
    put_le64(place, 3);
    uint8_t bytes[16];
    assert_int_equal(pread(arena->fd, bytes, 16, (off_t)offset), 16);
    assert_true(get_le64(bytes) == 1 && get_le64(bytes + 8) == 2);
    assert_int_equal(pread(arena->fd, bytes, 8, (off_t)(GIB(4) + MIB(40) - 16)), 8);
    assert_true(get_le64(bytes) == 3);
    arena_window_close(&window);
    assert_int_equal(arena_seal(arena), 0);
    assert_true(file_size(ground) == GIB(4) + MIB(40) - 8);
    ground_free(ground);
}

static void arena_ends_at_the_budget(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(1) + 5);
    uint64_t offset = 77;
    assert_int_equal(arena_append(&ground->arena, MIB(1), &offset), 0);
    assert_int_equal(arena_append(&ground->arena, 6, &offset), -EDQUOT);
    assert_true(offset == 0);
    assert_int_equal(arena_append(&ground->arena, 5, &offset), 0); /* the last ones are as good */
    assert_true(offset == MIB(1));
    assert_int_equal(arena_append(&ground->arena, 1, &offset), -EDQUOT);
    assert_int_equal(arena_append(&ground->arena, 0, &offset), 0);
    assert_int_equal(arena_append(&ground->arena, UINT64_MAX, &offset), -EFBIG);
    assert_true(ground->budget.used == MIB(1) + 5);
    ground_free(ground);
}

static void arena_names(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(1));
    struct arena other;
    assert_int_equal(arena_create(&other, ground->dirfd, "arena", &ground->budget), -EEXIST);
    assert_int_equal(symlinkat("/etc/passwd", ground->dirfd, "link"), 0);
    assert_int_equal(arena_create(&other, ground->dirfd, "link", &ground->budget), -EEXIST);
    struct arena zero = {0};
    arena_drop(&zero);
    ground_free(ground);
}

/* What has been used and given back is zeros for whoever comes next, in children too. */
static void arena_of_another(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(64));
    struct arena_window window = {0};
    uint64_t offset;
    void *place;
    size_t length = MIB(8);
    assert_int_equal(arena_append(&ground->arena, length, &offset), 0);
    assert_int_equal(arena_at(&ground->arena, &window, offset, &place, &length), 0);
    memset(place, 0x5a, length);
    pid_t child = fork();
    if (child == 0) { /* has not even the mapping: it would keep the memory */
        uint8_t in_core;
        _exit(mincore(place, PAGE_BYTES, &in_core) < 0 && errno == ENOMEM ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    arena_window_close(&window);
    arena_drop(&ground->arena);
    assert_int_equal(unlinkat(ground->dirfd, "arena", 0), 0);
    assert_int_equal(arena_create(&ground->arena, ground->dirfd, "arena", &ground->budget), 0);
    assert_int_equal(arena_append(&ground->arena, MIB(8), &offset), 0);
    assert_int_equal(arena_at(&ground->arena, &window, offset, &place, &length), 0);
    for (size_t i = 0; i < length; i++)
        assert_int_equal(((const uint8_t *)place)[i], 0);
    arena_window_close(&window);
    ground_free(ground);
}

/* ---- shadows, against a model: page number -> what was written last ---- */

enum { MODEL_PAGES = 6000 };

struct model {
    uint64_t stamps[MODEL_PAGES]; /* 0: absent */
    bool lazy[MODEL_PAGES];
    bool zero[MODEL_PAGES];
    uint8_t rounds[MODEL_PAGES], round;
    uint64_t next_stamp;
};

/* Model pages lie in three places of the address space, across borders of chunks. */
static uint64_t model_vaddr(unsigned page)
{
    static const uint64_t bases[] = {0, 0x7f0000000000 - 3 * PAGE_BYTES,
                                     ADDRESS_END - 2000ull * PAGE_BYTES};
    return bases[page / 2000] + page % 2000 * (uint64_t)PAGE_BYTES;
}

static void write_pages(struct ground *ground, struct shadow *shadow, struct model *model,
                        unsigned first, unsigned count, bool lazy)
{
    struct arena_window window = {0};
    for (unsigned done = 0; done < count;) {
        struct shadow_run run;
        uint64_t vaddr = model_vaddr(first + done);
        assert_int_equal(shadow_place(shadow, vaddr, count - done, lazy ? SHADOW_LAZY : 0, &run),
                         0);
        assert_true(run.vaddr == vaddr && run.pages >= 1 && run.pages <= count - done);
        for (uint64_t i = 0; i < run.pages; i++, done++) {
            void *place;
            size_t length = PAGE_BYTES;
            assert_int_equal(
                arena_at(&ground->arena, &window, run.offset + i * PAGE_BYTES, &place, &length), 0);
            assert_int_equal(length, PAGE_BYTES);
            model->stamps[first + done] = ++model->next_stamp;
            model->lazy[first + done] = lazy;
            model->zero[first + done] = false;
            model->rounds[first + done] = model->round;
            put_le64(place, model->next_stamp);
            put_le64((uint8_t *)place + PAGE_BYTES - 8, ~model->next_stamp);
        }
    }
    arena_window_close(&window);
}

static void check_against(struct ground *ground, struct shadow *shadow, const struct model *model)
{
    struct shadow_run run;
    unsigned page = 0;
    uint64_t pages = 0, seen = 0;
    for (unsigned i = 0; i < MODEL_PAGES; i++)
        pages += model->stamps[i] != 0;
    assert_true(shadow_pages(shadow) == pages);
    for (uint64_t vaddr = 0; shadow_next_run(shadow, vaddr, &run);
         vaddr = run.vaddr + run.pages * PAGE_BYTES) {
        assert_true(run.vaddr >= vaddr && run.pages > 0);
        for (uint64_t i = 0; i < run.pages; i++, page++, seen++) {
            while (page < MODEL_PAGES && model->stamps[page] == 0)
                page++;
            assert_true(page < MODEL_PAGES);
            assert_true(model_vaddr(page) == run.vaddr + i * PAGE_BYTES);
            assert_int_equal(run.lazy, model->lazy[page]);
            assert_int_equal(run.round, model->rounds[page]);
            uint8_t stamp[8], end[8];
            off_t at = (off_t)(run.offset + i * PAGE_BYTES);
            assert_int_equal(pread(ground->arena.fd, stamp, 8, at), 8);
            assert_int_equal(pread(ground->arena.fd, end, 8, at + PAGE_BYTES - 8), 8);
            assert_true(get_le64(stamp) == model->stamps[page]);
            assert_true(get_le64(end) == ~model->stamps[page]);
        }
    }
    assert_true(seen == pages);
}

static void sort_and_check(struct ground *ground, struct shadow *shadow, const struct model *model)
{
    uint64_t used = ground->budget.used;
    if (!shadow_is_ascending(shadow))
        assert_int_equal(shadow_sort(shadow, ground->dirfd, "arena"), 0);
    assert_true(ground->budget.used == used);
    assert_true(shadow_is_ascending(shadow));
    check_against(ground, shadow, model);
    assert_int_equal(arena_seal(&ground->arena), 0);
    assert_true(file_size(ground) == shadow_pages(shadow) * PAGE_BYTES);
    /* the file by itself, from its beginning to its end, is the pages in ascending order */
    int fd = openat(ground->dirfd, "arena", O_RDONLY | O_CLOEXEC);
    uint8_t stamp[8];
    off_t at = 0;
    for (unsigned i = 0; i < MODEL_PAGES; i++) {
        if (model->stamps[i] == 0)
            continue;
        assert_int_equal(pread(fd, stamp, 8, at), 8);
        assert_true(get_le64(stamp) == model->stamps[i]);
        at += PAGE_BYTES;
    }
    close(fd);
}

static void shadow_newest_wins(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(64));
    struct shadow *shadow = shadow_new(&ground->arena);
    struct model *model = calloc(1, sizeof(*model));
    assert_true(shadow && model);
    write_pages(ground, shadow, model, 0, 1000, false);
    assert_true(shadow_is_ascending(shadow));
    uint64_t filled = ground->arena.filled;
    write_pages(ground, shadow, model, 100, 300, true);
    write_pages(ground, shadow, model, 0, 1000, false);
    write_pages(ground, shadow, model, 250, 1, true);
    assert_true(ground->arena.filled == filled); /* any number of rounds: the memory of one */
    check_against(ground, shadow, model);
    sort_and_check(ground, shadow, model);
    shadow_free(shadow);
    free(model);
    ground_free(ground);
}

static void shadow_descending(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(64));
    struct shadow *shadow = shadow_new(&ground->arena);
    struct model *model = calloc(1, sizeof(*model));
    assert_true(shadow && model);
    for (unsigned page = MODEL_PAGES; page-- > 0;) {
        if (page % 3)
            write_pages(ground, shadow, model, page, 1, page % 5 == 0);
    }
    assert_false(shadow_is_ascending(shadow));
    check_against(ground, shadow, model);
    sort_and_check(ground, shadow, model);
    shadow_free(shadow);
    free(model);
    ground_free(ground);
}

static void shadow_at_random(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    for (int round = 0; round < 8; round++) {
        struct ground *ground = ground_new(MIB(128));
        struct shadow *shadow = shadow_new(&ground->arena);
        struct model *model = calloc(1, sizeof(*model));
        assert_true(shadow && model);
        unsigned operations = 1 + test_random(&seed) % 200;
        for (unsigned i = 0; i < operations; i++) {
            unsigned first = (unsigned)(test_random(&seed) % MODEL_PAGES);
            unsigned longest = 2000 - first % 2000; /* to the end of its place */
            unsigned count = 1 + (unsigned)(test_random(&seed) % (i % 4 ? 20 : 1500));
            write_pages(ground, shadow, model, first, MIN(count, longest),
                        test_random(&seed) % 4 == 0);
        }
        check_against(ground, shadow, model);
        sort_and_check(ground, shadow, model);
        assert_null(shadow_free(shadow));
        free(model);
        ground_free(ground);
    }
}

static void zero_pages(struct shadow *shadow, struct model *model, unsigned first, unsigned count)
{
    assert_int_equal(shadow_zero(shadow, model_vaddr(first), count), 0);
    for (unsigned i = first; i < first + count; i++) {
        model->stamps[i] = 0;
        model->zero[i] = true;
    }
}

/* What is listed, at random; the pages of which nothing is known. */
static uint64_t list_pages(struct shadow *shadow, struct model *model, uint64_t *seed)
{
    uint64_t missing = 0;
    for (unsigned i = 0; i < MODEL_PAGES; i++) {
        if (test_random(seed) % 3 == 0) {
            model->stamps[i] = 0; /* it does not exist in the end */
            continue;
        }
        assert_int_equal(shadow_list(shadow, model_vaddr(i), 1), 0);
        missing += model->stamps[i] == 0 && !model->zero[i];
    }
    return missing;
}

static void shadow_in_rounds(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    for (int i = 0; i < 8; i++) {
        struct ground *ground = ground_new(MIB(128));
        struct shadow *shadow = shadow_new(&ground->arena);
        struct model *model = calloc(1, sizeof(*model));
        assert_true(shadow && model);
        for (unsigned round = 0; round < 260; round++) {
            for (unsigned n = 0; n < 4; n++) {
                unsigned first = (unsigned)(test_random(&seed) % MODEL_PAGES);
                unsigned count = 1 + (unsigned)(test_random(&seed) % (round ? 20 : 1500));
                count = MIN(count, 2000 - first % 2000);
                if (test_random(&seed) % 4 == 0)
                    zero_pages(shadow, model, first, count);
                else
                    write_pages(ground, shadow, model, first, count, n == 0);
            }
            shadow_end_round(shadow);
            model->round += model->round < UINT8_MAX;
        }
        check_against(ground, shadow, model);
        uint64_t missing = list_pages(shadow, model, &seed);
        assert_true(missing > 0);
        assert_true(shadow_drop_unlisted(shadow) == missing);
        sort_and_check(ground, shadow, model);
        shadow_free(shadow);
        free(model);
        ground_free(ground);
    }
}

/* What has come with SHADOW_LISTED need not be listed again. */
static void shadow_listed_on_arrival(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(64));
    struct shadow *shadow = shadow_new(&ground->arena);
    struct shadow_run run;
    assert_int_equal(shadow_place(shadow, 0, 4, SHADOW_LISTED, &run), 0);
    assert_int_equal(shadow_place(shadow, 4 * PAGE_BYTES, 4, 0, &run), 0);
    assert_int_equal(shadow_drop_unlisted(shadow), 0);
    assert_true(shadow_next_run(shadow, 0, &run) && run.pages == 4);
    assert_int_equal(shadow_pages(shadow), 4);
    shadow_free(shadow);
    ground_free(ground);
}

static void shadow_sparse(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(64));
    struct shadow *shadow = shadow_new(&ground->arena);
    struct shadow_run run;
    assert_non_null(shadow);
    assert_false(shadow_next_run(shadow, 0, &run));
    assert_true(shadow_is_ascending(shadow));
    /* one page in each of 3000 chunks far apart, in an order that is none */
    for (uint64_t i = 0; i < 3000; i++) {
        uint64_t vaddr = (i * 1237 % 3000) * 7 * CHUNK_BYTES + (i % CHUNK_PAGES) * PAGE_BYTES;
        assert_int_equal(shadow_place(shadow, vaddr, 1, 0, &run), 0);
        assert_true(run.pages == 1);
    }
    assert_true(shadow_pages(shadow) == 3000);
    assert_true(ground->budget.used < 3000 * PAGE_BYTES + MIB(16)); /* a chunk is not 2 MiB */
    uint64_t seen = 0, last = 0;
    for (uint64_t vaddr = 0; shadow_next_run(shadow, vaddr, &run); vaddr = run.vaddr + PAGE_BYTES) {
        assert_true(run.pages == 1 && (seen == 0 || run.vaddr > last));
        last = run.vaddr;
        seen++;
    }
    assert_true(seen == 3000);
    shadow_free(shadow);
    ground_free(ground);
}

static void shadow_addresses(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(64));
    struct shadow *shadow = shadow_new(&ground->arena);
    static const struct {
        uint64_t vaddr, pages;
    } bad[] = {
        {1, 1},
        {0x1000, 0},
        {ADDRESS_END, 1},
        {ADDRESS_END - PAGE_BYTES, 2},
        {0x1000, UINT64_MAX},
        {0x1000, 1ull << 52},
        {0 - (uint64_t)PAGE_BYTES, 1},
    };
    struct shadow_run run;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(shadow_place(shadow, bad[i].vaddr, bad[i].pages, 0, &run), -EINVAL);
    assert_true(ground->budget.used == 0);
    assert_int_equal(shadow_place(shadow, ADDRESS_END - PAGE_BYTES, 1, 0, &run), 0);
    assert_int_equal(shadow_place(shadow, 0, 1, 0, &run), 0);
    /* from within a page on: the next one */
    assert_true(shadow_next_run(shadow, 1, &run));
    assert_true(run.vaddr == ADDRESS_END - PAGE_BYTES);
    assert_false(shadow_next_run(shadow, ADDRESS_END - PAGE_BYTES + 1, &run));
    shadow_free(shadow);
    ground_free(ground);
}

static void shadow_over_budget(void **state)
{
    (void)state;
    struct ground *ground = ground_new(MIB(1));
    struct shadow *shadow = shadow_new(&ground->arena);
    struct shadow_run run;
    uint64_t vaddr = 0;
    int r;
    while ((r = shadow_place(shadow, vaddr, 64, 0, &run)) == 0)
        vaddr += run.pages * PAGE_BYTES;
    assert_int_equal(r, -EDQUOT);
    assert_true(ground->budget.used <= MIB(1));
    assert_true(shadow_pages(shadow) * PAGE_BYTES == vaddr);
    /* what is there can still be written again */
    assert_int_equal(shadow_place(shadow, 0, 1, SHADOW_LAZY, &run), 0);
    shadow_free(shadow);
    ground_free(ground);
}

/* ---- the store ---- */

static struct store *store_here(const char *path, uint64_t limit)
{
    struct error err;
    struct store *store = store_open(path, limit, &err);
    if (!store)
        fail_msg("store_open: %s", err.text);
    return store;
}

static void write_file(int dirfd, const char *name, const char *text)
{
    int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write_all(fd, text, strlen(text)), 0);
    close(fd);
}

static bool exists(const char *directory, const char *name)
{
    char path[1024];
    int n = snprintf(path, sizeof(path), "%s/%s", directory, name);
    return n < (int)sizeof(path) && access(path, F_OK) == 0;
}

static void snapshots(void **state)
{
    (void)state;
    char *path = directory_make(), images[512];
    struct store *store = store_here(path, MIB(1));
    struct error err;
    struct snapshot *a = snapshot_create(store, "a", &err), *b = snapshot_create(store, "b", &err);
    assert_true(a && b);
    assert_null(snapshot_create(store, "a", &err));
    assert_int_equal(err.code, FAILURE_BUSY);
    assert_ptr_equal(store_find(store, "b"), b);
    assert_null(store_find(store, "c"));
    assert_ptr_equal(store_first(store), a);
    assert_ptr_equal(a->next, b);
    assert_int_equal(a->state, SNAPSHOT_RECEIVING);
    assert_int_equal(snapshot_path(a, "images", images, sizeof(images)), 0);
    assert_true(exists(images, "."));
    assert_int_equal(snapshot_path(a, "images", images, 5), -ENAMETOOLONG);
    assert_int_equal(budget_charge(store_budget(store), 1000), 0);
    a->charge += 1000;
    assert_true(store_budget(store)->used == a->charge + b->charge);
    assert_null(snapshot_remove(a));
    assert_true(store_budget(store)->used == b->charge);
    assert_false(exists(path, "a"));
    assert_null(store_find(store, "a"));
    a = snapshot_create(store, "a", &err);
    assert_non_null(a);
    assert_null(snapshot_remove(a));
    assert_null(snapshot_remove(b));
    assert_null(snapshot_remove(NULL));
    assert_true(store_budget(store)->used == 0);
    assert_null(store_close(store));
    directory_remove(path);
}

static const enum snapshot_state states[] = {SNAPSHOT_RECEIVING, SNAPSHOT_HELD,    SNAPSHOT_READY,
                                             SNAPSHOT_RESTORING, SNAPSHOT_STARTED, SNAPSHOT_DOUBT};

/* A cache that is killed with a snapshot in every state. */
static void crash_with_all_states(const char *path)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct error err;
        struct store *store = store_open(path, MIB(1), &err);
        for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
            const char *id = snapshot_state_name(states[i]);
            struct snapshot *snapshot = snapshot_create(store, id, &err);
            if (!snapshot)
                _exit(1);
            snapshot->pid = 100 + (uint32_t)i;
            snapshot->bytes = 1000;
            snapshot->images = 7;
            snapshot->kept = i % 2;
            snapshot->host = strdup("host=of\ttricks");
            snapshot->command = strdup("");
            int fd = openat(snapshot->imagefd, "core-1.img", O_WRONLY | O_CREAT, 0600);
            if (fd < 0 || write_all(fd, "core", 4) < 0)
                _exit(1);
            if (states[i] != SNAPSHOT_RECEIVING && snapshot_set_state(snapshot, states[i]) < 0)
                _exit(1);
        }
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void store_after_a_crash(void **state)
{
    (void)state;
    static const enum snapshot_state after[] = {SNAPSHOT_RECEIVING, SNAPSHOT_DOUBT,
                                                SNAPSHOT_READY,     SNAPSHOT_READY,
                                                SNAPSHOT_STARTED,   SNAPSHOT_DOUBT};
    char *path = directory_make();
    crash_with_all_states(path);
    uint64_t charged = 0;
    struct store *store = store_here(path, 2500); /* less than there is: that is no reason */
    assert_null(store_find(store, "receiving"));
    assert_false(exists(path, "receiving"));
    for (size_t i = 1; i < ARRAY_SIZE(states); i++) {
        struct snapshot *snapshot = store_find(store, snapshot_state_name(states[i]));
        assert_non_null(snapshot);
        assert_int_equal(snapshot->state, after[i]);
        assert_int_equal(snapshot->pid, 100 + i);
        assert_int_equal(snapshot->kept, i % 2);
        assert_int_equal(snapshot->images, 7);
        assert_true(snapshot->bytes == 1000);
        assert_true(snapshot->charge > 1000); /* as it was before: more than the data */
        charged += snapshot->charge;
        assert_string_equal(snapshot->host, "host=of\ttricks");
        assert_string_equal(snapshot->command, "");
        assert_int_equal(faccessat(snapshot->imagefd, "core-1.img", F_OK, 0), 0);
    }
    assert_true(store_budget(store)->used == charged);
    assert_int_equal(budget_charge(store_budget(store), 1), -EDQUOT);
    while (store_first(store))
        snapshot_remove(store_first(store));
    assert_true(store_budget(store)->used == 0);
    store_close(store);
    directory_remove(path);
}

/* Closing is no removing: the next one has the same. */
static void store_closed_and_opened(void **state)
{
    (void)state;
    char *path = directory_make();
    crash_with_all_states(path);
    for (int i = 0; i < 3; i++)
        store_close(store_here(path, MIB(1)));
    struct store *store = store_here(path, MIB(1));
    for (size_t i = 1; i < ARRAY_SIZE(states); i++)
        assert_non_null(store_find(store, snapshot_state_name(states[i])));
    store_close(store);
    directory_remove(path);
}

/* What cannot be read may be the only copy of a process: it is never removed. */
static void store_with_something_unreadable(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "state=unheard-of\n", "state\n", "pid=5\n"};
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        char *path = directory_make();
        struct store *store = store_here(path, MIB(1));
        struct error err = {0};
        struct snapshot *snapshot = snapshot_create(store, "precious", &err);
        assert_non_null(snapshot);
        write_file(snapshot->dirfd, "about", texts[i]);
        write_file(snapshot->imagefd, "core-1.img", "core");
        store_close(store);
        store = store_open(path, MIB(1), &err);
        if (store)
            fail_msg("a store with an about of \"%s\" was opened", texts[i]);
        assert_contains(err.text, "precious");
        assert_true(exists(path, "precious/images/core-1.img"));
        directory_remove(path);
    }
}

static void store_of_a_newer_release(void **state)
{
    (void)state;
    char *path = directory_make();
    struct store *store = store_here(path, MIB(1));
    struct error err;
    struct snapshot *snapshot = snapshot_create(store, "a", &err);
    write_file(snapshot->dirfd, "about", "colour=blue\nstate=ready\nbytes=5\nsize=12\n");
    store_close(store);
    store = store_here(path, MIB(1));
    snapshot = store_find(store, "a");
    assert_non_null(snapshot);
    assert_int_equal(snapshot->state, SNAPSHOT_READY);
    assert_true(snapshot->bytes == 5);
    snapshot_remove(snapshot);
    store_close(store);
    directory_remove(path);
}

static void store_with_leavings(void **state)
{
    (void)state;
    char *path = directory_make();
    int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(mkdirat(dirfd, "half", 0700), 0);
    assert_int_equal(mkdirat(dirfd, "half/images", 0700), 0);
    write_file(dirfd, "half/images/core-1.img", "core");
    write_file(dirfd, "half/about.new", "state=held\n");
    store_close(store_here(path, MIB(1)));
    assert_false(exists(path, "half"));
    close(dirfd);
    directory_remove(path);
    struct error err = {0};
    assert_null(store_open("/proc/no/such/place", MIB(1), &err));
    assert_contains(err.text, "/proc/no/such/place");
}

static void removed_while_held_open(void **state)
{
    (void)state;
    char *path = directory_make(), images[512];
    struct store *store = store_here(path, MIB(1));
    struct error err;
    struct snapshot *snapshot = snapshot_create(store, "a", &err);
    write_file(snapshot->imagefd, "core-1.img", "core");
    assert_int_equal(mkdirat(snapshot->imagefd, "sub", 0700), 0);
    assert_int_equal(mkdirat(snapshot->imagefd, "sub/sub", 0700), 0);
    write_file(snapshot->imagefd, "sub/sub/file", "x");
    assert_int_equal(snapshot_path(snapshot, "images", images, sizeof(images)), 0);
    int held = open(images, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int file = openat(held, "core-1.img", O_RDONLY | O_CLOEXEC);
    assert_true(held >= 0 && file >= 0);
    snapshot_remove(snapshot);
    assert_false(exists(path, "a"));
    assert_int_equal(openat(held, "core-1.img", O_RDONLY), -1);
    snapshot = snapshot_create(store, "a", &err); /* the name is free at once */
    assert_non_null(snapshot);
    snapshot_remove(snapshot);
    close(held);
    close(file);
    store_close(store);
    directory_remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budgets),
        cmocka_unit_test(arena_fills),
        cmocka_unit_test(arena_above_four_gib),
        cmocka_unit_test(arena_ends_at_the_budget),
        cmocka_unit_test(arena_names),
        cmocka_unit_test(arena_of_another),
        cmocka_unit_test(shadow_newest_wins),
        cmocka_unit_test(shadow_descending),
        cmocka_unit_test(shadow_at_random),
        cmocka_unit_test(shadow_in_rounds),
        cmocka_unit_test(shadow_listed_on_arrival),
        cmocka_unit_test(shadow_sparse),
        cmocka_unit_test(shadow_addresses),
        cmocka_unit_test(shadow_over_budget),
        cmocka_unit_test(snapshots),
        cmocka_unit_test(store_after_a_crash),
        cmocka_unit_test(store_closed_and_opened),
        cmocka_unit_test(store_with_something_unreadable),
        cmocka_unit_test(store_of_a_newer_release),
        cmocka_unit_test(store_with_leavings),
        cmocka_unit_test(removed_while_held_open),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
