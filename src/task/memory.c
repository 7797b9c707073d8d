/* SPDX-License-Identifier: Apache-2.0 */
#include "task/memory.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

/* ---- maps ---- */

static bool begins(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

static enum memory_area_kind kind_of(const char *permissions, const char *name)
{
    if (begins(name, "[vdso]"))
        return AREA_VDSO;
    if (begins(name, "[vvar") || begins(name, "[vsyscall]") || begins(name, "[uprobes]"))
        return AREA_KERNEL;
    return permissions[3] == 'p' ? AREA_PRIVATE : AREA_SHARED;
}

/* A line of /proc/PID/maps, see proc(5). */
static bool parse_area(const char *line, struct memory_area *ret)
{
    unsigned long long start, end, inode;
    char permissions[5];
    int name_at = 0;
    if (sscanf(line, "%llx-%llx %4s %*x %*x:%*x %llu %n", &start, &end, permissions, &inode,
               &name_at) < 4)
        return false;
    *ret = (struct memory_area){
        .start = start,
        .end = end,
        .kind = kind_of(permissions, line + name_at),
        .anonymous = inode == 0,
    };
    return true;
}

/*
 * The file is read in pieces, and an area that has grown downwards between two of them is told with
 * pages that were told before.  Only what is above those counts: whoever reads a page twice gets
 * two contents of it, and cannot tell which is the later one at the destination.
 */
static bool has_more(const struct memory_map *map, struct memory_area *area)
{
    if (map->count > 0)
        area->start = MAX(area->start, map->areas[map->count - 1].end);
    return area->start < area->end;
}

int memory_map_read(pid_t pid, struct memory_map *ret)
{
    char path[32], *line = NULL;
    size_t size = 0, room = 0;
    int r = 0;
    *ret = (struct memory_map){0};
    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return errno == ENOENT ? -ESRCH : -errno;
    while (r == 0 && getline(&line, &size, file) > 0) {
        if (ret->count == room) {
            room = MAX(64, 2 * room);
            struct memory_area *grown = realloc(ret->areas, room * sizeof(*grown));
            if (!grown) {
                r = -ENOMEM;
                break;
            }
            ret->areas = grown;
        }
        if (parse_area(line, &ret->areas[ret->count]) && has_more(ret, &ret->areas[ret->count]))
            ret->count++;
    }
    free(line);
    fclose(file);
    if (r == 0 && ret->count == 0)
        r = -ESRCH;
    if (r < 0)
        memory_map_free(ret);
    return r;
}

void memory_map_free(struct memory_map *map)
{
    free(map->areas);
    *map = (struct memory_map){0};
}

ssize_t memory_read(pid_t pid, uint64_t address, void *buf, size_t length)
{
    struct iovec here = {buf, length}, there = {(void *)(uintptr_t)address, length};
    ssize_t n = process_vm_readv(pid, &here, 1, &there, 1, 0);
    return n < 0 ? -errno : n;
}

/* ---- runs ---- */

int page_runs_add(struct page_runs *runs, uint64_t start, uint64_t pages, bool anonymous)
{
    struct page_run *last = runs->count > 0 ? &runs->list[runs->count - 1] : NULL;
    if (last && last->start + last->pages * PAGE_BYTES == start && last->anonymous == anonymous) {
        last->pages += pages;
        runs->pages += pages;
        return 0;
    }
    if (runs->count == runs->room) {
        size_t room = MAX(256, 2 * runs->room);
        struct page_run *grown = realloc(runs->list, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        runs->list = grown;
        runs->room = room;
    }
    runs->list[runs->count++] =
        (struct page_run){.start = start, .pages = pages, .anonymous = anonymous};
    runs->pages += pages;
    return 0;
}

int page_runs_add_all(struct page_runs *to, const struct page_runs *from)
{
    int r = 0;
    for (size_t i = 0; i < from->count && r == 0; i++)
        r = page_runs_add(to, from->list[i].start, from->list[i].pages, from->list[i].anonymous);
    return r;
}

static uint64_t run_end(const struct page_run *run)
{
    return run->start + run->pages * PAGE_BYTES;
}

static int compare_starts(const void *one, const void *other)
{
    const struct page_run *a = one, *b = other;
    return a->start < b->start ? -1 : a->start > b->start;
}

void page_runs_sort(struct page_runs *runs)
{
    size_t count = 0;
    if (runs->count > 1)
        qsort(runs->list, runs->count, sizeof(*runs->list), compare_starts);
    runs->pages = 0;
    for (size_t i = 0; i < runs->count; i++) {
        struct page_run *last = count > 0 ? &runs->list[count - 1] : NULL, run = runs->list[i];
        if (last && run.start <= run_end(last)) {
            uint64_t more = MAX(run_end(&run), run_end(last)) - run_end(last);
            last->pages += more / PAGE_BYTES;
            runs->pages += more / PAGE_BYTES;
        } else {
            runs->list[count++] = run;
            runs->pages += run.pages;
        }
    }
    runs->count = count;
}

size_t page_runs_seek(const struct page_runs *runs, uint64_t address)
{
    size_t low = 0, high = runs->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (run_end(&runs->list[middle]) > address)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

int page_runs_add_without(struct page_runs *ret, const struct page_run *run,
                          const struct page_runs *minus)
{
    uint64_t at = run->start, end = run_end(run);
    int r = 0;
    for (size_t i = page_runs_seek(minus, at); at < end && r == 0; i++) {
        bool more = i < minus->count && minus->list[i].start < end;
        uint64_t until = more ? MAX(minus->list[i].start, at) : end;
        if (until > at)
            r = page_runs_add(ret, at, (until - at) / PAGE_BYTES, run->anonymous);
        at = more ? run_end(&minus->list[i]) : end;
    }
    return r;
}

void page_runs_free(struct page_runs *runs)
{
    free(runs->list);
    *runs = (struct page_runs){0};
}

/* ---- reading ---- */

int page_reader_open(struct page_reader *reader, pid_t pid)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    *reader = (struct page_reader){.pid = pid, .mem_fd = open(path, O_RDONLY | O_CLOEXEC)};
    return reader->mem_fd < 0 ? (errno == ENOENT ? -ESRCH : -errno) : 0;
}

void page_reader_close(struct page_reader *reader)
{
    reader->mem_fd = close_fd(reader->mem_fd);
}

void page_reader_begin(struct page_reader *reader, const struct page_runs *runs,
                       struct page_runs *missed)
{
    reader->runs = runs;
    reader->missed = missed;
    reader->next = 0;
    reader->skip = 0;
}

/* The run at which the reader is, less what is done of it. */
static struct page_run run_here(const struct page_reader *reader)
{
    struct page_run run = reader->runs->list[reader->next];
    run.start += reader->skip * PAGE_BYTES;
    run.pages -= reader->skip;
    return run;
}

static void advance(struct page_reader *reader, uint64_t pages)
{
    reader->skip += pages;
    while (reader->next < reader->runs->count &&
           reader->skip >= reader->runs->list[reader->next].pages)
        reader->skip -= reader->runs->list[reader->next++].pages;
}

/* The next runs, at most |pages| pages; their number. */
static size_t look_ahead(const struct page_reader *reader, uint64_t pages, struct page_run *ret)
{
    struct page_reader at = *reader;
    size_t count = 0;
    for (; count < READ_RUNS_MAX && pages > 0 && at.next < at.runs->count; count++) {
        ret[count] = run_here(&at);
        ret[count].pages = MIN(ret[count].pages, pages);
        pages -= ret[count].pages;
        advance(&at, ret[count].pages);
    }
    return count;
}

/* How many pages of these can be read in one go, or a negative errno. */
static int64_t read_runs(const struct page_reader *reader, const struct page_run *runs,
                         size_t count, void *buf)
{
    struct iovec there[READ_RUNS_MAX], here = {buf, 0};
    for (size_t i = 0; i < count; i++) {
        there[i] = (struct iovec){(void *)(uintptr_t)runs[i].start, runs[i].pages * PAGE_BYTES};
        here.iov_len += there[i].iov_len;
    }
    ssize_t n = process_vm_readv(reader->pid, &here, 1, there, count, 0);
    if (n < 0)
        return errno == EFAULT ? 0 : -errno;
    return n / PAGE_BYTES;
}

/* The same by /proc/PID/mem. */
static int64_t read_runs_gently(const struct page_reader *reader, const struct page_run *runs,
                                size_t count, uint8_t *buf)
{
    int64_t pages = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t bytes = runs[i].pages * PAGE_BYTES;
        ssize_t n =
            pread(reader->mem_fd, buf + (uint64_t)pages * PAGE_BYTES, bytes, (off_t)runs[i].start);
        pages += n > 0 ? n / PAGE_BYTES : 0;
        if (n < (ssize_t)bytes)
            break;
    }
    return pages;
}

int page_reader_next(struct page_reader *reader, void *buf, uint64_t pages, struct page_run *ret)
{
    size_t count;
    while ((count = look_ahead(reader, pages, ret)) > 0) {
        int64_t n = reader->gently ? read_runs_gently(reader, ret, count, buf)
                                   : read_runs(reader, ret, count, buf);
        if (n < 0)
            return (int)n;
        if (n == 0) {
            /* The first page is not there any more, or its protection forbids reading. */
            ssize_t bytes =
                pread(reader->mem_fd, buf, ret[0].pages * PAGE_BYTES, (off_t)ret[0].start);
            n = bytes < 0 ? 0 : bytes / PAGE_BYTES;
        }
        if (n == 0 && reader->missed &&
            page_runs_add(reader->missed, ret[0].start, 1, ret[0].anonymous) < 0)
            return -ENOMEM;
        advance(reader, MAX((uint64_t)n, 1));
        size_t read = 0;
        for (uint64_t left = (uint64_t)n; left > 0; read++) {
            ret[read].pages = MIN(ret[read].pages, left);
            left -= ret[read].pages;
        }
        if (read > 0)
            return (int)read;
    }
    return 0;
}
