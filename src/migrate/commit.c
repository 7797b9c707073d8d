/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/commit.h"

/* What may end an attempt before anything has been touched. */
#define REFUSED_BY_ALL                                                                             \
    [EVENT_LINK_LOST] = SOURCE_REFUSED, [EVENT_PEER_FAILED] = SOURCE_REFUSED,                      \
    [EVENT_TIMEOUT] = SOURCE_REFUSED, [EVENT_CANCEL] = SOURCE_REFUSED

/* What may end it before the decision. */
#define ABORTED_BY_ALL                                                                             \
    [EVENT_LINK_LOST] = SOURCE_ABORTED, [EVENT_PEER_FAILED] = SOURCE_ABORTED,                      \
    [EVENT_CRIU_ENDED] = SOURCE_ABORTED, [EVENT_HOOK_LOST] = SOURCE_ABORTED,                       \
    [EVENT_TIMEOUT] = SOURCE_ABORTED, [EVENT_CANCEL] = SOURCE_ABORTED

/* clang-format off */
static const enum source_state table[SOURCE_STATES][SOURCE_EVENTS] = {
    [SOURCE_CONNECTING] = {[EVENT_LINKED] = SOURCE_CHECKING, REFUSED_BY_ALL},
    [SOURCE_CHECKING] = {[EVENT_CHECKED] = SOURCE_OFFERING, REFUSED_BY_ALL},
    [SOURCE_OFFERING] = {[EVENT_ACCEPTED] = SOURCE_COPYING, REFUSED_BY_ALL},
    [SOURCE_COPYING] = {[EVENT_COPIED] = SOURCE_DUMPING, ABORTED_BY_ALL},
    [SOURCE_DUMPING] = {[EVENT_HELD] = SOURCE_SENDING, ABORTED_BY_ALL},
    [SOURCE_SENDING] = {[EVENT_ACKED] = SOURCE_PREPARING, ABORTED_BY_ALL},
    [SOURCE_PREPARING] = {[EVENT_PREPARED] = SOURCE_COMMITTED, ABORTED_BY_ALL},
    /* Nothing but the destination's word, or a user who does not want to wait for it.  A link that
     * breaks is made again. */
    [SOURCE_COMMITTED] = {[EVENT_RESTORED] = SOURCE_MOVED, [EVENT_PEER_FAILED] = SOURCE_DOUBT,
                          [EVENT_CANCEL] = SOURCE_DOUBT},
};
/* clang-format on */

enum source_state source_next(enum source_state state, enum source_event event)
{
    return table[state][event];
}

const char *source_state_name(enum source_state state)
{
    static const char *const names[SOURCE_STATES] = {
        [SOURCE_STAY] = "none",           [SOURCE_CONNECTING] = "connecting",
        [SOURCE_CHECKING] = "checking",   [SOURCE_OFFERING] = "offering",
        [SOURCE_COPYING] = "copying",     [SOURCE_DUMPING] = "dumping",
        [SOURCE_SENDING] = "sending",     [SOURCE_PREPARING] = "preparing",
        [SOURCE_COMMITTED] = "committed", [SOURCE_ABORTED] = "aborted",
        [SOURCE_MOVED] = "moved",         [SOURCE_REFUSED] = "refused",
        [SOURCE_DOUBT] = "in-doubt",
    };
    return names[state];
}
