/* SPDX-License-Identifier: Apache-2.0 */
/* Following real processes by comparison, and choosing how a process is followed. */
#include "testing.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "child.h"
#include "task/follow.h"
#include "task/task.h"

/* ---- a process that does what it is told ---- */

enum { PAGES = 1200 }; /* of three chunks of hashes at least */

static struct servant servant;
static struct follower follower;

static void map_region(struct orders *orders)
{
    orders->region =
        mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(orders->region, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
}

static int begin(void **state)
{
    struct error err;
    (void)state;
    servant_start(&servant, map_region);
    return follower_open(&follower, servant.pid, FOLLOW_COMPARE, NULL, &err);
}

static int end(void **state)
{
    (void)state;
    follower_close(&follower);
    servant_kill(&servant);
    return 0;
}

static void put_page(struct orders *orders)
{
    memset(orders->region + orders->numbers[0] * PAGE_BYTES, (int)orders->numbers[1], PAGE_BYTES);
}

static void puts_on(uint64_t page, int value)
{
    servant.orders->numbers[0] = page;
    servant.orders->numbers[1] = (uint64_t)value;
    servant_do(&servant, put_page);
}

static void read_page(struct orders *orders)
{
    orders->result = orders->region[orders->numbers[0] * PAGE_BYTES];
}

/* Adds the number of a page of the region to a text like "0 5 7". */
static void tell_page(char *text, size_t size, uint64_t vaddr)
{
    uint64_t start = (uint64_t)(uintptr_t)servant.orders->region;
    if (vaddr < start || vaddr >= start + PAGES * PAGE_BYTES)
        return;
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%lu", used ? " " : "", (vaddr - start) / PAGE_BYTES);
}

/* Reads what is to be read; the pages of the region that are to be sent. */
static const char *read_all(const struct page_runs *runs)
{
    static char text[512];
    static uint8_t buf[64 * PAGE_BYTES];
    struct page_run got[READ_RUNS_MAX];
    struct page_reader reader;
    int n;
    text[0] = '\0';
    assert_int_equal(page_reader_open(&reader, servant.pid), 0);
    page_reader_begin(&reader, runs, NULL);
    while ((n = page_reader_next(&reader, buf, 64, got)) > 0) {
        const uint8_t *page = buf;
        for (int i = 0; i < n; i++) {
            for (uint64_t k = 0; k < got[i].pages; k++, page += PAGE_BYTES) {
                uint64_t vaddr = got[i].start + k * PAGE_BYTES;
                if (follower_wants(&follower, vaddr, got[i].anonymous, page))
                    tell_page(text, sizeof(text), vaddr);
            }
        }
    }
    assert_int_equal(n, 0);
    page_reader_close(&reader);
    return text;
}

static void must_send(const char *pages)
{
    struct page_runs runs = {0};
    assert_int_equal(follower_scan(&follower, &runs), 0);
    assert_string_equal(read_all(&runs), pages);
    page_runs_free(&runs);
}

/* At the freeze: what exists in the region, and what of it is to be sent. */
static void must_list(const char *exist, const char *send)
{
    struct page_runs list = {0}, runs = {0};
    struct tracked_areas tracked = {0};
    char text[512] = "";
    assert_int_equal(follower_list(&follower, &list, &runs, &tracked), 0);
    for (size_t i = 0; i < list.count; i++) {
        for (uint64_t k = 0; k < list.list[i].pages; k++)
            tell_page(text, sizeof(text), list.list[i].start + k * PAGE_BYTES);
    }
    assert_string_equal(text, exist);
    assert_string_equal(read_all(&runs), send);
    page_runs_free(&list);
    page_runs_free(&runs);
    tracked_areas_free(&tracked);
}

/* ---- compared ---- */

static void what_differs(void **state)
{
    (void)state;
    assert_true(follower_hides(&follower));
    puts_on(0, 1);
    puts_on(5, 2);
    puts_on(PAGES - 1, 3);
    must_send("0 5 1199");
    must_send("");
    puts_on(5, 4);
    puts_on(700, 5);
    must_send("5 700");
    puts_on(5, 5);
    puts_on(5, 4); /* what it was */
    must_send("");
    puts_on(0, 9);
    must_list("0 5 700 1199", "0");
}

static void drop_page(struct orders *orders)
{
    madvise(orders->region + orders->numbers[0] * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
}

/* Some kernels have no page of zeros for all, and what is read first is a page like others. */
static bool has_own_page(unsigned long page)
{
    char path[32];
    uint64_t entry = 0, at = (uintptr_t)servant.orders->region / PAGE_BYTES + page;
    snprintf(path, sizeof(path), "/proc/%d/pagemap", servant.pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, &entry, sizeof(entry), (off_t)(at * sizeof(entry))), sizeof(entry));
    close(fd);
    return entry >> 63 && entry >> 56 & 1; /* present, and exclusive */
}

static void what_is_dropped(void **state)
{
    (void)state;
    puts_on(3, 1);
    puts_on(4, 1);
    must_send("3 4");
    servant.orders->numbers[0] = 3;
    servant_do(&servant, drop_page);
    must_list("4", "");
    servant_do(&servant, read_page);
    bool own = has_own_page(3); /* not the kernel's page of zeros, which is nobody's */
    must_list(own ? "3 4" : "4", own ? "3" : "");
    puts_on(3, 2);
    must_list("3 4", "3");
}

static void map_file(struct orders *orders)
{
    int fd = memfd_create("file", 0);
    if (ftruncate(fd, PAGES * PAGE_BYTES) == 0)
        mmap(orders->region, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
             fd, 0);
    close(fd);
}

/* Zeros of anonymous memory are a hole to the other host, and a file would show through it. */
static void zeros_of_a_file(void **state)
{
    (void)state;
    puts_on(7, 0);
    puts_on(8, 1);
    must_send("7 8");
    servant_do(&servant, map_file);
    must_list("", "");
    puts_on(7, 0);
    puts_on(9, 0);
    servant.orders->numbers[0] = 10;
    servant_do(&servant, read_page);
    must_list("7 9", "7 9");
    must_send("");
}

/* What exists now of pages of the region that were to be sent and could not be read. */
static void must_find_missed(const char *pages)
{
    uint64_t start = (uint64_t)(uintptr_t)servant.orders->region;
    struct page_runs missed = {0}, runs = {0};
    char text[512] = "";
    static const unsigned where[][2] = {{600, 2}, {8, 3}, {3, 1}, {9, 1}, {1000, 200}};
    for (size_t i = 0; i < ARRAY_SIZE(where); i++)
        assert_int_equal(
            page_runs_add(&missed, start + where[i][0] * PAGE_BYTES, where[i][1], true), 0);
    assert_int_equal(follower_scan_missed(&follower, &missed, &runs), 0);
    for (size_t i = 0; i < runs.count; i++) {
        for (uint64_t k = 0; k < runs.list[i].pages; k++)
            tell_page(text, sizeof(text), runs.list[i].start + k * PAGE_BYTES);
    }
    assert_string_equal(text, pages);
    page_runs_free(&missed);
    page_runs_free(&runs);
}

/* It counts what a page is by now: that of a file is criu's, with its zeros. */
static void missed_and_a_file_since(void **state)
{
    (void)state;
    struct error err;
    if (!kernel_writes_async())
        test_skip("no userfaultfd with WP_ASYNC here");
    follower_close(&follower);
    assert_int_equal(follower_open(&follower, servant.pid, FOLLOW_UFFD_WP, NULL, &err), 0);
    puts_on(3, 1);
    puts_on(7, 1);
    puts_on(9, 1);
    puts_on(PAGES - 1, 1);
    must_find_missed("3 9 1199");
    servant_do(&servant, map_file);
    puts_on(3, 0);
    puts_on(9, 1);
    must_find_missed("");
}

/* Told as start+pages. */
static void runs_in_order(void **state)
{
    (void)state;
    struct page_runs runs = {0};
    static const unsigned where[][2] = {{9, 1}, {2, 2}, {20, 5}, {4, 1}, {22, 1}, {9, 4}, {30, 1}};
    char text[64] = "";
    page_runs_sort(&runs);
    for (size_t i = 0; i < ARRAY_SIZE(where); i++)
        assert_int_equal(page_runs_add(&runs, where[i][0] * PAGE_BYTES, where[i][1], i % 2), 0);
    page_runs_sort(&runs);
    for (size_t i = 0; i < runs.count; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), "%lu+%lu ",
                 runs.list[i].start / PAGE_BYTES, runs.list[i].pages);
    assert_string_equal(text, "2+3 9+4 20+5 30+1 ");
    assert_int_equal(runs.pages, 13);
    assert_int_equal(page_runs_seek(&runs, 10 * PAGE_BYTES), 1);
    assert_int_equal(page_runs_seek(&runs, 13 * PAGE_BYTES), 2);
    assert_int_equal(page_runs_seek(&runs, 31 * PAGE_BYTES), 4);
    page_runs_free(&runs);
}

