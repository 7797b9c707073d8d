/* SPDX-License-Identifier: Apache-2.0 */
/* Input: pieces of the memory of a task, as godwit-hook writes them.  The task is a child that
 * never runs; there are as many pages as PAGES. */
#include "fuzz.h"

#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/util.h"
#include "criu/hook_memory.h"
#include "scratch.h"

enum { PAGES = 4 };

#define PLACE ((uint8_t *)0x200000000000) /* where it has some, which make_seeds.py knows too */

static pid_t task;

static void start_task(void)
{
    void *at = mmap(PLACE, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    must(at == PLACE);
    task = fork();
    must(task >= 0);
    while (task == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        raise(SIGSTOP);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t pages[PAGES * PAGE_BYTES];
    if (task == 0) {
        start_task();
        memset(pages, 'p', sizeof(pages));
        scratch_put(HOOK_PAGES, pages, sizeof(pages));
    }
    scratch_put(HOOK_PIECES, data, size);
    int r = hook_write_memory(scratch_path(), task);
    bool inside = true; /* the pages, and the task's memory */
    uint64_t bytes = 0;
    for (size_t at = 0; at + sizeof(struct hook_piece) <= size; at += sizeof(struct hook_piece)) {
        struct hook_piece piece;
        memcpy(&piece, data + at, sizeof(piece));
        uint64_t place = piece.vaddr - (uint64_t)(uintptr_t)PLACE;
        inside &= piece.offset <= sizeof(pages) && piece.bytes <= sizeof(pages) - piece.offset;
        inside &= place <= sizeof(pages) && piece.bytes <= sizeof(pages) - place;
        bytes += piece.bytes;
    }
    must(r == 0 || r == -1);
    must(r == 0 || !inside || bytes == 0);
    return 0;
}
