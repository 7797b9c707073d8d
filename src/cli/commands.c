/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/commands.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/hidden.h"
#include "cli/main.h"

const struct command commands[] = {
    {"migrate", "Moves a running process tree to another host", "TARGET [-- CRIU OPTIONS]",
     migrate_options, command_migrate},
    {"check", "Tells what this host, another and a process allow", "[TARGET] [-- CRIU OPTIONS]",
     check_options, command_check},
    {"resolve", "Shows what is in doubt after a failure, and settles it", "[ID]", resolve_options,
     command_resolve},
    {"image-cache", "Keeps snapshots on the destination host", "", cache_options,
     command_image_cache},
    {"image-proxy", "Carries snapshots from the source host to an image-cache", "", proxy_options,
     command_image_proxy},
    {"pre-dump", "Copies the memory of a process tree that runs on", "[-- CRIU OPTIONS]",
     pre_dump_options, command_pre_dump},
    {"dump", "Checkpoints a process tree", "[-- CRIU OPTIONS]", dump_options, command_dump},
    {"restore", "Restores a process tree", "[-- CRIU OPTIONS]", restore_options, command_restore},
    {"status", "Shows what the daemons of a work-dir hold and do", "", status_options,
     command_status},
    {"forget", "Removes a snapshot from the image-cache, or ends the following of a process", "ID",
     forget_options, command_forget},
    {"export", "Writes a snapshot to a directory, as images of criu", "ID DIR", export_options,
     command_export},
    {"import", "Gives images of criu in a directory to the image-cache", "DIR", import_options,
     command_import},
    {"keygen", "Makes certificates or a key for links between hosts", "DIR HOST[,NAME...]...",
     keygen_options, command_keygen},
    {"completion", "Prints the completion script for bash", "", NULL, command_completion},
    {0},
};

static int usage(FILE *out)
{
    fprintf(out, "usage: godwit COMMAND [options]\n"
                 "Moves running processes between hosts through sockets and memory.\n\n");
    for (const struct command *command = commands; command->name; command++)
        fprintf(out, "  %-14s %s\n", command->name, command->summary);
    fprintf(out, "\ngodwit COMMAND --help and godwit(1) tell more.  godwit --version\n");
    return out == stdout ? 0 : FAILURE_USAGE;
}

int godwit_main(int argc, char **argv)
{
    /* A descriptor of ours must never be taken for standard error. */
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return FAILURE_SYSTEM;
    }
    if (argc < 2)
        return usage(stderr);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return usage(stdout);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("godwit %s\n", GODWIT_VERSION);
        return 0;
    }
    hidden_process();
    const struct command *command = command_find(argv[1]);
    if (!command) {
        fprintf(stderr, "godwit: %s: no such command (godwit --help)\n", argv[1]);
        return FAILURE_USAGE;
    }
    return command->run(argc - 1, argv + 1);
}

int command_completion(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    printf("# bash completion for godwit, printed by `godwit completion`\n"
           "_godwit()\n{\n"
           "    local words=\"\" command=${COMP_WORDS[1]} current=${COMP_WORDS[COMP_CWORD]}\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        words=\"");
    for (const struct command *command = commands; command->name; command++)
        printf("%s ", command->name);
    printf("\"\n    else\n        case $command in\n");
    for (const struct command *command = commands; command->name; command++) {
        printf("        %s) words=\"--help", command->name);
        for (size_t i = 0; i < option_count(command->options); i++)
            printf(" --%s", command->options[i].name);
        printf("\" ;;\n");
    }
    printf("        esac\n    fi\n"
           "    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")\n"
           "}\ncomplete -o default -F _godwit godwit\n");
    return 0;
}
