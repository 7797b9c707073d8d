/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "migrate/rounds_parts.h"
#include "task/task.h"

void round_task_let_go(struct round_task *task)
{
    task->fresh = task->kept = false;
    follower_close(&task->follower);
    page_runs_free(&task->runs);
    page_runs_free(&task->list);
    page_runs_free(&task->missed);
}

static struct round_task *rounds_find(struct rounds *rounds, pid_t pid)
{
    uint64_t started = task_started(pid);
    for (size_t i = 0; i < rounds->count; i++) {
        if (rounds->tasks[i]->pid == pid && rounds->tasks[i]->started == started)
            return rounds->tasks[i];
    }
    return NULL;
}

static int rounds_add(struct rounds *rounds, pid_t pid, struct round_task **ret)
{
    if (rounds->count == rounds->room) {
        size_t room = MAX(8, 2 * rounds->room);
        struct round_task **grown = realloc(rounds->tasks, room * sizeof(struct round_task *));
        if (!grown)
            return -ENOMEM;
        rounds->tasks = grown;
        rounds->room = room;
    }
    struct round_task *task = calloc(1, sizeof(*task));
    if (!task)
        return -ENOMEM;
    *task =
        (struct round_task){.pid = pid, .started = task_started(pid), .inner = task_inner_pid(pid)};
    rounds->tasks[rounds->count++] = task;
    *ret = task;
    return 0;
}

int rounds_look(struct rounds *rounds)
{
    pid_t *pids;
    size_t count;
    int r = task_list_tree(rounds->root, &pids, &count);
    if (r < 0)
        return r;
    for (size_t i = 0; i < rounds->count; i++)
        rounds->tasks[i]->seen = false;
    for (size_t i = 0; i < count && r == 0; i++) {
        struct round_task *task = rounds_find(rounds, pids[i]);
        if (!task)
            r = rounds_add(rounds, pids[i], &task);
        if (r == 0)
            task->seen = true;
    }
    free(pids);
    for (size_t i = 0; i < rounds->count; i++) {
        if (!rounds->tasks[i]->seen)
            round_task_let_go(rounds->tasks[i]);
    }
    return r;
}

static int task_take_missed(struct round_task *task)
{
    int r = follower_scan_missed(&task->follower, &task->missed, &task->runs);
    page_runs_free(&task->missed);
    return r;
}

static int task_look(struct round_task *task)
{
    int r = task_take_missed(task);
    return r < 0 ? r : follower_scan(&task->follower, &task->runs);
}

static int task_follow(struct rounds *rounds, struct round_task *task, struct error *err)
{
    if (follower_open(&task->follower, task->pid, rounds->kind, rounds->helpers, err) < 0)
        return -1;
    if (err->text[0])
        rounds->stats.why_compared = *err;
    task->fresh = true;
    return 0;
}

/* It is criu's, for a reason. */
static void skip(struct rounds *rounds, const struct round_task *task, const struct error *reason)
{
    rounds->stats.skipped++;
    rounds->stats.skipped_bytes += task_own_bytes(task->pid);
    rounds->stats.reason = *reason;
}

void round_task_scan(struct rounds *rounds, struct round_task *task)
{
    struct error err;
    page_runs_free(&task->runs);
    int r = round_task_is_followed(task) ? task_look(task) : -ESRCH;
    if (r == -ESRCH) {
        struct task_stat stat;
        round_task_let_go(task);
        if (!task_read_stat(task->pid, &stat) || stat.state == 'Z')
            return;
        if (task_follow(rounds, task, &err) < 0) {
            /* One that has ended meanwhile, or is ending, is nothing to tell about. */
            if (err.code != FAILURE_NOT_FOUND)
                skip(rounds, task, &err);
            return;
        }
        r = task_look(task);
    }
    if (r < 0) {
        round_task_let_go(task);
        if (r == -ESRCH)
            return; /* or its memory has gone: it ends, or begins another program */
        error_set_errno(&err, FAILURE_SYSTEM, r, "the memory of process %d", task->pid);
        skip(rounds, task, &err);
        return;
    }
    rounds->stats.tasks++;
    rounds->stats.stopped_usec = MAX(rounds->stats.stopped_usec, task->follower.stopped_usec);
    rounds->stats.compared += follower_kind(&task->follower) == FOLLOW_COMPARE;
}

