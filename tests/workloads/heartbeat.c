/* SPDX-License-Identifier: Apache-2.0 */
/*
 * heartbeat FILE: beats as fast as it can, and keeps the longest pause between two beats, in
 * nanoseconds of the wall clock, as a u64 in FILE.  SIGUSR1 begins anew.  What it sees is what a
 * migration does to it.
 */
#include "workload.h"

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: heartbeat FILE\n");
        return 2;
    }
    settle();
    int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ftruncate(fd, sizeof(uint64_t)) < 0)
        die(argv[1]);
    volatile uint64_t *longest =
        mmap(NULL, sizeof(*longest), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (longest == MAP_FAILED)
        die("mmap");
    close(fd);
    check_on_signal();
    for (uint64_t last = now_ns();;) {
        uint64_t now = now_ns();
        if (check_wanted) {
            check_wanted = 0;
            *longest = 0;
        } else if (now > last && now - last > *longest) {
            *longest = now - last;
        }
        last = now;
        sleep_us(200);
    }
}
