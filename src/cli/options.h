/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Command lines from tables: a command is a row that names its options, an option is a row that
 * says where its value goes.  The same tables print the usage and the shell completion.
 */
#include "base/error.h"
#include "godwit.h"

enum option_kind {
    OPTION_FLAG,    /* bool: true */
    OPTION_STRING,  /* const char * */
    OPTION_NUMBER,  /* uint64_t */
    OPTION_SIZE,    /* uint64_t, bytes */
    OPTION_SECONDS, /* uint64_t, microseconds */
    OPTION_FD,      /* int: an open descriptor */
    OPTION_COUNT,   /* unsigned: how often it was given */
};

struct option_row {
    char letter; /* 0: none */
    const char *name;
    enum option_kind kind;
    size_t offset; /* of the value in the command's structure */
    const char *argument;
    const char *help;
};

/* clang-format off */
/* Rows for struct credential_files, whose members are at AT(files.cacert) and so on. */
#define CREDENTIAL_ROWS(files) \
    {0, "tls-cacert", OPTION_STRING, AT(files.cacert), "FILE", \
     "authority that has signed the other host's certificate (default: in /etc/godwit/tls)"}, \
    {0, "tls-cacrl", OPTION_STRING, AT(files.cacrl), "FILE", "certificates that it has revoked"}, \
    {0, "tls-cert", OPTION_STRING, AT(files.cert), "FILE", "certificate of this host"}, \
    {0, "tls-key", OPTION_STRING, AT(files.key), "FILE", "its private key"}, \
    {0, "psk-file", OPTION_STRING, AT(files.psk), "FILE", "instead of certificates: a key that both hosts have"}
/* clang-format on */

struct command {
    const char *name;
    const char *summary;
    const char *arguments;             /* behind the options, for the usage */
    const struct option_row *options;  /* ended by a row without a name; NULL: none */
    int (*run)(int argc, char **argv); /* exit status */
};

/* All commands, ended by a row without a name. */
extern const struct command commands[];

/* Number of rows before the end. */
size_t option_count(const struct option_row *options);

const struct command *command_find(const char *name);

/*
 * Reads options into *values; *ret_rest points at what follows them (ended by NULL); what follows a
 * "--" is *ret_passed, or NULL.  0, 1 when --help was asked for and printed, or -1 with *err set.
 */
int options_parse(const struct command *command, int argc, char **argv, void *values,
                  char ***ret_rest, char ***ret_passed, struct error *err);

/* The value of --tracker; NULL: it was not given.  0, or -1 with *err set. */
int options_take_tracker(const char *how, enum godwit_tracker *ret, struct error *err);

void command_usage(const struct command *command);

/* Prints "godwit COMMAND: text" to standard error; the exit status for the failure. */
int command_fail(const struct command *command, const struct error *err);