struct space *round_task_space(const struct rounds *rounds, struct round_task *task)
{
    task->begun = true;
    return sender_space(rounds->sender, SPACE_TASK, (uint64_t)task->inner,
                        task->kept ? SPACE_BASED : SPACE_MAKE);
}

/* ---- what exists ---- */

/*
 * Between our scan and criu's there is criu's code in the task, and when that returns the kernel
 * writes to what the task has registered for rseq(2), as it does whenever it lets it run.  criu's
 * scan finds that; what was there at ours is as good.  To be compared it has to be what is there.
 */
static int task_list_existing(struct round_task *task, struct scan_table *table)
{
    struct tracked_areas tracked = {0};
    int r = follower_list(&task->follower, &task->list, &task->runs, &tracked);
    if (r == 0 && table)
        r = scan_table_add(table, task->pid, &tracked);
    tracked_areas_free(&tracked);
    return r < 0 ? r : task_take_missed(task);
}

/*
 * criu is not shown what has the number of such a task; so if that is another process by now,
 * nobody has its memory.
 */
static int check_hidden(const struct round_task *task, struct error *err)
{
    uint64_t started = task_started(task->pid);
    if (!task->hidden || started == 0 || started == task->started)
        return 0;
    return error_set(err, FAILURE_SYSTEM, "process %d has ended, and another has its number",
                     task->pid);
}

int round_task_list(struct rounds *rounds, struct round_task *task, struct scan_table *table,
                    struct error *err)
{
    struct space *space = sender_space(rounds->sender, SPACE_TASK, (uint64_t)task->inner,
                                       task->hidden ? SPACE_MAKE : SPACE_IF_BEGUN);
    if (!space && task->hidden)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "the memory of process %d", task->pid);
    if (!space)
        return 0; /* nothing was ever sent of it */
    space->listed = true;
    space->keep_criu = rounds->will_verify;
    if (check_hidden(task, err) < 0)
        return -1;
    int r = round_task_is_followed(task) ? task_list_existing(task, table) : 0;
    if (r == -ESRCH)
        round_task_let_go(task);
    else if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the memory of process %d", task->pid);
    return 0;
}

/* ---- what criu is not shown ---- */

/* From now on criu's pages may come. */
static void keep_what_criu_sends(struct rounds *rounds, const struct round_task *task)
{
    struct space *space =
        sender_space(rounds->sender, SPACE_TASK, (uint64_t)task->inner, SPACE_IF_BEGUN);
    if (space)
        space->keep_criu = rounds->will_verify;
}

static bool is_to_be_hidden(const struct round_task *task)
{
    return task->seen && follower_hides(&task->follower);
}

char *rounds_hide(struct rounds *rounds)
{
    enum { DIGITS = 12 };
    char *text = malloc(rounds->count * DIGITS + 1);
    size_t used = 0;
    for (size_t i = 0; text && i < rounds->count; i++) {
        struct round_task *task = rounds->tasks[i];
        task->hidden = is_to_be_hidden(task);
        keep_what_criu_sends(rounds, task);
        if (task->hidden)
            used += (size_t)snprintf(text + used, DIGITS + 1, "%s%d", used ? "," : "", task->pid);
    }
    if (used > 0)
        return text;
    free(text);
    return NULL;
}

bool rounds_hides(const struct rounds *rounds)
{
    for (size_t i = 0; i < rounds->count; i++) {
        if (is_to_be_hidden(rounds->tasks[i]))
            return true;
    }
    return false;
}
