/* SPDX-License-Identifier: Apache-2.0 */
/*
 * secret MB OUTFILE WORD: memory full of WORD in the other case, so that it can be told from the
 * command line; writes "ok 0" when it is filled.
 */
#include "pages.h"

int main(int argc, char **argv)
{
    size_t size = argc > 3 ? strtoul(argv[1], NULL, 10) << 20 : 0;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED || !*argv[3]) {
        fprintf(stderr, "usage: secret MB OUTFILE WORD\n");
        return 2;
    }
    settle();
    for (size_t i = 0, length = strlen(argv[3]); i < size; i++)
        memory[i] = argv[3][i % length] ^ 0x20;
    report(argv[2], "ok 0");
    for (;;)
        pause();
}
