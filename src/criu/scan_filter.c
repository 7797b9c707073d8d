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
 * No library: criu may run under a loader and a libc of its own, so nothing here names a version of
 * a symbol.  GODWIT_SCAN_FILTER_FD: a descriptor that gets one byte at the first narrowed scan; all
 * tasks stand still by then.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

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

static int told;

static void tell(void)
{
    const char *fd = getenv("GODWIT_SCAN_FILTER_FD");
    if (!told && fd && write(atoi(fd), "", 1) < 0)
        return;
    told = 1;
}

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
    if ((uint32_t)request == (uint32_t)SCAN && is_for_dump(ask)) {
        struct pagemap_scan narrow = *ask;
        narrow.flags = SCAN_CHECK_TRACKED;
        narrow.mask |= IS_WRITTEN;
        long n = syscall(SYS_ioctl, fd, request, &narrow);
        if (n >= 0) {
            ask->walk_end = narrow.walk_end;
            tell();
            return (int)n;
        }
    }
    return (int)syscall(SYS_ioctl, fd, request, argument);
}
