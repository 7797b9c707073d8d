/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel that runs here lets the pager do; also run on another kernel, by tests/vm/run. */
#include "testing.h"

#include <stdio.h>
#include <sys/utsname.h>

#include "pager/pager.h"

/* Before Linux 6.17 the message of a move that also makes smaller tells too much. */
static void only_where_moves_are_told(void **state)
{
    (void)state;
    struct utsname name;
    unsigned major = 0, minor = 0;
    assert_int_equal(uname(&name), 0);
    assert_int_equal(sscanf(name.release, "%u.%u", &major, &minor), 2);
    assert_int_equal(pager_is_possible(), major > 6 || (major == 6 && minor >= 17));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(only_where_moves_are_told)};
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
