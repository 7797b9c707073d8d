/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What options a peer may ask for, for a criu restore that runs here as root.  Some of them have
 * criu run a program, load a plugin, or work in another place of the file system.
 *
 * A list is names of criu's long options, separated by commas.  NULL stands for those that do no
 * more than to let be restored what CRIU by itself would refuse; "any" for all that godwit does not
 * own.
 */
#include "base/error.h"

/* Whether a list can be used.  0, or -1 with *err set (FAILURE_USAGE). */
int criu_allow_check(const char *list, struct error *err);

/* Whether these arguments may be passed on.  0, or -1 with *err set (FAILURE_REFUSED). */
int criu_allow(const char *list, char *const *args, size_t count, struct error *err);
