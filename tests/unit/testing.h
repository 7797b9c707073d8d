/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What all unit tests share: cmocka with what it wants included first, seeds that are printed, and
 * skips that are seen: a program in which a test could not run exits 77 and says which and why.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <systemd/sd-event.h>

#include "peer.h"

/* The seed of this run: $GODWIT_TEST_SEED, or the time; printed. */
uint64_t test_seed(void);
uint64_t test_random(uint64_t *state);

/* Leaves the present test, and lets the program exit 77. */
_Noreturn void test_skip(const char *why);

/* Whether the kernel has userfaultfd with asynchronous write protection: without it, a test of that
 * is skipped; with it, it has to pass. */
bool kernel_writes_async(void);

/* As fstat() tells. */
uint64_t inode_of(int fd);

/* Exit status of the program from what cmocka_run_group_tests() says. */
int test_exit(int failed);

/* Runs the loop until done() says so.  Fails the test after |msec|. */
void run_until(sd_event *event, bool (*done)(void *user), void *user, unsigned msec);

/* Runs the loop for that long. */
void run_for(sd_event *event, unsigned msec);

/* Runs the loop as long as there is something to do at once. */
void settle(sd_event *event);

#define assert_contains(text, part)                                                                \
    do {                                                                                           \
        if (!strstr((text), (part)))                                                               \
            fail_msg("\"%s\" does not contain \"%s\"", (text), (part));                            \
    } while (0)
