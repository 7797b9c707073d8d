/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What image-proxy and image-cache have in common: work-dir, one event loop, signals, the local
 * socket with its clients, the once-a-half-second tick.
 */
#include <systemd/sd-event.h>

#include "base/log.h"
#include "daemon/daemonize.h"
#include "daemon/local.h"
#include "wire/target.h"

#define DAEMON_DEFAULT_WORKDIR "/run/godwit"
#define DAEMON_DEFAULT_ADDRESS "localhost"
#define DAEMON_DEFAULT_PORT TARGET_DEFAULT_PORT
#define DAEMON_DEFAULT_SILENCE_USEC (10 * USEC_PER_SEC)

/* The command line of a daemon.  Strings are borrowed. */
struct daemon_options {
    const char *address; /* of a host, or unix:PATH */
    const char *port;
    const char *workdir;
    int ps_socket; /* a connected socket instead of address and port; -EBADF: none */
    bool insecure;
    struct credential_files credentials;
    bool once;
    /* where criu --page-server connects, a port of this host (proxy: or unix:PATH): proxy, pages
     * come; cache, criu lazy-pages asks for pages; NULL: nowhere */
    const char *page_server;
    bool accept;                /* cache: start restores when a migration asks */
    const char *accept_from;    /* for these names of certificates only; NULL: for all */
    const char *accept_options; /* with these options of criu: see criu/allow.h */
    bool on_demand;        /* cache: started for one that asks by LOCAL_ATTACH; listens nowhere */
    const char *spool;     /* cache: where snapshots are written to as well; NULL: nowhere */
    const char *criu;      /* cache: NULL: as criu_find() finds it */
    uint64_t memory_limit; /* of the cache, bytes; 0: 80 % of what is available */
    uint64_t silence_usec;
    enum log_level log_level;
    struct daemonize daemonize;
};

/* Where the address names; borrows from the options. */
struct target daemon_target(const struct daemon_options *options);

struct daemon;

/* Somebody connected to the local socket. */
struct client {
    struct daemon *daemon;
    struct client *next;
    sd_event_source *io;
    int fd;
    pid_t pid; /* of who connected */
};

struct daemon_ops {
    /* A client has sent something. */
    void (*packet)(struct daemon *daemon, struct client *client, struct local_packet *packet);
    /* The client has closed its end; it is freed after the call. */
    void (*gone)(struct daemon *daemon, struct client *client);
    /* Every half second. */
    void (*tick)(struct daemon *daemon);
    /* What a daemon that has given up its rights has others do.  NULL, all three: it does it
     * itself. */
    void (*make_room)(struct daemon *daemon, int fd); /* DAEMON_CLIENT_ROOM, for what is sent */
    int (*open_log)(struct daemon *daemon);           /* anew: a descriptor, or -EBADF */
    void (*tell_ready)(struct daemon *daemon);        /* to systemd */
};

enum { DAEMON_CLIENT_ROOM = 4 << 20 }; /* bytes waiting for a local client */

struct daemon {
    const struct daemon_options *options;
    struct logger log;
    sd_event *event;
    struct daemonize daemonize;
    bool prepared;
    int workdir;        /* descriptor; -EBADF: given up */
    char *workdir_path; /* absolute */
    const char *socket_name;
    int lock;
    sd_event_source *listener, *signals[3], *ticker;
    struct client *clients;
    struct protection protection;
    const struct daemon_ops *ops;
    void *user; /* struct proxy or struct cache */
};

/*
 * Opens the work-dir (made, mode 0700, if missing), takes its lock for this kind of daemon and
 * listens on the local socket.  0, or -1 with *err set; daemon_close() is due either way.
 */
int daemon_open(struct daemon *daemon, const struct daemon_options *options, const char *name,
                const char *socket_name, const struct daemon_ops *ops, void *user,
                struct error *err);

/* Reads the credentials, for links by TCP, and says so if nothing is to protect them.  0, or -1
 * with *err set. */
int daemon_protect(struct daemon *daemon, struct error *err);

/* Writes the pid file.  0, or -1 with *err set. */
int daemon_prepare(struct daemon *daemon, struct error *err);

/* Tells that it is ready and serves until daemon_exit() or SIGTERM or SIGINT.  Exit status. */
int daemon_run(struct daemon *daemon, struct error *err);
void daemon_exit(struct daemon *daemon, int status);
void daemon_close(struct daemon *daemon);

/* Sends to a client; one that does not take it is closed by its next event. */
void client_send(struct client *client, uint32_t kind, const ProtobufCMessage *message);
void client_fail(struct client *client, const struct error *err);
void client_done(struct client *client, uint64_t bytes);
void client_progress(struct client *client, uint64_t bytes, const char *phase);

/* The answer to a hook.  0, or a negative errno: it has not been told. */
int client_hook(struct client *client, uint32_t kind, const char *text);

/* accept4() for a loop: a non-blocking socket, or -1. */
int daemon_accept(int fd);
