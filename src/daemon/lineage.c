/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/lineage.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "daemon/intake.h"
#include "migrate/migration.h"
#include "task/task.h"

enum { LINEAGES_MAX = 64, WHY_MAX = 160 };

struct lineage {
    struct proxy *proxy;
    struct lineage *next;
    pid_t pid;        /* as we see it */
    uint64_t started; /* task_started() */
    enum follow_kind kind;
    char id[WIRE_ID_MAX + 1]; /* the newest snapshot; "": none */
    uint64_t nonce;           /* of that */
    struct rounds *rounds;    /* NULL: not yet, or not any more */
    char why[WHY_MAX];        /* lost */
    bool lost;                /* it is not followed any more, and why is for who asks next */
    bool over;                /* nobody will ask */
    sd_event_source *end;     /* of the process */
    bool taken;               /* a snapshot is being made of it */
    struct dump *dump;        /* that one, once it has begun to be sent */
};

/* ---- the end of it ---- */

static void lineage_release(struct lineage *lineage)
{
    lineage->taken = false;
    lineage->dump = NULL;
}

static void lineage_lose(struct lineage *lineage, const char *why)
{
    lineage->lost = true;
    snprintf(lineage->why, sizeof(lineage->why), "%s", why);
    if (*lineage->id)
        log_info(&lineage->proxy->daemon.log, "process %d is followed no more: %s", lineage->pid,
                 why);
}

void lineage_end(struct lineage *lineage)
{
    lineage_release(lineage);
    lineage->over = true;
}

static void lineage_stop(struct lineage *lineage)
{
    lineage->rounds = rounds_free(lineage->rounds);
    lineage->end = sd_event_source_disable_unref(lineage->end);
}

void lineages_reap(struct proxy *proxy)
{
    for (struct lineage **at = &proxy->lineages; *at;) {
        struct lineage *lineage = *at;
        if (lineage->lost || lineage->over)
            lineage_stop(lineage);
        if (lineage->over) {
            *at = lineage->next;
            free(lineage);
        } else {
            at = &lineage->next;
        }
    }
}

void lineages_free(struct proxy *proxy)
{
    for (struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next)
        lineage->over = true;
    lineages_reap(proxy);
}

static int on_process_end(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)fd;
    (void)events;
    struct lineage *lineage = user;
    sd_event_source_set_enabled(source, SD_EVENT_OFF);
    if (!lineage->taken) /* else who has taken it tells */
        lineage_lose(lineage, "the process has ended");
    return 0;
}

/* ---- soft-dirty bits that somebody else clears ---- */

static bool goes_by_bits_of(const struct lineage *lineage, pid_t process)
{
    return lineage->kind == FOLLOW_SOFT_DIRTY && !lineage->lost && !lineage->over &&
           task_started(lineage->pid) == lineage->started &&
           (process == 0 || task_trees_overlap(lineage->pid, process));
}

int lineages_lose_dirty(struct proxy *proxy, pid_t process, const struct lineage *except,
                        const char *who, struct error *err)
{
    char why[WHY_MAX];
    for (const struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next) {
        if (lineage != except && lineage->taken && goes_by_bits_of(lineage, process))
            return error_set(err, FAILURE_BUSY,
                             "a snapshot is being made of process %d by its soft-dirty bits, which "
                             "would be cleared",
                             lineage->pid);
    }
    snprintf(why, sizeof(why), "%s has begun to track it anew", who);
    for (struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next) {
        if (lineage != except && goes_by_bits_of(lineage, process))
            lineage_lose(lineage, why);
    }
    return 0;
}

/* The bits are going to be cleared, and this one alone is told what they have said. */
static int take_bits(const struct lineage *lineage, struct error *err)
{
    struct proxy *proxy = lineage->proxy;
    if (lineage->kind != FOLLOW_SOFT_DIRTY)
        return 0;
    if (lineages_lose_dirty(proxy, lineage->pid, lineage, "another snapshot by godwit", err) < 0)
        return -1;
    intakes_lose(proxy, lineage->pid);
    return 0;
}

/* ---- choosing ---- */

static struct lineage *lineage_find(struct proxy *proxy, pid_t pid)
{
    for (struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next) {
        if (lineage->pid == pid && !lineage->over)
            return lineage;
    }
    return NULL;
}

