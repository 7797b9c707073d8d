/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An image-cache for one migration: started when somebody asks for it, in the background, and gone
 * when there is nothing left to do.  Whoever brings the connection (ssh) may go before that.
 */
#include "base/error.h"
#include "daemon/daemon.h"

/* Sees to it that an image-cache works in the work-dir.  0, or -1 with *err set. */
int cache_ensure(const char *workdir, struct error *err);

/*
 * Makes standard input and output the link of the work-dir's image-cache, which is started if there
 * is none, and returns when the connection has ended.  0, or -1 with *err set.
 */
int cache_attach_stdio(const struct daemon_options *options, struct error *err);
