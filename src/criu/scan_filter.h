/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Between godwit and its scan filter in criu (criu/scan_filter.c).
 *
 * $GODWIT_SCAN_FILTER_FD: the filter writes SCAN_FILTER_*, each once.  If there is a table, one
 * byte comes back when it is complete.
 *
 * $GODWIT_SCAN_FILTER_TABLE: a file with what need not be scanned again, because godwit has done so
 * when all tasks stood still.  Not set: there is none.
 *
 * $GODWIT_SCAN_FILTER_HIDE: tasks of which criu is shown nothing, "12,15".
 *
 * The table: header, tasks, areas of all of them, runs of all of them; each ascending.
 */
#include <stdint.h>

enum {
    SCAN_FILTER_STILL = 's', /* all tasks stand still */
    SCAN_FILTER_LESS = 'l',  /* criu is shown less than there is */
};

struct scan_filter_range {
    uint64_t start, end;
};

struct scan_filter_task {
    uint64_t pid;
    uint64_t first_area, areas; /* that have been scanned, all of them tracked */
    uint64_t first_run, runs;   /* pages in them that have been written */
};

struct scan_filter_table {
    uint64_t tasks, ranges; /* how many; areas and runs are ranges */
};
