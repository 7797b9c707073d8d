/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the scan filter is told, so that criu's scan need not be done again (criu/scan_filter.h). */
#include "criu/scan_filter.h"
#include "task/follow.h"

struct scan_table {
    struct scan_filter_task *tasks;
    struct scan_filter_range *ranges;
    size_t task_count, range_count, range_room;
};

/* Adds what was found of a task.  0 or -ENOMEM. */
int scan_table_add(struct scan_table *table, pid_t pid, const struct tracked_areas *tracked);

/* Writes it to an empty file.  0 or a negative errno. */
int scan_table_write(const struct scan_table *table, int fd);
void scan_table_free(struct scan_table *table);
