/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/hook_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    CALL_PIECES = 1024,    /* in one call: IOV_MAX */
    CALL_BYTES = 16 << 20, /* and these, so that who is to end does so soon */
};

struct file {
    uint8_t *bytes;
    uint64_t length;
};

/* What lies here and there goes to few places: pieces that follow one another there are one. */
struct batch {
    struct iovec from[CALL_PIECES], to[CALL_PIECES];
    unsigned long from_count, to_count;
    uint64_t bytes;
};

static int map_file(int dirfd, const char *name, struct file *ret)
{
    struct stat st;
    int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    void *bytes = fstat(fd, &st) < 0 ? MAP_FAILED
                                     : mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    int saved = errno;
    close(fd);
    if (bytes == MAP_FAILED)
        return errno = saved, -1;
    *ret = (struct file){bytes, (uint64_t)st.st_size};
    return 0;
}

static int batch_write(struct batch *batch, pid_t pid)
{
    ssize_t n =
        process_vm_writev(pid, batch->from, batch->from_count, batch->to, batch->to_count, 0);
    if (n >= 0 && (uint64_t)n != batch->bytes)
        errno = EFAULT;
    n -= (ssize_t)batch->bytes;
    batch->from_count = batch->to_count = batch->bytes = 0;
    return n == 0 ? 0 : -1;
}

static void batch_add(struct batch *batch, uint8_t *from, uint64_t vaddr, uint64_t bytes)
{
    struct iovec *last = batch->to_count > 0 ? &batch->to[batch->to_count - 1] : NULL;
    if (last && (uintptr_t)last->iov_base + last->iov_len == vaddr)
        last->iov_len += bytes;
    else
        batch->to[batch->to_count++] = (struct iovec){(void *)(uintptr_t)vaddr, bytes};
    batch->from[batch->from_count++] = (struct iovec){from, bytes};
    batch->bytes += bytes;
}

static int write_piece(struct batch *batch, struct hook_piece piece, uint8_t *pages, pid_t pid)
{
    while (piece.bytes > 0) {
        uint64_t room = CALL_BYTES - batch->bytes, n = piece.bytes < room ? piece.bytes : room;
        batch_add(batch, pages + piece.offset, piece.vaddr, n);
        piece.vaddr += n;
        piece.offset += n;
        piece.bytes -= n;
        if ((batch->bytes == CALL_BYTES || batch->from_count == CALL_PIECES) &&
            batch_write(batch, pid) < 0)
            return -1;
    }
    return 0;
}

static int write_pieces(const struct file *list, const struct file *pages, pid_t pid)
{
    static struct batch batch;
    const struct hook_piece *piece = (const void *)list->bytes;
    for (uint64_t count = list->length / sizeof(*piece); count > 0; count--, piece++) {
        if (piece->offset > pages->length || piece->bytes > pages->length - piece->offset)
            return errno = ENODATA, -1;
        if (write_piece(&batch, *piece, pages->bytes, pid) < 0)
            return -1;
    }
    return batch.bytes > 0 ? batch_write(&batch, pid) : 0;
}

int hook_write_memory(const char *directory, pid_t pid)
{
    struct file list, pages;
    int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = dirfd < 0 ? -1 : map_file(dirfd, HOOK_PIECES, &list);
    if (r == 0)
        r = map_file(dirfd, HOOK_PAGES, &pages);
    return r == 0 ? write_pieces(&list, &pages, pid) : -1;
}
