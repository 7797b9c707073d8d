/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/cow_areas.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/io.h"
#include "criu/message_image.h"
#include "criu/mm_image.h"

#define PSTREE_MAGIC 0x50273030u      /* CRIU criu/include/magic.h */
#define STATUS_FILE_PRIVATE (1u << 6) /* vma_entry.status, CRIU criu/include/image.h */

/* ---- the tree ---- */

static int order_by_pid(const void *a, const void *b)
{
    const struct pstree_task *x = a, *y = b;
    return (x->pid > y->pid) - (x->pid < y->pid);
}

static int order_by_parent(const void *a, const void *b)
{
    const struct pstree_task *x = a, *y = b;
    return x->ppid == y->ppid ? order_by_pid(a, b) : (x->ppid > y->ppid) - (x->ppid < y->ppid);
}

struct tree {
    struct pstree_task *list;
    size_t count, room;
};

static int take_task(const ProtobufCMessage *message, void *user)
{
    const Godwit__Pb__CriuPstreeEntry *entry = (const Godwit__Pb__CriuPstreeEntry *)message;
    struct tree *tree = user;
    if (tree->count == tree->room) {
        size_t room = MAX(64, 2 * tree->room);
        struct pstree_task *grown = realloc(tree->list, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        tree->list = grown;
        tree->room = room;
    }
    tree->list[tree->count++] = (struct pstree_task){entry->pid, entry->ppid};
    return 0;
}

/* By parent, so that each parent's mappings are read once. */
static int sort_tree(struct tree *tree)
{
    if (tree->count == 0)
        return -EBADMSG;
    qsort(tree->list, tree->count, sizeof(*tree->list), order_by_pid);
    for (size_t i = 1; i < tree->count; i++) {
        if (tree->list[i].pid == tree->list[i - 1].pid)
            return -EBADMSG;
    }
    qsort(tree->list, tree->count, sizeof(*tree->list), order_by_parent);
    return 0;
}

static int end_tree(int r, struct tree *tree)
{
    if (r == 0)
        r = sort_tree(tree);
    if (r < 0) {
        free(tree->list);
        *tree = (struct tree){0};
    }
    return r;
}

static int read_tree(int dirfd, struct tree *ret)
{
    return end_tree(message_image_read_each(dirfd, "pstree.img", PSTREE_MAGIC,
                                            &godwit__pb__criu_pstree_entry__descriptor, take_task,
                                            ret),
                    ret);
}

int cow_areas_parse_tree(const uint8_t *bytes, size_t length, struct pstree_task **ret,
                         size_t *ret_count)
{
    struct tree tree = {0};
    int r = end_tree(message_image_parse_each(bytes, length, PSTREE_MAGIC,
                                              &godwit__pb__criu_pstree_entry__descriptor, take_task,
                                              &tree),
                     &tree);
    *ret = tree.list;
    *ret_count = tree.count;
    return r;
}

/* ---- the mappings ---- */

/* criu goes by this, and not by the offset. */
static bool is_taken_for(const Godwit__Pb__CriuVma *child, const Godwit__Pb__CriuVma *parent)
{
    return child->end == parent->end && child->shmid == parent->shmid &&
           child->status & parent->status & STATUS_FILE_PRIVATE &&
           !((child->flags | parent->flags) & MAP_HUGETLB);
}

const Godwit__Pb__CriuVma *cow_areas_find_other_part(const Godwit__Pb__CriuMm *child,
                                                     const Godwit__Pb__CriuMm *parent)
{
    if (child->exe_file_id != parent->exe_file_id)
        return NULL; /* criu inherits nothing then */
    size_t i = 0, k = 0;
    while (i < child->n_vmas && k < parent->n_vmas) {
        const Godwit__Pb__CriuVma *vma = child->vmas[i], *other = parent->vmas[k];
        if (vma->start == other->start && vma->pgoff != other->pgoff && is_taken_for(vma, other))
            return vma;
        i += vma->start <= other->start;
        k += other->start <= vma->start;
    }
    return NULL;
}

/* 0 and NULL: there is none, as of a zombie. */
static int read_mm(int dirfd, uint32_t pid, Godwit__Pb__CriuMm **ret, struct error *err)
{
    char name[24];
    snprintf(name, sizeof(name), "mm-%u.img", pid);
    int r = mm_image_read(dirfd, name, ret);
    if (r == 0 || r == -ENOENT) {
        *ret = r == 0 ? *ret : NULL;
        return 0;
    }
    return error_set_errno(err, FAILURE_CRIU, r, "%s", name);
}

static int check_task(int dirfd, const struct pstree_task *task, const Godwit__Pb__CriuMm *parent,
                      struct error *err)
{
    Godwit__Pb__CriuMm *mm;
    if (read_mm(dirfd, task->pid, &mm, err) < 0)
        return -1;
    const Godwit__Pb__CriuVma *vma = mm ? cow_areas_find_other_part(mm, parent) : NULL;
    if (vma)
        error_set(err, FAILURE_CRIU,
                  "process %u has another part of a file at %#llx than its parent %u, and criu "
                  "would restore it with its parent's: map it elsewhere (godwit(1), CRIU PITFALLS)",
                  task->pid, (unsigned long long)vma->start, task->ppid);
    if (mm)
        godwit__pb__criu_mm__free_unpacked(mm, NULL);
    return vma ? -1 : 0;
}

/* All children of one parent.  Their number, or -1 with *err set. */
static ssize_t check_children(int dirfd, const struct pstree_task *tasks, size_t count,
                              struct error *err)
{
    size_t children = 1;
    while (children < count && tasks[children].ppid == tasks->ppid)
        children++;
    Godwit__Pb__CriuMm *parent = NULL;
    int r = read_mm(dirfd, tasks->ppid, &parent, err);
    for (size_t i = 0; r == 0 && parent && i < children; i++)
        r = check_task(dirfd, &tasks[i], parent, err);
    if (parent)
        godwit__pb__criu_mm__free_unpacked(parent, NULL);
    return r < 0 ? -1 : (ssize_t)children;
}

int cow_areas_check(int dirfd, struct error *err)
{
    struct tree tree = {0};
    int r = read_tree(dirfd, &tree);
    if (r < 0)
        return r == -ENOENT ? 0 : error_set_errno(err, FAILURE_CRIU, r, "pstree.img");
    ssize_t n = 0;
    for (size_t i = 0; n >= 0 && i < tree.count; i += (size_t)n)
        n = check_children(dirfd, tree.list + i, tree.count - i, err);
    free(tree.list);
    return n < 0 ? -1 : 0;
}
