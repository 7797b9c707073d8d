/* SPDX-License-Identifier: Apache-2.0 */
/* Input: an mm image.  The areas found in it ascend, and every address is in one or is not. */
#include "fuzz.h"

#include "criu/lazy_areas.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lazy_areas areas = {0};
    int r = lazy_areas_parse(data, size, size % 2, &areas);
    must(r == 0 || r == -EBADMSG);
    uint64_t next = 0, changes = 0;
    bool before = false;
    for (uint64_t at = 0; r == 0; at = next) {
        bool have = lazy_areas_have(&areas, at, &next);
        must(next > at && (at == 0 || have != before));
        before = have;
        if (next == UINT64_MAX)
            break;
        changes++;
    }
    must(changes <= 2 * areas.count);
    for (size_t i = 0; i < areas.count; i++) {
        must(areas.list[i].start < areas.list[i].end);
        must(i == 0 || areas.list[i].start > areas.list[i - 1].end);
    }
    lazy_areas_free(&areas);
    return 0;
}
