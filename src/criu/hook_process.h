/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the hook looks up of processes.  No library, as the hook itself. */
#include <sys/types.h>

/* The parent of a process that lives; 0: it does not. */
pid_t hook_parent_of(pid_t pid);
