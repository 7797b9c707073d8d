/* SPDX-License-Identifier: Apache-2.0 */
#include "task/tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "task/inject.h"

/* As linux/fs.h has them from 6.7 on, and linux/userfaultfd.h. */
struct page_region {
    uint64_t start, end, categories;
};

struct pagemap_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct pagemap_scan)

enum {
    SCAN_PROTECT = 1 << 0,       /* PM_SCAN_WP_MATCHING */
    SCAN_CHECK_TRACKED = 1 << 1, /* PM_SCAN_CHECK_WPASYNC */

    IS_TRACKED = 1 << 0, /* PAGE_IS_WPALLOWED: of a registered area */
    IS_WRITTEN = 1 << 1,
    IS_FILE = 1 << 2,
    IS_PRESENT = 1 << 3,
    IS_SWAPPED = 1 << 4,
    IS_ZERO_PAGE = 1 << 5, /* the kernel's own, PAGE_IS_PFNZERO */
    IS_GUARD = 1 << 8,     /* of MADV_GUARD_INSTALL; told from Linux 6.15 on */

    FEATURE_SHMEM = 1 << 12, /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM */
    FEATURE_UNPOPULATED = 1 << 13,
    FEATURE_ASYNC = 1 << 15,

    REGIONS = 4096,
};

/* Whether the kernel knows a category of pages. */
static bool knows(const struct tracker *tracker, uint64_t category)
{
    struct pagemap_scan ask = {
        .size = sizeof(ask),
        .end = PAGE_BYTES,
        .vec = (uintptr_t)tracker->regions,
        .vec_len = REGIONS,
        .anyof_mask = category,
        .return_mask = category,
    };
    return ioctl(tracker->pagemap, SCAN, &ask) >= 0;
}

int tracker_open(struct tracker *tracker, pid_t pid, struct error *err)
{
    char path[32];
    *tracker = (struct tracker){.pid = pid, .uffd = -EBADF, .pagemap = -EBADF};
    snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
    tracker->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (tracker->pagemap < 0)
        return error_set_errno(err, errno == ENOENT ? FAILURE_NOT_FOUND : FAILURE_SYSTEM, errno,
                               "%s", path);
    tracker->regions = calloc(REGIONS, sizeof(*tracker->regions));
    if (!tracker->regions) {
        tracker_close(tracker);
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a tracker");
    }
    tracker->uffd = task_take_userfaultfd(pid, &tracker->stopped_nsec, err);
    struct uffdio_api api = {.api = UFFD_API,
                             .features = FEATURE_SHMEM | FEATURE_UNPOPULATED | FEATURE_ASYNC};
    tracker->never = IS_FILE | IS_ZERO_PAGE | (knows(tracker, IS_GUARD) ? IS_GUARD : 0);
    if (tracker->uffd >= 0 && ioctl(tracker->uffd, UFFDIO_API, &api) == 0)
        return 0;
    if (tracker->uffd >= 0)
        error_set_errno(err, FAILURE_SYSTEM, errno,
                        "this kernel does not write-protect asynchronously (Linux 6.7)");
    tracker_close(tracker);
    return -1;
}

void tracker_close(struct tracker *tracker)
{
    tracker->uffd = close_fd(tracker->uffd);
    tracker->pagemap = close_fd(tracker->pagemap);
    free(tracker->regions);
    tracker->regions = NULL;
}

/*
 * The tables of a process that has executed another program are empty, and to look at them is no
 * error; to ask its userfaultfd is.  Nothing is ever mapped at this address, which is the last
 * page.
 */
static int check_alive(const struct tracker *tracker)
{
    struct uffdio_writeprotect ask = {
        .range = {0x7fffffffe000, PAGE_BYTES},
        .mode = UFFDIO_WRITEPROTECT_MODE_WP,
    };
    return ioctl(tracker->uffd, UFFDIO_WRITEPROTECT, &ask) < 0 && errno == ESRCH ? -ESRCH : 0;
}

/* Adds the pages of an area that are of all these categories, and of none of those.  0 or a
 * negative errno. */
static int scan(struct tracker *tracker, const struct memory_area *area, uint64_t flags,
                uint64_t wanted, uint64_t unwanted, struct page_runs *runs)
{
    /* What criu takes: neither of a file, nor the page of zeros that reading had mapped, nor a
     * guard. */
    unwanted |= tracker->never;
    struct pagemap_scan ask = {
        .size = sizeof(ask),
        .flags = flags,
        .start = area->start,
        .end = area->end,
        .vec = (uintptr_t)tracker->regions,
        .vec_len = REGIONS,
        .inverted = unwanted,
        .mask = unwanted | wanted,
        .anyof_mask = IS_PRESENT | IS_SWAPPED,
        .return_mask = IS_PRESENT,
    };
    while (ask.start < area->end) {
        int n = ioctl(tracker->pagemap, SCAN, &ask);
        if (n < 0)
            return errno == EINTR ? -EAGAIN : -errno;
        for (int i = 0; i < n; i++) {
            const struct page_region *region = &tracker->regions[i];
            if (page_runs_add(runs, region->start, (region->end - region->start) / PAGE_BYTES,
                              area->anonymous) < 0)
                return -ENOMEM;
        }
        ask.start = ask.walk_end;
    }
    return check_alive(tracker);
}

int tracker_scan(struct tracker *tracker, const struct memory_area *area, struct page_runs *runs)
{
    int r = scan(tracker, area, SCAN_PROTECT | SCAN_CHECK_TRACKED, IS_WRITTEN, 0, runs);
    if (r != -EPERM)
        return r;
    /*
     * Some of it is new since the last scan.  What the kernel says of its pages does not count:
     * those that mremap() has moved may be protected from where they were (before Linux 6.13).
     */
    struct uffdio_register ask = {
        .range = {area->start, area->end - area->start},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    if (ioctl(tracker->uffd, UFFDIO_REGISTER, &ask) < 0)
        return check_alive(tracker) < 0            ? -ESRCH
               : errno == EINVAL || errno == EPERM ? -EOPNOTSUPP
                                                   : -errno;
    return scan(tracker, area, SCAN_PROTECT | SCAN_CHECK_TRACKED, 0, 0, runs);
}

int tracker_list(struct tracker *tracker, const struct memory_area *area, struct page_runs *runs)
{
    return scan(tracker, area, 0, 0, 0, runs);
}

int tracker_list_tracked(struct tracker *tracker, const struct memory_area *area,
                         struct page_runs *runs)
{
    return scan(tracker, area, 0, IS_TRACKED, 0, runs);
}