/* Reasons that nobody has asked for make room. */
static bool make_room(struct proxy *proxy)
{
    unsigned count = 0;
    struct lineage *lost = NULL;
    for (struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next) {
        count++;
        if (lineage->lost)
            lost = lineage;
    }
    if (count < LINEAGES_MAX)
        return true;
    if (lost)
        lineage_end(lost);
    return lost;
}

static struct lineage *lineage_new(struct proxy *proxy, pid_t pid, struct error *err)
{
    if (!make_room(proxy)) {
        error_set(err, FAILURE_BUSY, "%d processes are followed: more cannot be", LINEAGES_MAX);
        return NULL;
    }
    struct lineage *lineage = calloc(1, sizeof(*lineage));
    if (!lineage) {
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "following process %d", pid);
        return NULL;
    }
    *lineage = (struct lineage){.proxy = proxy, .pid = pid, .next = proxy->lineages};
    proxy->lineages = lineage;
    return lineage;
}

static int lineage_watch(struct lineage *lineage, int pidfd, struct error *err)
{
    int fd = fcntl(pidfd, F_DUPFD_CLOEXEC, 3);
    int r = fd < 0 ? -errno
                   : sd_event_add_io(lineage->proxy->daemon.event, &lineage->end, fd, EPOLLIN,
                                     on_process_end, lineage);
    if (r < 0) {
        close_fd(fd);
        return error_set_errno(err, FAILURE_SYSTEM, r, "process %d", lineage->pid);
    }
    return sd_event_source_set_io_fd_own(lineage->end, true);
}

static bool is_followed(const struct lineage *lineage)
{
    return lineage && lineage->rounds && *lineage->id && !lineage->lost && !lineage->over;
}

/* Its end may have come while somebody else was to tell. */
static void lineage_check_process(struct lineage *lineage)
{
    if (task_started(lineage->pid) != lineage->started)
        lineage_lose(lineage, "the process has ended");
}

/* What it was when it was looked at last may not be true any more. */
static void lineage_look(struct lineage *lineage, enum follow_kind wanted)
{
    if (!is_followed(lineage))
        return;
    if (task_started(lineage->pid) != lineage->started)
        lineage_lose(lineage, "that process has ended, and its number is another's now");
    else if (wanted != FOLLOW_AUTO && wanted != lineage->kind)
        lineage_lose(lineage, "it is to be followed in another way than before (--tracker, or a "
                              "file that is open with O_DIRECT)");
}

static int check_parent(const struct lineage *lineage, const Godwit__Pb__DumpOpen *open,
                        struct error *err)
{
    if (is_followed(lineage) && strcmp(lineage->id, open->parent) == 0)
        return 0;
    error_set(err, FAILURE_NOT_FOUND,
              "what process %u has written since snapshot %s is not known: ", open->pid,
              open->parent);
    if (is_followed(lineage))
        error_append(err,
                     "only since the newest of it, which is %s, and on which it is based without "
                     "--parent",
                     lineage->id);
    else if (lineage && strcmp(lineage->id, open->parent) == 0)
        error_append(err, "%s", lineage->why);
    else
        error_append(err, "the image-proxy has taken no such snapshot of it to follow it since");
    if (!is_followed(lineage))
        error_append(err, "; without --parent all of its memory is sent");
    return -1;
}

int lineage_choose(struct proxy *proxy, const Godwit__Pb__DumpOpen *open, int pidfd,
                   struct lineage_choice *ret, struct error *err)
{
    enum follow_kind kind;
    pid_t pid = task_of_pidfd(pidfd);
    struct lineage *lineage = pid > 0 ? lineage_find(proxy, pid) : NULL;
    *ret = (struct lineage_choice){0};
    if (migration_follow_kind(open->tracker, &kind) < 0)
        return error_set(err, FAILURE_USAGE, "no such tracker");
    lineage_look(lineage, kind);
    if (*open->parent && check_parent(lineage, open, err) < 0)
        return -1;
    if (is_followed(lineage)) {
        snprintf(ret->parent, sizeof(ret->parent), "%s", lineage->id);
        ret->parent_nonce = lineage->nonce;
        ret->lineage = lineage;
        lineage->taken = true;
        return 0;
    }
    if (lineage && *lineage->id)
        snprintf(ret->why_full, sizeof(ret->why_full),
                 "it has all memory, and is not based on snapshot %s: %s", lineage->id,
                 lineage->why);
    if (lineage)
        lineage_end(lineage);
    if (!open->pre_dump)
        return 0;
    if (pid <= 0)
        return error_set(err, FAILURE_NOT_FOUND,
                         "process %u has ended, or cannot be seen by the image-proxy, which is in "
                         "another pid namespace",
                         open->pid);
    lineage = lineage_new(proxy, pid, err);
    if (!lineage)
        return -1;
    lineage->kind = kind;
    lineage->started = task_started(pid);
    if (lineage_watch(lineage, pidfd, err) < 0) {
        lineage_end(lineage);
        return -1;
    }
    ret->lineage = lineage;
    lineage->taken = true;
    return 0;
}

