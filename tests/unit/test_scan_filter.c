/* SPDX-License-Identifier: Apache-2.0 */
/* godwit-scan-filter.so by itself: what it answers instead of the kernel. */
#include "testing.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pagemap_scan.h"
#include "migrate/scan_table.h"
#include "task/page_table.h"

/* What criu asks for (CRIU criu/pagemap-cache.c). */
enum { IS_FILE = 1 << 2, IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4, IS_ZERO = 1 << 5, PAGES = 64 };

static int (*filter_ioctl)(int fd, unsigned long request, ...);
static int (*filter_openat)(int dir, const char *path, int flags, ...);
static int ours; /* our end of the filter's socket */
static pid_t child;
static int pagemap;
static uint8_t *memory; /* PAGES pages, at the same place in the child, where all exist */

static uint64_t at(uint64_t page)
{
    return (uintptr_t)memory + page * PAGE_BYTES;
}

static void set_number(const char *name, int value)
{
    char text[16];
    snprintf(text, sizeof(text), "%d", value);
    setenv(name, text, 1);
}

static void load_filter(void)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    assert_true(n > 0);
    path[n] = '\0';
    snprintf(strrchr(path, '/'), 64, "/../../godwit-scan-filter.so");
    void *filter = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!filter)
        fail_msg("%s", dlerror());
    *(void **)&filter_ioctl = dlsym(filter, "ioctl");
    *(void **)&filter_openat = dlsym(filter, "openat64");
    assert_true(filter_ioctl && filter_openat);
}

/* Nothing is registered in the child: what the kernel is asked for is told in full. */
static void make_child(void)
{
    char path[64];
    memory =
        mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    madvise(memory, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
    memset(memory, 1, PAGES * PAGE_BYTES);
    child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    snprintf(path, sizeof(path), "/proc/%d/pagemap", child);
    pagemap = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(pagemap >= 0);
}

static int add(struct page_runs *runs, uint64_t page, uint64_t pages)
{
    return page_runs_add(runs, at(page), pages, true);
}

/* Two areas of the child have been scanned: pages 8 to 23, and 32 to 47. */
static int write_table(void)
{
    struct scan_table table = {0};
    struct tracked_areas other = {0}, tracked = {0};
    int fd = memfd_create("table", MFD_CLOEXEC);
    assert_int_equal(add(&other.areas, 0, 64) | add(&other.written, 0, 64), 0);
    assert_int_equal(add(&tracked.areas, 8, 16) | add(&tracked.areas, 32, 16), 0);
    assert_int_equal(add(&tracked.written, 8, 1) | add(&tracked.written, 10, 4), 0);
    assert_int_equal(add(&tracked.written, 20, 4) | add(&tracked.written, 47, 1), 0);
    assert_int_equal(scan_table_add(&table, getpid(), &other), 0);
    assert_int_equal(scan_table_add(&table, child, &tracked), 0);
    assert_int_equal(scan_table_write(&table, fd), 0);
    scan_table_free(&table);
    tracked_areas_free(&other);
    tracked_areas_free(&tracked);
    return fd;
}

static int begin(void **state)
{
    (void)state;
    int fds[2];
    load_filter();
    make_child();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    ours = fds[0];
    set_number("GODWIT_SCAN_FILTER_FD", fds[1]);
    set_number("GODWIT_SCAN_FILTER_TABLE", write_table());
    return 0;
}

static int end(void **state)
{
    (void)state;
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}

/* What is told of pages [from, to) in |room| regions: "8 10-13 ", and where it has got to. */
static const char *ask(uint64_t from, uint64_t to, uint64_t room, uint64_t *ret_walk)
{
    static char text[256];
    struct page_region regions[PAGES];
    struct pagemap_scan scan = {
        .size = sizeof(scan),
        .start = at(from),
        .end = at(to),
        .vec = (uintptr_t)regions,
        .vec_len = room,
        .inverted = IS_ZERO | IS_FILE,
        .mask = IS_ZERO | IS_FILE,
        .anyof_mask = IS_PRESENT | IS_SWAPPED,
        .return_mask = IS_PRESENT | IS_SWAPPED,
    };
    size_t used = 0;
    int n = filter_ioctl(pagemap, SCAN, &scan);
    assert_in_range(n, 0, room);
    text[0] = '\0';
    for (int i = 0; i < n; i++) {
        uint64_t first = (regions[i].start - at(0)) / PAGE_BYTES;
        uint64_t last = (regions[i].end - at(0)) / PAGE_BYTES - 1;
        assert_int_equal(regions[i].categories, IS_PRESENT);
        used += (size_t)snprintf(text + used, sizeof(text) - used,
                                 first == last ? "%lu " : "%lu-%lu ", first, last);
    }
    *ret_walk = (scan.walk_end - at(0)) / PAGE_BYTES;
    return text;
}

static void must_tell(uint64_t from, uint64_t to, uint64_t room, const char *pages, uint64_t walk)
{
    uint64_t walked;
    assert_string_equal(ask(from, to, room, &walked), pages);
    assert_int_equal(walked, walk);
}

static void must_have_heard(const char *what)
{
    char text[8] = "";
    ssize_t n = recv(ours, text, sizeof(text) - 1, MSG_DONTWAIT);
    assert_true(n >= 0 || errno == EAGAIN);
    assert_string_equal(text, what);
}

static void all_of_it(void **state)
{
    (void)state;
    /* Another file is none of our business; smaps is the moment, once. */
    close(filter_openat(AT_FDCWD, "/proc/self/maps", O_RDONLY));
    must_have_heard("");
    int proc = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
    int smaps = filter_openat(proc, "smaps", O_RDONLY);
    assert_true(smaps >= 0);
    close(smaps);
    close(filter_openat(proc, "smaps", O_RDONLY));
    close(proc);
    must_have_heard("s");
    assert_int_equal(send(ours, "", 1, 0), 1);

    must_tell(8, 24, PAGES, "8 10-13 20-23 ", 24);
    must_have_heard("l");
    must_tell(32, 48, PAGES, "47 ", 48);
    must_tell(9, 12, PAGES, "10-11 ", 12); /* cut at both ends */
    must_tell(14, 20, PAGES, "", 20);      /* nothing there */
    must_tell(8, 24, 2, "8 10-13 ", 14);   /* room for two */
    must_tell(14, 24, 2, "20-23 ", 24);    /* and on */
    must_have_heard("");
    /* In part, or not at all, scanned: the kernel tells, and all exist. */
    struct page_table table;
    assert_int_equal(page_table_open(&table, child), 0);
    bool scans = table.scans;
    page_table_close(&table);
    if (!scans)
        return; /* Linux before 6.7 */
    must_tell(7, 9, PAGES, "7-8 ", 9);
    must_tell(20, 34, PAGES, "20-33 ", 34);
    must_tell(48, 50, PAGES, "48-49 ", 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_of_it)};
    return test_exit(cmocka_run_group_tests(tests, begin, end));
}
