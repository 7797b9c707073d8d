/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Who may have an image-cache start a restore, and with what: --accept and what narrows it. */
#include "daemon/daemon.h"

/* Whether these options make sense together.  0, or -1 with *err set (FAILURE_USAGE). */
int admit_check(const struct daemon_options *options, struct error *err);

/*
 * Whether whoever is at the other end may.  handed: the connection was brought by somebody who may
 * do anything here.  args: options for criu.  0, or -1 with *err set (FAILURE_REFUSED), for the
 * peer to read.
 */
int admit(const struct daemon_options *options, const struct transport *transport, bool handed,
          char *const *args, size_t count, struct error *err);
