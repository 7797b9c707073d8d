/* SPDX-License-Identifier: Apache-2.0 */
/* Input: Facts, as a source tells them to a destination, which judges them. */
#include "fuzz.h"

#include <string.h>

#include "migrate/preflight.h"
#include "wire/message.h"

static void check_finding(const Godwit__Pb__Finding *finding)
{
    must(finding->topic[0] && finding->text[0] && strlen(finding->text) < 1000);
    for (const char *s = finding->text; *s; s++)
        must((unsigned char)*s >= 0x20 && *s != 0x7f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct preflight_criu criu = {.found = true, .works = true, .version = "4.2.1"};
    struct error err = {0};
    ProtobufCMessage *message = message_unpack(&godwit__pb__facts__descriptor, data, size, &err);
    if (!message)
        return 0;
    struct findings findings = {0};
    preflight_judge((const Godwit__Pb__Facts *)message, &criu, MIB(64), &preflight_own_eyes,
                    &findings);
    must(findings.count < 64);
    for (size_t i = 0; i < findings.count; i++)
        check_finding(findings.list[i]);
    findings_free(&findings);
    protobuf_c_message_free_unpacked(message, NULL);
    return 0;
}
