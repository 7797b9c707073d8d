/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* dump and restore without --remote: criu with images in a directory, as criu does it. */
#include "base/error.h"

struct plain_run {
    const char *action;                           /* "dump" or "restore" */
    const char *criu, *directory, *workdir, *log; /* as given; NULL: not */
    char *const *options;
    char *const *passed; /* NULL: none */
};

/* Runs criu and waits for it.  0, or -1 with *err set. */
int plain_run(const struct plain_run *run, struct error *err);
