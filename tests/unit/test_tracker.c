/* SPDX-License-Identifier: Apache-2.0 */
/* Tracking and reading the memory of real processes, and having them make system calls. */
#include "testing.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "child.h"
#include "task/inject.h"
#include "task/task.h"
#include "task/tracker.h"

/* ---- a process that does what it is told ---- */

enum { PAGES = 1024, ROUNDS = 300 };

static struct servant servant;

static void map_region(struct orders *orders)
{
    orders->region =
        mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(orders->region, PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
}

static int begin(void **state)
{
    (void)state;
    servant_start(&servant, map_region);
    return 0;
}

static int end(void **state)
{
    (void)state;
    servant_kill(&servant);
    return 0;
}

static void has_it(void (*job)(struct orders *))
{
    servant_do(&servant, job);
}

static void write_page(struct orders *orders)
{
    orders->region[orders->numbers[0] * PAGE_BYTES + 7]++;
}

static void read_page(struct orders *orders)
{
    orders->result = orders->region[orders->numbers[0] * PAGE_BYTES];
}

static void on_page(void (*job)(struct orders *), uint64_t page)
{
    servant.orders->numbers[0] = page;
    has_it(job);
}

static void writes(uint64_t page)
{
    on_page(write_page, page);
}

/* ---- what is written ---- */

static struct tracker tracker;

static int begin_tracking(void **state)
{
    struct error err;
    tracker.uffd = -EBADF;
    if (!kernel_writes_async())
        return 0;
    begin(state);
    if (tracker_open(&tracker, servant.pid, NULL, &err) == 0)
        return 0;
    fprintf(stderr, "not tracked: %s\n", err.text);
    return -1;
}

static int end_tracking(void **state)
{
    if (tracker.uffd < 0)
        return 0;
    tracker_close(&tracker);
    return end(state);
}

static void need_tracker(void)
{
    if (tracker.uffd < 0)
        test_skip("no userfaultfd with WP_ASYNC here");
}

static struct memory_area region(void)
{
    uint64_t at = (uint64_t)(uintptr_t)servant.orders->region;
    return (struct memory_area){.start = at, .end = at + PAGES * PAGE_BYTES, .anonymous = true};
}

/* The pages of the region in a list, as "0 5-7 100". */
static const char *pages_of(const struct page_runs *runs, const struct memory_area *area)
{
    static char text[512];
    size_t used = 0;
    text[0] = '\0';
    for (size_t i = 0; i < runs->count && used < sizeof(text) - 32; i++) {
        uint64_t first = (runs->list[i].start - area->start) / PAGE_BYTES;
        uint64_t last = first + runs->list[i].pages - 1;
        used +=
            (size_t)snprintf(text + used, sizeof(text) - used,
                             first == last ? "%s%lu" : "%s%lu-%lu", used ? " " : "", first, last);
    }
    return text;
}

/* The pages are counted from the beginning of the region. */
static void must_scan_area(const struct memory_area *area, const char *pages)
{
    struct page_runs runs = {0};
    struct memory_area all = region();
    assert_int_equal(tracker_scan(&tracker, area, &runs), 0);
    assert_string_equal(pages_of(&runs, &all), pages);
    page_runs_free(&runs);
}

static void must_scan(const char *pages)
{
    struct memory_area area = region();
    must_scan_area(&area, pages);
}

static void must_list(const char *pages)
{
    struct page_runs runs = {0};
    struct memory_area area = region();
    assert_int_equal(tracker_list(&tracker, &area, &runs), 0);
    assert_string_equal(pages_of(&runs, &area), pages);
    page_runs_free(&runs);
}

static void written_pages(void **state)
{
    (void)state;
    need_tracker();
    static const uint64_t first[] = {0, 5, 6, 7, 100, PAGES - 1};
    for (size_t i = 0; i < ARRAY_SIZE(first); i++)
        writes(first[i]);
    must_scan("0 5-7 100 1023"); /* all there are */
    must_scan("");
    writes(6);
    writes(200);
    on_page(read_page, 7);
    must_scan("6 200");
    must_scan("");
    must_list("0 5-7 100 200 1023");
}

static void drop_page(struct orders *orders)
{
    uint8_t *page = orders->region + orders->numbers[0] * PAGE_BYTES;
    madvise(page, PAGE_BYTES, MADV_DONTNEED);
}

static void dropped_pages(void **state)
{
    (void)state;
    need_tracker();
    for (uint64_t i = 0; i < 4; i++)
        writes(i);
    must_scan("0-3");
    on_page(drop_page, 1);
    on_page(drop_page, 2);
    must_scan("");
    must_list("0 3");
    writes(2); /* another page now */
    must_scan("2");
    must_list("0 2-3");
}

static void map_again(struct orders *orders)
{
    munmap(orders->region, PAGES * PAGE_BYTES);
    mmap(orders->region, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void mapped_again(void **state)
{
    (void)state;
    need_tracker();
    writes(1);
    writes(2);
    must_scan("1-2");
    has_it(map_again);
    must_list("");
    writes(2);
    writes(9);
    must_scan("2 9");
    writes(9);
    must_scan("9");
}

/* Its second half moves onto the first. */
static void move_half(struct orders *orders)
{
    size_t half = PAGES / 2 * PAGE_BYTES;
    uint8_t *moved =
        mremap(orders->region + half, half, half, MREMAP_MAYMOVE | MREMAP_FIXED, orders->region);
    mmap(orders->region + half, half, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    orders->result = moved == orders->region;
}

static void moved_pages(void **state)
{
    (void)state;
    need_tracker();
    writes(3);
    writes(4);
    writes(PAGES / 2 + 3);
    writes(PAGES / 2 + 8);
    must_scan("3-4 515 520");
    has_it(move_half);
    assert_true(servant.orders->result);
    must_scan("3 8"); /* whole, although nobody has written them since */
    must_scan("");
    must_list("3 8");
    writes(3);
    must_scan("3");
}

enum { PIECE = 5, ELSEWHERE = PAGES / 2 };

/* The piece of that number moves to where the same one is, elsewhere. */
static void move_piece(struct orders *orders)
{
    size_t bytes = PIECE * PAGE_BYTES;
    uint8_t *from = orders->region + orders->numbers[0] * bytes;
    uint8_t *to = from + ELSEWHERE * PAGE_BYTES;
    orders->result = mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to;
}

static void scan_pieces(uint64_t count, const char *pages)
{
    struct memory_area area = region();
    area.start += ELSEWHERE * PAGE_BYTES;
    area.end = area.start + count * PIECE * PAGE_BYTES;
    must_scan_area(&area, pages);
}

/*
 * What moves to where its own beginning lies already, and is tracked, is one mapping with it, and
 * the kernel lets go of all of that, but not of the bits of what was there.  A page that is written
 * then can be written, and looks as if it were protected.
 */
static void moved_to_what_was_moved(void **state)
{
    (void)state;
    need_tracker();
    for (uint64_t page = 0; page < 2 * PIECE; page++)
        writes(page);
    must_scan("0-9");
    on_page(move_piece, 0);
    assert_true(servant.orders->result);
    scan_pieces(1, "512-516");
    on_page(move_piece, 1);
    assert_true(servant.orders->result);
    writes(ELSEWHERE + 2);
    scan_pieces(2, "512-521");
    writes(ELSEWHERE + 2);
    writes(ELSEWHERE + 3);
    writes(ELSEWHERE + PIECE);
    scan_pieces(2, "514-515 517");
    scan_pieces(2, "");
}

/* A child that stays, with what it has of the memory. */
static void fork_it(struct orders *orders)
{
    orders->result = (uint64_t)child_fork();
}

static void must_divide(struct page_table *child, const char *copies, const char *others)
{
    struct page_runs all = {0}, same = {0}, rest = {0};
    struct memory_area area = region();
    assert_int_equal(page_table_list(child, &area, &all), 0);
    assert_int_equal(page_table_divide(child, &tracker.table, &all, &same, &rest), 0);
    assert_string_equal(pages_of(&same, &area), copies);
    assert_string_equal(pages_of(&rest, &area), others);
    page_runs_free(&all);
    page_runs_free(&same);
    page_runs_free(&rest);
}

/*
 * What a child has of its parent is what was sent of that, if the parent has not written it since:
 * which nobody can say of a page that is not followed any more, though it has its bit.
 */
static void memory_of_a_child(void **state)
{
    (void)state;
    need_tracker();
    for (uint64_t page = 0; page < 2 * PIECE; page++)
        writes(page);
    writes(PAGES - 1);
    must_scan("0-9 1023");
    on_page(move_piece, 0);
    scan_pieces(1, "512-516");
    writes(6);
    has_it(fork_it);
    struct page_table child;
    assert_int_equal(page_table_open(&child, (pid_t)servant.orders->result), 0);
    must_divide(&child, "5 7-9 512-516 1023", "6");
    page_table_close(&child);
    on_page(move_piece, 1);
    writes(ELSEWHERE + 2);
    has_it(fork_it);
    assert_int_equal(page_table_open(&child, (pid_t)servant.orders->result), 0);
    must_divide(&child, "1023", "512-521");
    page_table_close(&child);
}

static void protect_and_fork(struct orders *orders)
{
    mprotect(orders->region, PAGES * PAGE_BYTES, PROT_READ);
    pid_t copy = fork();
    if (copy == 0) {
        mprotect(orders->region, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE);
        orders->region[0]++; /* not the parent's */
        _exit(0);
    }
    waitpid(copy, NULL, 0);
    mprotect(orders->region, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE);
}

static void protected_and_forked(void **state)
{
    (void)state;
    need_tracker();
    writes(0);
    writes(1);
    must_scan("0-1");
    has_it(protect_and_fork);
    must_scan("");
    writes(1);
    must_scan("1");
}

static void map_file(struct orders *orders)
{
    int fd = memfd_create("file", 0);
    if (ftruncate(fd, PAGES * PAGE_BYTES) == 0)
        mmap(orders->region, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
             fd, 0);
    close(fd);
}

static void pages_of_files(void **state)
{
    (void)state;
    need_tracker();
    has_it(map_file);
    on_page(read_page, 5);
    writes(6);
    must_scan("6");
    must_scan("");
    must_list("6");
}

static void execute(struct orders *orders)
{
    execl("/bin/sleep", "sleep", "1000", NULL);
}

static void another_program(void **state)
{
    (void)state;
    need_tracker();
    struct memory_area area = region();
    struct page_runs runs = {0};
    char name[17];
    writes(0);
    must_scan("0");
    servant_begin(&servant, execute);
    do {
        usleep(1000);
        task_command(servant.pid, name, sizeof(name));
    } while (strcmp(name, "sleep") != 0);
    assert_int_equal(tracker_scan(&tracker, &area, &runs), -ESRCH);
    assert_int_equal(tracker_list(&tracker, &area, &runs), -ESRCH);
    struct tracker again;
    struct error err;
    int r = tracker_open(&again, servant.pid, NULL, &err);
    for (unsigned i = 0; r < 0 && i < 1000; i++) {
        usleep(1000); /* it has its name before it has its memory */
        r = tracker_open(&again, servant.pid, NULL, &err);
    }
    assert_int_equal(r, 0);
    tracker_close(&again);
    kill(servant.pid, SIGKILL);
    waitpid(servant.pid, NULL, 0);
    assert_int_equal(tracker_scan(&tracker, &area, &runs), -ESRCH);
    assert_int_equal(tracker_open(&again, servant.pid, NULL, &err), -1);
    assert_int_equal(err.code, FAILURE_NOT_FOUND);
}

/* One mapping becomes a thousand, and one again, for ever. */
static void split_and_join(struct orders *orders)
{
    for (;;) {
        for (uint64_t i = 0; i < PAGES; i += 2)
            mprotect(orders->region + i * PAGE_BYTES, PAGE_BYTES, PROT_READ);
        mprotect(orders->region, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE);
    }
}

/* While they are read the areas join, and are told again with what was told before. */
static void areas_that_change(void **state)
{
    (void)state;
    struct memory_map map;
    servant_begin(&servant, split_and_join);
    for (unsigned round = 0; round < ROUNDS; round++) {
        assert_int_equal(memory_map_read(servant.pid, &map), 0);
        for (size_t i = 0; i < map.count; i++) {
            assert_true(map.areas[i].start < map.areas[i].end);
            assert_true(i == 0 || map.areas[i].start >= map.areas[i - 1].end);
        }
        memory_map_free(&map);
    }
}

/* Areas of a whole process: nothing of ours stays in it, and all it writes is seen. */
static void all_areas(void **state)
{
    (void)state;
    need_tracker();
    struct memory_map map;
    uint64_t tracked = 0;
    assert_int_equal(memory_map_read(servant.pid, &map), 0);
    for (int round = 0; round < 2; round++) {
        struct page_runs runs = {0};
        for (size_t i = 0; i < map.count; i++) {
            if (map.areas[i].kind != AREA_PRIVATE)
                continue;
            int r = tracker_scan(&tracker, &map.areas[i], &runs);
            assert_int_equal(r, 0);
            tracked += r == 0;
        }
        assert_true(round == 0 ? runs.pages > 10 : runs.pages < 10);
        page_runs_free(&runs);
    }
    assert_true(tracked > 10);
    bool vdso = false;
    for (size_t i = 0; i < map.count; i++)
        vdso |= map.areas[i].kind == AREA_VDSO;
    assert_true(vdso);
    memory_map_free(&map);
}

/* ---- reading ---- */

/* Pages 0 to 9 of the region: their number in every byte; 3 is not there, 5 and 6 are forbidden. */
static void prepare_to_be_read(struct orders *orders)
{
    for (int i = 0; i < 10; i++)
        memset(orders->region + i * PAGE_BYTES, 'a' + i, PAGE_BYTES);
    munmap(orders->region + 3 * PAGE_BYTES, PAGE_BYTES);
    mprotect(orders->region + 5 * PAGE_BYTES, 2 * PAGE_BYTES, PROT_NONE);
}

static void add(struct page_runs *runs, uint64_t page, uint64_t pages)
{
    assert_int_equal(page_runs_add(runs, region().start + page * PAGE_BYTES, pages, true), 0);
}

/* What comes, one letter per page, when |pages| pages are asked for at a time. */
static void must_read(const struct page_runs *runs, uint64_t pages, const char *letters)
{
    static uint8_t buf[64 * PAGE_BYTES];
    struct page_run got[READ_RUNS_MAX];
    struct page_reader reader;
    char text[64] = "";
    size_t used = 0;
    int n;
    assert_int_equal(page_reader_open(&reader, servant.pid), 0);
    page_reader_begin(&reader, runs, NULL);
    while ((n = page_reader_next(&reader, buf, pages, got)) > 0) {
        const uint8_t *page = buf;
        for (int i = 0; i < n; i++) {
            for (uint64_t k = 0; k < got[i].pages; k++, page += PAGE_BYTES) {
                uint64_t number = (got[i].start - region().start) / PAGE_BYTES + k;
                assert_int_equal(page[0], 'a' + number);
                assert_memory_equal(page, page + 1, PAGE_BYTES - 1);
                text[used++] = (char)page[0];
            }
        }
        assert_true((uint64_t)(page - buf) <= pages * PAGE_BYTES);
    }
    assert_int_equal(n, 0);
    assert_string_equal(text, letters);
    page_reader_close(&reader);
}

static void read_in_batches(void **state)
{
    (void)state;
    has_it(prepare_to_be_read);
    struct page_runs runs = {0};
    add(&runs, 0, 2);
    add(&runs, 2, 1); /* joins the first */
    assert_int_equal(runs.count, 1);
    add(&runs, 3, 1);
    add(&runs, 8, 1);
    add(&runs, 4, 4);
    assert_int_equal(runs.pages, 9);
    for (uint64_t pages = 1; pages <= 64; pages++)
        must_read(&runs, pages, "abciefgh");
    page_runs_free(&runs);
    must_read(&runs, 8, "");
}

static void read_of_nobody(void **state)
{
    (void)state;
    static uint8_t buf[PAGE_BYTES];
    struct page_run got[READ_RUNS_MAX];
    struct page_reader reader;
    struct page_runs runs = {0};
    add(&runs, 0, 1);
    assert_int_equal(page_reader_open(&reader, servant.pid), 0);
    kill(servant.pid, SIGKILL);
    waitpid(servant.pid, NULL, 0);
    page_reader_begin(&reader, &runs, NULL);
    assert_int_equal(page_reader_next(&reader, buf, 1, got), -ESRCH);
    page_reader_close(&reader);
    page_runs_free(&runs);
    assert_int_equal(page_reader_open(&reader, servant.pid), -ESRCH);
    struct memory_map map;
    assert_int_equal(memory_map_read(servant.pid, &map), -ESRCH);
}

/* ---- system calls in others ---- */

static int take(void)
{
    uint64_t stopped;
    struct error err;
    int fd = task_take_userfaultfd(servant.pid, NULL, &stopped, &err);
    if (fd < 0)
        fail_msg("%s", err.text);
    assert_true(stopped > 0);
    close(fd);
    return 0;
}

static void must_not_take(enum failure code, const char *text)
{
    uint64_t stopped;
    struct error err;
    assert_int_equal(task_take_userfaultfd(servant.pid, NULL, &stopped, &err), -1);
    assert_int_equal(err.code, code);
    assert_contains(err.text, text);
}

/* Every register that a compiler likes is in use here. */
static uint64_t compute(void)
{
    uint64_t a = 1, b = 2, c = 3, d = 4;
    double x = 1, y = 2, z = 3;
    for (unsigned i = 0; i < 100000; i++) {
        a = a * 6364136223846793005ull + b;
        b ^= c >> 7 | a << 3;
        c += d * a;
        d = d * 31 + (b & c);
        x = x * 0.75 + (double)(a & 0xff);
        y = y * 0.5 + x;
        z = z * 0.25 + y * x;
    }
    return a ^ b ^ c ^ d ^ (uint64_t)(x + y + z);
}

/* Until it is told to stop. */
static void work(struct orders *orders)
{
    uint64_t wanted = compute();
    orders->numbers[0] = orders->numbers[1] = 0;
    while (!orders->result) {
        orders->numbers[0]++;
        orders->numbers[1] += compute() != wanted;
    }
}

static void take_while_it_does(void (*job)(struct orders *orders))
{
    servant.orders->numbers[0] = servant.orders->result = 0;
    servant_begin(&servant, job);
    while (servant.orders->numbers[0] == 0)
        usleep(100);
    for (unsigned i = 0; i < ROUNDS; i++)
        take();
    servant.orders->result = 1;
    servant_wait(&servant);
    assert_int_equal(servant.orders->numbers[1], 0);
}

static void nothing_is_seen_by_registers(void **state)
{
    (void)state;
    take_while_it_does(work);
}

static void do_sleep(struct orders *orders)
{
    struct timespec time = {.tv_nsec = 200000000};
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    int r = nanosleep(&time, NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    int64_t nsec = (after.tv_sec - before.tv_sec) * 1000000000ll + after.tv_nsec - before.tv_nsec;
    orders->result = r == 0 && nsec >= 200000000;
}

static void do_wait(struct orders *orders)
{
    struct pollfd nothing = {.fd = -1};
    struct timespec time = {.tv_nsec = 200000000};
    sigset_t mask, after;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    int r = ppoll(&nothing, 1, &time, &mask);
    sigprocmask(SIG_BLOCK, NULL, &after);
    orders->result = r == 0 && !sigismember(&after, SIGUSR1);
}

static void do_read(struct orders *orders)
{
    int pair[2];
    char byte;
    if (pipe(pair) < 0)
        return;
    pid_t writer = fork();
    if (writer == 0) {
        usleep(200000);
        _exit(write(pair[1], "x", 1) != 1);
    }
    orders->result = read(pair[0], &byte, 1) == 1;
    waitpid(writer, NULL, 0);
    close(pair[0]);
    close(pair[1]);
}

static void nothing_is_seen_by_system_calls(void **state)
{
    (void)state;
    static void (*const jobs[])(struct orders *) = {do_sleep, do_wait, do_read};
    for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
        servant.orders->result = 0;
        servant_begin(&servant, jobs[i]);
        while (servant.orders->job)
            take();
        assert_true(servant.orders->result);
    }
}

static volatile sig_atomic_t alarms;

static void on_alarm(int signal_number)
{
    (void)signal_number;
    alarms++;
}

static void work_with_alarms(struct orders *orders)
{
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval often = {{0, 500}, {0, 500}}, never = {0};
    uint64_t before = 0, after = 0;
    sigaction(SIGALRM, &action, NULL);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &before, sizeof(before));
    setitimer(ITIMER_REAL, &often, NULL);
    work(orders);
    setitimer(ITIMER_REAL, &never, NULL);
    syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &after, sizeof(after));
    orders->numbers[2] = (uint64_t)alarms;
    orders->numbers[3] = before == after;
}

static void signals_are_delivered(void **state)
{
    (void)state;
    take_while_it_does(work_with_alarms);
    assert_true(servant.orders->numbers[2] > 20);
    assert_true(servant.orders->numbers[3]);
}

static void forbid(struct orders *orders)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {ARRAY_SIZE(code), code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    orders->result = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void a_filter_is_not_asked(void **state)
{
    (void)state;
    if (geteuid() != 0)
        test_skip("PTRACE_O_SUSPEND_SECCOMP is for root");
    has_it(forbid);
    assert_true(servant.orders->result && task_has_seccomp_filter(servant.pid));
    take();
    writes(0); /* it lives */
    assert_true(task_has_seccomp_filter(servant.pid));
}

static size_t count_descriptors(void)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/fd", servant.pid);
    size_t count = 0;
    for (int fd = 0; fd < 256; fd++) {
        char name[64], target[64];
        snprintf(name, sizeof(name), "%s/%d", path, fd);
        count += readlink(name, target, sizeof(target)) > 0;
    }
    return count;
}

static void nothing_is_left(void **state)
{
    (void)state;
    size_t before = count_descriptors();
    for (unsigned i = 0; i < ROUNDS; i++)
        take();
    assert_int_equal(count_descriptors(), before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG),
                     0); /* the helpers are reaped, the process is not */
    writes(0);
}

static void not_when_traced(void **state)
{
    (void)state;
    assert_int_equal(ptrace(PTRACE_SEIZE, servant.pid, NULL, NULL), 0);
    must_not_take(FAILURE_BUSY, "is traced by");
    ptrace(PTRACE_INTERRUPT, servant.pid, NULL, NULL);
    waitpid(servant.pid, NULL, 0);
    ptrace(PTRACE_DETACH, servant.pid, NULL, NULL);
    take();
}

static void not_when_stopped(void **state)
{
    (void)state;
    kill(servant.pid, SIGSTOP);
    waitpid(servant.pid, NULL, WUNTRACED);
    must_not_take(FAILURE_BUSY, "is stopped by a signal");
    kill(servant.pid, SIGCONT);
    writes(0);
    take();
}

static void do_vfork(struct orders *orders)
{
    pid_t other = (pid_t)syscall(SYS_vfork);
    if (other == 0) {
        struct timespec time = {.tv_nsec = 1000000};
        orders->numbers[0] = 1;
        while (!orders->result)
            syscall(SYS_nanosleep, &time, NULL);
        syscall(SYS_exit, 0);
    }
    waitpid(other, NULL, 0);
}

static void not_in_vfork(void **state)
{
    (void)state;
    servant.orders->numbers[0] = servant.orders->result = 0;
    servant_begin(&servant, do_vfork);
    while (servant.orders->numbers[0] == 0)
        usleep(1000);
    must_not_take(FAILURE_BUSY, "cannot be stopped");
    servant.orders->result = 1;
    servant_wait(&servant);
    writes(0);
    take();
}

static int wait_for_end(void *parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (getppid() == (pid_t)(intptr_t)parent)
        pause();
    return 0;
}

static void share_memory(struct orders *orders)
{
    static uint8_t stack[64 << 10];
    orders->numbers[0] = (uint64_t)clone(wait_for_end, stack + sizeof(stack), CLONE_VM | SIGCHLD,
                                         (void *)(intptr_t)getpid());
}

/* It is the first of the two that is followed, and no other godwit has it. */
static void not_twice_in_one_memory(void **state)
{
    (void)state;
    struct tracker second;
    struct error err;
    char expected[32];
    need_tracker();
    writes(0);
    must_scan("0");
    has_it(share_memory);
    pid_t kin = (pid_t)servant.orders->numbers[0];
    int r = tracker_open(&second, kin, NULL, &err);
    kill(kin, SIGKILL);
    assert_int_equal(r, -1);
    assert_int_equal(err.code, FAILURE_BUSY);
    snprintf(expected, sizeof(expected), "with process %d,", servant.pid);
    assert_non_null(strstr(err.text, expected));
    assert_int_equal(tracker_open(&second, servant.pid, NULL, &err), -1);
    assert_non_null(strstr(err.text, "followed already"));
}

static void not_when_gone(void **state)
{
    (void)state;
    kill(servant.pid, SIGKILL);
    waitpid(servant.pid, NULL, 0);
    must_not_take(FAILURE_NOT_FOUND, "has ended");
}

#define TRACKING(test) cmocka_unit_test_setup_teardown(test, begin_tracking, end_tracking)
#define PROCESS(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TRACKING(written_pages),
        TRACKING(dropped_pages),
        TRACKING(mapped_again),
        TRACKING(moved_pages),
        TRACKING(moved_to_what_was_moved),
        TRACKING(memory_of_a_child),
        TRACKING(protected_and_forked),
        TRACKING(pages_of_files),
        TRACKING(another_program),
        PROCESS(areas_that_change),
        TRACKING(all_areas),
        TRACKING(not_twice_in_one_memory),
        PROCESS(read_in_batches),
        PROCESS(read_of_nobody),
        PROCESS(nothing_is_seen_by_registers),
        PROCESS(nothing_is_seen_by_system_calls),
        PROCESS(signals_are_delivered),
        PROCESS(a_filter_is_not_asked),
        PROCESS(nothing_is_left),
        PROCESS(not_when_traced),
        PROCESS(not_when_stopped),
        PROCESS(not_in_vfork),
        PROCESS(not_when_gone),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
