/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The two-phase commit, from the source's side: which states a migration has, what may happen in
 * each, and what follows.  docs/protocol.md draws it; the destination's half is daemon/incoming.c.
 *
 *                                                                     who may say no until when
 *   CONNECTING ─▶ CHECKING ─▶ OFFERING     nothing is touched         everybody: REFUSED
 *       ─▶ COPYING                         its memory is followed     everybody: ABORTED
 *       ─▶ DUMPING ─▶ SENDING ─▶ PREPARING the process stands still   everybody: ABORTED
 *       ─▶ COMMITTED                       its tasks are killed       nobody any more
 *       ─▶ MOVED                           it runs at the destination
 *
 * The step from PREPARING to COMMITTED is the decision.  It is the source's alone, is written down
 * before it is acted on (migrate/journal.h), and the tasks have been killed before the destination
 * hears of it.
 */
#include "base/util.h"

enum source_state {
    SOURCE_STAY, /* in the table: the event changes nothing */
    SOURCE_CONNECTING,
    SOURCE_CHECKING,  /* the destination judges the facts */
    SOURCE_OFFERING,  /* it has been asked to take the snapshot */
    SOURCE_COPYING,   /* rounds: the process runs, and its memory is sent */
    SOURCE_DUMPING,   /* criu is at work */
    SOURCE_SENDING,   /* all is dumped, the tasks stand still; the rest is on its way */
    SOURCE_PREPARING, /* the destination has it whole, and builds the process */
    SOURCE_COMMITTED, /* decided: it ends here, it runs there */
    SOURCE_ABORTED,   /* decided: it runs on here */
    SOURCE_MOVED,     /* the end: it runs there */
    SOURCE_REFUSED,   /* the end: nothing was touched */
    SOURCE_DOUBT,     /* the end: committed, and the destination has not told that it runs */
    SOURCE_STATES,
};

enum source_event {
    EVENT_LINKED,      /* the handshake with the destination is over */
    EVENT_CHECKED,     /* it has judged, and found no problem */
    EVENT_ACCEPTED,    /* it takes the snapshot */
    EVENT_COPIED,      /* no further round pays */
    EVENT_HELD,        /* criu's post-dump hook asks */
    EVENT_ACKED,       /* the destination has everything, and every digest agrees */
    EVENT_PREPARED,    /* the process is built there, and stands still */
    EVENT_RESTORED,    /* it runs there */
    EVENT_LINK_LOST,   /* the link broke, or could not be made */
    EVENT_PEER_FAILED, /* the destination says no, or cannot */
    EVENT_CRIU_ENDED,  /* criu has ended */
    EVENT_HOOK_LOST,   /* its hook has gone without an answer */
    EVENT_TIMEOUT,     /* an answer takes too long */
    EVENT_CANCEL,      /* the user's wish */
    SOURCE_EVENTS,
};

/* The state that follows; SOURCE_STAY when the event changes nothing. */
enum source_state source_next(enum source_state state, enum source_event event);

const char *source_state_name(enum source_state state);

/* Whether the process stands still in that state, or is about to. */
static inline bool source_is_dumping(enum source_state state)
{
    return state >= SOURCE_DUMPING && state <= SOURCE_PREPARING;
}