static void execute(struct orders *orders)
{
    (void)orders;
    execl("/bin/sleep", "sleep", "1000", NULL);
}

static void another_program(void **state)
{
    (void)state;
    char name[17];
    puts_on(0, 1);
    must_send("0");
    servant_begin(&servant, execute);
    do {
        usleep(1000);
        task_command(servant.pid, name, sizeof(name));
    } while (strcmp(name, "sleep") != 0);
    until_asleep(servant.pid);
    struct page_runs list = {0}, runs = {0};
    struct tracked_areas tracked = {0};
    assert_int_equal(follower_list(&follower, &list, &runs, &tracked), 0);
    assert_true(list.pages > 10);
    assert_int_equal(list.pages, runs.pages);
    must_list("", "");
    page_runs_free(&list);
    page_runs_free(&runs);
    tracked_areas_free(&tracked);
    kill(servant.pid, SIGKILL);
    waitpid(servant.pid, NULL, 0);
    assert_int_equal(follower_scan(&follower, &runs), -ESRCH);
    page_runs_free(&runs);
}

static void hashes(void **state)
{
    (void)state;
    static uint8_t page[PAGE_BYTES];
    struct page_hashes hashes = {0};
    static const uint64_t places[] = {0x40000000, 0x1000, 0x7f0000000000, 0x2000, 0x3fffe000};
    page_hashes_begin(&hashes);
    for (size_t i = 0; i < ARRAY_SIZE(places); i++)
        assert_true(page_hashes_note(&hashes, places[i], true, page));
    for (size_t i = 0; i < ARRAY_SIZE(places); i++)
        assert_false(page_hashes_note(&hashes, places[i], true, page));
    assert_int_equal(hashes.count, 4);
    assert_true(page_hashes_same(&hashes, places[1], true, page));
    assert_false(page_hashes_same(&hashes, places[1], false, page));
    assert_false(page_hashes_same(&hashes, places[3] + PAGE_BYTES, true, page));
    assert_false(page_hashes_same(&hashes, 0x123400000, true, page));
    assert_int_equal(hashes.count, 4);
    assert_true(page_hashes_note(&hashes, places[0], false, page));
    assert_false(page_hashes_note(&hashes, places[0], false, page));
    page[PAGE_BYTES - 1] = 1;
    assert_true(page_hashes_note(&hashes, places[0], false, page));
    page_hashes_begin(&hashes);
    assert_int_equal(hashes.count, 4);
    assert_false(page_hashes_note(&hashes, places[0], false, page));
    page_hashes_begin(&hashes); /* of the others nothing was seen */
    assert_int_equal(hashes.count, 1);
    assert_false(page_hashes_note(&hashes, places[0], false, page));
    page_hashes_free(&hashes);
}

