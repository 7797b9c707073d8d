/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/converge.h"

/* What criu does at both ends, and the kernel's walk over all pages for its reading of smaps, as
 * bench/downtime --stages shows them (docs/live-migration.md).  Where it shows more, predictions
 * are low by that much. */
#define FIXED_USEC (30 * USEC_PER_MSEC)
#define FIXED_USEC_PER_GIB (14 * USEC_PER_MSEC)

/* What criu reads itself, sends, and places: shared memory, as measured there. */
#define CRIU_USEC_PER_GIB (1500 * USEC_PER_MSEC)

/* From the end of the last round until criu has stopped the tasks. */
#define START_USEC (25 * USEC_PER_MSEC)

/* A round of that few bytes tells nothing of the rate. */
#define TELLING_BYTES MIB(1)

enum { STALLED_MAX = 2 };

/* What a freeze of that much memory takes at least, of which so much is left to criu. */
static uint64_t least_usec(uint64_t memory_bytes, uint64_t criu_bytes)
{
    return FIXED_USEC + (memory_bytes >> 20) * FIXED_USEC_PER_GIB / 1024 +
           (criu_bytes >> 20) * CRIU_USEC_PER_GIB / 1024;
}

static uint64_t per_sec(uint64_t bytes, uint64_t usec)
{
    return (uint64_t)((double)bytes * (double)USEC_PER_SEC / (double)MAX(usec, 1));
}

/* The longest that predictions may come down before it counts as nothing: a fifth. */
static bool is_lower(uint64_t predicted, uint64_t best)
{
    return best == 0 || predicted < best - best / 5;
}

enum converge_verdict converge_round(struct converge *converge, const struct converge_round *round)
{
    bool last = (converge->max_rounds && round->number >= converge->max_rounds) ||
                (converge->max_usec && round->elapsed_usec >= converge->max_usec);
    if (round->written >= TELLING_BYTES || converge->sent_bytes_per_sec == 0)
        converge->sent_bytes_per_sec = MAX(per_sec(round->written, round->usec), 1);
    if (round->written_usec == 0)
        return last ? CONVERGE_LIMIT : CONVERGE_AGAIN;
    converge->written_bytes_per_sec = per_sec(round->written, round->written_usec);
    double until_freeze = (double)(round->usec + START_USEC) / (double)USEC_PER_SEC;
    double bytes = (double)converge->written_bytes_per_sec * until_freeze;
    converge->fixed_usec =
        least_usec(converge->memory_bytes, converge->criu_bytes) + round->again_usec;
    converge->predicted_usec =
        converge->fixed_usec +
        (uint64_t)(bytes * (double)USEC_PER_SEC / (double)converge->sent_bytes_per_sec);
    if (converge->predicted_usec <= converge->target_usec)
        return CONVERGE_GO;
    if (is_lower(converge->predicted_usec, converge->best_usec)) {
        converge->best_usec = converge->predicted_usec;
        converge->stalled = 0;
    } else if (++converge->stalled >= STALLED_MAX) {
        return CONVERGE_STALLED;
    }
    return last ? CONVERGE_LIMIT : CONVERGE_AGAIN;
}
