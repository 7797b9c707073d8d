/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ghost OUTFILE MB [LENGTH]: keeps open a deleted file of MB, and a small deleted one whose name
 * has LENGTH bytes (at most 255), both beside OUTFILE; SIGUSR1 has their content and offsets
 * checked, as in selfcheck. The default is 240: CRIU dumps longer names, but its restore appends
 * ".cr.ID.ghost" to them and fails.
 */
#include "pages.h"

struct ghost {
    int fd;
    size_t pages;
    uint64_t seed;
};

static struct ghost ghost_make(const char *path, size_t pages, uint64_t seed)
{
    struct ghost g = {open(path, O_RDWR | O_CREAT | O_EXCL, 0600), pages, seed};
    uint64_t words[PAGE_WORDS];

    if (g.fd < 0)
        die(path);
    for (size_t page = 0; page < pages; page++) {
        page_fill(words, mix(seed + page));
        if (write(g.fd, words, PAGE) != PAGE)
            die(path);
    }
    if (unlink(path) < 0)
        die(path);
    return g;
}

static bool ghost_holds(const struct ghost *g)
{
    uint64_t want[PAGE_WORDS], got[PAGE_WORDS];
    off_t size = (off_t)(g->pages * PAGE);
    struct stat st;

    if (fstat(g->fd, &st) < 0 || st.st_nlink != 0 || st.st_size != size ||
        lseek(g->fd, 0, SEEK_CUR) != size)
        return false;
    for (size_t page = 0; page < g->pages; page++) {
        page_fill(want, mix(g->seed + page));
        if (pread(g->fd, got, PAGE, (off_t)(page * PAGE)) != PAGE || memcmp(got, want, PAGE) != 0)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    size_t mb = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    char path[4096], longest[256];
    size_t length = argc > 3 ? strtoul(argv[3], NULL, 10) : 240;
    unsigned round = 0;

    if (mb == 0 || length == 0 || length > 255) {
        fprintf(stderr, "usage: ghost OUTFILE MB [LENGTH]\n");
        return 2;
    }
    settle();
    snprintf(path, sizeof(path), "%s.ghost", argv[1]);
    struct ghost large = ghost_make(path, mb * 256, 1);
    memset(longest, 'n', length);
    longest[length] = 0;
    const char *slash = strrchr(argv[1], '/');
    snprintf(path, sizeof(path), "%.*s%s", slash ? (int)(slash - argv[1] + 1) : 0, argv[1],
             longest);
    struct ghost named = ghost_make(path, 3, 2);
    check_on_signal();
    report(argv[1], "ok 0");
    for (;; sleep_us(1000)) {
        if (!check_wanted)
            continue;
        check_wanted = 0;
        round++;
        if (ghost_holds(&large) && ghost_holds(&named))
            report(argv[1], "ok %u", round);
        else
            report(argv[1], "bad %u ghost file differs", round);
    }
}
