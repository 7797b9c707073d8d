/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The memory of a process that runs: what it has mapped, and pages of it, read in batches.
 *
 * What is read of a running process may be gone or different at once; that is told by a tracker
 * (task/tracker.h), not here.  Any thread.
 */
#include <sys/types.h>

#include "base/util.h"

enum memory_area_kind {
    AREA_PRIVATE, /* its own pages: anonymous, or copied from a file when written */
    AREA_SHARED,
    AREA_VDSO,
    AREA_KERNEL, /* vvar, vsyscall: the kernel's, and not the same anywhere else */
};

struct memory_area {
    uint64_t start, end;
    enum memory_area_kind kind;
    bool anonymous; /* what is not there reads as zero */
};

struct memory_map {
    struct memory_area *areas; /* ascending; no two have a page in common */
    size_t count;
};

/* Reads /proc/PID/maps, which may be changing.  0, to be freed, or a negative errno (-ESRCH: no
 * such process, or it has no memory any more). */
int memory_map_read(pid_t pid, struct memory_map *ret);
void memory_map_free(struct memory_map *map);

/* Reads bytes at an address.  How many, which is fewer at a hole, or a negative errno. */
ssize_t memory_read(pid_t pid, uint64_t address, void *buf, size_t length);

/* Pages that follow one another. */
struct page_run {
    uint64_t start; /* address */
    uint64_t pages;
    bool anonymous;
};

/* A growing list of them. */
struct page_runs {
    struct page_run *list;
    size_t count, room;
    uint64_t pages; /* of all */
};

/* Adds one, to the last if it follows that.  0 or -ENOMEM. */
int page_runs_add(struct page_runs *runs, uint64_t start, uint64_t pages, bool anonymous);
int page_runs_add_all(struct page_runs *to, const struct page_runs *from);
void page_runs_free(struct page_runs *runs);

/* Puts them in ascending order, and makes one of those that overlap or follow one another, whatever
 * sort they are of. */
void page_runs_sort(struct page_runs *runs);

/* Index of the first run that ends above an address; the runs ascend. */
size_t page_runs_seek(const struct page_runs *runs, uint64_t address);

/* Adds a run to *ret, less the pages that are in |minus|, whose runs ascend.  0 or -ENOMEM. */
int page_runs_add_without(struct page_runs *ret, const struct page_run *run,
                          const struct page_runs *minus);

enum {
    READ_RUNS_MAX = 256, /* in one batch */
};

/* Goes through a list of runs, reading. */
struct page_reader {
    pid_t pid;
    int mem_fd; /* /proc/PID/mem, for what the process itself may not read */
    const struct page_runs *runs;
    /* Reads in a slower way that leaves memory shared which processes have by fork:
     * process_vm_readv() gives the process a copy of its own (Linux 5.19: it pins pages). */
    bool gently;
    struct page_runs *missed; /* where pages that could not be read are told; NULL: nowhere */
    size_t next;              /* run */
    uint64_t skip;            /* pages of it that are done */
};

/* Opens; -errno when the process has gone. */
int page_reader_open(struct page_reader *reader, pid_t pid);
void page_reader_close(struct page_reader *reader);

/* Goes through these next; they are borrowed, as is |missed|, which may be NULL. */
void page_reader_begin(struct page_reader *reader, const struct page_runs *runs,
                       struct page_runs *missed);

/*
 * Reads the next pages, at most |pages| and READ_RUNS_MAX runs, one behind the other into buf, and
 * says in ret, an array of READ_RUNS_MAX, which they are.  Number of runs; 0 when all have been
 * read; or a negative errno (-ESRCH: the process has ended).  Pages that are not there any more, or
 * cannot be read, are left out and added to what is missed.
 */
int page_reader_next(struct page_reader *reader, void *buf, uint64_t pages, struct page_run *ret);
