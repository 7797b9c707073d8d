/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/copier.h"

#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum {
    STACK_BYTES = 64 << 10,
    LOOKS = 50, /* before it sleeps */
    LATE_USEC = 1000,
    ALONE_BATCHES = 32,
    COUNT_MAX = 1 << 16, /* of jobs, in a turn */
};

int uffd_copy(int uffd, uint64_t vaddr, const void *source, uint64_t bytes, uint64_t *ret_placed)
{
    struct uffdio_copy copy = {.dst = vaddr, .src = (uintptr_t)source, .len = bytes};
    int r = ioctl(uffd, UFFDIO_COPY, &copy) < 0 ? -errno : 0;
    *ret_placed = copy.copy > 0 ? (uint64_t)copy.copy : 0;
    return *ret_placed > 0 ? 0 : r;
}

static void do_job(struct copier *copier, struct copy_job *job)
{
    job->result = uffd_copy(job->uffd, job->vaddr, job->source, job->bytes, &job->placed);
    __atomic_add_fetch(&copier->copied, 1, __ATOMIC_SEQ_CST);
}

static void take_jobs(struct copier *copier)
{
    uint64_t turn = __atomic_load_n(&copier->turn, __ATOMIC_SEQ_CST);
    while (turn % COUNT_MAX < turn / COUNT_MAX % COUNT_MAX) {
        if (!__atomic_compare_exchange_n(&copier->turn, &turn, turn + 1, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST))
            continue;
        do_job(copier, &copier->jobs[turn % COUNT_MAX]);
        turn = __atomic_load_n(&copier->turn, __ATOMIC_SEQ_CST);
    }
}

static void futex(uint32_t *word, int operation, uint32_t value)
{
    syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

/* Until the word is another; the next batch is most often near. */
static void wait_while(uint32_t *word, uint32_t value)
{
    for (unsigned i = 0; i < LOOKS && __atomic_load_n(word, __ATOMIC_SEQ_CST) == value; i++)
        sched_yield();
    while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value)
        futex(word, FUTEX_WAIT_PRIVATE, value);
}

/* It holds no lock, and calls nothing that does: the first thread may clone() at any time. */
static void *help(void *user)
{
    struct copier *copier = user;
    for (uint32_t batch = 0;;) {
        wait_while(&copier->batch, batch);
        batch = __atomic_load_n(&copier->batch, __ATOMIC_SEQ_CST);
        take_jobs(copier);
        futex(&copier->copied, FUTEX_WAKE_PRIVATE, 1);
    }
    return NULL;
}

static bool has_second_cpu(void)
{
    cpu_set_t cpus;
    return sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) > 1;
}

void copier_start(struct copier *copier)
{
    pthread_attr_t attributes;
    *copier = (struct copier){0};
    if (!has_second_cpu() || pthread_attr_init(&attributes) != 0)
        return;
    pthread_t thread;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    copier->helped = pthread_create(&thread, &attributes, help, copier) == 0;
    pthread_attr_destroy(&attributes);
}

void copier_run(struct copier *copier, unsigned count)
{
    uint32_t copied;
    __atomic_store_n(&copier->copied, 0, __ATOMIC_SEQ_CST);
    uint32_t batch = copier->batch + 1;
    uint64_t turn = ((uint64_t)batch * COUNT_MAX + count) * COUNT_MAX;
    __atomic_store_n(&copier->turn, turn, __ATOMIC_SEQ_CST);
    if (copier->alone > 0)
        copier->alone--;
    else if (copier->helped && count > 1) {
        __atomic_store_n(&copier->batch, batch, __ATOMIC_SEQ_CST);
        futex(&copier->batch, FUTEX_WAKE_PRIVATE, 1);
    }
    take_jobs(copier);
    uint64_t began = now_usec();
    while ((copied = __atomic_load_n(&copier->copied, __ATOMIC_SEQ_CST)) < count)
        wait_while(&copier->copied, copied);
    /* A machine with more to do than processors. */
    if (now_usec() - began > LATE_USEC)
        copier->alone = ALONE_BATCHES;
}
