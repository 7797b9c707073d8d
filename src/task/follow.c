/* SPDX-License-Identifier: Apache-2.0 */
#include "task/follow.h"

#include "task/stop.h"

struct follow_way {
    enum follow_kind kind;
    bool unproven; /* taken only where it is asked for */
    bool hides;
    int (*open)(struct follower *follower, struct error *err);
    void (*close)(struct follower *follower);
    int (*scan)(struct follower *follower, struct page_runs *runs);
    int (*scan_missed)(struct follower *follower, struct page_runs *missed,
                       struct page_runs *runs); /* NULL: no need */
    bool (*wants)(struct follower *follower, uint64_t vaddr, bool anonymous,
                  const void *page); /* NULL: all */
    int (*list)(struct follower *follower, struct page_runs *list, struct page_runs *runs,
                struct tracked_areas *tracked);
};

enum { SCAN_TRIES = 100 };

/* Looks at one area. */
typedef int look_fn(void *with, const struct memory_area *area, struct page_runs *runs);

static int look_at_area(look_fn *look, void *with, const struct memory_area *area,
                        struct page_runs *runs)
{
    int r;
    unsigned tries = SCAN_TRIES;
    do {
        r = look(with, area, runs);
    } while (r == -EAGAIN && --tries > 0);
    return r;
}

enum areas { AREAS_ANONYMOUS = 1, AREAS_OF_FILES = 2 };

static int look_at_areas(pid_t pid, unsigned which, look_fn *look, void *with,
                         struct page_runs *runs)
{
    struct memory_map map;
    int r = memory_map_read(pid, &map);
    if (r < 0)
        return r;
    for (size_t i = 0; i < map.count && r == 0; i++) {
        const struct memory_area *area = &map.areas[i];
        if (area->kind == AREA_PRIVATE &&
            which & (area->anonymous ? AREAS_ANONYMOUS : AREAS_OF_FILES))
            r = look_at_area(look, with, area, runs);
    }
    memory_map_free(&map);
    return r;
}

/* The parts of areas that could not be read. */
struct missed {
    look_fn *look;
    void *with;
    struct page_runs *runs; /* sorted */
};

static int look_missed(void *with, const struct memory_area *area, struct page_runs *runs)
{
    const struct missed *missed = with;
    int r = 0;
    for (size_t i = page_runs_seek(missed->runs, area->start); r == 0 && i < missed->runs->count;
         i++) {
        const struct page_run *run = &missed->runs->list[i];
        struct memory_area part = *area;
        part.start = MAX(area->start, run->start);
        part.end = MIN(area->end, run->start + run->pages * PAGE_BYTES);
        if (part.start >= part.end)
            break;
        r = missed->look(missed->with, &part, runs);
    }
    return r;
}

static int look_at_missed(pid_t pid, unsigned which, struct missed *missed, struct page_runs *runs)
{
    if (missed->runs->count == 0)
        return 0;
    page_runs_sort(missed->runs);
    return look_at_areas(pid, which, look_missed, missed, runs);
}

static void note_stop(struct follower *follower, uint64_t usec)
{
    follower->stopped_usec = MAX(follower->stopped_usec, usec);
}

/* ---- uffd-wp ---- */

static int look_scan(void *with, const struct memory_area *area, struct page_runs *runs)
{
    return tracker_scan(with, area, runs);
}

static int look_list(void *with, const struct memory_area *area, struct page_runs *runs)
{
    return tracker_list(with, area, runs);
}

struct list_with {
    struct tracker *tracker;
    struct tracked_areas *tracked;
};

static int look_list_written(void *user, const struct memory_area *area, struct page_runs *runs)
{
    const struct list_with *with = user;
    int r = tracker_list_written(with->tracker, area, runs, &with->tracked->written);
    if (r == -EPERM)
        return tracker_list(with->tracker, area, runs);
    uint64_t pages = (area->end - area->start) / PAGE_BYTES;
    return r < 0 ? r : page_runs_add(&with->tracked->areas, area->start, pages, true);
}

static int look_list_tracked(void *with, const struct memory_area *area, struct page_runs *runs)
{
    return tracker_list_tracked(with, area, runs);
}

static int uffd_open(struct follower *follower, struct error *err)
{
    if (tracker_open(&follower->tracker, follower->pid, follower->helpers, err) < 0)
        return -1;
    note_stop(follower, (follower->tracker.stopped_nsec + 999) / 1000);
    return 0;
}

static void uffd_close(struct follower *follower)
{
    tracker_close(&follower->tracker);
}

static int uffd_scan(struct follower *follower, struct page_runs *runs)
{
    return look_at_areas(follower->pid, AREAS_ANONYMOUS, look_scan, &follower->tracker, runs);
}

