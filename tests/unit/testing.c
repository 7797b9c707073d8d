/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static unsigned skipped;

uint64_t test_seed(void)
{
    const char *given = getenv("GODWIT_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 10) : now_usec();
    print_message("GODWIT_TEST_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* splitmix64 */
uint64_t test_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

bool kernel_writes_async(void)
{
    enum { WP_ASYNC = 1 << 15 }; /* UFFD_FEATURE_WP_ASYNC, from Linux 6.7 on */
    _cleanup_close_ int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC};
    return fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0;
}

void test_skip(const char *why)
{
    print_message("skipped: %s\n", why);
    skipped++;
    skip();
    abort(); /* not reached: skip() leaves by longjmp */
}

uint64_t inode_of(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    return st.st_ino;
}

int test_exit(int failed)
{
    return failed ? 1 : skipped ? 77 : 0;
}

void run_until(sd_event *event, bool (*done)(void *user), void *user, unsigned msec)
{
    uint64_t end = now_usec() + msec * USEC_PER_MSEC;
    while (!done(user)) {
        if (now_usec() > end)
            fail_msg("what was waited for did not come within %u ms", msec);
        assert_true(sd_event_run(event, 10 * USEC_PER_MSEC) >= 0);
    }
}

void run_for(sd_event *event, unsigned msec)
{
    for (uint64_t end = now_usec() + msec * USEC_PER_MSEC; now_usec() < end;)
        assert_true(sd_event_run(event, 5 * USEC_PER_MSEC) >= 0);
}

void settle(sd_event *event)
{
    int r;
    while ((r = sd_event_run(event, 0)) > 0)
        ;
    assert_int_equal(r, 0);
}
