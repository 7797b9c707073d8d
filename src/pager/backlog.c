/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/backlog.h"

bool backlog_look(const struct backlog *backlog, uint64_t word, struct backlog_move *ret)
{
    const struct uffd_msg *move = &backlog->list[backlog_index(word, 0)];
    uint64_t from = move->arg.remap.from, end = from + move->arg.remap.len, cut = 0;
    for (uint32_t i = 1; i < backlog_count(word); i++) {
        uint32_t at = backlog_index(word, i);
        const struct uffd_msg *message = &backlog->list[at];
        uint64_t start = message->arg.remove.start, stop = message->arg.remove.end;
        if (message->event == UFFD_EVENT_REMAP && message->arg.remap.from == from) {
            /* There it is still: MREMAP_DONTUNMAP. */
            *ret = (struct backlog_move){.length = end - from, .certain = true};
            return true;
        }
        if (message->event != UFFD_EVENT_UNMAP)
            continue;
        if (start > from && stop == end)
            cut = start;
        if (start == from && stop <= end) {
            *ret = (struct backlog_move){.length = stop - from,
                                         .certain = stop == end || stop == cut,
                                         .unmapped = true,
                                         .own = at};
            return true;
        }
    }
    return false;
}
