/* SPDX-License-Identifier: Apache-2.0 */
/* Input: one byte, what the operator allows and how many descriptors come along, then a struct ask,
 * of which the rest is zeros. */
#include "fuzz.h"

#include <string.h>

#include "criu/allow.h"
#include "daemon/ask.h"

/* What a starter that fulfils it relies on. */
static void look(const struct ask *ask, const struct ask_limits *limits)
{
    char *options[ASK_OPTIONS_MAX + 1];
    must(ask->kind > 0 && ask->kind < ASK_KINDS);
    must(memchr(ask->id, '\0', sizeof(ask->id)));
    must(ask->id[0] ? snapshot_id_valid(ask->id)
                    : ask->kind >= ASK_HOST || ask->kind == ASK_CLEAR_UP);
    must(ask->pid <= INT32_MAX);
    if (ask->kind == ASK_FILE)
        must(ask->text[0] == '/' && memchr(ask->text, '\0', sizeof(ask->text)));
    if (ask->kind != ASK_START)
        return;
    must(limits->accept && ask->token != 0);
    ask_options(ask, options);
    for (size_t i = 0; i < ask->count; i++)
        must(options[i] + strlen(options[i]) < ask->text + sizeof(ask->text));
    must(criu_allow(limits->options, options, ask->count, NULL) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const lists[] = {NULL, "any", "", "tcp-established,file-locks"};
    static struct ask ask;
    struct error err = {0};
    if (size == 0)
        return 0;
    const struct ask_limits limits = {.accept = data[0] & 1, .options = lists[data[0] >> 1 & 3]};
    memset(&ask, 0, sizeof(ask));
    memcpy(&ask, data + 1, MIN(size - 1, sizeof(ask)));
    if (ask_check(&ask, data[0] >> 3 & 3, &limits, &err) == 0)
        look(&ask, &limits);
    else
        must(err.text[0]);
    return 0;
}
