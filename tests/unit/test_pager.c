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
#include "pager/leader.h"
#include "pager/map.h"
#include "pager/pager.h"
#include "pager/state.h"
#include "pager/views.h"

#define PATIENCE_USEC (20 * USEC_PER_SEC)

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
    uint64_t end = now_usec() + PATIENCE_USEC;
    while (!done()) {
        if (now_usec() > end) {
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
#define ARENA_AT 0x550000000000ull

struct world {
    uint8_t *arena;       /* at the same place in all */
    uint64_t want[ARENA]; /* the word that fills the page; 0; or GONE: not mapped */
    uint64_t seed, steps, threads;
    uint64_t bad, first_bad, forks;
    char socket[96];
};
static struct world *world;

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

/* Whether the pager is to take the kernel for one that does not say how much has been moved. */
static bool distrust;

/* A servant for the arena. */
static void begin_restore(void)
{
    start();
    if (distrust) {
        int fd = openat(place.dir, PAGER_STATE_NAME, O_RDWR | O_CLOEXEC);
        struct pager_state *shared =
            mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(shared != MAP_FAILED);
        shared->moves_exact = 0;
        munmap(shared, sizeof(*shared));
        close(fd);
    }
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
        fail_msg("%lu bad pages, the first %lu; phase %d alive %d", world->bad, world->first_bad,
                 (int)look().phase, look().alive);
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

/*
 * The pages from there on that are in one area: none if nothing is mapped there.  Allocates
 * nothing: a child of one of several threads must not.
 */
static uint64_t area_pages(struct life *life, uint64_t page)
{
    static __thread char text[256 << 10];
    size_t used = 0;
    ssize_t n;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while ((n = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
        used += (size_t)n;
    text[used] = '\0';
    close(fd);
    for (char *line = text; line && *line;
         line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        uint64_t start = strtoull(line, &line, 16), end = strtoull(line + 1, &line, 16);
        if (arena_at(page) >= start && arena_at(page) < end)
            return MIN((end - arena_at(page)) / PAGE_BYTES, life->to - page);
    }
    return 0;
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
        /* Word by word: the second finds what the first has brought. */
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

/* Also where it becomes smaller, and stays. */
static void move_pages(struct life *life)
{
    uint64_t pages, page = choose_range(life, &pages), other, to = choose_range(life, &other);
    int stay = choose(life, 4) == 0 ? MREMAP_DONTUNMAP : 0;
    pages = MIN(pages, area_pages(life, page));
    pages = MIN(pages, life->to - to);
    if (pages == 0 || (to < page + pages && page < to + pages))
        return;
    uint64_t moves = stay || choose(life, 2) ? pages : 1 + choose(life, pages);
    void *moved = mremap(page_at(page), pages * PAGE_BYTES, moves * PAGE_BYTES,
                         MREMAP_MAYMOVE | MREMAP_FIXED | stay, page_at(to));
    if (moved == MAP_FAILED) {
        /* They may have been already. */
        munmap(page_at(to), moves * PAGE_BYTES);
        munmap(page_at(page + moves), (pages - moves) * PAGE_BYTES);
        want_range(life, to, moves, GONE);
        want_range(life, page + moves, pages - moves, GONE);
        return;
    }
    memcpy(&life->want[to], &life->want[page], moves * sizeof(*life->want));
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
    uint64_t *copy = copies[life->from * THREADS_MAX / ARENA];
    memcpy(copy + life->from, life->want + life->from, (life->to - life->from) * sizeof(*copy));
    life->children[slot] = fork();
    if (life->children[slot] != 0) {
        __atomic_fetch_add(&world->forks, 1, __ATOMIC_SEQ_CST);
        return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    life->child = true;
    life->want = copy;
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
    for (unsigned i = 0; i < 8; i++) {
        begin_restore();
        world->seed = random;
        world->steps = 60 + i * 15;
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

static void lives_on_an_old_kernel(void **state)
{
    distrust = true;
    lives_while_it_is_filled(state);
    distrust = false;
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
    uint64_t before = shared->takeovers;
    bool killed = shared->phase < PAGER_DONE && kill(pid, SIGKILL) == 0;
    munmap(shared, sizeof(*shared));
    close(fd);
    /* Both at once is another matter. */
    uint64_t end = now_usec() + PATIENCE_USEC;
    while (killed && look().takeovers == before && look().alive) {
        if (now_usec() > end)
            fail_msg("no second process");
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

static void hand_over_at_once(struct orders *orders)
{
    hand_over(orders);
    bool handed = orders->result;
    finish(orders);
    orders->result &= handed;
}

/* While criu connects and says all it has to say. */
static void killed_at_the_hand_off(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    unsigned killed = 0;
    for (unsigned i = 0; i < 25; i++) {
        begin_restore();
        write_images(servant.pid, &random, 100, 20);
        servant_begin(&servant, hand_over_at_once);
        for (unsigned k = 0; k < 3; k++) {
            usleep((useconds_t)(test_random(&random) % 300));
            killed += kill_one(LEADER);
        }
        servant_wait(&servant);
        assert_true(servant.orders->result);
        must_be_right();
        must_end(PAGER_DONE);
        servant_kill(&servant);
    }
    assert_true(killed > 25); /* of 75 */
}

static void make_registered(struct orders *orders)
{
    int uffd = made_uffd();
    map_arena();
    orders->numbers[0] = (uint64_t)uffd;
    orders->result = register_arena(uffd);
}

static void touch(struct orders *orders)
{
    orders->result = 1 + *(volatile uint8_t *)world->arena;
}

/* A fault that a leader has read, and not answered, is told again by the next. */
static void a_fault_that_was_read(void **state)
{
    (void)state;
    need_userfaultfd();
    begin_restore();
    must_do(make_registered);
    int pidfd = (int)syscall(SYS_pidfd_open, servant.pid, 0);
    int uffd = (int)syscall(SYS_pidfd_getfd, pidfd, servant.orders->numbers[0], 0);
    int socket = unix_connect_path(world->socket, SOCK_STREAM);
    assert_true(uffd >= 0 && socket >= 0);
    servant_begin(&servant, touch);
    struct uffd_msg message;
    ssize_t n;
    while ((n = read(uffd, &message, sizeof(message))) < 0 && errno == EAGAIN)
        usleep(100);
    assert_int_equal(n, sizeof(message)); /* and now nobody knows of it */
    assert_int_equal(message.event, UFFD_EVENT_PAGEFAULT);
    int32_t pid = servant.pid;
    assert_int_equal(write(socket, &pid, sizeof(pid)), sizeof(pid));
    assert_true(send_fd(socket, uffd));
    usleep(50000);
    assert_non_null(servant.orders->job);
    assert_true(kill_one(LEADER));
    servant_wait(&servant);
    assert_int_equal(servant.orders->result, 1);
    close(socket);
    close(uffd);
    close(pidfd);
    servant_kill(&servant);
    must_end(PAGER_FAILED);
}

static void connect_only(struct orders *orders)
{
    orders->result = unix_connect_path(world->socket, SOCK_STREAM) >= 0;
}

/* A leader that has died between the kernel's accept() and its note of it. */
static void connection_is_found(void **state)
{
    (void)state;
    struct book *book = calloc(1, sizeof(*book));
    book->listener = unix_listen_at(place.dir, LAZY_SOCKET, SOCK_STREAM);
    book->socket = -1;
    assert_true(book->listener >= 0);
    servant_start(&servant, nothing);
    handoff_find(book);
    assert_int_equal(book->socket, -1);
    must_do(connect_only);
    int fd = accept4(book->listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    handoff_find(book);
    assert_int_equal(book->socket, fd);
    close(fd);
    close(book->listener);
    free(book);
    servant_kill(&servant);
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

static void either_killed_on_an_old_kernel(void **state)
{
    distrust = true;
    either_killed(state);
    distrust = false;
}

static bool has_pages(void)
{
    return look().pages > 0;
}

static bool has_filled_a_tenth(void)
{
    struct pager_view view = look();
    return view.pages > 0 && view.filled >= view.pages / 10;
}

static void both_killed(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    must_do(hand_over);
    wait_until(has_pages, "a task");
    struct pager_view view = look();
    kill(view.leader, SIGSTOP);
    kill(view.standby, SIGKILL);
    kill(view.leader, SIGKILL);
    kill(servant.pid, SIGKILL); /* or it would run on with zeroes */
    wait_until(has_ended, "both");
    view = look();
    assert_true(view.phase < PAGER_DONE && view.filled < view.pages);
    servant_kill(&servant);
}

static size_t count_descriptors(pid_t pid)
{
    char path[64], target[64];
    size_t count = 0;
    for (int fd = 0; fd < 256; fd++) {
        snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
        count += readlink(path, target, sizeof(target)) > 0;
    }
    return count;
}

static void nothing_piles_up(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    must_do(hand_over);
    wait_until(has_pages, "a task");
    size_t before = count_descriptors(look().leader);
    assert_true(before > 5);
    for (unsigned i = 0; i < 40; i++)
        assert_true(kill_one(i % 2 ? LEADER : STANDBY));
    for (unsigned i = 0; i < 1000 && count_descriptors(look().leader) != before; i++)
        usleep(10000);
    assert_int_equal(count_descriptors(look().leader), before);
    must_do(finish);
    must_be_right();
    must_end(PAGER_DONE);
    assert_int_equal(look().takeovers, 40);
    servant_kill(&servant);
}

/* ---- ends and errors ---- */

static void exits_in_the_middle(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    for (unsigned i = 0; i < 10; i++) {
        begin_restore();
        write_images(servant.pid, &random, 100, 20);
        must_do(hand_over);
        must_do(finish);
        usleep((useconds_t)(test_random(&random) % 3000));
        servant_kill(&servant);
        must_end(PAGER_DONE);
        assert_int_equal(look().pages, look().filled);
    }
}

static void give_up(struct orders *orders)
{
    close((int)orders->numbers[0]);
    orders->result = 1;
}

static bool has_failed(void)
{
    return look().phase == PAGER_FAILED;
}

/* What it holds is not zeroed, but waits or is filled, until it is dead. */
static void criu_gives_up(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    must_do(hand_over);
    must_do(give_up);
    wait_until(has_failed, "failure");
    assert_contains(look().text, "given the restore up");
    must_be_right();
    assert_true(look().alive);
    servant_kill(&servant);
    must_end(PAGER_FAILED);
}

static void before_it_is_built(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    must_do(hand_over);
    wait_until(has_filled_a_tenth, "the first pages");
    usleep(100000); /* more than a quarter would come now */
    struct pager_view view = look();
    assert_int_equal(view.phase, PAGER_FILLING);
    assert_in_range(view.filled, view.pages / 10, view.pages / 4);
    must_be_right(); /* what is asked for comes */
    assert_int_equal(look().phase, PAGER_FILLING);
    must_do(finish);
    must_end(PAGER_DONE);
    servant_kill(&servant);
}

static void without_a_map(void **state)
{
    (void)state;
    need_userfaultfd();
    begin_restore();
    must_do(hand_over);
    servant_begin(&servant, check_all); /* all zero */
    servant_wait(&servant);
    must_do(finish);
    must_end(PAGER_DONE);
    assert_int_equal(look().pages, 0);
    assert_int_equal(world->bad, 0);
    servant_kill(&servant);
}

static void write_file(const char *name, const void *bytes, size_t length)
{
    int fd = openat(place.dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(write_all(fd, bytes, length), 0);
    close(fd);
}

/* A task whose files are bad waits; it does not read zeroes. */
static void must_wait(const char *text)
{
    wait_until(has_failed, "failure");
    assert_contains(look().text, text);
    servant_begin(&servant, check_all);
    usleep(150000);
    assert_non_null(servant.orders->job);
    for (unsigned i = 0; i < 4; i++)
        kill_one(LEADER);
    usleep(50000);
    assert_non_null(servant.orders->job);
    assert_true(look().alive);
    servant_kill(&servant);
    must_end(PAGER_FAILED);
    assert_int_equal(world->bad, 0);
}

static void with_a_bad_map(void **state)
{
    (void)state;
    need_userfaultfd();
    char name[FILL_NAME_BYTES];
    begin_restore();
    fill_map_name(name, sizeof(name), servant.pid);
    write_file(name, "not a map at all, but long enough", 34);
    must_do(hand_over);
    must_wait(name);
}

static void with_a_short_space(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    int fd = openat(place.dir, "space-1", O_WRONLY | O_CLOEXEC);
    assert_int_equal(ftruncate(fd, 100 * PAGE_BYTES), 0);
    close(fd);
    must_do(hand_over);
    must_wait("shorter");
}

static void without_its_space(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    unlinkat(place.dir, "space-1", 0);
    must_do(hand_over);
    must_wait("space-1");
}

/* The space loses its pages while it is in use: its reader is told EFAULT. */
static void with_a_space_that_shrinks(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    must_do(hand_over);
    wait_until(has_pages, "a task");
    int fd = openat(place.dir, "space-1", O_WRONLY | O_CLOEXEC);
    assert_int_equal(ftruncate(fd, 0), 0);
    close(fd);
    must_do(finish);
    must_wait("cannot be filled");
}

/* An address that is not registered: criu has built something else than the map speaks of. */
static void with_pages_without_a_place(void **state)
{
    (void)state;
    need_userfaultfd();
    struct fill_map_writer writer;
    begin_restore();
    assert_int_equal(fill_map_begin(&writer, place.dir, servant.pid, 1), 0);
    fill_map_add(&writer, &(struct fill_map_entry){arena_at(ARENA + 8), 2, 0, 0});
    assert_int_equal(fill_map_finish(&writer), 0);
    static const uint8_t pages[2 * PAGE_BYTES];
    write_file("space-1", pages, sizeof(pages));
    must_do(hand_over);
    must_do(finish);
    wait_until(has_failed, "failure");
    assert_contains(look().text, "no place");
    servant_kill(&servant);
    must_end(PAGER_FAILED);
}

/* ---- the hand-off ---- */

static void hand_over_slowly(struct orders *orders)
{
    int32_t pids[2] = {-4711, getpid()};
    int socket = unix_connect_path(world->socket, SOCK_STREAM), uffd = made_uffd();
    map_arena();
    orders->result = register_arena(uffd);
    orders->numbers[0] = (uint64_t)socket;
    for (size_t i = 0; i < sizeof(pids); i++) {
        orders->result &= write(socket, (uint8_t *)pids + i, 1) == 1;
        usleep(3000);
    }
    orders->result &= send_fd(socket, uffd);
    close(uffd);
}

static void finish_slowly(struct orders *orders)
{
    uint32_t word = 0x52535446;
    orders->result = 1;
    for (size_t i = 0; i < sizeof(word); i++) {
        orders->result &= write((int)orders->numbers[0], (uint8_t *)&word + i, 1) == 1;
        usleep(3000);
    }
    close((int)orders->numbers[0]);
}

static void one_byte_at_a_time(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    must_do(hand_over_slowly);
    must_do(finish_slowly);
    must_be_right();
    must_end(PAGER_DONE);
    servant_kill(&servant);
}

static void bad_hand_offs(void **state)
{
    (void)state;
    static const struct {
        int32_t words[2];
        size_t bytes;
        bool fd;
        const char *text;
    } bad[] = {
        {{0}, 4, false, "no process has such a number"},
        {{LAZY_PID_MAX + 1}, 4, false, "no process has such a number"},
        {{INT32_MIN}, 4, false, "no process has such a number"},
        {{300}, 3, false, "cut short"},
        {{300}, 4, false, "cut short"},
        {{300, 0}, 5, false, "without its descriptor"},
        {{-300}, 4, true, "cut short"}, /* a descriptor where a number must be */
        {{0}, 0, false, "given the restore up"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        start();
        int fd = unix_connect_path(world->socket, SOCK_STREAM);
        assert_int_equal(write(fd, bad[i].words, bad[i].bytes), (ssize_t)bad[i].bytes);
        if (bad[i].fd) {
            assert_true(send_fd(fd, place.dir));
            assert_int_equal(write(fd, "\0\0\0\0", 4), 4);
        }
        usleep(3000);
        close(fd);
        must_end(PAGER_FAILED);
        assert_contains(look().text, bad[i].text);
    }
}

static void messages_of_criu(void **state)
{
    (void)state;
    struct lazy_item item;
    struct error err;
    uint8_t bytes[8] = {0x46, 0x54, 0x53, 0x52};
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(lazy_parse(bytes, i, &item, &err), 0);
    assert_int_equal(lazy_parse(bytes, 4, &item, &err), 1);
    assert_int_equal(item.kind, LAZY_FINISHED);
    assert_int_equal(item.bytes, 4);
    memcpy(bytes, &(int32_t){-7}, 4);
    assert_int_equal(lazy_parse(bytes, 8, &item, &err), 1);
    assert_true(item.kind == LAZY_ZOMBIE && item.pid == 7 && item.bytes == 4);
    memcpy(bytes, &(int32_t){7}, 4);
    assert_int_equal(lazy_parse(bytes, 4, &item, &err), 0);
    assert_int_equal(lazy_parse(bytes, 5, &item, &err), 1);
    assert_true(item.kind == LAZY_TASK && item.pid == 7 && item.bytes == 5);
}

/* ---- several, memory, the caller's calls ---- */

/* The servant, and this process: two tasks whose pages are the same. */
static void two_with_one_space(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    char names[2][FILL_NAME_BYTES];
    int32_t pid = getpid();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    fill_map_name(names[0], sizeof(names[0]), servant.pid);
    fill_map_name(names[1], sizeof(names[1]), pid);
    assert_int_equal(linkat(place.dir, names[0], place.dir, names[1], 0), 0);
    must_do(hand_over);
    /* Both are handed over by one criu. */
    int pidfd = (int)syscall(SYS_pidfd_open, servant.pid, 0);
    int socket = (int)syscall(SYS_pidfd_getfd, pidfd, servant.orders->numbers[0], 0);
    int uffd = made_uffd();
    assert_int_equal(write(socket, &pid, sizeof(pid)), sizeof(pid));
    assert_true(send_fd(socket, uffd));
    map_arena();
    assert_true(register_arena(uffd));
    close(uffd);
    close(socket);
    close(pidfd);
    pager_release(place.dir);
    must_do(finish);
    must_be_right();
    check_all(NULL); /* here too */
    assert_int_equal(world->bad, 0);
    must_end(PAGER_DONE);
    struct stat st;
    assert_int_equal(fstatat(place.dir, "space-1", &st, 0), 0);
    assert_in_range(st.st_blocks, 0, MIB(2) / 512);
    servant_kill(&servant);
}

static uint64_t resident(pid_t pid)
{
    char path[64], text[64] = "";
    unsigned long size, pages = 0;
    snprintf(path, sizeof(path), "/proc/%d/statm", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    assert_int_equal(sscanf(text, "%lu %lu", &size, &pages), 2);
    return pages * PAGE_BYTES;
}

static uint64_t space_bytes(void)
{
    struct stat st;
    assert_int_equal(fstatat(place.dir, "space-1", &st, 0), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void memory_is_given_back(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed(), peak = 0;
    begin_restore();
    write_images(servant.pid, &random, ARENA, 0);
    uint64_t before = resident(servant.pid), whole = space_bytes();
    assert_true(whole >= ARENA * PAGE_BYTES);
    must_do(hand_over);
    pager_release(place.dir);
    must_do(finish);
    while (look().phase < PAGER_DONE) {
        uint64_t now = resident(servant.pid) - MIN(before, resident(servant.pid)) + space_bytes();
        peak = MAX(peak, now);
    }
    must_end(PAGER_DONE);
    must_be_right();
    assert_in_range(space_bytes(), 0, MIB(2));
    assert_in_range(peak, 1, whole + whole / 5 + MIB(4));
    servant_kill(&servant);
}

/* What it had filled, and not yet given back. */
static void memory_of_a_dead_leader(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, ARENA, 0);
    must_do(hand_over);
    wait_until(has_filled_a_tenth, "the first pages");
    assert_true(kill_one(LEADER));
    pager_release(place.dir);
    must_do(finish);
    must_end(PAGER_DONE);
    assert_in_range(space_bytes(), 0, MIB(2));
    must_be_right();
    servant_kill(&servant);
}

static void memory_is_kept(void **state)
{
    (void)state;
    need_userfaultfd();
    uint64_t random = test_seed();
    begin_restore();
    write_images(servant.pid, &random, 100, 20);
    uint64_t before = space_bytes();
    must_do(hand_over);
    must_do(finish);
    must_end(PAGER_DONE);
    assert_int_equal(space_bytes(), before);
    servant_kill(&servant);
}

/* Nothing of the caller's is kept: no descriptor, no file by its mapping. */
static void nothing_of_the_caller(void **state)
{
    (void)state;
    char path[64], line[512];
    int fd = memfd_create("caller's", 0), pipes[2];
    assert_int_equal(ftruncate(fd, PAGE_BYTES), 0);
    void *mapped = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(mapped != MAP_FAILED && pipe(pipes) == 0);
    start();
    pid_t pids[] = {look().leader, look().standby};
    for (size_t i = 0; i < ARRAY_SIZE(pids); i++) {
        snprintf(path, sizeof(path), "/proc/%d/maps", pids[i]);
        FILE *maps = fopen(path, "re");
        assert_non_null(maps);
        while (fgets(line, sizeof(line), maps))
            assert_null(strstr(line, "caller's"));
        fclose(maps);
    }
    close(pipes[1]);
    assert_int_equal(read(pipes[0], line, 1), 0);
    assert_int_equal(getpgid(pids[0]), getpgid(pids[1]));
    assert_int_not_equal(getsid(pids[0]), getsid(0));
    close(pipes[0]);
    close(fd);
    munmap(mapped, PAGE_BYTES);
}

static void started_and_stopped(void **state)
{
    (void)state;
    struct pager_view view;
    struct error err;
    assert_int_equal(pager_look(place.dir, &view), -ENOENT);
    pager_stop(place.dir);
    pager_release(place.dir);
    start();
    assert_int_equal(pager_start(place.dir, place.dir, place.path, &err), -1);
    assert_int_equal(err.code, FAILURE_BUSY);
    view = look();
    assert_true(view.alive && view.phase == PAGER_WAITING);
    pager_stop(place.dir);
    view = look();
    assert_true(!view.alive && view.phase == PAGER_WAITING);
    assert_int_equal(faccessat(place.dir, LAZY_SOCKET, F_OK, 0), -1);
    start(); /* the old one's state is replaced */
    assert_true(look().alive);
    pager_stop(place.dir);
    assert_int_equal(pager_start(place.dir, place.dir, "/nowhere/at/all", &err), -1);
    assert_contains(err.text, "/nowhere/at/all");
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* it is nobody's child here */
    write_file(PAGER_STATE_NAME, "x", 1);
    assert_int_equal(pager_look(place.dir, &view), -EPROTO);
}

/* ---- maps and views by themselves ---- */

static void maps(void **state)
{
    (void)state;
    struct fill_map_writer writer;
    struct fill_map map;
    struct error err;
    assert_int_equal(fill_map_begin(&writer, place.dir, 7, 3), 0);
    for (uint64_t i = 1; i < 2000; i++)
        fill_map_add(&writer, &(struct fill_map_entry){i * 8 * PAGE_BYTES, 1 + i % 8, 0, i});
    assert_int_equal(fill_map_finish(&writer), 0);
    int fd = openat(place.dir, "fill-7.map", O_RDWR | O_CLOEXEC);
    assert_int_equal(fill_map_open(&map, fd, &err), 0);
    assert_int_equal(map.count, 1999);
    assert_int_equal(map.space, 3);
    assert_int_equal(map.end, 8 * PAGE_BYTES);
    for (uint64_t page = 0; page < 2001 * 8; page++) {
        uint64_t i = page / 8;
        uint64_t above = fill_map_above(&map, page * PAGE_BYTES); /* entry i has index i - 1 */
        bool in_it = i >= 1 && i < 2000 && page % 8 < 1 + i % 8;
        assert_int_equal(above, MIN(i == 0 || in_it ? MAX(i, 1) - 1 : i, 1999));
        assert_int_equal(above < map.count && map.entries[above].vaddr <= page * PAGE_BYTES, in_it);
    }
    fill_map_close(&map);
    assert_int_equal(ftruncate(fd, 1000), 0);
    assert_int_equal(fill_map_open(&map, fd, &err), -EPROTO);
    assert_int_equal(ftruncate(fd, 3), 0);
    assert_int_equal(fill_map_open(&map, fd, &err), -EPROTO);
    close(fd);
}

static void bad_entries(void **state)
{
    (void)state;
    static const struct fill_map_entry bad[] = {
        {PAGE_BYTES, 0, 0, 0},
        {PAGE_BYTES + 1, 1, 0, 0},
        {PAGE_BYTES, 1, 8, 0},
        {0, 1, 0, 0}, /* below the one before */
        {FILL_VADDR_END, 1, 0, 0},
        {FILL_VADDR_END - PAGE_BYTES, 2, 0, 0},
        {PAGE_BYTES, UINT64_MAX, 0, 0},
        {PAGE_BYTES, UINT64_MAX / PAGE_BYTES + 2, 0, 0},
        {PAGE_BYTES, 1, UINT64_MAX - PAGE_BYTES + 1, 0},
        {PAGE_BYTES, 2, INT64_MAX - PAGE_BYTES + 1, 0},
    };
    struct {
        struct fill_map_header header;
        struct fill_map_entry entries[2];
    } file = {.header = {.magic = FILL_MAP_MAGIC, .count = 2}, .entries = {{0, 1, 0, 0}}};
    struct fill_map map;
    struct error err;
    file.header.magic[7] = 1;
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct fill_map_writer writer;
        file.entries[1] = bad[i];
        assert_int_equal(fill_map_check(&file, sizeof(file), &map, &err), -EPROTO);
        assert_int_equal(fill_map_begin(&writer, place.dir, 7, 3), 0);
        fill_map_add(&writer, &file.entries[0]);
        fill_map_add(&writer, &file.entries[1]);
        assert_int_equal(fill_map_finish(&writer), -EINVAL);
    }
    file.entries[1] = (struct fill_map_entry){PAGE_BYTES, 1, PAGE_BYTES, 0};
    assert_int_equal(fill_map_check(&file, sizeof(file), &map, &err), 0);
    assert_int_equal(map.pages, 2);
    assert_int_equal(fill_map_check(&file, sizeof(file) - 1, &map, &err), -EPROTO);
    file.header.count = 1;
    assert_int_equal(fill_map_check(&file, sizeof(file), &map, &err), -EPROTO);
    file.header.count = UINT64_MAX / sizeof(file.entries[0]) + 3;
    assert_int_equal(fill_map_check(&file, sizeof(file), &map, &err), -EPROTO);
}

/* Moves of pages of a small address space, against a table of them. */
static void views_against_a_table(void **state)
{
    (void)state;
    enum { SPACE = 256, MOVES = 400 };
    uint64_t random = test_seed(), table[SPACE], next[SPACE];
    struct views *now = calloc(1, sizeof(*now)), *then = calloc(1, sizeof(*then)), *swap;
    views_begin(now);
    for (uint64_t i = 0; i < SPACE; i++)
        table[i] = i;
    for (unsigned round = 0; round < MOVES; round++) {
        uint64_t length = 1 + test_random(&random) % 32;
        uint64_t from = test_random(&random) % (SPACE - length);
        uint64_t to = test_random(&random) % (SPACE - length);
        if (from < to + length && to < from + length)
            continue;
        memcpy(next, table, sizeof(next));
        for (uint64_t i = 0; i < length; i++) {
            next[to + i] = table[from + i];
            next[from + i] = GONE;
        }
        memcpy(table, next, sizeof(table));
        assert_int_equal(
            views_move(then, now, from * PAGE_BYTES, to * PAGE_BYTES, length * PAGE_BYTES), 0);
        swap = now;
        now = then;
        then = swap;
        for (uint64_t i = 0; i < SPACE; i++) {
            uint64_t vaddr, bytes = PAGE_BYTES;
            const struct view *view = views_find(now, i * PAGE_BYTES);
            if (table[i] == GONE) {
                assert_null(view);
                continue;
            }
            assert_non_null(view);
            assert_int_equal(view->home + i * PAGE_BYTES - view->start, table[i] * PAGE_BYTES);
            assert_true(views_locate(now, table[i] * PAGE_BYTES, &vaddr, &bytes));
            assert_int_equal(vaddr, i * PAGE_BYTES);
        }
    }
    free(now);
    free(then);
}

static void too_many_views(void **state)
{
    (void)state;
    struct views *now = calloc(1, sizeof(*now)), *then = calloc(1, sizeof(*then)), *swap;
    views_begin(now);
    int r = 0;
    unsigned moves = 0;
    for (; r == 0; moves++) {
        r = views_move(then, now, (2 * moves + 1) * PAGE_BYTES, GIB(64) + 2 * moves * PAGE_BYTES,
                       PAGE_BYTES);
        swap = now;
        now = then;
        then = swap;
    }
    assert_int_equal(r, -ENOSPC);
    assert_in_range(moves, VIEWS_MAX / 4, VIEWS_MAX);
    free(now);
    free(then);
}

#define PLACE(test) cmocka_unit_test_setup_teardown(test, begin_place, end_place)
#define WORLD(test) cmocka_unit_test_setup_teardown(test, begin_world, end_world)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE(maps),
        PLACE(bad_entries),
        PLACE(messages_of_criu),
        PLACE(views_against_a_table),
        PLACE(too_many_views),
        PLACE(started_and_stopped),
        PLACE(nothing_of_the_caller),
        WORLD(bad_hand_offs),
        WORLD(the_model_is_right),
        WORLD(fills_everything),
        WORLD(one_byte_at_a_time),
        WORLD(before_it_is_built),
        WORLD(without_a_map),
        WORLD(with_a_bad_map),
        WORLD(with_a_short_space),
        WORLD(without_its_space),
        WORLD(with_a_space_that_shrinks),
        WORLD(with_pages_without_a_place),
        WORLD(criu_gives_up),
        WORLD(exits_in_the_middle),
        WORLD(two_with_one_space),
        WORLD(memory_is_given_back),
        WORLD(memory_of_a_dead_leader),
        WORLD(memory_is_kept),
        WORLD(both_killed),
        WORLD(nothing_piles_up),
        WORLD(lives_while_it_is_filled),
        WORLD(lives_on_an_old_kernel),
        WORLD(leader_killed),
        WORLD(standby_killed),
        WORLD(killed_at_the_hand_off),
        WORLD(connection_is_found),
        WORLD(a_fault_that_was_read),
        WORLD(either_killed),
        WORLD(either_killed_on_an_old_kernel),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
