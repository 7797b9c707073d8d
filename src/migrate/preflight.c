/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/preflight.h"

void findings_add(struct findings *findings, Godwit__Pb__Finding__Severity severity,
                  const char *topic, const char *remedy, const char *format, ...)
{
}
void findings_free(struct findings *findings)
{
}
int preflight_look(const struct preflight_request *request, struct findings *findings,
                   struct preflight_facts *ret_facts, struct error *err)
{
    *ret_facts = (struct preflight_facts){0};
    return 0;
}
void preflight_facts_free(struct preflight_facts *facts)
{
}
void preflight_judge(const Godwit__Pb__Facts *part, const char *criu, uint64_t free_bytes,
                     struct findings *findings)
{
}
