/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One run of `criu dump` that writes to no disk: its pages go out through a socket, as to a page
 * server, its other images to a directory in memory.
 */
#include "criu/process.h"

struct criu_dump {
    int images_fd;     /* a tmpfs of its own, mounted nowhere: gone with its last descriptor */
    int pages_fd;      /* criu's end of the page-server connection */
    int pages_peer_fd; /* ours */
};

/* clang-format off */
#define CRIU_DUMP_CLOSED {-EBADF, -EBADF, -EBADF}
/* clang-format on */

/* Opens the three.  0, or -1 with *err set; criu_dump_close() is due either way. */
int criu_dump_open(struct criu_dump *dump, struct error *err);
void criu_dump_close(struct criu_dump *dump);

/* Puts together the command line; criu must inherit images_fd and pages_fd.  workdir: where criu
 * may leave things. */
void criu_dump_arguments(const struct criu_dump *dump, const char *criu, pid_t pid,
                         const char *workdir, const char *log, const char *hook,
                         struct criu_args *args);

/* A criu whose page connection breaks fails, and lets the process run on. */
void criu_dump_break(struct criu_dump *dump);
