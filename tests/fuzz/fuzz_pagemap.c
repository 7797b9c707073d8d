/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a pagemap image.  What is read of it is written and read again. */
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>

#include "criu/page_server.h"
#include "criu/pagemap.h"

static void check_copy(int fd, const struct pagemap_run *runs, size_t count)
{
    off_t length = lseek(fd, 0, SEEK_END);
    uint8_t *bytes = malloc((size_t)length);
    must(bytes && pread(fd, bytes, (size_t)length, 0) == length);
    struct pagemap_reader reader;
    struct error err;
    uint32_t id;
    must(pagemap_read_begin(&reader, bytes, (size_t)length, &id, &err) == 0);
    struct pagemap_run run = {0};
    for (size_t i = 0; i < count; i++) {
        uint64_t vaddr = runs[i].vaddr, pages = 0;
        while (pages < runs[i].pages) { /* a huge run comes in pieces */
            must(pagemap_read_next(&reader, &run, &err) == 1);
            must(run.vaddr == vaddr && run.flags == runs[i].flags);
            vaddr += run.pages * PAGE_BYTES;
            pages += run.pages;
        }
        must(pages == runs[i].pages);
    }
    must(pagemap_read_next(&reader, &run, &err) == 0);
    free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { RUNS = 256 };
    struct pagemap_reader reader;
    struct pagemap_run runs[RUNS];
    struct error err = {0};
    uint32_t id;
    if (pagemap_read_begin(&reader, data, size, &id, &err) < 0) {
        must(err.code == FAILURE_CRIU && err.text[0]);
        return 0;
    }
    size_t count = 0;
    uint64_t end = 0;
    int r = 0;
    while (count < RUNS && (r = pagemap_read_next(&reader, &runs[count], &err)) > 0) {
        const struct pagemap_run *run = &runs[count];
        must(run->vaddr >= end && run->vaddr % PAGE_BYTES == 0 && run->pages > 0);
        end = run->vaddr + run->pages * PAGE_BYTES;
        must(end > run->vaddr && end <= 1ull << 57);
        if (run->pages < 1ull << 34) /* else its pieces are too many for a test */
            count++;
        else
            break;
    }
    must(r >= 0 || err.code == FAILURE_CRIU);
    int fd = memfd_create("pagemap", MFD_CLOEXEC);
    struct pagemap_writer *writer = pagemap_begin(fd, id);
    must(fd >= 0 && writer);
    for (size_t i = 0; i < count; i++)
        pagemap_add(writer, &runs[i]);
    must(pagemap_finish(writer) == 0);
    check_copy(fd, runs, count);
    close(fd);
    return 0;
}
