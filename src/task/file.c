/* SPDX-License-Identifier: Apache-2.0 */
#include "task/file.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

/* ---- opening ---- */

/*
 * Only a place: the file itself is not opened, so nothing happens to it.  In the root directory,
 * because with that flag the kernel also refuses the links of /proc that lead anywhere.
 */
static int open_place(int root, const char *path)
{
    enum { TRIES = 16 };
    const struct open_how how = {
        .flags = O_PATH | O_CLOEXEC,
        .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
    };
    int fd = -1;
    /* EAGAIN: something was renamed or mounted on the way, and ".." could not be trusted. */
    for (int i = 0; i < TRIES && fd < 0; i++) {
        fd = (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
        if (fd < 0 && errno != EAGAIN && errno != EINTR)
            break;
    }
    return fd < 0 ? -errno : fd;
}

static bool is_of_the_kernel(int fd)
{
    struct statfs fs;
    return fstatfs(fd, &fs) < 0 || fs.f_type == PROC_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC ||
           fs.f_type == DEBUGFS_MAGIC || fs.f_type == TRACEFS_MAGIC;
}

int file_open(const char *path, struct stat *ret)
{
    if (path[0] != '/')
        return -EINVAL;
    _cleanup_close_ int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -errno;
    int place = open_place(root, path);
    if (place < 0)
        return place;
    _cleanup_close_ int held = place;
    struct stat st;
    if (fstat(held, &st) < 0)
        return -errno;
    bool directory = S_ISDIR(st.st_mode);
    if (is_of_the_kernel(held) || (!directory && !S_ISREG(st.st_mode)))
        return -EBADF;
    if (!directory) {
        char name[32];
        snprintf(name, sizeof(name), "/proc/self/fd/%d", held);
        int fd = open(name, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd < 0)
            return -errno;
        close_fd(held);
        held = fd;
    }
    *ret = st;
    return TAKE_FD(held);
}

/* ---- build id ---- */

enum {
    NOTE_SEGMENTS_MAX = 8, /* a usual program has two or three */
    NOTE_BYTES_MAX = 8 << 10,
    HEADERS_MAX = 128,
    WORD = 4, /* the three numbers in front of a note, and what its parts are aligned to */
};

/* Where the numbers lie that are looked for, in the two classes of ELF. */
struct elf_class {
    size_t phoff, phentsize, phnum; /* in the file's header */
    size_t offset, filesz, entsize; /* in a segment's header */
    uint64_t (*number)(const uint8_t *p);
};

static uint64_t number_32(const uint8_t *p)
{
    return get_le32(p);
}

static const struct elf_class classes[] = {
    [ELFCLASS32] = {offsetof(Elf32_Ehdr, e_phoff), offsetof(Elf32_Ehdr, e_phentsize),
                    offsetof(Elf32_Ehdr, e_phnum), offsetof(Elf32_Phdr, p_offset),
                    offsetof(Elf32_Phdr, p_filesz), sizeof(Elf32_Phdr), number_32},
    [ELFCLASS64] = {offsetof(Elf64_Ehdr, e_phoff), offsetof(Elf64_Ehdr, e_phentsize),
                    offsetof(Elf64_Ehdr, e_phnum), offsetof(Elf64_Phdr, p_offset),
                    offsetof(Elf64_Phdr, p_filesz), sizeof(Elf64_Phdr), get_le64},
};

/* As many bytes as there are, at most size; offsets that no file has give none. */
static size_t read_at(int fd, uint64_t offset, void *buf, size_t size)
{
    ssize_t n;
    if (offset > INT64_MAX - size)
        return 0;
    while ((n = pread(fd, buf, size, (off_t)offset)) < 0 && errno == EINTR)
        ;
    return n > 0 ? (size_t)n : 0;
}

/* How many bytes of padding follow that many. */
static size_t padding(size_t bytes)
{
    return -bytes % WORD;
}

/* Looks for the build id in a segment of notes: three numbers, the owner's name, the content. */
static size_t find_note(const uint8_t *notes, size_t size, uint8_t *ret)
{
    static const char owner[] = "GNU";
    enum { HEADER = 3 * WORD };
    while (size >= HEADER) {
        size_t name = get_le32(notes), content = get_le32(notes + WORD);
        uint32_t kind = get_le32(notes + 2 * WORD);
        notes += HEADER;
        size -= HEADER;
        if (name > size || padding(name) > size - name)
            return 0;
        const uint8_t *id = notes + name + padding(name);
        size -= name + padding(name);
        if (content > size)
            return 0;
        if (kind == NT_GNU_BUILD_ID && name == sizeof(owner) &&
            memcmp(notes, owner, sizeof(owner)) == 0 && content > 0 && content <= BUILD_ID_MAX) {
            memcpy(ret, id, content);
            return content;
        }
        size_t step = MIN(content + padding(content), size);
        notes = id + step;
        size -= step;
    }
    return 0;
}

static size_t read_notes(int fd, const struct elf_class *class, const uint8_t *segment,
                         uint8_t *ret)
{
    uint8_t notes[NOTE_BYTES_MAX];
    uint64_t size = class->number(segment + class->filesz);
    size_t n = read_at(fd, class->number(segment + class->offset), notes,
                       (size_t)MIN(size, (uint64_t)sizeof(notes)));
    return find_note(notes, n, ret);
}

size_t file_build_id(int fd, uint8_t ret[BUILD_ID_MAX])
{
    uint8_t header[sizeof(Elf64_Ehdr)] = {0}, segments[HEADERS_MAX * sizeof(Elf64_Phdr)];
    size_t n = read_at(fd, 0, header, sizeof(header));
    if (n < sizeof(Elf32_Ehdr) || memcmp(header, ELFMAG, SELFMAG) != 0 ||
        header[EI_DATA] != ELFDATA2LSB ||
        (header[EI_CLASS] != ELFCLASS32 && header[EI_CLASS] != ELFCLASS64))
        return 0;
    const struct elf_class *class = &classes[header[EI_CLASS]];
    size_t count = MIN(get_le16(header + class->phnum), HEADERS_MAX);
    if (get_le16(header + class->phentsize) != class->entsize)
        return 0;
    n = read_at(fd, class->number(header + class->phoff), segments, count * class->entsize);
    size_t length = 0;
    int left = NOTE_SEGMENTS_MAX;
    const uint8_t *segment = segments;
    for (; n >= class->entsize && left > 0 && length == 0; n -= class->entsize) {
        /* The kind of a segment is its first number in either class. */
        if (get_le32(segment) == PT_NOTE) {
            length = read_notes(fd, class, segment, ret);
            left--;
        }
        segment += class->entsize;
    }
    return length;
}
