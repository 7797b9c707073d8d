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
    uint8_t *reserve = mmap(NULL, (ARENA + 1) * PAGE_BYTES + MIB(2), PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uintptr_t aligned = ((uintptr_t)reserve + MIB(2) - 1) & ~(uintptr_t)(MIB(2) - 1);
    world->arena = (uint8_t *)aligned;
    snprintf(world->socket, sizeof(world->socket), "%s/" LAZY_SOCKET, place.path);
    return 0;
}

static int end_world(void **state)
{
    munmap(world->arena, ARENA * PAGE_BYTES); /* what is left of the reserve does no harm */
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
        run = MIN(1 + test_random(random) % run_max, ARENA - page);
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

#define PLACE(test) cmocka_unit_test_setup_teardown(test, begin_place, end_place)
#define WORLD(test) cmocka_unit_test_setup_teardown(test, begin_world, end_world)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WORLD(fills_everything),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
