/* SPDX-License-Identifier: Apache-2.0 */
/* Packets between the daemons and their clients. */
#include "testing.h"

#include <sys/socket.h>
#include <unistd.h>

#include "daemon/local.h"

/* A daemon that ends right behind its last word, and has not heard the client's. */
static void last_word(void **state)
{
    (void)state;
    int pair[2];
    struct local_packet packet;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(local_send(pair[0], LOCAL_PROGRESS, NULL, NULL, 0), 0);
    assert_int_equal(local_send(pair[1], LOCAL_DONE, NULL, NULL, 0), 0);
    close(pair[1]);
    assert_int_equal(local_receive(pair[0], &packet), 0);
    assert_int_equal(packet.kind, LOCAL_DONE);
    assert_int_equal(packet.length, 0);
    assert_int_equal(local_receive(pair[0], &packet), -ENODATA);
    close(pair[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(last_word)};
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
