/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What godwit-hook, CRIU's --action-script, and the daemons say to one another: packets of fixed
 * layout on the daemons' local SOCK_SEQPACKET sockets, so that the hook needs no library.
 *
 * The hook is run by criu for every action; it asks about four and lets all others pass:
 *   dump     post-dump     may the tasks be killed?   asked of proxy.sock
 *   restore  post-restore  may the tasks run?         asked of cache.sock
 *            pre-resume    they are about to run      told to cache.sock
 *            post-resume   they run                   told to cache.sock
 *
 * A hook that has been told HOOK_HOLD no longer takes the loss of its daemon for a no: the tasks it
 * holds may be the only copy, so it comes back until somebody answers.
 *
 * Environment, set by godwit:
 *   GODWIT_HOOK_TOKEN    hexadecimal: which dump or restore this is
 *   GODWIT_HOOK_WORKDIR  where the sockets are
 *   GODWIT_HOOK_SILENCE  milliseconds without a word from the daemon after which the answer is no
 *   GODWIT_HOOK_KEEPER   process that is told by SIGUSR1, at pre-resume, that the tasks will run
 *   GODWIT_HOOK_KEPT     its child, which is or starts criu, and at whose end it decides
 *   GODWIT_HOOK_MEMORY   directory with memory of the root task (criu/hook_memory.h) that is
 *                        written before post-restore is asked; where that fails it is a no
 *   GODWIT_HOOK_JOURNAL  of a migration's source: file that begins with "commit" when it has been
 *                        decided that the tasks end, whatever became of who decided
 *
 * With GODWIT_HOOK_WORKDIR and no token (criu --page-server by itself) the hook passes on the
 * directory of images, CRTOOLS_IMAGE_DIR, as a descriptor, when it asks at post-dump.
 *
 * Without them (criu --stream by itself) the sockets are looked for in CRTOOLS_IMAGE_DIR, and the
 * daemon knows the session by the process id of criu, the hook's parent.
 */
#include <stdint.h>

enum {
    HOOK_ASK = 1,  /* struct hook_ask; to the daemon */
    HOOK_WAIT = 2, /* u32; to the hook: alive, no answer yet, at least every second */
    HOOK_YES = 3,  /* u32 */
    HOOK_NO = 4,   /* u32, then a line of text */
    HOOK_HOLD = 5, /* u32; wait, and come back if we are lost */

    HOOK_ACTION_MAX = 32,
    HOOK_SILENCE_MSEC = 10000, /* where GODWIT_HOOK_SILENCE is not set */
};

struct hook_ask {
    uint32_t kind;     /* HOOK_ASK */
    uint32_t root_pid; /* CRTOOLS_INIT_PID: of the root task as criu sees it; 0: not told */
    uint64_t token;    /* 0: by criu's process id */
    char action[HOOK_ACTION_MAX];
};
