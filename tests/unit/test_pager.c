/* SPDX-License-Identifier: Apache-2.0 */
/* The pager, with real userfaultfds of processes that change their memory while it is filled. */
#include "testing.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "child.h"
#include "criu/lazy.h"
#include "pager/map.h"
#include "pager/pager.h"
#include "pager/state.h"
#include "pager/views.h"

/* ---- a snapshot: a directory with a work-dir and images ---- */

static struct place {
    char path[64];
    int dir;
} place;

static int begin_place(void **state)
{
    (void)state;
    snprintf(place.path, sizeof(place.path), "/dev/shm/test-pager-XXXXXX");
    assert_non_null(mkdtemp(place.path));
    place.dir = open(place.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(place.dir >= 0);
    return 0;
}

static int end_place(void **state)
{
    (void)state;
    char command[128];
    pager_stop(place.dir);
    close(place.dir);
    snprintf(command, sizeof(command), "rm -rf %s", place.path);
    return system(command);
}

static struct pager_view look(void)
{
    struct pager_view view;
    assert_int_equal(pager_look(place.dir, &view), 0);
    return view;
}

static void start(void)
{
    struct error err;
    if (pager_start(place.dir, place.dir, place.path, &err) < 0)
        fail_msg("%s", err.text);
}

static bool has_ended(void)
{
    return !look().alive;
}

static void wait_until(bool (*done)(void), const char *what)
{
    for (unsigned i = 0; !done(); i++) {
        if (i > 20000) {
            struct pager_view view = look();
            fail_msg("%s: phase %d alive %d, %lu of %lu, %s", what, (int)view.phase, view.alive,
                     view.filled, view.pages, view.text);
        }
        usleep(500);
    }
}

static void must_end(enum pager_phase phase)
{
    wait_until(has_ended, "the end of the pager");
    struct pager_view view = look();
    if (view.phase != phase)
        fail_msg("phase %d: %s", (int)view.phase, view.text);
}

/* ---- a world: what a servant's memory must hold; shared with it ---- */

enum { ARENA = 8192, THREADS_MAX = 4 }; /* pages */

#define GONE UINT64_MAX
#define ARENA_AT 0x200000000000ull

static struct world {
    uint8_t *arena;       /* at the same place in all */
    uint64_t want[ARENA]; /* the word that fills the page; 0; or GONE: not mapped */
    uint64_t seed, steps, threads;
    uint64_t bad, first_bad, forks, ops;
    int go;
    char socket[96];
} * world;

static uint64_t key(uint64_t page, uint64_t version)
{
    uint64_t state = page * 1000003 + version;
    return test_random(&state) | 1;
}

static bool page_is(uint64_t page, uint64_t want)
{
    const volatile uint64_t *words = (const volatile uint64_t *)(world->arena + page * PAGE_BYTES);
    uint64_t wrong = 0;
    for (size_t i = 0; i < PAGE_BYTES / 8; i++)
        wrong |= words[i] ^ want;
    return wrong == 0;
}

static void check_page(uint64_t page, uint64_t want)
{
    if (want == GONE || page_is(page, want))
        return;
    if (__atomic_fetch_add(&world->bad, 1, __ATOMIC_SEQ_CST) == 0)
        world->first_bad = page;
}

static void check_all(struct orders *orders)
{
    (void)orders;
    for (uint64_t page = 0; page < ARENA; page++)
        check_page(page, world->want[page]);
}

static int begin_world(void **state)
{
    begin_place(state);
    world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    /* Far from where the kernel puts what may lie anywhere: it must not use the holes. */
    world->arena = mmap((void *)ARENA_AT, ARENA * PAGE_BYTES, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    assert_ptr_equal(world->arena, (void *)ARENA_AT);
    snprintf(world->socket, sizeof(world->socket), "%s/" LAZY_SOCKET, place.path);
    return 0;
}

static int end_world(void **state)
{
    munmap(world->arena, ARENA * PAGE_BYTES);
    munmap(world, sizeof(*world));
    return end_place(state);
}

/* ---- images ---- */

static uint64_t arena_at(uint64_t page)
{
    return (uint64_t)(uintptr_t)world->arena + page * PAGE_BYTES;
}

/*
 * Pages of the world into space-1 and the map of a pid: runs of random length, some left out, and
 * in the space in the order of their rounds, as pages that were written again lie.
 */
static void write_images(int32_t pid, uint64_t *random, uint64_t run_max, unsigned hole_percent)
{
    struct fill_map_writer writer;
    static uint8_t page_bytes[PAGE_BYTES];
    int space = openat(place.dir, "space-1", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    uint64_t offset = 0, run;
    assert_int_equal(fill_map_begin(&writer, place.dir, pid, 1), 0);
    for (uint64_t page = 0; page < ARENA; page += run) {
        run = 1 + test_random(random) % run_max;
        run = MIN(run, ARENA - page);
        bool hole = test_random(random) % 100 < hole_percent;
        for (uint64_t i = page; i < page + run; i++) {
            world->want[i] = hole ? 0 : key(i, 0);
            for (size_t word = 0; word < PAGE_BYTES / 8; word++)
                ((uint64_t *)page_bytes)[word] = world->want[i];
            if (!hole)
                assert_int_equal(pwrite(space, page_bytes, PAGE_BYTES,
                                        (off_t)(offset + (i - page) * PAGE_BYTES)),
                                 PAGE_BYTES);
        }
        if (hole)
            continue;
        struct fill_map_entry entry = {arena_at(page), run, offset, test_random(random) % 4};
        fill_map_add(&writer, &entry);
        offset += run * PAGE_BYTES + test_random(random) % 3 * PAGE_BYTES;
    }
    assert_int_equal(ftruncate(space, (off_t)offset + PAGE_BYTES), 0);
    close(space);
    assert_int_equal(fill_map_finish(&writer), 0);
}

/* ---- what criu does, in the servant ---- */

static int made_uffd(void)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                         UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP};
    return uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0 ? uffd : -1;
}

static void map_arena(void)
{
    mmap(world->arena, ARENA * PAGE_BYTES, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    madvise(world->arena, ARENA * PAGE_BYTES, MADV_NOHUGEPAGE);
}

static bool register_arena(int uffd)
{
    struct uffdio_register area = {.range = {(uintptr_t)world->arena, ARENA * PAGE_BYTES},
                                   .mode = UFFDIO_REGISTER_MODE_MISSING};
    return ioctl(uffd, UFFDIO_REGISTER, &area) == 0;
}

static bool send_fd(int socket, int fd)
{
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char byte = 0;
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = CMSG_LEN(sizeof(int))};
    control.head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
    return sendmsg(socket, &message, MSG_NOSIGNAL) == 1;
}

/* Hands over; numbers[0]: the socket, until told(). */
static void hand_over(struct orders *orders)
{
    int32_t pid = getpid();
    int socket = unix_connect_path(world->socket, SOCK_STREAM), uffd = made_uffd();
    map_arena();
    orders->numbers[0] = (uint64_t)socket;
    orders->result = socket >= 0 && uffd >= 0 && write(socket, &pid, sizeof(pid)) == sizeof(pid) &&
                     send_fd(socket, uffd) && register_arena(uffd);
    close(uffd);
}

static void finish(struct orders *orders)
{
    uint32_t word = 0x52535446;
    int socket = (int)orders->numbers[0];
    orders->result = write(socket, &word, sizeof(word)) == sizeof(word);
    close(socket);
}

static struct servant servant;

static void nothing(struct orders *orders)
{
    (void)orders;
}

static void must_do(void (*job)(struct orders *))
{
    servant_do(&servant, job);
    assert_true(servant.orders->result);
}

/* A servant with the arena handed over. */
static void begin_restore(void)
{
    start();
    servant_start(&servant, nothing);
}

static void need_userfaultfd(void)
{
    int uffd = made_uffd();
    if (uffd < 0)
        test_skip("no userfaultfd with events here");
    close(uffd);
}

static void must_be_right(void)
{
    servant_do(&servant, check_all);
    if (world->bad)
        fail_msg("%lu bad pages, the first %lu", world->bad, world->first_bad);
}

/* ---- a process that changes its memory ---- */

/* A thread's part of the arena, and what it must hold. */
struct life {
    uint64_t from, to; /* pages */
    uint64_t random, steps;
    uint64_t *want;
    bool child;
    pid_t children[4];
};

static uint8_t *page_at(uint64_t page)
{
    return world->arena + page * PAGE_BYTES;
}

static uint64_t choose(struct life *life, uint64_t below)
{
    return test_random(&life->random) % below;
}

static uint64_t choose_range(struct life *life, uint64_t *ret_pages)
{
    uint64_t page = life->from + choose(life, life->to - life->from);
    uint64_t pages = 1 + choose(life, 64);
    *ret_pages = MIN(pages, life->to - page);
    return page;
}

static void want_range(struct life *life, uint64_t page, uint64_t pages, uint64_t want)
{
    for (uint64_t i = page; i < page + pages; i++)
        life->want[i] = want;
}

/* The pages from there on that are in one area: none if nothing is mapped there. */
static uint64_t area_pages(struct life *life, uint64_t page)
{
    char line[256];
    unsigned long start, end, at = arena_at(page);
    uint64_t pages = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx", &start, &end) == 2 && at >= start && at < end)
            pages = MIN((end - at) / PAGE_BYTES, life->to - page);
    }
    if (maps)
        fclose(maps);
    return pages;
}

