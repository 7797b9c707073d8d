/* SPDX-License-Identifier: Apache-2.0 */
/* Input: one byte that says in how large pieces the rest, criu's side of a --stream socket, comes.
 */
#include "fuzz.h"

#include <string.h>

#include "criu/stream.h"
#include "wire/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    size_t step = (size_t)data[0] + 1;
    struct stream_parser *parser =
        calloc(1, sizeof(*parser)); /* on the heap: its bounds are seen */
    must(parser);
    for (size_t at = 1; at < size;) {
        size_t want = stream_want(parser);
        must(want > 0 && want <= STREAM_REQUEST_MAX);
        size_t take = MIN(MIN(want, step), size - at);
        if (parser->want_pipe) {
            must(want == 1);
            parser->want_pipe = false;
            at++;
            continue;
        }
        char *name = NULL;
        struct error err = {0};
        int r = stream_take(parser, data + at, take, &name, &err);
        at += take;
        if (r < 0) {
            must(!name && err.code == FAILURE_CRIU);
            break;
        }
        if (r > 0) {
            must(name && strlen(name) <= STREAM_REQUEST_MAX);
            (void)image_name_valid(name);
            parser->want_pipe = true;
        } else {
            must(!name);
        }
        free(name);
    }
    free(parser);
    return 0;
}
