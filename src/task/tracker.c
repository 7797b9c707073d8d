/* SPDX-License-Identifier: Apache-2.0 */
#include "task/tracker.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "base/pagemap_scan.h"
#include "task/inject.h"
#include "task/kin.h"

enum {
    FEATURE_SHMEM = 1 << 12, /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM, as in linux/userfaultfd.h */
    FEATURE_UNPOPULATED = 1 << 13,
    FEATURE_ASYNC = 1 << 15,
};

/* Whether the area, if it is there still, has pages that somebody follows. */
static bool is_tracked(struct page_table *table, const struct memory_area *area)
{
    struct page_runs runs = {0};
    bool tracked = page_table_scan(table, area, SCAN_CHECK_TRACKED, PAGE_TRACKED, &runs) == 0 &&
                   runs.count > 0;
    page_runs_free(&runs);
    return tracked;
}

static bool has_tracker(struct page_table *table, pid_t pid)
{
    struct memory_map map;
    if (memory_map_read(pid, &map) < 0)
        return false;
    bool found = false;
    for (size_t i = 0; i < map.count && !found; i++)
        found = map.areas[i].kind == AREA_PRIVATE && map.areas[i].anonymous &&
                is_tracked(table, &map.areas[i]);
    memory_map_free(&map);
    return found;
}

/* Whose tracker it is. */
static int refuse_second(pid_t pid, struct error *err)
{
    pid_t kin = kin_of(pid);
    if (kin > 0)
        return error_set(err, FAILURE_BUSY,
                         "process %d has one memory with process %d, and that is followed already",
                         pid, kin);
    return error_set(err, FAILURE_BUSY, "process %d is followed already, by another godwit", pid);
}

int tracker_open(struct tracker *tracker, pid_t pid, const struct task_helpers *helpers,
                 struct error *err)
{
    char path[32];
    *tracker = (struct tracker){.uffd = -EBADF, .maps = -EBADF};
    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    tracker->maps = open(path, O_RDONLY | O_CLOEXEC);
    int r = page_table_open(&tracker->table, pid);
    if (r < 0) {
        tracker_close(tracker);
        return error_set_errno(err, r == -ESRCH ? FAILURE_NOT_FOUND : FAILURE_SYSTEM, r,
                               "/proc/%d/pagemap", pid);
    }
    if (!tracker->table.scans) {
        tracker_close(tracker);
        return error_set(err, FAILURE_SYSTEM, "this kernel has no PAGEMAP_SCAN (Linux 6.7)");
    }
    if (has_tracker(&tracker->table, pid)) {
        tracker_close(tracker);
        return refuse_second(pid, err);
    }
    tracker->uffd = task_take_userfaultfd(pid, helpers, &tracker->stopped_nsec, err);
    struct uffdio_api api = {.api = UFFD_API,
                             .features = FEATURE_SHMEM | FEATURE_UNPOPULATED | FEATURE_ASYNC};
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
    tracker->maps = close_fd(tracker->maps);
    page_table_close(&tracker->table);
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

static int scan(struct tracker *tracker, const struct memory_area *area, uint64_t flags,
                uint64_t wanted, struct page_runs *runs)
{
    int r = page_table_scan(&tracker->table, area, flags, wanted, runs);
    return r < 0 ? r : check_alive(tracker);
}

/* Whether a mapping begins, or ends, at that address; a kernel that cannot tell is believed. */
static bool is_bound(const struct tracker *tracker, uint64_t start, uint64_t end)
{
    struct map_query query = {.size = sizeof(query), .address = start ? start : end - 1};
    if (ioctl(tracker->maps, MAP_QUERY, &query) < 0)
        return errno == ENOTTY;
    return start ? query.start == start : query.end == end;
}

/* Whether nothing that goes on beyond it would be cut in two by registering the area. */
static bool is_as_it_was(const struct tracker *tracker, const struct memory_area *area)
{
    return is_bound(tracker, area->start, 0) && is_bound(tracker, 0, area->end);
}

/*
 * Where mremap() has made one mapping of a tracked one and what was beside it, the kernel lets go
 * of both and leaves the bits of protected pages where they are (so far up to Linux 6.18; before
 * 6.13, where that was not mended later, also those of what was moved).  Such a page can be written
 * without a fault, and if it kept its bit no scan would ever protect it, nor tell of it.
 *
 * 0; -EPERM: it changes right now, and is not registered; -ESRCH: it has gone; or another negative
 * errno: it may be registered.
 */
static int forget_protection(const struct tracker *tracker, const struct memory_area *area)
{
    struct uffdio_range range = {area->start, area->end - area->start};
    struct uffdio_writeprotect none = {.range = range};
    if (ioctl(tracker->uffd, UFFDIO_WRITEPROTECT, &none) == 0)
        return 0;
    if (errno == ESRCH)
        return -ESRCH;
    /* EINVAL: nothing is mapped there. */
    return ioctl(tracker->uffd, UFFDIO_UNREGISTER, &range) < 0 && errno != EINVAL ? -errno : -EPERM;
}

/* 0; -EBUSY: another tracker has it; -EPERM: it cannot be registered, or changes right now; or
 * another negative errno. */
static int add_area(struct tracker *tracker, const struct memory_area *area)
{
    struct uffdio_register ask = {
        .range = {area->start, area->end - area->start},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    if (!is_as_it_was(tracker, area))
        return -EPERM;
    if (ioctl(tracker->uffd, UFFDIO_REGISTER, &ask) < 0)
        return errno == EBUSY && is_tracked(&tracker->table, area) ? -EBUSY : -EPERM;
    tracker->begun = true;
    return forget_protection(tracker, area);
}

int tracker_scan(struct tracker *tracker, const struct memory_area *area, struct page_runs *runs)
{
    int r = -EPERM;
    if (tracker->begun)
        r = scan(tracker, area, SCAN_PROTECT | SCAN_CHECK_TRACKED, PAGE_WRITTEN, runs);
    if (r != -EPERM)
        return r;
    /*
     * Some of it is new since the last scan.  What the kernel says of its pages does not count:
     * those that mremap() has moved may be protected from where they were (before Linux 6.13).
     */
    r = add_area(tracker, area);
    if (r == 0)
        r = scan(tracker, area, SCAN_PROTECT | SCAN_CHECK_TRACKED, 0, runs);
    if (r != -EPERM)
        return r;
    /*
     * It is no such thing as can be registered, or changes right now.  A scan that has ended in the
     * midst has protected pages and told of none, so all that is there is told; criu is shown what
     * is not registered anyway.
     */
    return scan(tracker, area, 0, 0, runs);
}

int tracker_list_written(struct tracker *tracker, const struct memory_area *area,
                         struct page_runs *runs, struct page_runs *written)
{
    int r = page_table_scan_tracked(&tracker->table, area, runs, written);
    return r < 0 ? r : check_alive(tracker);
}

int tracker_list(struct tracker *tracker, const struct memory_area *area, struct page_runs *runs)
{
    return scan(tracker, area, 0, 0, runs);
}

int tracker_list_tracked(struct tracker *tracker, const struct memory_area *area,
                         struct page_runs *runs)
{
    return scan(tracker, area, 0, PAGE_TRACKED, runs);
}
