/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hugemap OUTFILE [MB]: a private mapping of huge pages with known content; SIGUSR1 has it checked,
 * as in selfcheck.  Exits 77 when no huge pages can be had.
 */
#include "pages.h"

int main(int argc, char **argv)
{
    struct region r;
    size_t mb = argc > 2 ? strtoul(argv[2], NULL, 10) : 4;
    unsigned round = 0;

    if (argc < 2 || mb == 0) {
        fprintf(stderr, "usage: hugemap OUTFILE [MB]\n");
        return 2;
    }
    settle();
    size_t size = (mb + 1) / 2 * (2 << 20);
    void *p =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (p == MAP_FAILED) {
        report(argv[1], "skip no huge pages: %s", strerror(errno));
        return EXIT_SKIP;
    }
    region_init(&r, "huge", p, size / PAGE);
    region_write_each(&r, 0, 3);
    check_on_signal();
    report(argv[1], "ok 0");
    for (;; sleep_us(1000)) {
        if (!check_wanted)
            continue;
        check_wanted = 0;
        regions_report(&r, 1, argv[1], ++round);
    }
}