/* What a snapshot has not been told to have is not in it, whatever was sent. */
static void hashes_of_what_was_told(void **state)
{
    (void)state;
    static const uint8_t page[PAGE_BYTES] = {1};
    struct page_hashes hashes = {0};
    page_hashes_begin(&hashes);
    for (uint64_t i = 0; i < 130; i++)
        assert_true(page_hashes_note(&hashes, i * PAGE_BYTES, false, page));
    page_hashes_tell(&hashes, 0);
    page_hashes_tell(&hashes, 129 * PAGE_BYTES);
    page_hashes_tell(&hashes, 0x40000000); /* never noted */
    page_hashes_keep_told(&hashes);
    for (uint64_t i = 0; i < 130; i++)
        assert_int_equal(page_hashes_same(&hashes, i * PAGE_BYTES, false, page),
                         i == 0 || i == 129);
    assert_false(page_hashes_same(&hashes, 0x40000000, false, page));
    page_hashes_keep_told(&hashes); /* of the next one nothing was */
    assert_false(page_hashes_same(&hashes, 0, false, page));
    page_hashes_free(&hashes);
}

/* ---- which way ---- */

/* An ioctl of that number fails from now on. */
static void deny(uint32_t request)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, request, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {ARRAY_SIZE(code), code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(4);
}

enum { PAGEMAP_SCAN_NUMBER = (int)0xc0606610 };

