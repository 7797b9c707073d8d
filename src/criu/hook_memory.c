/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/hook_memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu/hook_process.h"

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

struct task {
    pid_t pid;
    struct file list, pages;
    uint64_t bytes; /* of its pieces */
};

struct tasks {
    struct task *list;
    size_t count;
    uint64_t bytes; /* of all their pieces */
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

static void unmap_file(struct file *file)
{
    if (file->bytes)
        munmap(file->bytes, (size_t)file->length);
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

/* Of a task's pieces, which begin at byte |at| of all, what lies in [from, to). */
static int write_task(const struct task *task, uint64_t at, uint64_t from, uint64_t to)
{
    static struct batch batch;
    const struct hook_piece *piece = (const void *)task->list.bytes;
    for (uint64_t count = task->list.length / sizeof(*piece); count > 0 && at < to;
         at += piece->bytes, count--, piece++) {
        struct hook_piece part = *piece;
        uint64_t skip = from > at ? from - at : 0, stop = to - at;
        if (skip >= part.bytes)
            continue;
        part.bytes = (stop < part.bytes ? stop : part.bytes) - skip;
        part.vaddr += skip;
        part.offset += skip;
        if (write_piece(&batch, part, task->pages.bytes, task->pid) < 0)
            return -1;
    }
    return batch.bytes > 0 ? batch_write(&batch, task->pid) : 0;
}

/* What lies in bytes [from, to) of all pieces of all tasks, one behind the other. */
static int write_share(const struct tasks *tasks, uint64_t from, uint64_t to)
{
    uint64_t at = 0;
    for (size_t i = 0; i < tasks->count && at < to; at += tasks->list[i++].bytes) {
        if (at + tasks->list[i].bytes > from && write_task(&tasks->list[i], at, from, to) < 0)
            return -1;
    }
    return 0;
}

/* The kernel takes most of the time to find memory for the tasks, and each processor can do that.
 */
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
static _Noreturn void be_writer(const struct tasks *tasks, uint64_t from, uint64_t to, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(ESRCH);
    _exit(write_share(tasks, from, to) < 0 ? errno : 0);
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
static int write_all_shares(const struct tasks *tasks)
{
    pid_t children[WRITERS_MAX] = {0}, self = getpid();
    unsigned writers = count_writers(tasks->bytes);
    int error = 0;
    signal(SIGCHLD, SIG_DFL);
    for (unsigned i = 1; i < writers && !error; i++) {
        uint64_t from = share_begin(tasks->bytes, i, writers);
        children[i] = fork();
        if (children[i] < 0)
            error = errno;
        else if (children[i] == 0)
            be_writer(tasks, from, share_begin(tasks->bytes, i + 1, writers), self);
    }
    if (!error && write_share(tasks, 0, share_begin(tasks->bytes, 1, writers)) < 0)
        error = errno;
    for (unsigned i = 1; i < writers; i++) {
        int its = children[i] > 0 ? wait_for_writer(children[i]) : 0;
        error = error ? error : its;
    }
    errno = error;
    return error ? -1 : 0;
}

/* Whether the number is that of a task in the tree: criu gives each the one that it had. */
static bool is_under(pid_t pid, pid_t root)
{
    while (pid > 1 && pid != root)
        pid = hook_parent_of(pid);
    return pid == root;
}

/* All bytes of a task's pieces: 0, or -1 if not all of them lie in its pages. */
static int count_bytes(struct task *task)
{
    const struct hook_piece *piece = (const void *)task->list.bytes;
    for (uint64_t count = task->list.length / sizeof(*piece); count > 0; count--, piece++) {
        if (piece->offset > task->pages.length || piece->bytes > task->pages.length - piece->offset)
            return errno = ENODATA, -1;
        task->bytes += piece->bytes;
    }
    return 0;
}

static int add_task(struct tasks *tasks, int dirfd, int number, pid_t root)
{
    char name[HOOK_NAME_BYTES];
    struct task *grown = realloc(tasks->list, (tasks->count + 1) * sizeof(*grown));
    if (!grown)
        return -1;
    tasks->list = grown;
    struct task *task = &grown[tasks->count++];
    *task = (struct task){.pid = number == HOOK_ROOT ? root : number};
    if (!is_under(task->pid, root))
        return errno = ESRCH, -1;
    snprintf(name, sizeof(name), HOOK_PIECES, number);
    int r = map_file(dirfd, name, &task->list);
    snprintf(name, sizeof(name), HOOK_PAGES, number);
    if (r == 0)
        r = map_file(dirfd, name, &task->pages);
    if (r == 0)
        r = count_bytes(task);
    tasks->bytes += task->bytes;
    return r;
}

static int find_tasks(struct tasks *tasks, const char *directory, pid_t root)
{
    DIR *dir = opendir(directory);
    struct dirent *entry;
    int number, r = dir ? 0 : -1;
    while (r == 0 && (errno = 0, entry = readdir(dir))) {
        if (sscanf(entry->d_name, HOOK_PIECES, &number) == 1)
            r = add_task(tasks, dirfd(dir), number, root);
    }
    int error = errno;
    if (dir)
        closedir(dir);
    errno = error;
    return error ? -1 : 0;
}

static void forget_tasks(struct tasks *tasks)
{
    for (size_t i = 0; i < tasks->count; i++) {
        unmap_file(&tasks->list[i].list);
        unmap_file(&tasks->list[i].pages);
    }
    free(tasks->list);
}

int hook_write_memory(const char *directory, pid_t root)
{
    struct tasks tasks = {0};
    int r = find_tasks(&tasks, directory, root);
    if (r == 0)
        r = write_all_shares(&tasks);
    int saved = errno;
    forget_tasks(&tasks);
    return errno = saved, r;
}
