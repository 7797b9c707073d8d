/* SPDX-License-Identifier: Apache-2.0 */
/* What a criu that is linked statically is to godwit: $CRIU, with nothing preloaded. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    (void)argc;
    const char *criu = getenv("CRIU");
    if (!criu)
        return 2;
    unsetenv("LD_PRELOAD");
    execv(criu, argv);
    perror(criu);
    return 127;
}