static void look_at_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    for (uint64_t i = page; i < page + MIN(pages, (uint64_t)8); i++)
        check_page(i, life->want[i]);
}

static void write_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    for (uint64_t i = page; i < page + MIN(pages, (uint64_t)4); i++) {
        if (life->want[i] == GONE)
            continue;
        mprotect(page_at(i), PAGE_BYTES, PROT_READ | PROT_WRITE);
        life->want[i] = key(i, choose(life, UINT32_MAX) + 1);
        /* In two places: the second write finds what the first has brought. */
        for (size_t word = 0; word < PAGE_BYTES / 8; word++)
            ((volatile uint64_t *)page_at(i))[word] = life->want[i];
    }
}

static void remove_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    pages = MIN(pages, area_pages(life, page));
    if (pages > 0 && madvise(page_at(page), pages * PAGE_BYTES, MADV_DONTNEED) == 0)
        want_range(life, page, pages, 0);
}

static void unmap_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    if (munmap(page_at(page), pages * PAGE_BYTES) == 0)
        want_range(life, page, pages, GONE);
}

static void map_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    mmap(page_at(page), pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    want_range(life, page, pages, 0);
}

static void protect_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    mprotect(page_at(page), pages * PAGE_BYTES,
             choose(life, 2) ? PROT_READ : PROT_READ | PROT_WRITE);
}

