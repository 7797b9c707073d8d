/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/lazy_areas.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/io.h"
#include "criu/message_image.h"
#include "criu/mm_image.h"

#define CORE_MAGIC 0x55053847u /* CRIU criu/include/magic.h */

enum {
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

static int take_vmas(const Godwit__Pb__CriuMm *mm, bool outside, struct lazy_areas *ret)
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
        if (!is_lazy(vma) || (outside && !(vma->prot & PROT_WRITE)))
            continue;
        if (before && before->end == vma->start)
            before->end = vma->end;
        else
            areas.list[areas.count++] = (struct lazy_area){vma->start, vma->end};
    }
    *ret = areas;
    return 0;
}

int lazy_areas_parse(const uint8_t *bytes, size_t length, bool outside, struct lazy_areas *ret)
{
    Godwit__Pb__CriuMm *mm;
    int r = mm_image_parse(bytes, length, &mm);
    if (r < 0)
        return r;
    r = take_vmas(mm, outside, ret);
    godwit__pb__criu_mm__free_unpacked(mm, NULL);
    return r;
}

int lazy_areas_cut(struct lazy_areas *areas, const struct lazy_areas *others)
{
    struct lazy_area *list = calloc(areas->count + others->count + 1, sizeof(*list));
    size_t count = 0, first = 0;
    if (!list)
        return -ENOMEM;
    for (size_t i = 0; i < areas->count; i++) {
        struct lazy_area rest = areas->list[i];
        while (first < others->count && others->list[first].end <= rest.start)
            first++;
        for (size_t k = first; k < others->count && others->list[k].start < rest.end; k++) {
            if (rest.start < others->list[k].start)
                list[count++] = (struct lazy_area){rest.start, others->list[k].start};
            rest.start = others->list[k].end;
        }
        if (rest.start < rest.end)
            list[count++] = rest;
    }
    free(areas->list);
    *areas = (struct lazy_areas){list, count};
    return 0;
}

/* ---- rseq ---- */

struct rseq_list {
    struct lazy_areas areas;
    size_t room;
};

static int add_rseq(struct rseq_list *list, const Godwit__Pb__CriuRseq *rseq)
{
    struct lazy_areas *areas = &list->areas;
    if (!rseq || rseq->rseq_abi_size == 0 || rseq->rseq_abi_pointer > UINT64_MAX / 2)
        return 0;
    if (areas->count == list->room) {
        size_t room = MAX(64, 2 * list->room);
        struct lazy_area *grown = realloc(areas->list, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        areas->list = grown;
        list->room = room;
    }
    uint64_t start = rseq->rseq_abi_pointer, end = start + rseq->rseq_abi_size;
    areas->list[areas->count++] = (struct lazy_area){
        .start = start - start % PAGE_BYTES,
        .end = (end + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES,
    };
    return 0;
}

static int read_core(int dirfd, const char *name, void *list)
{
    ProtobufCMessage *message;
    if (strncmp(name, "core-", 5) != 0)
        return 0;
    int r =
        message_image_read(dirfd, name, CORE_MAGIC, &godwit__pb__criu_core__descriptor, &message);
    if (r < 0)
        return r;
    const Godwit__Pb__CriuThreadCore *thread = ((Godwit__Pb__CriuCore *)message)->thread_core;
    r = add_rseq(list, thread ? thread->rseq_entry : NULL);
    protobuf_c_message_free_unpacked(message, NULL);
    return r;
}

static int compare_starts(const void *one, const void *other)
{
    const struct lazy_area *a = one, *b = other;
    return a->start < b->start ? -1 : a->start > b->start;
}

static void sort_areas(struct lazy_areas *areas)
{
    size_t count = 0;
    if (areas->count > 1)
        qsort(areas->list, areas->count, sizeof(*areas->list), compare_starts);
    for (size_t i = 0; i < areas->count; i++) {
        struct lazy_area *last = count > 0 ? &areas->list[count - 1] : NULL;
        if (last && areas->list[i].start <= last->end)
            last->end = MAX(last->end, areas->list[i].end);
        else
            areas->list[count++] = areas->list[i];
    }
    areas->count = count;
}

int lazy_areas_read_rseq(int dirfd, struct lazy_areas *ret)
{
    struct rseq_list list = {0};
    int r = directory_for_each(dirfd, read_core, &list);
    if (r < 0) {
        lazy_areas_free(&list.areas);
        return r;
    }
    sort_areas(&list.areas);
    *ret = list.areas;
    return 0;
}

/* ---- all of it ---- */

static int cut_rseq(int dirfd, struct lazy_areas *areas)
{
    struct lazy_areas rseq;
    int r = lazy_areas_read_rseq(dirfd, &rseq);
    if (r < 0)
        return r;
    r = lazy_areas_cut(areas, &rseq);
    lazy_areas_free(&rseq);
    return r;
}

int lazy_areas_read(int dirfd, uint64_t id, bool outside, struct lazy_areas *ret)
{
    char name[40];
    Godwit__Pb__CriuMm *mm;
    snprintf(name, sizeof(name), "mm-%llu.img", (unsigned long long)id);
    int r = mm_image_read(dirfd, name, &mm);
    if (r < 0)
        return r;
    r = take_vmas(mm, outside, ret);
    godwit__pb__criu_mm__free_unpacked(mm, NULL);
    if (r == 0 && outside)
        r = cut_rseq(dirfd, ret);
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
