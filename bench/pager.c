/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-pager: the pager by hand, for images of an ordinary `criu dump`; for bench/fill and for its
 * end-to-end test.
 *
 *   images DIR [PIECE]  writes fill-PID.map and space-N beside each pagemap-PID.img; with PIECE, in
 *                       entries of so many pages, of different rounds, the space in another order
 *   blank DIR           overwrites what may be filled lazily in the images: criu has it no more
 *   start DIR WORKDIR   starts a pager whose state and images are in DIR
 *   look|release|stop DIR
 */
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "pager/map.h"
#include "pager/pager.h"

static int die(const char *what)
{
    perror(what);
    return 1;
}

static const void *map_file(int dir, const char *name, size_t *ret_length)
{
    _cleanup_close_ int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return NULL;
    *ret_length = (size_t)st.st_size;
    void *bytes = mmap(NULL, *ret_length, PROT_READ, MAP_SHARED, fd, 0);
    return bytes == MAP_FAILED ? NULL : bytes;
}

struct writing {
    struct fill_map_writer map;
    int space;
    const uint8_t *pages;
    uint64_t piece, count;
    uint64_t place; /* where the next page goes in the space */
};

/* Every other piece is put behind the next one. */
static int write_piece(struct writing *writing, uint64_t vaddr, uint64_t from, uint64_t pages,
                       bool swap, uint64_t behind)
{
    uint64_t offset = writing->place + (swap ? behind : 0);
    for (uint64_t done = 0; done < pages * PAGE_BYTES;) {
        ssize_t n = pwrite(writing->space, writing->pages + from + done, pages * PAGE_BYTES - done,
                           (off_t)(offset + done));
        if (n <= 0)
            return -1;
        done += (uint64_t)n;
    }
    uint64_t round = writing->piece ? writing->count++ * 7 % 5 : 0;
    struct fill_map_entry entry = {vaddr, pages, offset, round};
    fill_map_add(&writing->map, &entry);
    return 0;
}

static int write_run(struct writing *writing, const struct pagemap_run *run, uint64_t from)
{
    uint64_t piece = writing->piece ? writing->piece : run->pages;
    for (uint64_t done = 0, first, second; done < run->pages; done += first + second) {
        first = MIN(piece, run->pages - done);
        second = MIN(piece, run->pages - done - first);
        uint64_t at = done * PAGE_BYTES, next = at + first * PAGE_BYTES;
        if (write_piece(writing, run->vaddr + at, from + at, first, second > 0,
                        second * PAGE_BYTES) < 0 ||
            (second > 0 &&
             write_piece(writing, run->vaddr + next, from + next, second, false, 0) < 0))
            return -1;
        writing->place += (first + second) * PAGE_BYTES;
    }
    return 0;
}

static int open_pagemap(int dir, int pid, struct pagemap_reader *ret, uint32_t *ret_id)
{
    char name[64];
    size_t length;
    struct error err;
    snprintf(name, sizeof(name), "pagemap-%d.img", pid);
    const void *bytes = map_file(dir, name, &length);
    return !bytes || pagemap_read_begin(ret, bytes, length, ret_id, &err) < 0 ? die(name) : 0;
}

static int blank_images_of(int dir, int pid, uint64_t unused)
{
    static uint8_t blank[PAGE_BYTES];
    char name[64];
    uint32_t id;
    struct error err;
    struct pagemap_reader reader;
    struct pagemap_run run;
    off_t at = 0;
    if (open_pagemap(dir, pid, &reader, &id) != 0)
        return 1;
    memset(blank, 0xff, sizeof(blank));
    snprintf(name, sizeof(name), "pages-%u.img", id);
    _cleanup_close_ int fd = openat(dir, name, O_WRONLY | O_CLOEXEC);
    while (fd >= 0 && pagemap_read_next(&reader, &run, &err) > 0) {
        uint64_t pages = run.flags & PAGEMAP_PRESENT ? run.pages : 0;
        for (; pages > 0; pages--, at += PAGE_BYTES) {
            if (run.flags & PAGEMAP_LAZY && pwrite(fd, blank, sizeof(blank), at) < 0)
                return die(name);
        }
    }
    return 0;
}