/*
 * What could not be read is protected all the same, and no scan would tell of it again: what of it
 * exists now is to be sent.  Mostly nothing, for it has been unmapped.  What it was does not count:
 * a file may be there by now.
 */
static int uffd_scan_missed(struct follower *follower, struct page_runs *missed,
                            struct page_runs *runs)
{
    struct missed with = {.look = look_list, .with = &follower->tracker, .runs = missed};
    return look_at_missed(follower->pid, AREAS_ANONYMOUS, &with, runs);
}

/*
 * Pages of private mappings of files are criu's, but for what has been registered because it was
 * something else a moment before: criu is not shown that, so it is read now.
 */
static int uffd_list(struct follower *follower, struct page_runs *list, struct page_runs *runs,
                     struct tracked_areas *tracked)
{
    struct tracker *tracker = &follower->tracker;
    struct list_with with = {.tracker = tracker, .tracked = tracked};
    page_runs_free(runs);
    int r = look_at_areas(follower->pid, AREAS_ANONYMOUS, look_list_written, &with, list);
    page_runs_sort(&tracked->written); /* a scan that was interrupted has told some twice */
    if (r == 0)
        r = look_at_areas(follower->pid, AREAS_OF_FILES, look_list_tracked, tracker, runs);
    return r < 0 ? r : page_runs_add_all(list, runs);
}

/* ---- soft-dirty, and compare ---- */

static int look_exist(void *with, const struct memory_area *area, struct page_runs *runs)
{
    return page_table_list(with, area, runs);
}

/* The table is opened each time: the process may have another memory than before. */
static int look_at_table(pid_t pid, look_fn *look, struct page_runs *runs)
{
    struct page_table table;
    int r = page_table_open(&table, pid);
    if (r < 0)
        return r;
    r = look_at_areas(pid, AREAS_ANONYMOUS | AREAS_OF_FILES, look, &table, runs);
    page_table_close(&table);
    return r;
}

static int list_all(pid_t pid, struct page_runs *runs)
{
    return look_at_table(pid, look_exist, runs);
}

/* Whether its pages can be looked at. */
static int try_table(struct follower *follower, struct error *err)
{
    struct page_table table;
    int r = page_table_open(&table, follower->pid);
    page_table_close(&table);
    return r < 0 ? error_set_errno(err, r == -ESRCH ? FAILURE_NOT_FOUND : FAILURE_SYSTEM, r,
                                   "/proc/%d/pagemap", follower->pid)
                 : 0;
}

/* ---- soft-dirty ---- */

static int look_dirty(void *with, const struct memory_area *area, struct page_runs *runs)
{
    return page_table_list_dirty(with, area, runs);
}

static int list_dirty(pid_t pid, struct page_runs *runs)
{
    return look_at_table(pid, look_dirty, runs);
}

static int clear_dirty(const struct follower *follower)
{
    struct task_helper helper;
    if (!follower->helpers)
        return page_table_clear(follower->pid);
    int r = task_helper_start(follower->helpers, TASK_HELP_CLEAR, follower->pid, &helper);
    if (r < 0)
        return r;
    r = task_helper_result(&helper);
    task_helper_end(&helper);
    return r;
}

static int dirty_open(struct follower *follower, struct error *err)
{
    struct task_stop stop;
    if (try_table(follower, err) < 0)
        return -1;
    if (!page_table_has_dirty())
        return error_set(err, FAILURE_SYSTEM, "this kernel has no soft-dirty bits");
    uint64_t began = now_usec();
    if (task_stop(follower->pid, follower->helpers, &stop, err) < 0)
        return -1;
    task_go_on(&stop); /* it can be stopped */
    note_stop(follower, now_usec() - began);
    return 0;
}

/*
 * What is written between the look and the clearing would be lost, so nothing may be.  The first
 * time all counts as written, and what is written after the clearing is told the next time.
 */
static int dirty_scan(struct follower *follower, struct page_runs *runs)
{
    struct task_stop stop;
    struct error err;
    if (!follower->cleared) {
        int r = clear_dirty(follower);
        follower->cleared = r == 0;
        return r < 0 ? r : list_all(follower->pid, runs);
    }
    uint64_t began = now_usec();
    if (task_stop(follower->pid, follower->helpers, &stop, &err) < 0)
        return err.code == FAILURE_NOT_FOUND ? -ESRCH : -EBUSY;
    int r = list_dirty(follower->pid, runs);
    if (r == 0)
        r = clear_dirty(follower);
    int ran = task_go_on(&stop);
    note_stop(follower, now_usec() - began);
    return r < 0 ? r : ran;
}

