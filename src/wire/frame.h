/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Numbers of the link between image-proxy and image-cache; docs/protocol.md tells the same to
 * people.  All integers are little-endian.
 *
 *   preamble, 16 bytes, once in each direction, sent without waiting for the other side:
 *       0  "godwit\r\n"    8  u16 major    10  u16 minor    12  u32 zero
 *   then frames:
 *       0  u16 type     2  u16 flags, zero     4  u32 length of the payload
 *       8  u32 session 12  u32 item           16  u64 offset           24  u64 check
 *      32  payload
 *
 * check is XXH3-64 of the 24 bytes before it and, for control frames, of the payload: a bit that
 * turns on the way must not become another name or another verdict.  The payload of data frames is
 * in the digest of its item.
 *
 * A change that an older peer would misread raises the major number, and majors do not talk to one
 * another.  A type that the other side does not know ends the link, so what a new minor number adds
 * is sent only to a peer whose minor number has it.  Types are grouped by a hundred, never
 * renumbered and never used again.
 */
#include "base/error.h"

enum {
    WIRE_MAJOR = 1,
    WIRE_MINOR = 1,
    WIRE_PREAMBLE_BYTES = 16,
    WIRE_PREAMBLE_FIRST = 'g', /* its first byte */
    WIRE_HEADER_BYTES = 32,
    WIRE_CONTROL_MAX = 64 << 10, /* payload of a control frame */
    WIRE_EARLY_MAX = 4 << 10,    /* the same before the handshake is over */
    WIRE_BULK_MAX = 1 << 20,     /* payload of a data frame */
    WIRE_NAME_MAX = 255,         /* bytes of an image's name */
    WIRE_ID_MAX = 64,            /* bytes of a snapshot id */
    WIRE_DIGEST_BYTES = 16,
    WIRE_TOKEN_BYTES = 16,
    WIRE_STREAMS_MAX = 16, /* connections of one session, its own among them */
};

enum frame_type {
    /* the link itself */
    FRAME_HELLO = 1,   /* both ways, first */
    FRAME_GOODBYE = 2, /* both ways, last: Failure tells why, code 0: nothing is wrong */
    FRAME_HEARTBEAT = 3,

    /* a snapshot: proxy to cache */
    FRAME_SNAPSHOT_BEGIN = 100,
    FRAME_SNAPSHOT_END = 101,
    FRAME_SNAPSHOT_ABORT = 102, /* before the end: Failure */
    FRAME_FREEZING = 104,       /* the process is about to be stopped; since minor 1 */
    FRAME_VERDICT = 103,        /* after the acknowledgement, by id, until it is acknowledged */
    FRAME_CHECK = 110,          /* Facts: would a migration work?  answered by FRAME_CHECKED */
    FRAME_SETTLED = 111,        /* Standing: the source has written down that this is over */
    FRAME_STREAM_JOIN = 120,    /* on a connection of its own: StreamJoin */
    /* a snapshot: cache to proxy */
    FRAME_SNAPSHOT_ACCEPT = 150, /* nothing, or SnapshotAccept */
    FRAME_SNAPSHOT_ACK = 151,    /* complete, and every digest agrees */
    FRAME_SNAPSHOT_REFUSE = 152, /* at any time before the acknowledgement: Failure */
    FRAME_VERDICT_ACK = 153,
    FRAME_CHECKED = 160,        /* Findings */
    FRAME_PREPARED = 161,       /* Standing: built here and held; the source decides */
    FRAME_RESTORED = 162,       /* Standing: it runs here */
    FRAME_RESTORE_FAILED = 163, /* Standing: it does not, and code and text tell why */
    FRAME_STREAM_JOINED = 170,  /* the data connection is the session's */

    /* items of a snapshot: proxy to cache */
    FRAME_IMAGE_BEGIN = 200,
    FRAME_IMAGE_DATA = 201, /* bulk; offset: in the image */
    FRAME_IMAGE_END = 202,
    FRAME_SPACE_BEGIN = 210,
    FRAME_PAGES = 211, /* bulk; offset: virtual address; flags: see below */
    FRAME_SPACE_END = 212,
    FRAME_PAGE_RUNS = 213, /* bulk: pages without their content; flags: see below */
    FRAME_PAGE_SUMS = 214, /* bulk: digests of pages that have to be here by now */
    FRAME_ROUND_END = 220, /* what comes is newer than what has come */
};

