/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Which pages of a process exist, told by /proc/PID/pagemap: by PAGEMAP_SCAN (Linux 6.7), or by
 * reading an entry per page where the kernel has no such call.
 *
 * What exists is what criu would dump (CRIU criu/mem.c, should_dump_page()): pages that are in
 * memory or swapped out, but for those that are still a file's, the page of zeros that reading
 * maps, and guards.
 *
 * It stays with the memory that the process has when it is opened: a process that executes another
 * program leaves an empty one behind.  On any one thread.
 */
#include "task/memory.h"

struct page_region;

struct page_table {
    int fd;
    bool scans;                  /* PAGEMAP_SCAN works */
    uint64_t never;              /* categories of pages that criu does not take */
    struct page_region *regions; /* what one scan tells */
    uint64_t *entries;           /* what one reading tells; NULL: nothing was read yet */
    uint64_t zero_frame; /* then, where the kernel's page of zeros lies; 0: unknown, or none */
};

#define PAGE_TABLE_CLOSED ((struct page_table){.fd = -EBADF})

/* Categories of PAGEMAP_SCAN, and flags, as in linux/fs.h. */
enum {
    PAGE_TRACKED = 1 << 0, /* PAGE_IS_WPALLOWED: of an area that is registered */
    PAGE_WRITTEN = 1 << 1,
    PAGE_FILE = 1 << 2,
    PAGE_PRESENT = 1 << 3,
    PAGE_SWAPPED = 1 << 4,
    PAGE_ZERO = 1 << 5,  /* the kernel's own, PAGE_IS_PFNZERO */
    PAGE_GUARD = 1 << 8, /* of MADV_GUARD_INSTALL; told from Linux 6.15 on */

    SCAN_PROTECT = 1 << 0,       /* PM_SCAN_WP_MATCHING */
    SCAN_CHECK_TRACKED = 1 << 1, /* PM_SCAN_CHECK_WPASYNC */
};

/* 0, or a negative errno (-ESRCH: there is no such process).  Closed then. */
int page_table_open(struct page_table *table, pid_t pid);
void page_table_close(struct page_table *table); /* also one that is closed */

/* Adds the pages of an area that exist and are of all these categories.  Needs PAGEMAP_SCAN.  0 or
 * a negative errno. */
int page_table_scan(struct page_table *table, const struct memory_area *area, uint64_t flags,
                    uint64_t wanted, struct page_runs *runs);

/* Adds the pages of an area that exist, and to *written those of them that are PAGE_WRITTEN.
 * -EPERM: not all of it is tracked, and some may have been added. */
int page_table_scan_tracked(struct page_table *table, const struct memory_area *area,
                            struct page_runs *runs, struct page_runs *written);

/* Adds all pages of an area that exist, by whatever works.  0 or a negative errno. */
int page_table_list(struct page_table *table, const struct memory_area *area,
                    struct page_runs *runs);

/* The same of pages that have been written since page_table_clear(). */
int page_table_list_dirty(struct page_table *table, const struct memory_area *area,
                          struct page_runs *runs);

/* From now on no page of a process counts as written (/proc/PID/clear_refs, its soft-dirty bits);
 * what is mapped later does.  0 or a negative errno (-ESRCH: there is no such process). */
int page_table_clear(pid_t pid);

/* Whether this kernel notes what is written (CONFIG_MEM_SOFT_DIRTY). */
bool page_table_has_dirty(void);

/*
 * Divides pages of a process: those that are the very same memory as what another process has at
 * the same addresses, and that this other one, which is followed by a userfaultfd, has not written
 * since they were protected, are added to *same, the others to *rest.  Without CAP_SYS_ADMIN none
 * is the same.  0 or a negative errno.
 */
int page_table_divide(const struct page_table *table, const struct page_table *other,
                      const struct page_runs *runs, struct page_runs *same, struct page_runs *rest);

/* Whether other processes have some of these pages too, by fork; a guess, by a few of them. */
bool pages_are_shared(pid_t pid, const struct page_runs *runs);
