/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/hook_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    CALL_PIECES = 1024,    /* in one call: IOV_MAX */
    CALL_BYTES = 16 << 20, /* and these, so that who is to end does so soon */
    WRITERS_MAX = 4,
    SHARE_BYTES = 16 << 20, /* less is not worth a writer */
    PAGE = 4096,
};

struct file {
    uint8_t *bytes;
    uint64_t length;
};

struct work {
    struct file list, pages;
    pid_t pid;
};

/* What lies here and there goes to few places: pieces that follow one another there are one. */
struct batch {
    struct iovec from[CALL_PIECES], to[CALL_PIECES];
    unsigned long from_count, to_count;
    uint64_t bytes;
};

static uint64_t piece_count(const struct work *work)
{
    return work->list.length / sizeof(struct hook_piece);
}

static int map_file(int dirfd, const char *name, int flags, struct file *ret)
{
    struct stat st;
    int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | flags);
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

/* What lies in bytes [from, to) of all pieces, one behind the other. */
static int write_share(const struct work *work, uint64_t from, uint64_t to)
{
    static struct batch batch;
    const struct hook_piece *piece = (const void *)work->list.bytes;
    uint64_t at = 0;
    for (uint64_t count = piece_count(work); count > 0 && at < to;
         at += piece->bytes, count--, piece++) {
        struct hook_piece part = *piece;
        uint64_t skip = from > at ? from - at : 0, stop = to - at;
        if (skip >= part.bytes)
            continue;
        part.bytes = (stop < part.bytes ? stop : part.bytes) - skip;
        part.vaddr += skip;
        part.offset += skip;
        if (write_piece(&batch, part, work->pages.bytes, work->pid) < 0)
            return -1;
    }
    return batch.bytes > 0 ? batch_write(&batch, work->pid) : 0;
}

/* All bytes of the pieces, which lie in the pages; 0: not all do. */
static uint64_t count_bytes(const struct work *work)
{
    const struct hook_piece *piece = (const void *)work->list.bytes;
    uint64_t bytes = 0;
    for (uint64_t count = piece_count(work); count > 0; count--, piece++) {
        if (piece->offset > work->pages.length || piece->bytes > work->pages.length - piece->offset)
            return 0;
        bytes += piece->bytes;
    }
    return bytes;
}

/* The kernel takes most of the time to find memory for the task, and each processor can do that. */
static unsigned count_writers(uint64_t bytes)
{
    cpu_set_t cpus;
    uint64_t useful = bytes / SHARE_BYTES + 1;
    int count = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    unsigned most = count < WRITERS_MAX ? (unsigned)count : WRITERS_MAX;
    return useful < most ? (unsigned)useful : most;
}

static uint64_t share_begin(uint64_t bytes, unsigned writer, unsigned writers)
{
    return writer == writers ? bytes : bytes / writers * writer / PAGE * PAGE;
}

/* In a child, which has no business without its parent. */
static _Noreturn void be_writer(const struct work *work, uint64_t from, uint64_t to, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(ESRCH);
    _exit(write_share(work, from, to) < 0 ? errno : 0);
}

/* 0, or what a child says went wrong. */
static int wait_for_writer(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR)
            return errno;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

/* Comes back when nobody writes any more, whatever has gone wrong. */
static int write_all_shares(const struct work *work)
{
    pid_t children[WRITERS_MAX] = {0}, self = getpid();
    uint64_t bytes = count_bytes(work);
    unsigned writers = count_writers(bytes);
    int error = bytes == 0 && piece_count(work) > 0 ? ENODATA : 0;
    signal(SIGCHLD, SIG_DFL);
    for (unsigned i = 1; i < writers && !error; i++) {
        uint64_t from = share_begin(bytes, i, writers), to = share_begin(bytes, i + 1, writers);
        children[i] = fork();
        if (children[i] == 0)
            be_writer(work, from, to, self);
        /* It may not be let have a child: then it does that one's part itself. */
        if (children[i] < 0 && write_share(work, from, to) < 0)
            error = errno;
    }
    if (!error && write_share(work, 0, share_begin(bytes, 1, writers)) < 0)
        error = errno;
    for (unsigned i = 1; i < writers; i++) {
        int its = children[i] > 0 ? wait_for_writer(children[i]) : 0;
        error = error ? error : its;
    }
    errno = error;
    return error ? -1 : 0;
}

int hook_write_memory(const char *directory, pid_t pid)
{
    struct work work = {.pid = pid};
    int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int r = dirfd < 0 ? -1 : map_file(dirfd, HOOK_PIECES, O_NOFOLLOW, &work.list);
    if (r == 0)
        r = map_file(dirfd, HOOK_PAGES, 0, &work.pages); /* it is a link, on purpose */
    return r == 0 ? write_all_shares(&work) : -1;
}
