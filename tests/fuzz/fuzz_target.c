/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a word of the command line: TARGET, a size, a number, seconds; and what hooks and journals
 * have of these. */
#include "fuzz.h"

#include <string.h>

#include "base/io.h"
#include "wire/target.h"

static void check_target(const char *text)
{
    struct target target;
    struct error err = {0};
    if (target_parse(text, &target, &err) < 0) {
        must(err.code == FAILURE_USAGE && err.text[0]);
        target_free(&target);
        return;
    }
    bool has_host = target.kind == TARGET_TCP || target.kind == TARGET_SSH;
    must(has_host == (target.host != NULL) && has_host == (target.rest == NULL));
    must(!target.rest || target.rest[0]);
    /* ssh is given the host as an argument of its own. */
    must(!target.host ||
         (target.host[0] && target.host[0] != '-' && strlen(target.host) <= strlen(text)));
    must(target.kind != TARGET_TCP || target.port);
    uint64_t port;
    must(!target.port || (parse_number(target.port, 65535, &port) == 0 && port > 0));
    target_free(&target);
}

static void check_numbers(const char *text)
{
    uint64_t number = 0, size = 0, usec = 0;
    bool is_number = parse_number(text, 1000, &number) == 0;
    must(!is_number || number <= 1000);
    bool is_size = parse_size(text, &size) == 0;
    must(!is_number || (is_size && size == number));
    bool is_time = parse_seconds(text, &usec) == 0;
    must(!is_time || usec <= 1000000 * USEC_PER_SEC);
    must(!is_number || (is_time && usec == number * USEC_PER_SEC));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = strndup((const char *)data, size); /* of the exact size */
    must(text);
    check_target(text);
    check_numbers(text);
    free(text);
    return 0;
}
