/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * image-proxy: the daemon of the source host.  It keeps one link to the image-cache, opens a dump
 * for every `godwit dump --remote` and every unmodified `criu dump --stream`, and tells the cache
 * the verdict on each: whether the process has ended here, so that it may run there.
 *
 *   helper.h   its other half: the daemon itself looks into processes, and changes nothing
 *   proxy.c    the daemon: its link, verdicts that are not acknowledged yet, who asks for what
 *   dump.h     one dump, from opening to verdict
 *   intake.c   one connection of criu --page-server
 *   lineage.c  a process that is followed, from one snapshot of it to the next
 */
#include "daemon/daemon.h"
#include "daemon/helper.h"
#include "wire/link.h"
#include "wire/target.h"
#include "wire/tcp.h"

struct dump;
struct intake;
struct intake_memory;
struct lineage;

/* What the cache has to be told, however often the link breaks, until it acknowledges. */
struct verdict {
    struct verdict *next;
    char *id;
    uint64_t nonce;
    bool commit;
    char *text;
};

struct proxy {
    struct daemon daemon;
    struct link *link; /* NULL: none now */
    bool link_up;
    char peer[160]; /* for people: address, or host name once known */
    struct error link_error;
    struct verdict *verdicts;
    struct dump *dumps;
    struct lineage *lineages;
    struct intake *intakes;
    struct intake_memory *memories; /* what these have left; the newest first */
    sd_event_source *page_listeners[TCP_LISTENERS_MAX];
    uint32_t last_session;
    sd_event_source *capture; /* listener of streamer-capture.sock */
    struct target target;
    struct dial *dial; /* NULL: the socket was inherited */
    struct helper *helper;
    sd_event_source *helper_end;
};

/* Runs the daemon.  Exit status, or -1 with *err set. */
int proxy_run(const struct daemon_options *options, struct error *err);

/* ---- between proxy.c and dump.c ---- */

/* What was written before the freeze has been sent. */
void dump_copied(struct dump *dump);

/* Opens a dump for a local client; answers it. */
void dump_open(struct proxy *proxy, struct client *client, struct local_packet *packet);
/* Opens a dump for a criu that has connected to the capture socket, which is taken over. */
void dump_open_stream(struct proxy *proxy, int fd);
/* A hook asks, with the directory of images that criu has written by itself (-EBADF: none), which
 * is taken over. */
void dump_hook(struct proxy *proxy, struct client *client, const struct hook_ask *ask,
               int images_fd);
/* The client says that criu has ended. */
void dump_exited(struct proxy *proxy, struct client *client, const struct local_packet *packet);
void dump_client_gone(struct dump *dump, struct client *client);

void dump_link_up(struct dump *dump);
void dump_link_down(struct dump *dump, const struct error *err);
/* A frame for the dump's session: 0, or -1 with *err when the peer broke the protocol. */
bool dump_has_session(const struct dump *dump, uint32_t session);
int dump_control(struct dump *dump, const struct frame *frame, const uint8_t *payload,
                 struct error *err);
/* The cache knows the verdict. */
void dump_verdict_known(struct dump *dump, uint64_t nonce);

void dump_tick(struct dump *dump);
struct dump *dump_next(const struct dump *dump);
bool dump_is_over(const struct dump *dump);
void dump_describe(const struct dump *dump, Godwit__Pb__StatusSnapshot *ret);
struct dump *dump_free(struct dump *dump);

/* Puts a verdict on the list and tells it if there is a link. */
int proxy_add_verdict(struct proxy *proxy, const char *id, uint64_t nonce, bool commit,
                      const char *text);
/* A dump has come to its end and is freed soon: with --once the daemon ends. */
void proxy_dump_over(struct proxy *proxy, enum failure code);
