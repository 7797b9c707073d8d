/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What both sides of pre-flight know about their host, and the packing of facts; a part of
 * preflight.c and judge.c. */
#include "criu/process.h"
#include "migrate/preflight.h"

/* Parts of facts that are being filled: what does not fit into the last one begins another. */
struct facts_builder {
    struct preflight_facts *facts;
    size_t bytes; /* of the last part, packed; rather too many */
    bool failed;  /* out of memory */
};

/* Each copies what it is given. */
void facts_begin(struct facts_builder *builder, struct preflight_facts *facts);
void facts_add_cpu(struct facts_builder *builder, const char *flag);
void facts_add_option(struct facts_builder *builder, const char *option);
void facts_add_pid(struct facts_builder *builder, uint32_t pid);

/* Borrows everything but the record itself; a path of at most 4096 bytes. */
void facts_add_file(struct facts_builder *builder, const Godwit__Pb__FileFact *file);

/* Sets a string of the first part. */
void facts_set(struct facts_builder *builder, char **field, const char *text);

/* Findings about the criu and the kernel of this host. */
void preflight_tell_criu(const struct preflight_criu *criu, struct findings *findings);
void preflight_check_pages(struct findings *findings);

/* What a processor can do that programs may use, as the kernel calls it: calls for each.  False
 * when it cannot be told. */
bool preflight_each_cpu_flag(void (*flag)(void *user, const char *name), void *user);

/* What a peer may be told in one line of words. */
bool preflight_is_plain(const char *text);
