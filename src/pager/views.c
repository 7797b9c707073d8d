/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/views.h"

#include "pager/map.h"

void views_begin(struct views *views)
{
    views->count = 1;
    views->list[0] = (struct view){.end = FILL_VADDR_END};
}

/* Index of the first view that ends above the address. */
static uint64_t view_above(const struct views *views, uint64_t vaddr)
{
    uint64_t low = 0, high = views->count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (views->list[middle].end <= vaddr)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct view *views_find(const struct views *views, uint64_t vaddr)
{
    uint64_t i = view_above(views, vaddr);
    return i < views->count && views->list[i].start <= vaddr ? &views->list[i] : NULL;
}

bool views_locate(const struct views *views, uint64_t home, uint64_t *ret_vaddr, uint64_t *length)
{
    for (uint64_t i = 0; i < views->count; i++) {
        const struct view *view = &views->list[i];
        if (home < view->home || home - view->home >= view->end - view->start)
            continue;
        *ret_vaddr = view->start + (home - view->home);
        *length = MIN(*length, view->end - *ret_vaddr);
        return true;
    }
    return false;
}

bool views_next(const struct views *views, uint64_t *start, uint64_t end, uint64_t *ret_home,
                uint64_t *ret_length)
{
    uint64_t i = view_above(views, *start);
    if (i == views->count || views->list[i].start >= end || *start >= end)
        return false;
    const struct view *view = &views->list[i];
    uint64_t first = MAX(*start, view->start);
    *ret_home = view->home + (first - view->start);
    *ret_length = MIN(end, view->end) - first;
    *start = first + *ret_length;
    return true;
}

static bool views_add(struct views *views, uint64_t start, uint64_t end, uint64_t home)
{
    if (start >= end)
        return true;
    if (views->count == VIEWS_MAX)
        return false;
    views->list[views->count++] = (struct view){start, end, home};
    return true;
}

/* What of a view lies outside of [start, end). */
static bool views_add_without(struct views *views, const struct view *view, uint64_t start,
                              uint64_t end)
{
    uint64_t behind = MAX(end, view->start);
    return views_add(views, view->start, MIN(view->end, start), view->home) &&
           views_add(views, behind, view->end, view->home + (behind - view->start));
}

static int compare_views(const void *a, const void *b)
{
    const struct view *left = a, *right = b;
    return left->start < right->start ? -1 : left->start > right->start;
}

int views_move(struct views *after, const struct views *before, uint64_t from, uint64_t to,
               uint64_t length)
{
    /* The two places never overlap (mremap refuses that), so that each view loses the one, then the
     * other, whichever comes first. */
    uint64_t low = MIN(from, to), high = MAX(from, to);
    after->count = 0;
    for (uint64_t i = 0; i < before->count; i++) {
        const struct view *view = &before->list[i];
        struct view rest = {.start = MAX(view->start, MIN(low + length, view->end)),
                            .end = view->end};
        rest.home = view->home + (rest.start - view->start);
        if (!views_add(after, view->start, MIN(view->end, low), view->home) ||
            !views_add_without(after, &rest, high, high + length))
            return -ENOSPC;
    }
    uint64_t home, got;
    for (uint64_t at = from; views_next(before, &at, from + length, &home, &got);) {
        if (!views_add(after, to + (at - got - from), to + (at - from), home))
            return -ENOSPC;
    }
    qsort(after->list, after->count, sizeof(after->list[0]), compare_views);
    return 0;
}
