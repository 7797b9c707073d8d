/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sharing MB OUTFILE DIRTY_MBPS [KIND]: a parent and its child, which write to one piece of shared
 * memory, anonymous unless KIND is memfd or sysv: the parent to the even pages, some of them by a
 * second mapping, some of them given back and written anew with what they had; the child, whose
 * file is OUTFILE.child, to the odd ones.  Each knows what it has written in memory of its own;
 * SIGUSR1 as in selfcheck.
 */
#include <sys/shm.h>

#include "pages.h"

enum { WRITTEN_TWICE = 3, GIVEN_BACK = 6, KINDS = 8 }; /* of a page: its number modulo 8 */

static struct region all;
static unsigned char *again; /* the same memory */
static size_t mine;          /* 0: even pages, 1: odd ones */

static void give_back(size_t page)
{
    if (madvise(all.base + page * PAGE, PAGE, MADV_REMOVE) < 0)
        die("MADV_REMOVE");
    all.written -= all.version[page];
    all.version[page] = 0;
}

static void write_one(size_t page)
{
    if (page % KINDS == GIVEN_BACK && all.version[page] > 0)
        give_back(page); /* the next time it gets what it had the first time */
    else if (page % KINDS == WRITTEN_TWICE - 1)
        page_fill((uint64_t *)(again + page * PAGE),
                  (all.version[page]++, all.written++, page_key(&all, page)));
    else
        region_write(&all, page);
}

/* Of the other's pages nothing is known here. */
static void report_mine(const char *out, unsigned round)
{
    size_t bad = 0, first = 0;
    for (size_t page = mine; page < all.pages; page += 2) {
        if (!page_holds(&all, page) && bad++ == 0)
            first = page;
    }
    if (bad == 0)
        report(out, "ok %u", round);
    else
        report(out, "bad %u shared: %zu pages, first %zu version %u", round, bad, first,
               all.version[first]);
}

static void run(const char *out, double pages_per_ms)
{
    uint64_t random = 1 + mine;
    double owed = 0;
    for (unsigned round = 0;; sleep_us(1000)) {
        if (check_wanted) {
            check_wanted = 0;
            report_mine(out, ++round);
        }
        for (owed += pages_per_ms; owed >= 1; owed -= 1) {
            random = mix(random);
            write_one(random % (all.pages / 2) * 2 + mine);
        }
    }
}

/* Shared memory of that kind. */
static void *map(const char *kind, size_t bytes)
{
    if (strcmp(kind, "sysv") == 0)
        return shmat(shmget(IPC_PRIVATE, bytes, 0600), NULL, 0);
    int fd = strcmp(kind, "memfd") == 0 ? memfd_create("sharing", MFD_CLOEXEC) : -1;
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) < 0)
        die("ftruncate");
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                fd >= 0 ? MAP_SHARED : MAP_SHARED | MAP_ANONYMOUS, fd, 0);
}

int main(int argc, char **argv)
{
    size_t mb = argc == 4 || argc == 5 ? strtoul(argv[1], NULL, 10) : 0;
    char child[4096];

    if (mb == 0) {
        fprintf(stderr, "usage: sharing MB OUTFILE DIRTY_MBPS [KIND]\n");
        return 2;
    }
    settle();
    size_t bytes = mb << 20;
    region_init(&all, "shared", map(argc == 5 ? argv[4] : "anonymous", bytes), bytes / PAGE);
    again = mremap(all.base, 0, bytes, MREMAP_MAYMOVE);
    if (again == MAP_FAILED)
        die("mremap");
    region_write_each(&all, 0, 1);
    check_on_signal();
    check_wanted = 1;
    snprintf(child, sizeof(child), "%s.child", argv[2]);
    mine = fork() == 0;
    run(mine ? child : argv[2], atof(argv[3]) * (1 << 20) / PAGE / 1000);
}
