/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Descriptors that are passed with what is sent over a UNIX socket (SCM_RIGHTS, unix(7)). */
#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

enum { PASSING_MAX = 16 }; /* with one message */

/* What came with a message. */
struct passed {
    int fds[PASSING_MAX]; /* the receiver's; close-on-exec */
    size_t count;
    bool cut; /* of the message or its descriptors there was more than there is room for */
};

/*
 * Sends the bytes in |iov| with |count| descriptors, at most PASSING_MAX, which stay the caller's.
 * The bytes sent, or a negative errno; never SIGPIPE.
 */
ssize_t send_passing(int socket, const struct iovec *iov, size_t iov_count, const int *fds,
                     size_t count);

/* Receives into |iov|; |flags| as for recvmsg(2).  The bytes, 0 at the end (descriptors may have
 * come even so), or a negative errno with none. */
ssize_t receive_passed(int socket, int flags, const struct iovec *iov, size_t iov_count,
                       struct passed *ret);

void passed_close(struct passed *passed);

/* Takes the first, and closes the others.  -EBADF: none came. */
int passed_take_first(struct passed *passed);
