/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * When to stop copying and to freeze.
 *
 *   predicted = fixed cost + (what is written until the freeze) / (how fast it is sent)
 *
 * The fixed cost is what criu takes whatever the process does, by the size of its memory, and what
 * is read once more while it stands still; what is written until the freeze is told by the rate of
 * the latest rounds.  Pure computation; any thread.
 */
#include "base/util.h"

enum converge_verdict {
    CONVERGE_AGAIN,
    CONVERGE_GO,      /* within the target */
    CONVERGE_STALLED, /* two rounds have not lowered it by a fifth */
    CONVERGE_LIMIT,   /* as many rounds, or as much time, as was allowed */
};

struct converge {
    /* what is asked for; 0 where there is no limit */
    uint64_t target_usec, max_usec;
    unsigned max_rounds;

    uint64_t memory_bytes; /* of the process */
    uint64_t criu_bytes;   /* of these, what criu reads, and places before the process runs */

    /* the result of the latest round */
    uint64_t predicted_usec;        /* of the freeze; 0: not known yet */
    uint64_t fixed_usec;            /* of that, whatever the process does */
    uint64_t written_bytes_per_sec; /* by the process */
    uint64_t sent_bytes_per_sec;

    uint64_t best_usec; /* the lowest prediction so far, and how many rounds have not lowered it */
    unsigned stalled;
};

/* A round that has ended. */
struct converge_round {
    unsigned number;       /* from 1 */
    uint64_t written;      /* bytes found written at its beginning */
    uint64_t written_usec; /* within that time; 0: not known, as in the first */
    uint64_t usec;         /* it took */
    uint64_t elapsed_usec; /* since the first began */
    uint64_t again_usec;   /* what is read of it once more in the freeze took; 0: nothing is */
};

enum converge_verdict converge_round(struct converge *converge, const struct converge_round *round);
