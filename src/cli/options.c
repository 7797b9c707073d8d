/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/options.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "base/io.h"

enum { OPTIONS_MAX = 40 };

size_t option_count(const struct option_row *options)
{
    size_t n = 0;
    while (options && options[n].name)
        n++;
    return n;
}

const struct command *command_find(const char *name)
{
    for (const struct command *command = commands; command->name; command++) {
        if (strcmp(command->name, name) == 0)
            return command;
    }
    return NULL;
}

void command_usage(const struct command *command)
{
    printf("usage: godwit %s [options]%s%s\n%s.\n\n", command->name, *command->arguments ? " " : "",
           command->arguments, command->summary);
    for (size_t i = 0; i < option_count(command->options); i++) {
        const struct option_row *row = &command->options[i];
        char left[64], letter[8] = "    ";
        if (row->letter)
            snprintf(letter, sizeof(letter), "-%c, ", row->letter);
        snprintf(left, sizeof(left), "%s--%s%s%s", letter, row->name, row->argument ? " " : "",
                 row->argument ? row->argument : "");
        printf("  %-30s %s\n", left, row->help);
    }
    printf("  %-30s %s\n\ngodwit-%s(1) tells more.\n", "-h, --help", "this text", command->name);
}

int command_fail(const struct command *command, const struct error *err)
{
    fprintf(stderr, "godwit %s: %s\n", command->name, err->text);
    return err->code ? (int)err->code : FAILURE_SYSTEM;
}

static const char *const kind_forms[] = {
    [OPTION_NUMBER] = "a number",
    [OPTION_SIZE] = "a number of bytes: 65536, 64K, 5M or 2G",
    [OPTION_SECONDS] = "a number of seconds: 10 or 0.5",
    [OPTION_FD] = "the number of a descriptor",
};

static int option_set(const struct option_row *row, const char *argument, void *values,
                      struct error *err)
{
    void *place = (char *)values + row->offset;
    uint64_t number = 0;
    int r = 0;
    switch (row->kind) {
    case OPTION_FLAG:
        *(bool *)place = true;
        return 0;
    case OPTION_COUNT:
        ++*(unsigned *)place;
        return 0;
    case OPTION_STRING:
        *(const char **)place = argument;
        return 0;
    case OPTION_NUMBER:
        r = parse_number(argument, INT32_MAX, place);
        break;
    case OPTION_SIZE:
        r = parse_size(argument, place);
        break;
    case OPTION_SECONDS:
        r = parse_seconds(argument, place);
        break;
    case OPTION_FD:
        r = parse_number(argument, INT32_MAX, &number);
        if (r == 0 && fcntl((int)number, F_GETFD) < 0)
            return error_set(err, FAILURE_USAGE, "--%s %s: no such descriptor is open", row->name,
                             argument);
        *(int *)place = (int)number;
        break;
    }
    if (r < 0)
        return error_set(err, FAILURE_USAGE, "--%s %s: %s is %s", row->name, argument,
                         row->argument, kind_forms[row->kind]);
    return 0;
}

/* Builds what getopt_long wants.  An option's value there is its row number + 256. */
static void build_tables(const struct command *command, char *letters, struct option *longs)
{
    *letters++ = ':'; /* errors are told here */
    size_t n = option_count(command->options);
    for (size_t i = 0; i < n; i++) {
        const struct option_row *row = &command->options[i];
        int has_argument = row->argument ? required_argument : no_argument;
        longs[i] = (struct option){row->name, has_argument, NULL, 256 + (int)i};
        if (row->letter) {
            *letters++ = row->letter;
            if (row->argument)
                *letters++ = ':';
        }
    }
    *letters++ = 'h';
    *letters = '\0';
    longs[n] = (struct option){"help", no_argument, NULL, 'h'};
    longs[n + 1] = (struct option){0};
}

static const struct option_row *option_find(const struct command *command, int found)
{
    if (found >= 256)
        return &command->options[found - 256];
    for (size_t i = 0; i < option_count(command->options); i++) {
        if (command->options[i].letter == found)
            return &command->options[i];
    }
    return NULL;
}

/* Cuts the line at "--": what follows is somebody else's. */
static char **cut_passed(int *argc, char **argv)
{
    for (int i = 1; i < *argc; i++) {
        if (strcmp(argv[i], "--") == 0) {
            argv[i] = NULL;
            *argc = i;
            return &argv[i + 1];
        }
    }
    return NULL;
}

int options_parse(const struct command *command, int argc, char **argv, void *values,
                  char ***ret_rest, char ***ret_passed, struct error *err)
{
    char letters[3 * OPTIONS_MAX + 4];
    struct option longs[OPTIONS_MAX + 2];
    if (option_count(command->options) > OPTIONS_MAX)
        abort();
    build_tables(command, letters, longs);
    *ret_passed = cut_passed(&argc, argv);
    opterr = 0;
    optind = 0; /* glibc: begin anew */
    int found;
    while ((found = getopt_long(argc, argv, letters, longs, NULL)) != -1) {
        if (found == 'h') {
            command_usage(command);
            return 1;
        }
        if (found == '?' && optopt > 0 && optopt < 256)
            return error_set(err, FAILURE_USAGE, "-%c: no such option (godwit %s --help)", optopt,
                             command->name);
        if (found == '?')
            return error_set(err, FAILURE_USAGE, "%s: no such option (godwit %s --help)%s",
                             argv[optind - 1], command->name,
                             command->arguments && strstr(command->arguments, "[-- ")
                                 ? "; options for criu go behind --"
                                 : "");
        if (found == ':')
            return error_set(err, FAILURE_USAGE, "%s: its argument is missing: %s",
                             argv[optind - 1], option_find(command, optopt)->argument);
        if (option_set(option_find(command, found), optarg, values, err) < 0)
            return -1;
    }
    *ret_rest = argv + optind;
    return 0;
}

int options_take_tracker(const char *how, enum godwit_tracker *ret, struct error *err)
{
    static const char *const names[] = {
        [GODWIT_TRACKER_AUTO] = "auto",
        [GODWIT_TRACKER_UFFD_WP] = "uffd-wp",
        [GODWIT_TRACKER_COMPARE] = "compare",
        [GODWIT_TRACKER_SOFT_DIRTY] = "soft-dirty",
    };
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strcmp(how ? how : "auto", names[i]) == 0) {
            *ret = (enum godwit_tracker)i;
            return 0;
        }
    }
    return error_set(err, FAILURE_USAGE, "--tracker %s: uffd-wp, soft-dirty, compare or auto", how);
}
