/* SPDX-License-Identifier: Apache-2.0 */
#include "base/hidden.h"

#include <sys/mman.h>
#include <sys/prctl.h>

void *hidden_alloc(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    if (madvise(at, bytes, MADV_DONTDUMP) < 0 || madvise(at, bytes, MADV_WIPEONFORK) < 0)
        return hidden_free(at, bytes);
    return at;
}

void hidden_clear(void *at, size_t bytes)
{
    madvise(at, bytes, MADV_DONTNEED);
}

void *hidden_free(void *at, size_t bytes)
{
    if (at)
        munmap(at, bytes);
    return NULL;
}

void hidden_from_dumps(void *at, size_t bytes)
{
    madvise(at, bytes, MADV_DONTDUMP);
}

void hidden_process(void)
{
    prctl(PR_SET_DUMPABLE, 0);
}