static void move_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages), other, to = choose_range(life, &other);
    int stay = choose(life, 4) == 0 ? MREMAP_DONTUNMAP : 0;
    pages = MIN(pages, area_pages(life, page));
    pages = MIN(pages, life->to - to);
    if (pages == 0 || (to < page + pages && page < to + pages))
        return;
    void *moved = mremap(page_at(page), pages * PAGE_BYTES, pages * PAGE_BYTES,
                         MREMAP_MAYMOVE | MREMAP_FIXED | stay, page_at(to));
    if (moved == MAP_FAILED) {
        munmap(page_at(to), pages * PAGE_BYTES); /* it may have been already */
        want_range(life, to, pages, GONE);
        return;
    }
    memcpy(&life->want[to], &life->want[page], pages * sizeof(*life->want));
    want_range(life, page, pages, stay ? 0 : GONE);
}

/* An area grows to where something was once. */
static void grow_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages);
    uint64_t has = area_pages(life, page), end = page + has;
    pages = MIN(pages, life->to - end);
    if (has == 0 || pages == 0)
        return;
    munmap(page_at(end), pages * PAGE_BYTES);
    want_range(life, end, pages, GONE);
    if (mremap(page_at(page), has * PAGE_BYTES, (has + pages) * PAGE_BYTES, 0) != MAP_FAILED)
        want_range(life, end, pages, 0);
}

static void live(struct life *life);

