/* SPDX-License-Identifier: Apache-2.0 */
/*
 * selfcheck MB OUTFILE [DIRTY_MBPS]: memory of every common kind with known content; SIGUSR1 has it
 * checked to the last bit and "ok N" or "bad N ..." written to OUTFILE (N counts the checks; "ok 0"
 * = filled).  OUTFILE.map beside it is the file under the private file mapping.
 */
#include "pages.h"

enum { PRIVATE_LOW, PRIVATE_HIGH, READ_ONLY, SHARED, MEMFD, SPARSE, FILE_PRIVATE, REGIONS };

#define HOLE_PAGES 16
#define SPARSE_STEP 16

static struct region regions[REGIONS];

static void *map(size_t pages, int flags, int fd)
{
    return mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
}

/* One mapping with PROT_NONE holes in the middle and at the end: the halves are VMAs of their own.
 */
static void make_private(size_t pages)
{
    size_t half = pages / 2;
    unsigned char *p = map(pages + 2 * HOLE_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);

    if (p == MAP_FAILED || mprotect(p + half * PAGE, HOLE_PAGES * PAGE, PROT_NONE) < 0 ||
        mprotect(p + (pages + HOLE_PAGES) * PAGE, HOLE_PAGES * PAGE, PROT_NONE) < 0)
        die("private");
    region_init(&regions[PRIVATE_LOW], "private-low", p, half);
    region_init(&regions[PRIVATE_HIGH], "private-high", p + (half + HOLE_PAGES) * PAGE,
                pages - half);
    region_write_each(&regions[PRIVATE_LOW], 0, 1);
    region_write_each(&regions[PRIVATE_HIGH], 0, 1);
}

static void make_read_only(size_t pages)
{
    struct region *r = &regions[READ_ONLY];

    region_init(r, "read-only", map(pages, MAP_PRIVATE | MAP_ANONYMOUS, -1), pages);
    region_write_each(r, 0, 1);
    r->writable = false;
    if (mprotect(r->base, pages * PAGE, PROT_READ) < 0)
        die("read-only");
}

static void make_shared(size_t pages)
{
    int fd = memfd_create("selfcheck", 0);

    if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
        die("memfd");
    region_init(&regions[SHARED], "shared", map(pages, MAP_SHARED | MAP_ANONYMOUS, -1), pages);
    region_init(&regions[MEMFD], "memfd", map(pages, MAP_SHARED, fd), pages);
    region_write_each(&regions[SHARED], 0, 1);
    region_write_each(&regions[MEMFD], 0, 1);
}

static void make_sparse(size_t pages)
{
    region_init(&regions[SPARSE], "sparse", map(pages, MAP_PRIVATE | MAP_ANONYMOUS, -1), pages);
    region_write_each(&regions[SPARSE], 0, SPARSE_STEP);
}

/* Pages of the file hold version 0; every other one is then written, so copied from the file. */
static void make_file_private(const char *out, size_t pages)
{
    struct region *r = &regions[FILE_PRIVATE];
    uint64_t words[PAGE_WORDS];
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s.map", out);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
        die(path);
    region_init(r, "file-private", map(pages, MAP_PRIVATE, fd), pages);
    r->zero_born = false;
    for (size_t page = 0; page < pages; page++) {
        page_fill(words, page_key(r, page));
        if (pwrite(fd, words, PAGE, (off_t)(page * PAGE)) != PAGE)
            die(path);
    }
    close(fd);
    region_write_each(r, 0, 2);
}

static void dirty_one(uint64_t *random)
{
    struct region *r;
    size_t total = 0, at;

    for (size_t i = 0; i < REGIONS; i++)
        total += regions[i].writable ? regions[i].pages : 0;
    *random = mix(*random);
    at = *random % total;
    for (r = regions; !r->writable || at >= r->pages; r++)
        at -= r->writable ? r->pages : 0;
    /* Never-touched pages of the sparse region stay so. */
    region_write(r, r == &regions[SPARSE] ? at - at % SPARSE_STEP : at);
}

static void run(const char *out, double pages_per_ns)
{
    uint64_t last = now_ns(), random = 1;
    unsigned round = 0;
    double owed = 0;

    for (;;) {
        if (check_wanted) {
            check_wanted = 0;
            regions_report(regions, REGIONS, out, ++round);
        }
        uint64_t now = now_ns(), passed = now > last ? now - last : 0;
        if (passed > 100000000)
            passed = 100000000; /* what was missed while frozen is not made up for */
        for (owed += (double)passed * pages_per_ns; owed >= 1; owed -= 1)
            dirty_one(&random);
        last = now;
        sleep_us(1000);
    }
}

int main(int argc, char **argv)
{
    size_t mb = argc > 2 ? strtoul(argv[1], NULL, 10) : 0;
    double mbps = argc > 3 ? atof(argv[3]) : 0;

    if (mb == 0) {
        fprintf(stderr, "usage: selfcheck MB OUTFILE [DIRTY_MBPS]\n");
        return 2;
    }
    settle();
    size_t pages = mb * 256, extra = mb < 16 ? 256 : pages / 16;
    make_private(pages);
    make_read_only(extra);
    make_shared(extra);
    make_sparse(4 * extra);
    make_file_private(argv[2], extra);
    check_on_signal();
    report(argv[2], "ok 0");
    run(argv[2], mbps * 256 / 1e9);
}
