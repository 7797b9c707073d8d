/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "pager/leader.h"

static bool fd_is_used(const struct pager *pager, int fd)
{
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state == RECORD_USED && (record->map == fd || record->space == fd))
            return true;
    }
    return false;
}

void record_free(struct pager *pager, unsigned i)
{
    struct record *record = &pager->book->records[i];
    struct record was = *record;
    struct filler *filler = pager->fillers[i];
    /* What a task that has gone lacked was never wanted. */
    uint64_t missing = filler ? filler->missing : was.pages;
    pager->fillers[i] = filler ? filler_close(filler) : NULL;
    epoll_ctl(pager->epoll, EPOLL_CTL_DEL, was.uffd, NULL);
    __atomic_store_n(&record->state, RECORD_FREE, __ATOMIC_SEQ_CST);
    pager->book->closed_pages += was.pages - missing;
    close_fd(was.uffd);
    close_fd(was.sheet);
    if (was.map >= 0 && !fd_is_used(pager, was.map))
        close_fd(was.map);
    if (was.space >= 0 && !fd_is_used(pager, was.space))
        close_fd(was.space);
}

int record_find(const struct pager *pager, int uffd)
{
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state == RECORD_USED && record->uffd == uffd)
            return (int)i;
    }
    return -ENOENT;
}

/* A free record, cleared, as far from use as it was: -ENOSPC if there is none. */
static int record_new(struct pager *pager)
{
    for (unsigned i = 0; i < RECORDS_MAX; i++) {
        struct record *record = &pager->book->records[i];
        if (record->state != RECORD_FREE)
            continue;
        *record = (struct record){.map = -1, .space = -1, .sheet = -1, .uffd = -1};
        pager->used = MAX(pager->used, i + 1);
        return (int)i;
    }
    return -ENOSPC;
}

static int sheet_create(uint64_t pages)
{
    _cleanup_close_ int fd = memfd_create("godwit-sheet", MFD_CLOEXEC);
    uint64_t bytes = sheet_bytes(pages);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        return -errno;
    /* The bits: whoever sets one must not find that there is no memory for it. */
    if (fallocate(fd, 0, sizeof(struct sheet), (off_t)(bytes - sizeof(struct sheet)) + 1) < 0)
        return -errno;
    return TAKE_FD(fd);
}

static int sheet_begin(int fd)
{
    struct sheet *sheet = mmap(NULL, sizeof(*sheet), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (sheet == MAP_FAILED)
        return -errno;
    views_begin(&sheet->views[0]);
    munmap(sheet, sizeof(*sheet));
    return 0;
}

void record_open(struct pager *pager, unsigned i)
{
    struct record *record = &pager->book->records[i];
    struct error err = {.text = "epoll refuses a userfaultfd"};
    if (record->broken)
        return;
    if (filler_open(&pager->fillers[i], record, &pager->spaces, &pager->report, &err) < 0 ||
        pager_watch(pager, record->uffd, i) < 0) {
        /* From here it is not answered, and not closed: its task waits. */
        pager_fail(pager, err.text);
        pager->fillers[i] = filler_forget(pager->fillers[i]);
        record->broken = 1;
    }
}

/* ---- tasks ---- */

static int open_space(struct pager *pager, uint32_t number)
{
    char name[FILL_NAME_BYTES];
    for (unsigned i = 0; i < pager->used; i++) {
        const struct record *record = &pager->book->records[i];
        if (record->state == RECORD_USED && record->space >= 0 && record->space_number == number)
            return record->space;
    }
    fill_space_name(name, sizeof(name), number);
    int fd = openat(pager->book->imagefd, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? -errno : fd;
}

/* What the task's files say, into a record that is not in use yet. */
static int record_read_map(struct pager *pager, struct record *record, struct error *err)
{
    char name[FILL_NAME_BYTES];
    struct fill_map map;
    fill_map_name(name, sizeof(name), record->pid);
    record->map = openat(pager->book->imagefd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (record->map < 0 && errno == ENOENT)
        return 0; /* all of it is zero */
    if (record->map < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", name);
    if (fill_map_open(&map, record->map, err) < 0)
        return error_prefix(err, "%s", name);
    record->space_number = map.space;
    record->pages = map.pages;
    record->space = open_space(pager, map.space);
    fill_map_close(&map);
    if (record->space < 0)
        return error_set_errno(err, FAILURE_SYSTEM, record->space, "space-%u",
                               record->space_number);
    record->sheet = sheet_create(record->pages);
    int r = record->sheet < 0 ? record->sheet : sheet_begin(record->sheet);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "a sheet for %s", name) : 0;
}

int record_add_task(struct pager *pager, int32_t pid, int uffd)
{
    struct error err;
    int i = record_new(pager);
    if (i < 0)
        return i;
    struct record *record = &pager->book->records[i];
    record->pid = pid;
    record->uffd = uffd;
    if (record_read_map(pager, record, &err) < 0) {
        record->broken = 1;
        pager_fail(pager, err.text);
    }
    __atomic_store_n(&record->state, RECORD_USED, __ATOMIC_SEQ_CST);
    record_open(pager, (unsigned)i);
    return 0;
}

/* ---- children ---- */

static int sheet_copy(const struct filler *parent, struct record *record)
{
    if (!parent->sheet)
        return 0;
    record->sheet = sheet_create(parent->map.pages);
    if (record->sheet < 0)
        return record->sheet;
    uint64_t bytes = sheet_bytes(parent->map.pages);
    struct sheet *sheet = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, record->sheet, 0);
    if (sheet == MAP_FAILED)
        return -errno;
    const struct views *views = &parent->sheet->views[parent->record->commit & COMMIT_VIEWS];
    sheet->views[0].count = views->count;
    memcpy(sheet->views[0].list, views->list, views->count * sizeof(views->list[0]));
    memcpy(sheet_bits(sheet), sheet_bits(parent->sheet), bytes - sizeof(*sheet));
    munmap(sheet, bytes);
    return 0;
}

int record_add_child(struct pager *pager, const struct filler *parent, int uffd)
{
    int i = record_new(pager);
    if (i < 0)
        return i;
    struct record *record = &pager->book->records[i];
    *record = (struct record){
        .child = 1,
        .pid = parent->record->pid,
        .uffd = uffd,
        .map = parent->record->map,
        .space = parent->record->space,
        .space_number = parent->record->space_number,
        .sheet = -1,
        .pages = parent->missing,
    };
    int r = sheet_copy(parent, record);
    if (r < 0) {
        record->sheet = close_fd(record->sheet);
        return r;
    }
    __atomic_store_n(&record->state, RECORD_USED, __ATOMIC_SEQ_CST);
    record_open(pager, (unsigned)i);
    return 0;
}
