/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A daemon is two processes: the parser, which reads what others send and has given up its rights
 * (confine.h), and a half that has them and is asked by it (starter.h, helper.h).  What those
 * halves have in common; all calls are theirs.
 */
#include <sys/types.h>

/* The end of the parser ends this process, wherever in the kernel it is.  daemon: for the log; a
 * constant. */
void half_watch_parser(const char *daemon, pid_t parser);

/* The parser has gone without a word: says so, and ends. */
_Noreturn void half_parser_has_gone(void);

/* Makes room in a local client's socket for what is sent to it; nothing else gets any.  0 or a
 * negative errno. */
int half_make_room(int fd);