static int write_images_of(int dir, int pid, uint64_t piece)
{
    char name[64];
    size_t pages_length;
    uint32_t id;
    struct error err;
    struct pagemap_reader reader;
    struct pagemap_run run;
    if (open_pagemap(dir, pid, &reader, &id) != 0)
        return 1;
    snprintf(name, sizeof(name), "pages-%u.img", id);
    struct writing writing = {.piece = piece, .pages = map_file(dir, name, &pages_length)};
    if (!writing.pages)
        return 0; /* a task without pages */
    fill_space_name(name, sizeof(name), id);
    writing.space = openat(dir, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (writing.space < 0 || ftruncate(writing.space, (off_t)pages_length) < 0 ||
        fill_map_begin(&writing.map, dir, pid, id) < 0)
        return die(name);
    uint64_t from = 0;
    for (int r; (r = pagemap_read_next(&reader, &run, &err)) != 0;) {
        if (r < 0)
            return die(err.text);
        if (run.flags & PAGEMAP_LAZY && write_run(&writing, &run, from) < 0)
            return die(name);
        from += run.flags & PAGEMAP_PRESENT ? run.pages * PAGE_BYTES : 0;
    }
    close(writing.space);
    return fill_map_finish(&writing.map) < 0 ? die("fill map") : 0;
}

static int each_task(int dir, int (*act)(int dir, int pid, uint64_t piece), uint64_t piece)
{
    DIR *entries = fdopendir(dup(dir));
    int status = entries ? 0 : die("images");
    for (struct dirent *entry; status == 0 && (entry = readdir(entries));) {
        int pid;
        if (sscanf(entry->d_name, "pagemap-%d.img", &pid) == 1)
            status = act(dir, pid, piece);
    }
    if (entries)
        closedir(entries);
    return status;
}

static int look(int dir)
{
    static const char *const phases[] = {"waiting", "filling", "done", "failed"};
    struct pager_view view;
    int r = pager_look(dir, &view);
    if (r < 0) {
        errno = -r;
        return die("fill");
    }
    printf("{\"phase\": \"%s\", \"alive\": %s, \"pages\": %" PRIu64 ", \"filled\": %" PRIu64
           ", \"faults\": %" PRIu64 ", \"began\": %.6f, \"done\": %.6f, \"takeovers\": %" PRIu64
           ", \"leader\": %d, \"standby\": %d, \"text\": \"%s\"}\n",
           phases[view.phase], view.alive ? "true" : "false", view.pages, view.filled, view.faults,
           (double)view.began_usec / 1e6, (double)view.done_usec / 1e6, view.takeovers, view.leader,
           view.standby, view.text);
    return 0;
}

int main(int argc, char **argv)
{
    struct error err;
    int dir = argc > 2 ? open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (dir < 0) {
        fprintf(stderr, "usage: bench-pager images|blank|start|look|release DIR [PIECE|WORKDIR]\n");
        return 2;
    }
    if (strcmp(argv[1], "images") == 0)
        return each_task(dir, write_images_of, argc > 3 ? strtoull(argv[3], NULL, 10) : 0);
    if (strcmp(argv[1], "blank") == 0)
        return each_task(dir, blank_images_of, 0);
    if (strcmp(argv[1], "look") == 0)
        return look(dir);
    if (strcmp(argv[1], "release") == 0) {
        pager_release(dir);
        return 0;
    }
    if (strcmp(argv[1], "start") != 0 || argc < 4)
        return 2;
    if (pager_start(dir, dir, argv[3], &err) == 0)
        return 0;
    fprintf(stderr, "%s\n", err.text);
    return 1;
}
