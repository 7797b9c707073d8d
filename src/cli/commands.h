/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The subcommands: one file each, and their tables of options. */
#include "cli/options.h"

extern const struct option_row cache_options[], proxy_options[], dump_options[], restore_options[],
    status_options[], forget_options[], pre_dump_options[], export_options[], import_options[],
    migrate_options[], check_options[], resolve_options[], keygen_options[];

/* Shows the migrations in a store that are not settled, whether an image-cache works there or not;
 * how many.  For resolve. */
unsigned status_print_store(const char *workdir);

int command_image_cache(int argc, char **argv);
int command_image_proxy(int argc, char **argv);
int command_dump(int argc, char **argv);
int command_pre_dump(int argc, char **argv);
int command_restore(int argc, char **argv);
int command_status(int argc, char **argv);
int command_export(int argc, char **argv);
int command_import(int argc, char **argv);
int command_forget(int argc, char **argv);
int command_migrate(int argc, char **argv);
int command_check(int argc, char **argv);
int command_resolve(int argc, char **argv);
int command_keygen(int argc, char **argv);
int command_completion(int argc, char **argv);
