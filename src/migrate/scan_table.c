/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/scan_table.h"

#include "base/io.h"

static int add_ranges(struct scan_table *table, const struct page_runs *runs)
{
    size_t count = table->range_count + runs->count;
    if (count > table->range_room) {
        size_t room = MAX(count, 2 * table->range_room);
        struct scan_filter_range *grown = realloc(table->ranges, room * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        table->ranges = grown;
        table->range_room = room;
    }
    for (size_t i = 0; i < runs->count; i++) {
        const struct page_run *run = &runs->list[i];
        table->ranges[table->range_count++] =
            (struct scan_filter_range){run->start, run->start + run->pages * PAGE_BYTES};
    }
    return 0;
}

int scan_table_add(struct scan_table *table, pid_t pid, const struct tracked_areas *tracked)
{
    if (tracked->areas.count == 0)
        return 0;
    struct scan_filter_task *grown =
        realloc(table->tasks, (table->task_count + 1) * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    table->tasks = grown;
    struct scan_filter_task task = {
        .pid = (uint64_t)pid,
        .first_area = table->range_count,
        .areas = tracked->areas.count,
        .first_run = table->range_count + tracked->areas.count,
        .runs = tracked->written.count,
    };
    int r = add_ranges(table, &tracked->areas);
    if (r == 0)
        r = add_ranges(table, &tracked->written);
    if (r == 0)
        table->tasks[table->task_count++] = task;
    return r;
}

int scan_table_write(const struct scan_table *table, int fd)
{
    struct scan_filter_table head = {.tasks = table->task_count, .ranges = table->range_count};
    int r = write_all(fd, &head, sizeof(head));
    if (r == 0)
        r = write_all(fd, table->tasks, table->task_count * sizeof(*table->tasks));
    return r < 0 ? r : write_all(fd, table->ranges, table->range_count * sizeof(*table->ranges));
}

void scan_table_free(struct scan_table *table)
{
    free(table->tasks);
    free(table->ranges);
    *table = (struct scan_table){0};
}
