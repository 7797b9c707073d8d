/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One dump on the source host, for the files that are about one: dump.c is its life, dump_open.c
 * how it begins, dump_stream.c what is peculiar to criu --stream.
 */
#include "criu/stream.h"
#include "daemon/intake.h"
#include "daemon/lineage.h"

/* See dump.c. */
enum dump_state {
    DUMP_WAIT_LINK,
    DUMP_OPENING,
    DUMP_COPYING,
    DUMP_SENDING,
    DUMP_ASKED,
    DUMP_ALLOWED,
    DUMP_DECIDED,
    DUMP_OVER,
};

struct dump {
    struct proxy *proxy;
    struct dump *next;
    enum dump_state state;
    char id[WIRE_ID_MAX + 1];
    uint64_t token;
    uint32_t pid;
    char *command;
    bool source_lives_on, commit;
    uint64_t began_usec;
    struct sender *sender;
    struct client *client, *hook; /* NULL: none, or gone */
    int pages_fd, images_fd;      /* until their doors are opened */

    /* of a process that is followed, or is going to be */
    struct lineage_choice based; /* its lineage: until it has been told of the end */
    bool pre_dump;
    bool narrowed, listed;      /* criu was shown less than there is; what exists was sent */
    sd_event_source *filter_io; /* the scan filter tells that */

    /* what is known of the source, once ALLOWED */
    sd_event_source *root_io, *lifeline_io;
    int root_fd;
    pid_t root_pid;
    bool root_ended, criu_ended, exit_known;
    int exit_status;
    uint64_t criu_ended_usec;
    uint64_t question_at;      /* where on the link what was asked last ends */
    uint64_t unanswered_since; /* since when the cache has it; 0: it has not */

    struct intake_memory *memory; /* of criu --page-server: its pages, which came before */

    /* criu --stream */
    sd_event_source *stream_io;
    struct stream_parser parser;
    char *stream_name; /* its pipe comes next */
    pid_t criu_pid;
    bool is_stream, is_unasked; /* without a hook: its end is the end */
};

/* ---- dump.c ---- */

struct error dump_error(enum failure code, const char *text);

/* It has failed, before criu was told that it may end the process: which then runs on. */
void dump_fail(struct dump *dump, const struct error *err);

/* criu has ended, however that became known. */
void dump_criu_ended(struct dump *dump);

/* Each watches a descriptor, and owns it from here on, whatever becomes of it.  0, or a negative
 * errno. */
int dump_watch(struct dump *dump, sd_event_source **source, int fd, sd_event_io_handler_t handler);
int dump_watch_root(struct dump *dump, int pidfd); /* the process that is dumped */
int dump_watch_criu(struct dump *dump, int fd);    /* readable when criu has ended */
int dump_watch_filter(struct dump *dump, int fd);  /* of criu's scan filter */

/* ---- dump_open.c ---- */

/* One that the proxy does not know yet; id: "", it gets one.  NULL: no memory. */
struct dump *dump_new(struct proxy *proxy, const char *id, uint32_t pid, const char *command);

/* The proxy knows it, and the cache is asked. */
void dump_start(struct dump *dump);

/* Whether there are as many as there may be. */
bool dumps_are_many(const struct proxy *proxy);

/*
 * A hook asks whose criu has sent its pages by --page-server: the images follow them, in a
 * directory that is taken over.  The hook is answered, at once if it is a no.
 */
void dump_open_images(struct proxy *proxy, struct client *client, const struct hook_ask *ask,
                      int images_fd);

/* ---- dump_stream.c ---- */

/*
 * criu has ended, and no hook has come: it has written all there is, inventory.img as the last, or
 * has given up.
 */
void dump_stream_unasked(struct dump *dump);

/* The hook may be heard before what criu sent ahead of it, which is taken now.  False: something is
 * missing, and the dump has failed. */
bool dump_stream_is_whole(struct dump *dump);