/* Flags of FRAME_PAGES. */
enum {
    PAGES_LAZY = 1,  /* these pages may be filled in later in a lazy restore */
    PAGES_EXIST = 2, /* they were read in the freeze: they exist, whatever else is told */
};

/* Flags of FRAME_PAGE_RUNS, one of them. */
enum {
    RUNS_ZERO = 1,  /* these pages are full of zeros now */
    RUNS_EXIST = 2, /* these pages exist at the freeze; what no such frame names does not */
    RUNS_COPY = 4,  /* these pages are now what they are in the space of item |offset| */
};

/* What FRAME_PAGE_RUNS is made of: u64 address, u64 number of pages; and FRAME_PAGE_SUMS: the same,
 * and the XXH3-128 of their content. */
enum {
    WIRE_RUN_BYTES = 16,
    WIRE_SUM_BYTES = WIRE_RUN_BYTES + WIRE_DIGEST_BYTES,
    WIRE_SUM_PAGES_MAX = 256,
    WIRE_LIST_PAGES_MAX = 1 << 18, /* that one frame of runs or sums names, together */
};

struct frame {
    uint16_t type;
    uint16_t flags;
    uint32_t length;
    uint32_t session;
    uint32_t item;
    uint64_t offset;
};

enum { SENT_BY_SOURCE = 1, SENT_BY_CACHE = 2 }; /* a source: image-proxy, godwit migrate */
enum {
    ON_LINK = 1,
    ON_DATA_CONNECTION = 2
}; /* what a connection is before it has joined: a link */

/* What there is to a type: the one table of who may send what, where, and when. */
struct frame_rule {
    uint16_t type;
    const char *name;
    uint8_t sent_by; /* one of them, or both */
    uint8_t place;   /* the same */
    bool early;      /* also before the handshake is over */
    bool bulk;       /* its payload is data, taken in place, and not a message */
};

/* NULL: there is no such type. */
const struct frame_rule *frame_rule(uint16_t type);

/* Name of a type for logs and errors; "?" when unknown. */
const char *frame_name(uint16_t type);

bool frame_is_bulk(uint16_t type);

/* Whether a frame from a peer that is |sent_by| (or either) may come at all, early or not.  0, or
 * -1 with *err set. */
int frame_may_come(const struct frame *frame, unsigned sent_by, bool early, struct error *err);

/* Writes a header.  payload: of a control frame, frame->length bytes; of no interest for data. */
void frame_encode(const struct frame *frame, const void *payload, uint8_t out[WIRE_HEADER_BYTES]);

/* Takes a header apart and checks what can be checked without knowing the session: flags, length,
 * and the check of a data frame.  0, or -EPROTO with *err set. */
int frame_decode(const uint8_t in[WIRE_HEADER_BYTES], struct frame *ret, struct error *err);

/* The check of a control frame, once its payload is there.  0, or -EPROTO with *err set. */
int frame_check(const uint8_t header[WIRE_HEADER_BYTES], const struct frame *frame,
                const void *payload, struct error *err);

void preamble_encode(uint8_t out[WIRE_PREAMBLE_BYTES]);

/* The peer's minor number; or -EPROTO (not godwit) or -EPROTONOSUPPORT (another major), with *err
 * set. */
int preamble_check(const uint8_t in[WIRE_PREAMBLE_BYTES], struct error *err);

/* Whether the first byte of a peer, which should be that of a preamble, begins a record of TLS:
 * then *err tells so. */
bool preamble_is_tls(uint8_t first, struct error *err);

/*
 * Whether bytes are a snapshot id: 1 to WIRE_ID_MAX of [A-Za-z0-9._-], not beginning with a dot.
 * An id is the same on both hosts and is used as the name of a directory.
 */
bool snapshot_id_valid(const char *id);

/* Whether bytes are an image's name: 1 to WIRE_NAME_MAX, a name in a directory and no path, without
 * control characters. */
bool image_name_valid(const char *name);