static int dirty_scan_missed(struct follower *follower, struct page_runs *missed,
                             struct page_runs *runs)
{
    struct page_table table;
    int r = page_table_open(&table, follower->pid);
    if (r < 0)
        return r;
    struct missed with = {.look = look_exist, .with = &table, .runs = missed};
    r = look_at_missed(follower->pid, AREAS_ANONYMOUS | AREAS_OF_FILES, &with, runs);
    page_table_close(&table);
    return r;
}

static int dirty_list(struct follower *follower, struct page_runs *list, struct page_runs *runs,
                      struct tracked_areas *tracked)
{
    (void)tracked; /* criu is shown nothing */
    page_runs_free(runs);
    int r = list_all(follower->pid, list);
    return r < 0 ? r : list_dirty(follower->pid, runs);
}

static void dirty_close(struct follower *follower)
{
    follower->cleared = false;
}

/* ---- compare ---- */

static void compare_close(struct follower *follower)
{
    page_hashes_free(&follower->hashes);
}

static int compare_scan(struct follower *follower, struct page_runs *runs)
{
    page_hashes_begin(&follower->hashes);
    return list_all(follower->pid, runs);
}

static bool compare_wants(struct follower *follower, uint64_t vaddr, bool anonymous,
                          const void *page)
{
    return page_hashes_note(&follower->hashes, vaddr, anonymous, page);
}

static int compare_list(struct follower *follower, struct page_runs *list, struct page_runs *runs,
                        struct tracked_areas *tracked)
{
    (void)tracked; /* criu is shown nothing */
    page_runs_free(runs);
    int r = list_all(follower->pid, list);
    return r < 0 ? r : page_runs_add_all(runs, list);
}

/* ---- the ways ---- */

/* The best comes first. */
static const struct follow_way ways[] = {
    {.kind = FOLLOW_UFFD_WP,
     .open = uffd_open,
     .close = uffd_close,
     .scan = uffd_scan,
     .scan_missed = uffd_scan_missed,
     .list = uffd_list},
    {.kind = FOLLOW_SOFT_DIRTY,
     .unproven = true,
     .hides = true,
     .open = dirty_open,
     .close = dirty_close,
     .scan = dirty_scan,
     .scan_missed = dirty_scan_missed,
     .list = dirty_list},
    {.kind = FOLLOW_COMPARE,
     .hides = true,
     .open = try_table,
     .close = compare_close,
     .scan = compare_scan,
     .wants = compare_wants,
     .list = compare_list},
};

int follower_open(struct follower *follower, pid_t pid, enum follow_kind kind,
                  const struct task_helpers *helpers, struct error *err)
{
    *err = (struct error){0};
    for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
        if (kind == FOLLOW_AUTO ? ways[i].unproven : kind != ways[i].kind)
            continue;
        *follower = (struct follower){.pid = pid, .helpers = helpers};
        if (ways[i].open(follower, err) == 0) {
            follower->way = &ways[i];
            return 0;
        }
        if (err->code == FAILURE_NOT_FOUND)
            break;
    }
    return -1;
}

void follower_close(struct follower *follower)
{
    if (follower->way)
        follower->way->close(follower);
    follower->way = NULL;
}

bool follower_hides(const struct follower *follower)
{
    return follower->way && follower->way->hides;
}

enum follow_kind follower_kind(const struct follower *follower)
{
    return follower->way ? follower->way->kind : FOLLOW_AUTO;
}

int follower_scan(struct follower *follower, struct page_runs *runs)
{
    return follower->way->scan(follower, runs);
}

int follower_scan_missed(struct follower *follower, struct page_runs *missed,
                         struct page_runs *runs)
{
    return follower->way->scan_missed ? follower->way->scan_missed(follower, missed, runs) : 0;
}

bool follower_wants(struct follower *follower, uint64_t vaddr, bool anonymous, const void *page)
{
    return !follower->way->wants || follower->way->wants(follower, vaddr, anonymous, page);
}

int follower_list(struct follower *follower, struct page_runs *list, struct page_runs *runs,
                  struct tracked_areas *tracked)
{
    return follower->way->list(follower, list, runs, tracked);
}

void tracked_areas_free(struct tracked_areas *tracked)
{
    page_runs_free(&tracked->areas);
    page_runs_free(&tracked->written);
}

int follower_divide(const struct follower *follower, const struct follower *other,
                    const struct page_runs *runs, struct page_runs *copies, struct page_runs *rest)
{
    if (follower->way->hides || other->way->hides)
        return -EOPNOTSUPP; /* their pages are not protected */
    return page_table_divide(&follower->tracker.table, &other->tracker.table, runs, copies, rest);
}
