/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/image_check.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "criu/page_server.h"
#include "criu/pagemap.h"

#define PAGEMAP_IMAGE_MAX MIB(64) /* some three million runs */

/* Number of pages in a pages image, by its length. */
static int check_pages(int imagefd, uint32_t pages_id, uint64_t present, struct error *err)
{
    char name[32];
    struct stat st = {0};
    snprintf(name, sizeof(name), "pages-%u.img", pages_id);
    if (fstatat(imagefd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 && present > 0)
        return error_set_errno(err, FAILURE_CRIU, errno, "%s", name);
    if ((uint64_t)st.st_size != present * PAGE_BYTES)
        return error_set(err, FAILURE_CRIU, "%s has %llu bytes and its pagemap %llu pages", name,
                         (unsigned long long)st.st_size, (unsigned long long)present);
    return 0;
}

/* 1: it is good, and only criu 4.2 can read it; 0: it is good; -1 with *err. */
static int check_pagemap(int imagefd, const uint8_t *bytes, size_t length, struct error *err)
{
    struct pagemap_reader reader;
    struct pagemap_run run;
    uint32_t pages_id;
    if (pagemap_read_begin(&reader, bytes, length, &pages_id, err) < 0)
        return -1;
    uint64_t present = 0;
    int r;
    while ((r = pagemap_read_next(&reader, &run, err)) > 0) {
        if (run.flags & PAGEMAP_PARENT)
            return error_set(err, FAILURE_CRIU, "pages are missing: they are in a parent's images");
        if (!(run.flags & PAGEMAP_PRESENT))
            return error_set(err, FAILURE_CRIU,
                             "pages are missing: they were to be fetched lazily");
        present += run.pages;
    }
    if (r < 0 || check_pages(imagefd, pages_id, present, err) < 0)
        return -1;
    return reader.wide;
}

/* Writes a pagemap, which has been checked, in the form that all releases read.  0 or a negative
 * errno. */
static int rewrite_pagemap(int imagefd, const char *name, const uint8_t *bytes, size_t length)
{
    static const char fresh[] = "pagemap.new";
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t pages_id;
    _cleanup_close_ int fd =
        openat(imagefd, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 || pagemap_read_begin(&reader, bytes, length, &pages_id, &err) < 0)
        return fd < 0 ? -errno : -EPROTO;
    struct pagemap_writer *writer = pagemap_begin(fd, pages_id);
    if (!writer)
        return -ENOMEM;
    while (pagemap_read_next(&reader, &run, &err) > 0)
        pagemap_add(writer, &run);
    int r = pagemap_finish(writer);
    return r < 0 || renameat(imagefd, fresh, imagefd, name) == 0 ? r : -errno;
}

int image_check_pagemap(int imagefd, const char *name, struct error *err)
{
    struct stat st;
    _cleanup_close_ int fd = openat(imagefd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", name);
    if (st.st_size == 0 || (uint64_t)st.st_size > PAGEMAP_IMAGE_MAX)
        return error_set(err, FAILURE_CRIU, "%s: no pagemap has %lld bytes", name,
                         (long long)st.st_size);
    size_t length = (size_t)st.st_size;
    void *bytes = mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", name);
    int r = check_pagemap(imagefd, bytes, length, err);
    if (r > 0) {
        r = rewrite_pagemap(imagefd, name, bytes, length);
        if (r < 0)
            error_set_errno(err, FAILURE_SYSTEM, r, "writing it anew");
    }
    munmap(bytes, length);
    return r < 0 ? error_prefix(err, "%s", name) : 0;
}
