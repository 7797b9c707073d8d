/* SPDX-License-Identifier: Apache-2.0 */
/*
 * godwit-scan-filter.so: preloaded into criu dump, it narrows criu's list of pages to those that
 * have been written since godwit's last scan, so that criu takes and sends only these in the freeze
 * (task/tracker.h; CRIU criu/pagemap-cache.c, pmc_fill()).  What exists besides them godwit has
 * sent before, and it lists that itself.
 *
 * Only memory that is registered for asynchronous write protection is narrowed; the kernel says so
 * itself (PM_SCAN_CHECK_WPASYNC).  Any other range, and one that is in part something else, is
 * criu's in full.
 *
 * Of some tasks criu is shown nothing: godwit lists all that exists of them by criu's own criteria,
 * and sends what has changed (task/follow.h).  What criu dumps of them is what it dumps without
 * looking here, the vdso and rings of asynchronous I/O.  criu may also read their pagemaps: then
 * the entries are empty.  A single entry is left alone; criu looks for other things by that, and if
 * it was for a page to dump, that page is sent by both.
 *
 * No library: criu may run under a loader and a libc of its own, so nothing here names a version of
 * a symbol.
 *
 * When criu begins to look at memory all tasks stand still (criu/cr-dump.c, cr_dump_tasks(): smaps
 * of the first one), and godwit scans them too.  What that says need not be asked of the kernel
 * once more.  See criu/scan_filter.h for what is said and how.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/pagemap_scan.h"
#include "criu/scan_filter.h"

enum {
    SCAN_CHECK_TRACKED = 1 << 1, /* PM_SCAN_CHECK_WPASYNC */
    IS_WRITTEN = 1 << 1,
    IS_FILE = 1 << 2,
    IS_PRESENT = 1 << 3,
    IS_SWAPPED = 1 << 4,
    IS_ZERO = 1 << 5,
};

/* Once; whether it has been told. */
static int tell(char what)
{
    static char told[2];
    char *is_told = &told[what == SCAN_FILTER_LESS];
    const char *fd = getenv("GODWIT_SCAN_FILTER_FD");
    if (!*is_told && fd && write(atoi(fd), &what, 1) == 1)
        *is_told = 1;
    return *is_told;
}

/* ---- tasks that are hidden ---- */

/* Goes on behind it; -1: there is none. */
static long take_number(const char **text)
{
    long number = -1;
    for (; **text >= '0' && **text <= '9'; (*text)++)
        number = (number < 0 ? 0 : number) * 10 + (**text - '0');
    return number;
}

static int is_listed(long pid)
{
    const char *list = getenv("GODWIT_SCAN_FILTER_HIDE");
    while (list && *list) {
        if (take_number(&list) == pid)
            return 1;
        if (*list)
            list++;
    }
    return 0;
}

/* The task that a descriptor is the pagemap of, which is called "/proc/12/pagemap"; or -1. */
static long task_of(int fd)
{
    static const char name[] = "/pagemap";
    char path[32] = "/proc/self/fd/", target[64], *at = path + sizeof("/proc/self/fd/") - 1;
    for (int unit = 1000000000; unit > 0; unit /= 10) {
        if (fd >= unit || unit == 1)
            *at++ = (char)('0' + fd / unit % 10);
    }
    *at = '\0';
    long n = syscall(SYS_readlink, path, target, sizeof(target) - 1);
    if (n < (long)sizeof(name))
        return -1;
    target[n] = '\0';
    long end = n - (long)sizeof(name) + 1, start = end;
    while (start > 0 && target[start - 1] >= '0' && target[start - 1] <= '9')
        start--;
    if (strcmp(target + end, name) != 0 || start == 0 || target[start - 1] != '/')
        return -1;
    const char *number = target + start;
    return take_number(&number);
}

static int is_hidden(int fd)
{
    static long latest = -1;
    static int listed;
    if (!getenv("GODWIT_SCAN_FILTER_HIDE") || fd < 0)
        return 0;
    long pid = task_of(fd);
    if (pid < 0)
        return 0;
    if (pid != latest) {
        latest = pid;
        listed = is_listed(pid);
    }
    return listed && tell(SCAN_FILTER_LESS);
}

/* ---- what godwit has scanned ---- */

/* Waits for it, once.  NULL: there is none. */
static const struct scan_filter_table *table(void)
{
    static const struct scan_filter_table *mapped;
    static int looked;
    const char *fd = getenv("GODWIT_SCAN_FILTER_FD"), *file = getenv("GODWIT_SCAN_FILTER_TABLE");
    struct scan_filter_table head;
    char byte;
    if (looked || !fd || !file)
        return mapped;
    looked = 1;
    /* At the end of file godwit has gone. */
    if (read(atoi(fd), &byte, 1) != 1 ||
        syscall(SYS_pread64, atoi(file), &head, sizeof(head), 0L) != sizeof(head))
        return NULL;
    uint64_t bytes = sizeof(head) + head.tasks * sizeof(struct scan_filter_task) +
                     head.ranges * sizeof(struct scan_filter_range);
    /* Longs: the upper half of an int among the arguments may be anything. */
    long at = syscall(SYS_mmap, 0L, bytes, PROT_READ, MAP_PRIVATE, atoi(file), 0L);
    mapped = at > -4096 && at < 0 ? NULL : (const struct scan_filter_table *)at;
    return mapped;
}

static const struct scan_filter_task *tasks_of(const struct scan_filter_table *scanned)
{
    return (const struct scan_filter_task *)(scanned + 1);
}

static const struct scan_filter_range *ranges_of(const struct scan_filter_table *scanned)
{
    return (const struct scan_filter_range *)(tasks_of(scanned) + scanned->tasks);
}

