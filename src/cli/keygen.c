/* SPDX-License-Identifier: Apache-2.0 */
/* godwit keygen: credentials for links by TCP. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "wire/credentials.h"
#include "wire/keygen.h"

struct values {
    const char *psk;
};

#define AT(field) offsetof(struct values, field)

const struct option_row keygen_options[] = {
    {0, "psk", OPTION_STRING, AT(psk), "FILE", "write a key there that all hosts are to have"},
    {0},
};

static void tell_hosts(const char *directory, char **hosts)
{
    for (char **host = hosts; *host; host++) {
        int length = (int)strcspn(*host, ",");
        printf("%s/%.*s: its files belong into " CREDENTIALS_DIRECTORY " on %.*s\n", directory,
               length, *host, length, *host);
    }
    printf("%s/cakey.pem: stays here; whoever has it can make more hosts\n", directory);
}

static int keygen(const struct values *values, char **rest, struct error *err)
{
    if (values->psk) {
        if (rest[0])
            return error_set(err, FAILURE_USAGE, "%s: with --psk no argument is expected", rest[0]);
        if (keygen_psk(values->psk, err) < 0)
            return -1;
        printf("%s: belongs into " CREDENTIALS_DIRECTORY "/psk on each host, or to --psk-file\n",
               values->psk);
        return 0;
    }
    if (!rest[0] || !rest[1])
        return error_set(err, FAILURE_USAGE,
                         "DIR and HOST are expected: where to, and for which hosts; or --psk FILE");
    if (keygen_hosts(rest[0], rest + 1, err) < 0)
        return -1;
    tell_hosts(rest[0], rest + 1);
    return 0;
}

int command_keygen(int argc, char **argv)
{
    const struct command *command = command_find("keygen");
    struct values values = {0};
    struct error err = {0};
    char **rest, **passed;
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && passed)
        r = error_set(&err, FAILURE_USAGE, "--: nothing is expected there");
    if (r == 0)
        r = keygen(&values, rest, &err);
    return r < 0 ? command_fail(command, &err) : 0;
}