/* Does it in a process of its own, that may lose what it cannot get back.  What it returns. */
static int apart(int (*job)(void))
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0)
        _exit(job());
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* 0 when the servant is followed in the way that hides, or not, and the reason has this in it. */
static int check_way(bool hides, const char *why)
{
    struct follower other;
    struct error err;
    if (follower_open(&other, servant.pid, FOLLOW_AUTO, NULL, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 3;
    }
    int r = follower_hides(&other) != hides || !strstr(err.text, why);
    if (r)
        fprintf(stderr, "hides: %d, because: %s\n", follower_hides(&other), err.text);
    follower_close(&other);
    return r;
}

static int without_scan(void)
{
    deny(PAGEMAP_SCAN_NUMBER);
    return check_way(true, "PAGEMAP_SCAN");
}

static int without_uffd(void)
{
    deny((uint32_t)UFFDIO_API);
    return check_way(true, "asynchronously");
}

static int try_uffd(void)
{
    return check_way(false, "");
}

static void the_best_that_works(void **state)
{
    (void)state;
    if (!kernel_writes_async())
        test_skip("no userfaultfd with WP_ASYNC here");
    assert_int_equal(apart(try_uffd), 0);
    assert_int_equal(apart(without_scan), 0);
    assert_int_equal(apart(without_uffd), 0);
    kill(servant.pid, SIGSTOP);
    waitpid(servant.pid, NULL, WUNTRACED);
    assert_int_equal(check_way(true, "stopped by a signal"), 0);
    kill(servant.pid, SIGCONT);
}

static void not_when_gone(void **state)
{
    (void)state;
    struct follower other;
    struct error err;
    kill(servant.pid, SIGKILL);
    waitpid(servant.pid, NULL, 0);
    for (int kind = FOLLOW_AUTO; kind <= FOLLOW_COMPARE; kind++) {
        assert_int_equal(follower_open(&other, servant.pid, (enum follow_kind)kind, NULL, &err),
                         -1);
        assert_int_equal(err.code, FAILURE_NOT_FOUND);
        follower_close(&other);
    }
}

/* ---- which pages exist ---- */

static void put_every_other(struct orders *orders)
{
    for (uint64_t page = 0; page < PAGES; page += 2)
        orders->region[page * PAGE_BYTES] = 1;
}

/* More runs than the kernel tells in one piece, and each is told once. */
static void many_runs(void **state)
{
    (void)state;
    uint64_t region = (uintptr_t)servant.orders->region;
    struct memory_area area = {.start = region, .end = region + PAGES * PAGE_BYTES};
    struct page_table table;
    struct page_runs runs = {0};
    servant_do(&servant, put_every_other);
    assert_int_equal(page_table_open(&table, servant.pid), 0);
    assert_int_equal(page_table_list(&table, &area, &runs), 0);
    page_table_close(&table);
    assert_int_equal(runs.count, PAGES / 2);
    assert_int_equal(runs.pages, PAGES / 2);
    for (uint64_t i = 0; i < PAGES / 2; i++)
        assert_int_equal(runs.list[i].start, region + 2 * i * PAGE_BYTES);
    page_runs_free(&runs);
}

/* The same pages by reading as by PAGEMAP_SCAN. */

static int list_in(struct page_table *table, struct page_runs *runs)
{
    struct memory_map map;
    int r = memory_map_read(servant.pid, &map);
    for (size_t i = 0; i < map.count && r == 0; i++) {
        if (map.areas[i].kind == AREA_PRIVATE)
            r = page_table_list(table, &map.areas[i], runs);
    }
    memory_map_free(&map);
    return r;
}

static int read_like_scan(void)
{
    struct page_table scanned, read;
    struct page_runs a = {0}, b = {0};
    if (page_table_open(&scanned, servant.pid) < 0)
        return 1;
    if (!scanned.scans)
        return 77;
    if (list_in(&scanned, &a) < 0)
        return 1;
    page_table_close(&scanned);
    deny(PAGEMAP_SCAN_NUMBER);
    if (page_table_open(&read, servant.pid) < 0 || read.scans || list_in(&read, &b) < 0)
        return 1;
    page_table_close(&read);
    bool same = a.count == b.count;
    for (size_t i = 0; i < a.count && same; i++)
        same = a.list[i].start == b.list[i].start && a.list[i].pages == b.list[i].pages;
    page_runs_free(&a);
    page_runs_free(&b);
    return same ? 0 : 2;
}

static void by_reading(void **state)
{
    (void)state;
    puts_on(1, 1);
    puts_on(600, 0);
    servant.orders->numbers[0] = 2;
    servant_do(&servant, read_page);
    int r = apart(read_like_scan);
    if (r == 77)
        test_skip("no PAGEMAP_SCAN here");
    assert_int_equal(r, 0);
}

#define PROCESS(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PROCESS(what_differs),        PROCESS(what_is_dropped),
        PROCESS(zeros_of_a_file),     PROCESS(another_program),
        cmocka_unit_test(hashes),     cmocka_unit_test(hashes_of_what_was_told),
        PROCESS(the_best_that_works), PROCESS(not_when_gone),
        PROCESS(by_reading),          PROCESS(missed_and_a_file_since),
        PROCESS(many_runs),           cmocka_unit_test(runs_in_order),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