/* ---- a snapshot of it ---- */

static void on_round_over(struct rounds *rounds, void *user)
{
    (void)rounds;
    struct lineage *lineage = user;
    if (lineage->dump)
        dump_copied(lineage->dump);
}

static const struct rounds_ops rounds_ops = {.over = on_round_over};

int lineage_copy(struct lineage *lineage, struct dump *dump, struct sender *sender,
                 struct error *err)
{
    struct rounds_request request = {
        .root = lineage->pid,
        .kind = lineage->kind,
        .shared = true,
        .helpers = helper_tasks(lineage->proxy->helper),
    };
    if (take_bits(lineage, err) < 0)
        return -1;
    lineage->dump = dump;
    if (lineage->rounds)
        rounds_join(lineage->rounds, sender);
    else
        lineage->rounds = rounds_new(sender, &request, &rounds_ops, lineage);
    if (!lineage->rounds)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "following process %d", lineage->pid);
    return rounds_begin(lineage->rounds, err);
}

char *lineage_skipped(const struct lineage *lineage)
{
    const struct rounds_stats *stats = rounds_stats(lineage->rounds);
    char *text = NULL;
    if (stats->skipped > 0 &&
        asprintf(&text,
                 "%u of %u processes of %d cannot be followed, and are left to the dump, whole: %s",
                 stats->skipped, stats->skipped + stats->tasks, lineage->pid,
                 stats->reason.text) < 0)
        return NULL;
    return text;
}

char *lineage_hide(struct lineage *lineage)
{
    return rounds_hide(lineage->rounds);
}

int lineage_list(struct lineage *lineage, bool held, struct error *err)
{
    if (!held && rounds_hides(lineage->rounds))
        return 0;
    return rounds_list(lineage->rounds, NULL, err) < 0 ? -1 : 1;
}

uint64_t lineage_pages(const struct lineage *lineage)
{
    return lineage->rounds ? rounds_stats(lineage->rounds)->written_pages : 0;
}

void lineage_keep(struct lineage *lineage, const char *id, uint64_t nonce)
{
    snprintf(lineage->id, sizeof(lineage->id), "%s", id);
    lineage->nonce = nonce;
    lineage_release(lineage);
    lineage_check_process(lineage);
}

void lineage_failed(struct lineage *lineage, const struct error *err)
{
    bool begun = lineage->dump;
    lineage_release(lineage);
    if (!*lineage->id)
        lineage_end(lineage);
    else if (begun)
        lineage_lose(lineage, "the snapshot that was to follow it failed");
    else if (err->code == FAILURE_NOT_FOUND)
        lineage_lose(lineage, "the image-cache has it no more");
    else
        lineage_check_process(lineage);
}

void lineages_describe(const struct proxy *proxy, struct client *client)
{
    for (const struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next) {
        if (!is_followed(lineage) || lineage->taken)
            continue;
        char command[32];
        Godwit__Pb__StatusSnapshot snapshot = GODWIT__PB__STATUS_SNAPSHOT__INIT;
        task_command(lineage->pid, command, sizeof(command));
        snapshot.id = (char *)lineage->id;
        snapshot.state = (char *)"followed";
        snapshot.pid = (uint32_t)lineage->pid;
        snapshot.command = command;
        client_send(client, LOCAL_STATUS_SNAPSHOT, &snapshot.base);
    }
}

int lineages_forget(struct proxy *proxy, const char *id)
{
    for (struct lineage *lineage = proxy->lineages; lineage; lineage = lineage->next) {
        if (!is_followed(lineage) || strcmp(lineage->id, id) != 0)
            continue;
        if (lineage->taken)
            return -EBUSY;
        lineage_end(lineage);
        return 0;
    }
    return -ENOENT;
}
