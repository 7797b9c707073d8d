/* SPDX-License-Identifier: Apache-2.0 */
/* Input: the core image of a thread, which is read from a directory. */
#include "fuzz.h"

#include "criu/lazy_areas.h"
#include "scratch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lazy_areas areas = {0};
    scratch_put("core-1.img", data, size);
    int r = lazy_areas_read_rseq(scratch_fd(), &areas);
    must(r == 0 ? areas.count <= 1 : r == -EBADMSG && areas.count == 0);
    if (areas.count == 1) {
        must(areas.list[0].start < areas.list[0].end);
        must(areas.list[0].start % PAGE_BYTES == 0 && areas.list[0].end % PAGE_BYTES == 0);
    }
    lazy_areas_free(&areas);
    return 0;
}
