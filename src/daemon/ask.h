/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the two halves of an image-cache (starter.h) say to one another: records of fixed size on
 * two pairs of SOCK_SEQPACKET sockets, in the machine's own layout.
 *
 *   parser ── struct ask ─────▶ starter     one at a time, with at most one descriptor
 *          ◀── struct answer ──             likewise
 *          ◀── struct tell ────             at any time: a restore has come to its end
 *
 * The parser may be in the hands of whoever has sent the bytes that it parses.  So an ask is
 * nothing but names and numbers, each of which ask_check() looks at: what is not meant for its kind
 * has to be zero.
 */
#include "daemon/restores.h"
#include "migrate/preflight.h"

enum ask_kind {
    /* Of the restore of a migration, by its id: as in restores.h. */
    ASK_START = 1, /* flags LAZY, AHEAD; token; text: options, as many as |count| */
    ASK_GO,        /* flag LAZY */
    ASK_LEAVE,
    ASK_STOP,
    ASK_REMOVE, /* flag KEEP_LOG */
    ASK_CLEAR_UP,
    ASK_LOOK, /* answered by |view| */
    ASK_RELEASE,
    ASK_STOP_PAGER,
    ASK_ROOT, /* pid */
    ASK_ROOT_LIVES,
    ASK_KILL,

    /* Of this host, for pre-flight. */
    ASK_HOST, /* answered by |host| */
    ASK_FILE, /* text: path; flag PROGRAM; answered by |file| */
    ASK_PID,  /* pid; result 1: it is taken, by |command| */

    /* Of the daemon itself. */
    ASK_PARENT, /* pid; answered by |pid| */
    ASK_ROOM,   /* with a local client's socket, which gets room for what is sent to it */
    ASK_LOG,    /* answered by the log file, opened anew */
    ASK_READY,  /* systemd is told, and what was the starting process's let go of */
    ASK_END,    /* flags UNIX_SOCKET, PIDFILE: what there is to be removed; it is the last one */
    ASK_KINDS,
};

enum ask_flag {
    ASK_LAZY = 1,
    ASK_AHEAD = 2,
    ASK_KEEP_LOG = 4,
    ASK_PROGRAM = 8,
    ASK_UNIX_SOCKET = 16,
    ASK_PIDFILE = 32,
};

enum {
    ASK_OPTIONS_MAX = 100,
    ASK_TEXT_BYTES = 9 << 10, /* more than the store takes of options, and than a path has */
};

struct ask {
    uint32_t kind;
    uint32_t flags;
    uint32_t pid;
    uint32_t count;
    uint64_t token;
    char id[WIRE_ID_MAX + 1];
    char text[ASK_TEXT_BYTES]; /* strings, each with its zero byte */
};

struct answer {
    int32_t result; /* 0 or more, or a negative errno; of ASK_START -1: see err */
    union {
        struct error err;
        struct pager_view view;
        struct preflight_host host;
        struct preflight_file file;
        char command[17];
        int32_t pid;
    };
};

/* The keeper of this restore has ended. */
struct tell {
    char id[WIRE_ID_MAX + 1];
    uint64_t token;
    struct restore_end end;
};

/* What the operator has allowed. */
struct ask_limits {
    bool accept;         /* restores may be started */
    const char *options; /* with these options of criu: see criu/allow.h */
};

/* Whether an ask may be fulfilled; |fds|: how many descriptors came with it.  0, or -1 with *err:
 * which field is wrong, or what is not allowed. */
int ask_check(const struct ask *ask, size_t fds, const struct ask_limits *limits,
              struct error *err);

/* The options of an ASK_START that has been checked; they lie in it. */
void ask_options(const struct ask *ask, char *ret[ASK_OPTIONS_MAX + 1]);

/* Puts strings into the text.  0, or -E2BIG. */
int ask_add_text(struct ask *ask, const char *text);

/* One record of |size| bytes, with a descriptor unless that is negative.  0, or a negative errno.
 */
int ask_send(int fd, const void *record, size_t size, int passed);

/*
 * Waits for one.  *ret_fds: how many descriptors came with it; *ret_passed: the first, to be
 * closed, or -EBADF; the others have been closed.  0; -ENODATA: the other side has gone; -EBADMSG:
 * it has not that size; or another negative errno.
 */
int ask_receive(int fd, void *record, size_t size, int *ret_passed, size_t *ret_fds);
