/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The server's side of the socket over which `criu restore --lazy-pages` hands its tasks over
 * (CRIU criu/uffd.c), as read; one connection, host byte order:
 *
 *   int32 pid, 1 byte with a userfaultfd   a task, in any order; the pid is that of its namespace
 *   int32 -pid                             a zombie: it has no memory
 *   u32 0x52535446                         all are built, and will run
 *
 * An end before that is a restore that has failed.
 *
 * A message is looked at first and taken then, in one system call and with the kernel writing to
 * where the caller wants it.  So whoever is killed in between has either left it in the socket or
 * left all of it in that place, which may be memory that others share.
 */
#include <sys/socket.h>

#include "base/error.h"

#define LAZY_SOCKET "lazy-pages.socket"

enum {
    LAZY_ITEM_BYTES = 5,    /* of the longest message */
    LAZY_PID_MAX = 1 << 22, /* the kernel's own limit */
};

enum lazy_kind { LAZY_TASK, LAZY_ZOMBIE, LAZY_FINISHED };

struct lazy_item {
    enum lazy_kind kind;
    int32_t pid;
    size_t bytes; /* of the message */
};

/* What the first |length| bytes say.  1: *ret; 0: more are needed; -EPROTO with *err. */
int lazy_parse(const uint8_t *bytes, size_t length, struct lazy_item *ret, struct error *err);

/* Where a message is put.  Clear it before use; pid: 0 until a task has come. */
struct lazy_arrival {
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    uint8_t bytes[LAZY_ITEM_BYTES];
};

/* Looks at the next message.  1: *ret; -EAGAIN: it is not all there; -ENODATA: the end; another
 * negative errno with *err. */
int lazy_peek(int socket, struct lazy_item *ret, struct error *err);

/* Takes the message that was looked at.  0, or a negative errno with *err. */
int lazy_take(int socket, const struct lazy_item *item, struct lazy_arrival *ret,
              struct error *err);

void lazy_arrival_clear(struct lazy_arrival *arrival);

/* Whether a task is there, with its descriptor, which the caller owns then. */
bool lazy_arrival_task(const struct lazy_arrival *arrival, int32_t *ret_pid, int *ret_uffd);
