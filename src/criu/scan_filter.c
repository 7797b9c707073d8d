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
 *   GODWIT_SCAN_FILTER_FD    a descriptor that gets two bytes: SCAN_FILTER_STILL when all tasks
 *                            stand still, for criu reads the first one's smaps (criu/cr-dump.c,
 *                            cr_dump_tasks()), and SCAN_FILTER_LESS at the first scan that is
 *                            narrowed.  Nothing is hidden before that has been told.
 *   GODWIT_SCAN_FILTER_HIDE  tasks of which nothing is shown, "12,15"
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu/scan_filter.h"

/* As linux/fs.h has it from 6.7 on. */
struct pagemap_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct pagemap_scan)

enum {
    SCAN_CHECK_TRACKED = 1 << 1, /* PM_SCAN_CHECK_WPASYNC */
    IS_WRITTEN = 1 << 1,
    IS_SWAPPED = 1 << 4,
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
