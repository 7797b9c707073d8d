/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Where the other host is, and the way to a connected socket.
 *
 *   HOST[:PORT]                TCP, see wire/tcp.h; [ADDRESS]:PORT for IPv6
 *   unix:PATH                  a UNIX stream socket
 *   ssh://[USER@]HOST[:PORT]   ssh starts the image-cache there for this one link
 *   exec:COMMAND               a shell command whose standard input and output are the link
 */
#include <systemd/sd-event.h>

#include "base/error.h"
#include "wire/credentials.h"
#include "wire/transport.h"

enum target_kind { TARGET_TCP, TARGET_UNIX, TARGET_SSH, TARGET_EXEC };

struct target {
    enum target_kind kind;
    char *host; /* tcp, ssh (with the user); else NULL */
    char *port; /* tcp; ssh: NULL for ssh's own default */
    char *rest; /* unix: the path, exec: the command; else NULL */
};

#define TARGET_DEFAULT_PORT "9996"

/* Takes a text apart.  0, or -1 with *err set (FAILURE_USAGE); target_free() is due either way. */
int target_parse(const char *text, struct target *ret, struct error *err);
void target_free(struct target *target);

/* Whether a link may go there: 0, or -1 with *err set (FAILURE_USAGE: an address that is not
 * allowed).  What cannot be told now is allowed. */
int target_check(const struct target *target, const struct protection *protection,
                 struct error *err);

struct dial;

struct dial_ops {
    /* What carries the link: not started, the callee's.  NULL: there was no memory for it. */
    void (*connected)(struct dial *dial, struct transport *transport, void *user);
    /* No address of the target can be reached now; dial_begin() may be called again. */
    void (*failed)(struct dial *dial, const struct error *err, void *user);
};

/*
 * A way to a target, on the loop's thread.  The target, what it points to and the protection, which
 * is of TCP only, outlive it and what carries its links.  An attempt that takes longer than
 * silence_usec has failed.  NULL with errno set.
 */
struct dial *dial_new(sd_event *event, const struct target *target,
                      const struct protection *protection, uint64_t silence_usec,
                      const struct dial_ops *ops, void *user);

/* Who dials for a caller that may not make sockets. */
struct dialler {
    /* Has a child call dial_help(), with the socket, which stays the caller's.  0 or a negative
     * errno. */
    int (*start)(void *user, int socket);
    void *user;
};

/* TCP and UNIX only; to be called before the first attempt.  The dialler outlives the dial. */
void dial_use(struct dial *dial, const struct dialler *dialler);

/* In the child: makes one attempt, answers, and ends. */
_Noreturn void dial_help(const struct target *target, const struct protection *protection,
                         uint64_t silence_usec, int socket);

/* Takes NULL, returns NULL.  A program that was started ends with its socket; one that does not
 * within two seconds is killed. */
struct dial *dial_free(struct dial *dial);

/*
 * Begins an attempt, at once or after a pause; what comes of it is told from the loop.  0, or -1
 * with *err set when there is no hope at all (FAILURE_USAGE: an address that is not allowed).
 */
int dial_begin(struct dial *dial, struct error *err);
void dial_begin_after(struct dial *dial, uint64_t usec);

/* What became of the program that carries the link: appends to err->text how it ended, if it has.
 */
void dial_explain(struct dial *dial, struct error *err);