/* Index of the first range that ends above an address. */
static uint64_t range_above(const struct scan_filter_range *ranges, uint64_t count, uint64_t vaddr)
{
    uint64_t low = 0, high = count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (ranges[middle].end <= vaddr)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The task, if all that is asked for has been scanned. */
static const struct scan_filter_task *find_scanned(const struct scan_filter_table *scanned,
                                                   long pid, const struct pagemap_scan *ask)
{
    const struct scan_filter_range *ranges = ranges_of(scanned);
    for (uint64_t i = 0; i < scanned->tasks; i++) {
        const struct scan_filter_task *task = &tasks_of(scanned)[i];
        const struct scan_filter_range *areas = ranges + task->first_area;
        if (task->pid != (uint64_t)pid)
            continue;
        uint64_t at = range_above(areas, task->areas, ask->start);
        return at < task->areas && areas[at].start <= ask->start && areas[at].end >= ask->end ? task
                                                                                              : 0;
    }
    return 0;
}

/* As the kernel would: the number of regions, and where it has got to. */
static long fill_regions(const struct scan_filter_table *scanned,
                         const struct scan_filter_task *task, struct pagemap_scan *ask)
{
    struct page_region *regions = (struct page_region *)ask->vec;
    const struct scan_filter_range *runs = ranges_of(scanned) + task->first_run;
    uint64_t i = range_above(runs, task->runs, ask->start), n = 0;
    for (; i < task->runs && runs[i].start < ask->end; i++) {
        if (n == ask->vec_len) {
            ask->walk_end = regions[n - 1].end;
            return (long)n;
        }
        regions[n++] = (struct page_region){
            .start = runs[i].start > ask->start ? runs[i].start : ask->start,
            .end = runs[i].end < ask->end ? runs[i].end : ask->end,
            .categories = ask->return_mask & IS_PRESENT,
        };
    }
    ask->walk_end = ask->end;
    return (long)n;
}

/* Whether criu asks for what godwit has asked for (criu/pagemap-cache.c, pmc_fill()). */
static int is_known(const struct pagemap_scan *ask)
{
    uint64_t never = IS_ZERO | IS_FILE;
    return ask->mask == never && ask->inverted == never &&
           ask->anyof_mask == (IS_PRESENT | IS_SWAPPED) && ask->max_pages == 0 && ask->vec_len > 0;
}

/* -1: the kernel is to be asked. */
static long answer(int fd, struct pagemap_scan *ask)
{
    const struct scan_filter_table *scanned = is_known(ask) ? table() : NULL;
    const struct scan_filter_task *task = scanned ? find_scanned(scanned, task_of(fd), ask) : NULL;
    return task && tell(SCAN_FILTER_LESS) ? fill_regions(scanned, task, ask) : -1;
}

/* ---- what criu asks ---- */

/* Whether this is the scan for pages to dump; criu asks for other things at its start. */
static int is_for_dump(const struct pagemap_scan *ask)
{
    return ask->size == sizeof(*ask) && ask->flags == 0 && ask->anyof_mask & IS_SWAPPED;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    va_start(ap, request);
    void *argument = va_arg(ap, void *);
    va_end(ap);
    struct pagemap_scan *ask = argument;
    int for_dump = (uint32_t)request == (uint32_t)SCAN && is_for_dump(ask);
    if (for_dump && is_hidden(fd)) {
        ask->walk_end = ask->end;
        return 0;
    }
    long known = for_dump ? answer(fd, ask) : -1;
    if (known >= 0)
        return (int)known;
    if (for_dump) {
        struct pagemap_scan narrow = *ask;
        narrow.flags = SCAN_CHECK_TRACKED;
        narrow.mask |= IS_WRITTEN;
        long n = syscall(SYS_ioctl, fd, request, &narrow);
        if (n >= 0) {
            ask->walk_end = narrow.walk_end;
            tell(SCAN_FILTER_LESS);
            return (int)n;
        }
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}

static ssize_t read_at(int fd, void *buf, size_t count, off_t offset)
{
    long n = syscall(SYS_pread64, fd, buf, count, offset);
    if (n > (long)sizeof(uint64_t) && is_hidden(fd))
        memset(buf, 0, (size_t)n);
    return n;
}

/* Where there is no PAGEMAP_SCAN. */
__attribute__((visibility("default"))) ssize_t pread(int fd, void *buf, size_t count, off_t offset)
{
    return read_at(fd, buf, count, offset);
}

__attribute__((visibility("default"))) ssize_t pread64(int fd, void *buf, size_t count,
                                                       off64_t offset)
{
    return read_at(fd, buf, count, offset);
}

static int open_at(int dir, const char *path, int flags, mode_t mode)
{
    if (strcmp(path, "smaps") == 0)
        tell(SCAN_FILTER_STILL);
    return (int)syscall(SYS_openat, dir, path, flags, mode);
}

/* The mode is garbage where none is needed, as in libc; the kernel does not look at it then. */
#define OPEN_AT(dir, path, flags)                                                                  \
    ({                                                                                             \
        va_list ap;                                                                                \
        va_start(ap, flags);                                                                       \
        mode_t mode = va_arg(ap, mode_t);                                                          \
        va_end(ap);                                                                                \
        open_at(dir, path, flags, mode);                                                           \
    })

__attribute__((visibility("default"))) int openat(int dir, const char *path, int flags, ...)
{
    return OPEN_AT(dir, path, flags);
}

__attribute__((visibility("default"))) int openat64(int dir, const char *path, int flags, ...)
{
    return OPEN_AT(dir, path, flags);
}
