/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: two bytes where the ring begins, then messages of a userfaultfd, three bytes each: kind,
 * and two page numbers; the first is made a move.
 */
#include "fuzz.h"

#include <string.h>

#include "pager/backlog.h"

static struct uffd_msg message_of(const uint8_t *bytes, bool is_move)
{
    uint64_t first = bytes[1] * PAGE_BYTES, second = bytes[2] * PAGE_BYTES;
    struct uffd_msg message = {0};
    if (bytes[0] % 2 && !is_move) {
        message.event = UFFD_EVENT_UNMAP;
        message.arg.remove.start = MIN(first, second);
        message.arg.remove.end = MAX(first, second) + PAGE_BYTES;
    } else {
        message.event = UFFD_EVENT_REMAP;
        message.arg.remap.from = first;
        message.arg.remap.to = first + (1ull << 40);
        message.arg.remap.len = second + PAGE_BYTES;
    }
    return message;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct backlog backlog;
    if (size < 5)
        return 0;
    size_t count = MIN((size - 2) / 3, (size_t)BACKLOG_MAX);
    uint64_t begin = (data[0] | data[1] << 8) * 256ull & BACKLOG_COUNTER, low = 0x5aa5;
    uint64_t word = low | begin << BACKLOG_BEGIN | begin << BACKLOG_END;
    for (size_t i = 0; i < count; i++) {
        backlog.list[backlog_index(word, (uint32_t)i)] = message_of(data + 2 + 3 * i, i == 0);
        word = backlog_pushed(word);
        must(backlog_count(word) == i + 1 && backlog_begin(word) == begin &&
             (word & 0xffff) == low);
    }
    const struct uffd_msg *move = &backlog.list[backlog_index(word, 0)];
    struct backlog_move told;
    if (backlog_look(&backlog, word, &told)) {
        must(told.length > 0 && told.length <= move->arg.remap.len);
        must(told.certain || told.unmapped);
        if (told.unmapped) {
            const struct uffd_msg *own = &backlog.list[told.own];
            must(told.own < BACKLOG_MAX && own->event == UFFD_EVENT_UNMAP);
            must(own->arg.remove.start == move->arg.remap.from);
        }
    }
    for (size_t i = count; i > 0; i--) {
        word = backlog_popped(word);
        must(backlog_count(word) == i - 1 && (word & 0xffff) == low);
    }
    return 0;
}
