/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A connection of an unmodified `criu pre-dump|dump --page-server` (criu/page_server.h): its pages
 * become a snapshot that has memory only, a pre-dump.
 *
 *   criu ──▶ first header: whose memory ──▶ snapshot, based on the pre-dump before, of that process
 *        ──▶ pages, and pages that the parent has ──▶ link
 *        ──▶ CLOSE ──▶ (the image-cache has acknowledged) ──▶ status: criu goes on, or fails
 *
 * So a criu that has been told that all is well has its pages at the destination.  What it writes
 * to its own directory follows when its post-dump hook asks (dump.c): a second snapshot, of these
 * images, based on the first.
 *
 * criu tells the numbers of tasks in their own pid namespace, which others have too.  So the
 * process is looked for, once, at the first header, whose answer criu waits for with all tasks in
 * its hands: it is the root of what is traced by who has the other end of the connection open.
 * Where none is found (criu is in a pid namespace that is not seen here, something relays the
 * connection) the snapshot has no parent and is none, and nor is any other of its numbers: from
 * there on criu tracks anew.
 *
 * That the number of another task has got another process is criu's to see (--prev-images-dir),
 * which then leaves nothing to the parent.
 *
 * What criu takes for the snapshot before has to be the one that is known here, for whatever it has
 * written elsewhere meanwhile has cleared the soft-dirty bits.  That is told by the directory of
 * its images (criu/images.h).  And a process whose bits godwit itself has cleared (lineage.h) has
 * no parent here, nor has one of a tree that has it.
 */
#include "criu/images.h"
#include "daemon/proxy.h"
#include "migrate/sender.h"

struct intake;

/* One object of a snapshot. */
struct intake_object {
    enum space_kind kind;
    uint64_t id;
};

/* The newest snapshot of a process. */
struct intake_memory {
    struct intake_memory *next;
    pid_t process;    /* the root, as we see it; 0: it was not found */
    uint64_t started; /* task_started() */
    uint64_t number;  /* of the root, in its own pid namespace */
    char id[WIRE_ID_MAX + 1];
    uint64_t nonce;
    struct intake_object *objects;
    size_t count;
    struct criu_images images; /* of the criu that has sent it */
    int images_error;          /* these cannot be seen; or 0 */
    const char *lost;          /* why it is no parent; NULL: it is one */
    bool of_dump;              /* and not of a pre-dump: images are to follow */
    uint64_t closed_usec;      /* when criu was told that all is well */
};

/* Listens where the option says.  0, or -1 with *err set. */
int intakes_listen(struct proxy *proxy, struct error *err);

/* Removes the socket that it has made for that. */
void intakes_remove(const struct daemon_options *options);

/* A frame of the link.  False: it is not for any of them. */
bool intakes_control(struct proxy *proxy, const struct frame *frame, const uint8_t *payload,
                     int *ret, struct error *err);
void intakes_link_down(struct proxy *proxy, const struct error *err);
void intakes_tick(struct proxy *proxy);
void intakes_free(struct proxy *proxy);

/* godwit is about to clear the soft-dirty bits of that process and of all below it: what criu has
 * sent, or is sending, of a tree that has one of these is no parent. */
void intakes_lose(struct proxy *proxy, pid_t process);

/* The memory that a dump of that process has sent within three silence times, which nothing else is
 * going to be based on; to be freed, or NULL. */
struct intake_memory *intake_take_dumped(struct proxy *proxy, pid_t process);
struct intake_memory *intake_memory_free(struct intake_memory *memory);
