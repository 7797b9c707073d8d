/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the fuzzers share.  Each target is one function in libFuzzer's form; with libFuzzer it is
 * driven by generated inputs, else by replay.c with files, which is how the seeds, and what was
 * once found, are ordinary tests.
 */
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What must hold whatever the input is. */
#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            __builtin_trap();                                                                      \
    } while (0)
