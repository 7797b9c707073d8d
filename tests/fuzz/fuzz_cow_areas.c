/* SPDX-License-Identifier: Apache-2.0 */
/* Input: the lengths of a pstree image and of a parent's mm image, 2 bytes each, both images, and
 * the child's mm image. */
#include "fuzz.h"

#include <stdlib.h>

#include "criu/cow_areas.h"
#include "criu/mm_image.h"

static void fuzz_tree(const uint8_t *data, size_t size)
{
    struct pstree_task *tasks = NULL;
    size_t count = 0;
    int r = cow_areas_parse_tree(data, size, &tasks, &count);
    must(r == 0 ? count > 0 : r == -EBADMSG && !tasks);
    for (size_t i = 1; i < count; i++) {
        must(tasks[i].ppid >= tasks[i - 1].ppid);
        must(tasks[i].ppid > tasks[i - 1].ppid || tasks[i].pid > tasks[i - 1].pid);
    }
    free(tasks);
}

static void fuzz_mm(const Godwit__Pb__CriuMm *child, const Godwit__Pb__CriuMm *parent)
{
    const Godwit__Pb__CriuVma *vma = cow_areas_find_other_part(child, parent);
    bool found = !vma;
    for (size_t i = 0; vma && i < parent->n_vmas; i++)
        found |= parent->vmas[i]->start == vma->start && parent->vmas[i]->pgoff != vma->pgoff;
    must(found);
    must(!cow_areas_find_other_part(child, child));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4)
        return 0;
    size_t tree = (size_t)data[0] | (size_t)data[1] << 8;
    size_t parent = (size_t)data[2] | (size_t)data[3] << 8;
    data += 4;
    size -= 4;
    if (tree > size || parent > size - tree)
        return 0;
    fuzz_tree(data, tree);
    Godwit__Pb__CriuMm *mm[2];
    if (mm_image_parse(data + tree, parent, &mm[0]) < 0)
        return 0;
    if (mm_image_parse(data + tree + parent, size - tree - parent, &mm[1]) == 0) {
        fuzz_mm(mm[1], mm[0]);
        godwit__pb__criu_mm__free_unpacked(mm[1], NULL);
    }
    godwit__pb__criu_mm__free_unpacked(mm[0], NULL);
    return 0;
}