/* Its child has the same memory, and changes it then. */
static void fork_off(struct life *life)
{
    static uint64_t copies[THREADS_MAX][ARENA];
    size_t slot = choose(life, ARRAY_SIZE(life->children));
    if (life->child || choose(life, 8))
        return;
    if (life->children[slot] > 0)
        waitpid(life->children[slot], NULL, 0);
    memcpy(copies[life->from * THREADS_MAX / ARENA], life->want, sizeof(copies[0]));
    life->children[slot] = fork();
    if (life->children[slot] != 0) {
        __atomic_fetch_add(&world->forks, 1, __ATOMIC_SEQ_CST);
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    life->child = true;
    life->want = copies[life->from * THREADS_MAX / ARENA];
    life->steps = choose(life, 40);
    live(life);
    _exit(0);
}

static void live(struct life *life)
{
    static void (*const what[])(struct life *) = {
        look_at_pages, look_at_pages, write_pages, write_pages, remove_pages, unmap_pages,
        map_pages,     protect_pages, move_pages,  move_pages,  grow_pages,   fork_off,
    };
    for (uint64_t i = 0; i < life->steps; i++)
        what[choose(life, ARRAY_SIZE(what))](life);
    for (uint64_t page = life->from; page < life->to; page++)
        check_page(page, life->want[page]);
    for (size_t i = 0; !life->child && i < ARRAY_SIZE(life->children); i++) {
        if (life->children[i] > 0)
            waitpid(life->children[i], NULL, 0);
    }
}

static void *live_thread(void *user)
{
    live(user);
    return NULL;
}

/* All threads, to the end of their lives. */
static void live_on(struct orders *orders)
{
    pthread_t threads[THREADS_MAX];
    struct life lives[THREADS_MAX];
    uint64_t count = world->threads;
    for (uint64_t i = 0; i < count; i++) {
        lives[i] = (struct life){.from = ARENA * i / count,
                                 .to = ARENA * (i + 1) / count,
                                 .random = world->seed + i,
                                 .steps = world->steps,
                                 .want = world->want};
        pthread_create(&threads[i], NULL, live_thread, &lives[i]);
    }
    for (uint64_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    orders->result = 1;
}

/* ---- tests ---- */

static void fills_everything(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 30);
    struct pager_view view = look();
    assert_int_equal(view.phase, PAGER_WAITING);
    assert_true(view.alive);
    must_do(hand_over);
    must_do(finish);
    must_be_right();
    must_end(PAGER_DONE);
    view = look();
    assert_int_equal(view.pages, view.filled);
    assert_true(view.pages > 0 && view.done_usec >= view.began_usec && view.began_usec > 0);
    assert_string_equal(view.text, "");
    assert_int_equal(access(world->socket, F_OK), -1);
    must_be_right();
    servant_kill(&servant);
}

static void fill_arena(struct orders *orders)
{
    map_arena();
    for (uint64_t page = 0; page < ARENA; page++) {
        world->want[page] = key(page, 0);
        for (size_t word = 0; word < PAGE_BYTES / 8; word++)
            ((uint64_t *)page_at(page))[word] = world->want[page];
    }
    orders->result = 1;
}

/* Without a pager: the test itself. */
static void the_model_is_right(void **state)
{
    (void)state;
    uint64_t random = test_seed();
    for (unsigned i = 0; i < 12; i++) {
        servant_start(&servant, nothing);
        world->seed = test_random(&random);
        world->steps = 200;
        world->threads = 1 + i % THREADS_MAX;
        must_do(fill_arena);
        must_do(live_on);
        must_be_right();
        servant_kill(&servant);
    }
}

static void lives_while_it_is_filled(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    for (unsigned i = 0; i < 12; i++) {
        begin_restore();
        world->seed = random;
        world->steps = 100 + i * 20;
        world->threads = 1 + i % THREADS_MAX;
        write_images(servant.pid, &random, i % 2 ? 8 : 100, 20);
        must_do(hand_over);
        must_do(finish);
        must_do(live_on);
        must_be_right();
        must_end(PAGER_DONE);
        must_be_right();
        servant_kill(&servant);
    }
    assert_true(world->forks > 0);
}

/* ---- killed ---- */

enum { LEADER = 1, STANDBY = 2 };

/* Kills one of the two, if it is at work; returns whether it was. */
static bool kill_one(int which)
{
    int fd = openat(place.dir, PAGER_STATE_NAME, O_RDONLY | O_CLOEXEC);
    struct pager_state *shared = mmap(NULL, sizeof(*shared), PROT_READ, MAP_SHARED, fd, 0);
    assert_true(shared != MAP_FAILED);
    pid_t pid = which == LEADER ? shared->leader : shared->standby;
    bool killed = shared->phase < PAGER_DONE && kill(pid, SIGKILL) == 0;
    uint64_t before = shared->takeovers;
    munmap(shared, sizeof(*shared));
    close(fd);
    /* Both at once is another matter. */
    for (unsigned i = 0; killed && i < 20000; i++) {
        struct pager_view view = look();
        if (view.takeovers > before || !view.alive)
            break;
        usleep(100);
    }
    return killed;
}

static void kill_while_it_lives(int which, unsigned wanted)
{
    need_userfaultfd();
    uint64_t random = test_seed();
    unsigned killed = 0, runs = 0;
    for (; killed < wanted; runs++) {
        assert_true(runs < 10 * wanted);
        begin_restore();
        world->seed = random;
        world->steps = 60;
        world->threads = 1 + runs % 2;
        write_images(servant.pid, &random, 100, 20);
        must_do(hand_over);
        must_do(finish);
        servant_begin(&servant, live_on);
        for (unsigned i = 0; i < 8 && look().phase < PAGER_DONE; i++) {
            usleep((useconds_t)(test_random(&random) % 2000));
            killed += kill_one(which ? which : 1 + (int)(test_random(&random) % 2));
        }
        servant_wait(&servant);
        must_be_right();
        must_end(PAGER_DONE);
        assert_int_equal(look().pages, look().filled);
        servant_kill(&servant);
    }
    print_message("%u killed in %u runs\n", killed, runs);
}

static void leader_killed(void **state)
{
    (void)state;
    kill_while_it_lives(LEADER, 100);
}

static void standby_killed(void **state)
{
    (void)state;
    kill_while_it_lives(STANDBY, 20);
}

static void either_killed(void **state)
{
    (void)state;
    kill_while_it_lives(0, 40);
}

#define PLACE(test) cmocka_unit_test_setup_teardown(test, begin_place, end_place)
#define WORLD(test) cmocka_unit_test_setup_teardown(test, begin_world, end_world)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORLD(the_model_is_right), WORLD(fills_everything), WORLD(lives_while_it_is_filled),
        WORLD(leader_killed),      WORLD(standby_killed),   WORLD(either_killed),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
