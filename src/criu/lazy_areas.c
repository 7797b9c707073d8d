/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/lazy_areas.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "criu.pb-c.h"

/* CRIU criu/include/magic.h. */
#define IMAGE_MAGIC 0x54564319u
#define MM_MAGIC 0x57492820u

enum {
    HEAD_BYTES = 12, /* two magics, the length of the message */
    MM_IMAGE_MAX = 64 << 20,

    /* vma_entry.status, CRIU criu/include/image.h */
    STATUS_VSYSCALL = 1 << 2,
    STATUS_VDSO = 1 << 3,
    STATUS_VVAR = 1 << 12,
    STATUS_AIORING = 1 << 13,
    STATUS_SHADOW_STACK = 1 << 15,
    STATUS_NEVER =
        STATUS_VSYSCALL | STATUS_VDSO | STATUS_VVAR | STATUS_AIORING | STATUS_SHADOW_STACK,

    FLAGS_ALWAYS = MAP_PRIVATE | MAP_ANONYMOUS,
    FLAGS_NEVER = MAP_LOCKED | MAP_HUGETLB | MAP_GROWSDOWN,
};

/* A child that is forked while such memory is filled in has to find zeros there. */
#define MADV_NEVER (1ull << MADV_WIPEONFORK)

static bool is_lazy(const Godwit__Pb__CriuVma *vma)
{
    return !(vma->madv & MADV_NEVER) && (vma->flags & FLAGS_ALWAYS) == FLAGS_ALWAYS &&
           !(vma->flags & FLAGS_NEVER) && !(vma->status & STATUS_NEVER);
}

static int take_vmas(const Godwit__Pb__CriuMm *mm, struct lazy_areas *ret)
{
    struct lazy_areas areas = {.list = calloc(MAX(mm->n_vmas, 1), sizeof(*areas.list))};
    uint64_t last = 0;
    if (!areas.list)
        return -ENOMEM;
    for (size_t i = 0; i < mm->n_vmas; i++) {
        const Godwit__Pb__CriuVma *vma = mm->vmas[i];
        if (vma->start < last || vma->end <= vma->start) {
            free(areas.list);
            return -EBADMSG;
        }
        last = vma->end;
        struct lazy_area *before = areas.count > 0 ? &areas.list[areas.count - 1] : NULL;
        if (!is_lazy(vma))
            continue;
        if (before && before->end == vma->start)
            before->end = vma->end;
        else
            areas.list[areas.count++] = (struct lazy_area){vma->start, vma->end};
    }
    *ret = areas;
    return 0;
}

int lazy_areas_parse(const uint8_t *bytes, size_t length, struct lazy_areas *ret)
{
    if (length < HEAD_BYTES || get_le32(bytes) != IMAGE_MAGIC || get_le32(bytes + 4) != MM_MAGIC ||
        get_le32(bytes + 8) > length - HEAD_BYTES)
        return -EBADMSG;
    Godwit__Pb__CriuMm *mm =
        godwit__pb__criu_mm__unpack(NULL, get_le32(bytes + 8), bytes + HEAD_BYTES);
    if (!mm)
        return -EBADMSG;
    int r = take_vmas(mm, ret);
    godwit__pb__criu_mm__free_unpacked(mm, NULL);
    return r;
}

int lazy_areas_read(int dirfd, uint64_t id, struct lazy_areas *ret)
{
    char name[40];
    struct stat st;
    snprintf(name, sizeof(name), "mm-%llu.img", (unsigned long long)id);
    _cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (st.st_size < HEAD_BYTES || st.st_size > MM_IMAGE_MAX)
        return -EBADMSG;
    void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return -errno;
    int r = lazy_areas_parse(bytes, (size_t)st.st_size, ret);
    munmap(bytes, (size_t)st.st_size);
    return r;
}

void lazy_areas_free(struct lazy_areas *areas)
{
    free(areas->list);
    *areas = (struct lazy_areas){0};
}

bool lazy_areas_have(const struct lazy_areas *areas, uint64_t vaddr, uint64_t *ret_next)
{
    size_t low = 0, high = areas->count; /* the first that ends above the address */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (areas->list[middle].end > vaddr)
            high = middle;
        else
            low = middle + 1;
    }
    *ret_next = UINT64_MAX;
    if (low == areas->count)
        return false;
    bool have = areas->list[low].start <= vaddr;
    *ret_next = have ? areas->list[low].end : areas->list[low].start;
    return have;
}
