/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The local sockets of the daemons, proxy.sock and cache.sock in the work-dir: SOCK_SEQPACKET, one
 * message a packet, u32 kind in host byte order and then a message of proto/local.proto, with
 * descriptors where the kind has them.  Who may open the sockets is trusted as the daemon itself
 * is: directory and sockets belong to root alone.
 */
#include "base/error.h"
#include "criu/hook.h"
#include "local.pb-c.h"

enum local_kind {
    /* 1 to 4: the hook's, see criu/hook.h */
    LOCAL_FAILURE = 10,  /* Failure: the end of a request that came to nothing */
    LOCAL_DONE = 11,     /* Progress: the end of a request that was fulfilled */
    LOCAL_PROGRESS = 12, /* Progress: at work; at least every second while a client waits */
    LOCAL_EXITED = 13,   /* Exited; to the daemon: criu has ended */

    LOCAL_DUMP_OPEN = 20, /* DumpOpen, with enum dump_fd */
    LOCAL_DUMP_OPENED = 21,

    LOCAL_RESTORE_OPEN = 30,
    LOCAL_RESTORE_READY = 31,
    LOCAL_RESTORE_STREAM =
        32, /* with one descriptor: a listening socket that criu --stream is about to connect to */

    LOCAL_FORGET = 40,
    LOCAL_RESOLVE = 41, /* Resolve: the operator's word on a migration */
    LOCAL_ATTACH =
        42, /* with one descriptor: a connected stream socket that is a link from now on */
    LOCAL_STATUS = 50,
    LOCAL_STATUS_DAEMON = 51,   /* Status */
    LOCAL_STATUS_SNAPSHOT = 52, /* StatusSnapshot, one packet each, then LOCAL_DONE */

    /* not on a socket of the work-dir, see spool.h */
    LOCAL_SPOOL_WRITE = 60,   /* SpoolWrite; the answer is WRITTEN or LOCAL_FAILURE */
    LOCAL_SPOOL_WRITTEN = 61, /* whole, and not to be seen yet: PUBLISH or DROP it */
    LOCAL_SPOOL_DROP = 62,
    LOCAL_SPOOL_PUBLISH = 63,   /* the answer is PUBLISHED or LOCAL_FAILURE */
    LOCAL_SPOOL_PUBLISHED = 64, /* SpoolPublished */
};

enum {
    LOCAL_PACKET_MAX = 16 << 10,
    LOCAL_FDS_MAX = 5,
};

/* The descriptors of LOCAL_DUMP_OPEN; of a pre-dump, the first. */
enum dump_fd {
    DUMP_FD_PROCESS,  /* pidfd of the root task: tells when the source's process has ended */
    DUMP_FD_PAGES,    /* the proxy's end of criu's page-server connection */
    DUMP_FD_IMAGES,   /* the directory that criu writes the other images to */
    DUMP_FD_LIFELINE, /* read end of a pipe whose write end only criu holds: end of file is its end
                       */
    DUMP_FD_FILTER,   /* read end of a pipe that the scan filter in criu tells its first scan by */
    DUMP_FDS,
};

#define LOCAL_PROXY_SOCKET "proxy.sock"
#define LOCAL_CACHE_SOCKET "cache.sock"

struct local_packet {
    uint32_t kind;
    size_t length; /* of bytes, behind the kind */
    uint8_t bytes[LOCAL_PACKET_MAX];
    int fds[LOCAL_FDS_MAX]; /* -EBADF where none came; the receiver's */
};

/* Sends one packet; message may be NULL.  Never blocks on a daemon's side, where the socket is
 * non-blocking.  0, or a negative errno. */
int local_send(int fd, uint32_t kind, const ProtobufCMessage *message, const int *fds,
               size_t fd_count);

/* Receives one packet.  0, -ENODATA at the end, -EAGAIN, or another negative errno. */
int local_receive(int fd, struct local_packet *ret);

/* Closes the descriptors that nobody took. */
void local_packet_close(struct local_packet *packet);
