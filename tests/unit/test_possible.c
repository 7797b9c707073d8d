/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel that runs here lets the pager do; also run on another kernel, by tests/vm/run. */
#include "testing.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "pager/pager.h"
#include "pager/state.h"

/* Before Linux 6.17 the message of a move that also makes smaller tells too much. */
static void moves_as_they_are_told(void **unused)
{
    (void)unused;
    char path[] = "/dev/shm/test-possible-XXXXXX";
    struct pager_state state;
    struct utsname name;
    struct error err;
    unsigned major = 0, minor = 0;
    assert_int_equal(uname(&name), 0);
    assert_int_equal(sscanf(name.release, "%u.%u", &major, &minor), 2);
    assert_true(pager_is_possible());
    assert_non_null(mkdtemp(path));
    int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(pager_start(dir, dir, path, &err), 0);
    int fd = openat(dir, PAGER_STATE_NAME, O_RDONLY | O_CLOEXEC);
    assert_int_equal(read(fd, &state, sizeof(state)), sizeof(state));
    assert_int_equal(state.moves_exact, major > 6 || (major == 6 && minor >= 17));
    pager_stop(dir);
    close(fd);
    unlinkat(dir, PAGER_STATE_NAME, 0);
    close(dir);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(moves_as_they_are_told)};
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
