/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's half of a migration, see migrate/commit.h: a snapshot that is restored as soon
 * as it is whole, and held until the source has decided.
 *
 *   HELD ──criu──▶ RESTORING ──hook asks──▶ PREPARED ──commit──▶ STARTED ──hook tells──▶ RESTORED
 *    ▲                │ criu fails             │                   │ criu fails: again, 3 times
 *    └────────────────┴────────────────────────┘                   └────────▶ READY
 *
 * Every state is written down before anybody acts on it, and the images stay until the process
 * runs.  A hook that holds comes back to the next image-cache; so a cache may be killed at any
 * time.
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "criu/lazy.h"
#include "criu/process.h"
#include "daemon/cache.h"
#include "pager/pager.h"
#include "task/task.h"
#include "wire/link.h"

enum { ATTEMPTS_MAX = 3 };

/* How long a hook that was told something may take to come back to a cache that has just begun. */
#define RETURN_USEC (2 * USEC_PER_SEC)

/* How long a source that does not settle is remembered after the process runs here. */
#define NOTE_USEC (3600 * USEC_PER_SEC)

struct incoming {
    struct cache *cache;
    struct incoming *next;
    struct snapshot *snapshot;
    struct client *hook;      /* that waits for the answer; NULL: none */
    pid_t keeper;             /* of criu; 0: none, or a predecessor's */
    sd_event_source *criu_io; /* its end */
    uint64_t since_usec;      /* of this attempt, or since this cache has known of it */
    uint64_t running_usec;    /* since when the process runs; 0: not yet */
    unsigned attempts;
    bool dropping, criu_failed, again;
    bool orphaned; /* the keeper was killed, and criu works on: only its hook tells of it */
    char log[PATH_MAX], directory[PATH_MAX];
};

static struct incoming *incoming_find(struct cache *cache, const struct snapshot *snapshot)
{
    for (struct incoming *incoming = cache->incomings; incoming; incoming = incoming->next) {
        if (incoming->snapshot == snapshot)
            return incoming;
    }
    return NULL;
}

static void incoming_free(struct incoming *incoming)
{
    struct incoming **at = &incoming->cache->incomings;
    while (*at != incoming)
        at = &(*at)->next;
    *at = incoming->next;
    sd_event_source_disable_unref(incoming->criu_io);
    free(incoming);
}

static struct incoming *incoming_new(struct cache *cache, struct snapshot *snapshot)
{
    struct incoming *incoming = calloc(1, sizeof(*incoming));
    if (!incoming)
        return NULL;
    *incoming = (struct incoming){
        .cache = cache, .snapshot = snapshot, .next = cache->incomings, .since_usec = now_usec()};
    cache->incomings = incoming;
    const char *workdir = cache->daemon.workdir_path;
    int n = snprintf(incoming->directory, sizeof(incoming->directory), "%s/incoming-%s", workdir,
                     snapshot->id);
    if (n < 0 || n + 16 >= (int)sizeof(incoming->log)) {
        incoming_free(incoming);
        return NULL;
    }
    memcpy(incoming->log, incoming->directory, (size_t)n);
    strcpy(incoming->log + n, "/restore.log");
    return incoming;
}

/* Tells the source, if it can be reached now; if not, it will ask. */
static void incoming_tell(const struct incoming *incoming, uint16_t type, const struct error *err)
{
    struct link *link = cache_link(incoming->cache, incoming->snapshot->origin);
    if (!link)
        return;
    Godwit__Pb__Standing standing = GODWIT__PB__STANDING__INIT;
    standing.id = incoming->snapshot->id;
    standing.nonce = incoming->snapshot->nonce;
    if (incoming->running_usec)
        standing.ago_usec = now_usec() - incoming->running_usec;
    if (err) {
        standing.code = (uint32_t)err->code;
        standing.text = (char *)err->text;
    }
    link_send(link, type, 0, 0, &standing.base);
}

/* ---- the end ---- */

/* By name and never recursively: criu may have left mounts in its work-dir. */
static void remove_directory(int workdir, const char *name, bool keep_log)
{
    int dirfd = openat(workdir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dirfd < 0)
        return;
    unlinkat(dirfd, "stats-restore", 0);
    unlinkat(dirfd, LAZY_SOCKET, 0);
    if (!keep_log)
        unlinkat(dirfd, "restore.log", 0);
    close_fd(dirfd);
    unlinkat(workdir, name, AT_REMOVEDIR);
}

/* criu's log stays where criu failed, for whoever wants to know why. */
static void incoming_remove_directory(const struct incoming *incoming)
{
    remove_directory(incoming->cache->daemon.workdir, strrchr(incoming->directory, '/') + 1,
                     incoming->criu_failed);
}

static void incoming_over(struct incoming *incoming, bool remove)
{
    struct cache *cache = incoming->cache;
    if (incoming->snapshot->lazy)
        pager_stop(incoming->snapshot->dirfd);
    if (remove) {
        incoming_remove_directory(incoming);
        snapshot_remove(incoming->snapshot);
    }
    incoming_free(incoming);
    cache->served = true;
    cache_check_idle(cache);
}

/* Stops criu, if it is at work, and removes the snapshot when it has ended. */
static void incoming_drop(struct incoming *incoming, const char *why)
{
    log_info(&incoming->cache->daemon.log, "snapshot %s: dropped: %s", incoming->snapshot->id, why);
    incoming->dropping = true;
    incoming->since_usec = now_usec();
    if (incoming->hook)
        client_hook(incoming->hook, HOOK_NO, why);
    if (incoming->keeper > 0)
        kill(incoming->keeper, SIGTERM);
    else if (!incoming->hook && incoming->snapshot->state != SNAPSHOT_PREPARED)
        incoming_over(incoming, true);
    /* Else the hook of a predecessor's criu still has to hear it. */
}

/* ---- its memory ---- */

/* Whether the pager has nothing more to do; *ret_lost tells that it cannot do what it has. */
static bool pager_is_over(const struct incoming *incoming, bool *ret_lost, struct pager_view *view)
{
    *ret_lost = false;
    if (!incoming->snapshot->lazy)
        return true;
    if (pager_look(incoming->snapshot->dirfd, view) < 0)
        *view = (struct pager_view){.text = "it has left nothing"};
    if (view->phase == PAGER_DONE)
        return true;
    *ret_lost = view->phase == PAGER_FAILED || !view->alive;
    return *ret_lost;
}

/*
 * What the process lacks will not come any more: what it would read instead is zeros, or nothing,
 * for ever.
 */
static void incoming_kill(const struct incoming *incoming, const struct pager_view *view)
{
    struct task_tree tree;
    const struct snapshot *snapshot = incoming->snapshot;
    if (task_tree_open((pid_t)snapshot->pid, &tree) == 0)
        task_tree_kill(&tree);
    task_tree_close(&tree);
    log_error(&incoming->cache->daemon.log,
              "snapshot %s: process %u has been killed: %llu of its %llu pages have been lost with "
              "the pager: %s",
              snapshot->id, snapshot->pid, (unsigned long long)(view->pages - view->filled),
              (unsigned long long)view->pages, view->text[0] ? view->text : "it was killed");
}

/* Before it runs, all of it can be built once more.  Whether that has to be: criu is told to end.
 */
static bool incoming_check_pager(struct incoming *incoming)
{
    struct pager_view view;
    bool lost;
    pager_is_over(incoming, &lost, &view);
    if (!lost)
        return false;
    log_error(&incoming->cache->daemon.log, "snapshot %s: the pager: %s", incoming->snapshot->id,
              view.text[0] ? view.text : "it was killed");
    if (incoming->hook)
        client_hook(incoming->hook, HOOK_NO, "the pager has gone");
    else if (incoming->keeper > 0)
        kill(incoming->keeper, SIGTERM);
    return true;
}

/* It runs and no criu of ours is at work: what is left to do? */
static void incoming_check_fill(struct incoming *incoming)
{
    struct snapshot *snapshot = incoming->snapshot;
    struct pager_view view;
    bool lost;
    snapshot->filling = !pager_is_over(incoming, &lost, &view);
    if (snapshot->filling)
        return;
    if (lost)
        incoming_kill(incoming, &view);
    else if (snapshot->lazy)
        log_info(&incoming->cache->daemon.log,
                 "snapshot %s: filled in: %llu pages in %.2f s, %llu faults", snapshot->id,
                 (unsigned long long)view.pages,
                 (double)(view.done_usec - view.began_usec) / USEC_PER_SEC,
                 (unsigned long long)view.faults);
    snapshot_remove_images(snapshot);
    incoming_remove_directory(incoming);
    if (snapshot->settled)
        incoming_over(incoming, true);
}

static void incoming_runs(struct incoming *incoming)
{
    if (incoming->running_usec)
        return;
    struct snapshot *snapshot = incoming->snapshot;
    incoming->running_usec = now_usec();
    snapshot->filling = snapshot->lazy; /* also if nobody sees the end of criu */
    cache_set_state(incoming->cache, snapshot, SNAPSHOT_RESTORED);
    incoming_tell(incoming, FRAME_RESTORED, NULL);
    if (snapshot->lazy)
        pager_release(snapshot->dirfd);
}

/* ---- criu ---- */

static void incoming_start(struct incoming *incoming);

/* Nothing was built here, or it is gone: the source learns it. */
static void incoming_give_up(struct incoming *incoming, const struct error *err)
{
    struct snapshot *snapshot = incoming->snapshot;
    bool committed = snapshot->state == SNAPSHOT_STARTED;
    cache_set_state(incoming->cache, snapshot, committed ? SNAPSHOT_READY : SNAPSHOT_HELD);
    incoming_tell(incoming, FRAME_RESTORE_FAILED, err);
    if (committed)
        incoming_over(incoming, false);
    else if (!snapshot->origin && !snapshot->told_prepared)
        incoming_drop(incoming, "nobody waits for it");
}

static void incoming_failed(struct incoming *incoming, int status)
{
    struct cache *cache = incoming->cache;
    struct snapshot *snapshot = incoming->snapshot;
    struct error err;
    criu_explain("criu restore", status, incoming->log, &err);
    error_prefix(&err, "snapshot %s", snapshot->id);
    log_error(&cache->daemon.log, "%s", err.text);
    incoming->criu_failed = !criu_killed_by(status);
    if (snapshot->state == SNAPSHOT_STARTED && incoming->attempts < ATTEMPTS_MAX) {
        incoming->again = true; /* at the next tick: process ids take a moment to be free */
        return;
    }
    incoming_give_up(incoming, &err);
}

/*
 * What criu has built may be let go by now, and is not to be killed.  What its hook holds is as
 * good as before; a hook that comes later hears no, and criu then kills what it has built.
 */
static void incoming_orphaned(struct incoming *incoming, int by_signal)
{
    struct error err;
    error_set(&err, FAILURE_SYSTEM,
              "snapshot %s: the keeper of criu restore was killed by signal %d",
              incoming->snapshot->id, by_signal);
    log_error(&incoming->cache->daemon.log, "%s", err.text);
    incoming->orphaned = true;
    incoming->since_usec = now_usec();
    if (incoming->snapshot->state == SNAPSHOT_RESTORING && !incoming->dropping)
        incoming_give_up(incoming, &err);
}

static int on_criu_end(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct incoming *incoming = user;
    incoming->criu_io = sd_event_source_disable_unref(incoming->criu_io);
    int status = 0;
    while (waitpid(incoming->keeper, &status, 0) < 0 && errno == EINTR)
        ;
    incoming->keeper = 0;
    if (WIFSIGNALED(status) && !incoming->running_usec) {
        incoming_orphaned(incoming, WTERMSIG(status));
        return 0;
    }
    incoming->hook = NULL; /* it has gone with criu */
    status = criu_exit_status(status);
    if (status == 0)
        incoming_runs(incoming);
    if (incoming->running_usec)
        incoming_check_fill(incoming);
    else if (incoming->dropping)
        incoming_over(incoming, true);
    else
        incoming_failed(incoming, status);
    return 0;
}

static int incoming_spawn(struct incoming *incoming, struct error *err)
{
    struct cache *cache = incoming->cache;
    struct snapshot *snapshot = incoming->snapshot;
    char images[PATH_MAX], hook[PATH_MAX];
    if (!cache->criu)
        return error_set(err, FAILURE_CRIU, "no criu on this host: %s", cache->criu_error.text);
    int r = snapshot_path(snapshot, images, sizeof(images));
    if (r == 0 && mkdir(incoming->directory, 0700) < 0 && errno != EEXIST)
        r = -errno;
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s", incoming->directory);
    if (criu_find_hook(hook, sizeof(hook), err) < 0)
        return -1;
    if (snapshot->lazy) {
        pager_stop(snapshot->dirfd); /* of an attempt before */
        if (pager_start(snapshot->dirfd, snapshot->imagefd, incoming->directory, err) < 0)
            return -1;
    }
    struct criu_args args = {0};
    criu_args_add(&args, "%s", cache->criu);
    criu_args_add(&args, "restore");
    criu_args_add(&args, "--restore-detached");
    criu_args_add(&args, "-D%s", images);
    criu_args_add(&args, "-W%s", incoming->directory);
    criu_args_add(&args, "-o%s", incoming->log);
    criu_args_add(&args, "--action-script=%s", hook);
    if (snapshot->lazy)
        criu_args_add(&args, "--lazy-pages");
    if (snapshot->options)
        criu_args_add_all(&args, snapshot->options);
    struct criu_spawn spawn = {
        .hook_workdir = cache->daemon.workdir_path,
        .hook_token = snapshot->token,
        .hook_silence_usec = cache->daemon.options->silence_usec,
    };
    int pidfd;
    incoming->keeper = criu_start_kept(&args, &spawn, &pidfd, err);
    criu_args_free(&args);
    if (incoming->keeper < 0)
        return incoming->keeper = 0, -1;
    r = sd_event_add_io(cache->daemon.event, &incoming->criu_io, pidfd, EPOLLIN, on_criu_end,
                        incoming);
    if (r < 0) {
        close_fd(pidfd);
        kill(incoming->keeper, SIGTERM);
        return error_set_errno(err, FAILURE_SYSTEM, r, "watching criu");
    }
    sd_event_source_set_io_fd_own(incoming->criu_io, true);
    return 0;
}

/* Starts criu; the state says whether the hook is let through. */
static void incoming_start(struct incoming *incoming)
{
    struct cache *cache = incoming->cache;
    struct snapshot *snapshot = incoming->snapshot;
    struct error err;
    incoming->attempts++;
    incoming->again = incoming->orphaned = false;
    incoming->since_usec = now_usec();
    if (getrandom(&snapshot->token, sizeof(snapshot->token), 0) < 0)
        snapshot->token += 2;
    snapshot->token |= 1;
    cache_set_state(cache, snapshot,
                    snapshot->state == SNAPSHOT_STARTED ? SNAPSHOT_STARTED : SNAPSHOT_RESTORING);
    if (incoming_spawn(incoming, &err) == 0)
        return;
    log_error(&cache->daemon.log, "snapshot %s: %s", snapshot->id, err.text);
    cache_set_state(cache, snapshot,
                    snapshot->state == SNAPSHOT_STARTED ? SNAPSHOT_READY : SNAPSHOT_HELD);
    incoming_tell(incoming, FRAME_RESTORE_FAILED, &err);
}

void incoming_begin(struct cache *cache, struct snapshot *snapshot)
{
    struct incoming *incoming = incoming_new(cache, snapshot);
    if (incoming)
        incoming_start(incoming);
    else
        log_error(&cache->daemon.log, "snapshot %s: no memory for its restore", snapshot->id);
}

/* ---- the hook ---- */

static void incoming_prepared(struct incoming *incoming)
{
    struct snapshot *snapshot = incoming->snapshot;
    if (incoming_check_pager(incoming))
        return;
    snapshot->told_prepared = true;
    int r = snapshot_set_state(snapshot, SNAPSHOT_PREPARED);
    if (r < 0) {
        /* What is not written down is not told: a cache that comes after this one would not know.
         */
        snapshot->told_prepared = false;
        client_hook(incoming->hook, HOOK_NO, strerror(-r));
        return;
    }
    log_info(&incoming->cache->daemon.log, "snapshot %s: prepared", snapshot->id);
    client_hook(incoming->hook, HOOK_HOLD, "");
    incoming_tell(incoming, FRAME_PREPARED, NULL);
}

static void incoming_asked(struct incoming *incoming, struct client *client)
{
    incoming->hook = client;
    switch (incoming->snapshot->state) {
    case SNAPSHOT_RESTORING:
        incoming_prepared(incoming);
        return;
    case SNAPSHOT_PREPARED:
        client_hook(client, HOOK_HOLD, ""); /* it has come back */
        return;
    case SNAPSHOT_STARTED:
        client_hook(client, HOOK_YES, "");
        return;
    default:
        client_hook(client, HOOK_NO, "it is not to run");
    }
}

bool incoming_hook(struct cache *cache, struct client *client, const struct hook_ask *ask)
{
    for (struct incoming *incoming = cache->incomings; incoming; incoming = incoming->next) {
        if (incoming->snapshot->token != ask->token)
            continue;
        if (ask->root_pid)
            incoming->snapshot->pid = ask->root_pid; /* as it is called here */
        if (incoming->dropping) {
            client_hook(client, HOOK_NO, "it is not to run");
            incoming->hook = client;
        } else if (strcmp(ask->action, "post-restore") == 0) {
            incoming_asked(incoming, client);
        } else {
            client_hook(client, HOOK_YES, "");
            incoming_runs(incoming);
        }
        return true;
    }
    return false;
}

void incomings_client_gone(struct cache *cache, struct client *client)
{
    for (struct incoming *incoming = cache->incomings; incoming; incoming = incoming->next) {
        if (incoming->hook != client)
            continue;
        incoming->hook = NULL;
        incoming->since_usec = now_usec();
        if (incoming->dropping && incoming->keeper == 0)
            incoming_over(incoming, true);
        return;
    }
}

/* ---- the source's word ---- */

static void incoming_commit(struct incoming *incoming)
{
    struct snapshot *snapshot = incoming->snapshot;
    switch (snapshot->state) {
    case SNAPSHOT_PREPARED:
        incoming->since_usec = now_usec();
        cache_set_state(incoming->cache, snapshot, SNAPSHOT_STARTED);
        if (!incoming_check_pager(incoming) && incoming->hook)
            client_hook(incoming->hook, HOOK_YES, "");
        return;
    case SNAPSHOT_RESTORED:
        incoming_tell(incoming, FRAME_RESTORED, NULL);
        return;
    case SNAPSHOT_HELD:
    case SNAPSHOT_DOUBT:
    case SNAPSHOT_READY: /* it could not be started before */
        snapshot->state = SNAPSHOT_STARTED;
        incoming->attempts = 0;
        incoming_start(incoming);
        return;
    default:
        return;
    }
}

bool incoming_verdict(struct cache *cache, struct snapshot *snapshot, bool commit, const char *text)
{
    if (!snapshot->restore)
        return false;
    struct incoming *incoming = incoming_find(cache, snapshot);
    if (!incoming)
        incoming = incoming_new(cache, snapshot);
    if (!incoming || incoming->dropping)
        return true;
    if (commit)
        incoming_commit(incoming);
    else if (snapshot->state != SNAPSHOT_STARTED && snapshot->state != SNAPSHOT_RESTORED)
        incoming_drop(incoming, text);
    else
        log_error(&cache->daemon.log,
                  "snapshot %s: its process runs on at the source (%s), and here", snapshot->id,
                  text);
    return true;
}

void incoming_settled(struct cache *cache, struct snapshot *snapshot)
{
    struct incoming *incoming = incoming_find(cache, snapshot);
    if (snapshot->state != SNAPSHOT_RESTORED)
        return;
    if (!incoming) {
        snapshot_remove(snapshot);
        return;
    }
    snapshot->settled = true;
    if (incoming->keeper == 0 && !snapshot->filling)
        incoming_over(incoming, true);
    else /* criu has to end, or its memory to come */
        cache_set_state(cache, snapshot, SNAPSHOT_RESTORED);
}

bool incoming_link_down(struct cache *cache, struct snapshot *snapshot)
{
    if (!snapshot->restore)
        return false;
    snapshot->origin = NULL;
    struct incoming *incoming = incoming_find(cache, snapshot);
    if (!incoming || incoming->dropping)
        return true;
    /* Without that word the source cannot have ended its process. */
    if (!snapshot->told_prepared)
        incoming_drop(incoming, "the link broke before it was prepared");
    else if (snapshot->state == SNAPSHOT_PREPARED)
        log_error(&cache->daemon.log,
                  "snapshot %s: held: the link broke before host %s told whether process %u has "
                  "ended there; it calls again, or: godwit resolve %s",
                  snapshot->id, snapshot->host, snapshot->pid, snapshot->id);
    return true;
}

/* ---- the operator's ---- */

int incoming_resolve(struct cache *cache, struct snapshot *snapshot, bool resume, struct error *err)
{
    struct incoming *incoming = incoming_find(cache, snapshot);
    if (!incoming)
        incoming = incoming_new(cache, snapshot);
    if (!incoming)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "snapshot %s", snapshot->id);
    if (snapshot->state == SNAPSHOT_RESTORED) {
        incoming_settled(cache, snapshot); /* it runs: there is nothing left but the note of it */
        return 0;
    }
    if (snapshot->state == SNAPSHOT_RECEIVING || snapshot->state == SNAPSHOT_RESTORING ||
        incoming->dropping || incoming->keeper > 0 || incoming->again)
        if (snapshot->state != SNAPSHOT_PREPARED)
            return error_set(err, FAILURE_BUSY, "snapshot %s: is %s", snapshot->id,
                             snapshot_state_name(snapshot->state));
    if (!resume) {
        incoming_drop(incoming, "by an operator");
        return 0;
    }
    if (snapshot->state == SNAPSHOT_READY || snapshot->state == SNAPSHOT_STARTED)
        snapshot->state = SNAPSHOT_DOUBT; /* once more from the images */
    incoming_commit(incoming);
    return 0;
}

/* ---- time, and a cache's life ---- */

/*
 * What a predecessor left STARTED, with no hook that has come back: it was let go.  Whether it got
 * to run, its root tells.
 */
static void incoming_check_started(struct incoming *incoming)
{
    struct snapshot *snapshot = incoming->snapshot;
    if (snapshot->state != SNAPSHOT_STARTED || incoming->keeper > 0 || incoming->hook ||
        incoming->again || now_usec() - incoming->since_usec < RETURN_USEC)
        return;
    bool there = task_started((pid_t)snapshot->pid) != 0;
    if (there && !incoming->orphaned) { /* or the keeper would have killed it */
        incoming_runs(incoming);
        incoming_check_fill(incoming);
        return;
    }
    struct error err;
    error_set(&err, FAILURE_DOUBT,
              "it was let go and %s: if it has not run, godwit resolve %s --resume",
              there ? "nobody has told that it runs" : "is not there", snapshot->id);
    cache_set_state(incoming->cache, snapshot, SNAPSHOT_DOUBT);
    incoming_tell(incoming, FRAME_RESTORE_FAILED, &err);
}

/* The hook that held it does not come back: with it criu has gone, and what that had built. */
static void incoming_check_prepared(struct incoming *incoming)
{
    if (incoming->snapshot->state != SNAPSHOT_PREPARED || incoming->keeper > 0 || incoming->hook ||
        incoming->dropping || now_usec() - incoming->since_usec < RETURN_USEC)
        return;
    struct error err;
    error_set(&err, FAILURE_CRIU, "snapshot %s: criu restore has ended while it held the process",
              incoming->snapshot->id);
    log_error(&incoming->cache->daemon.log, "%s", err.text);
    incoming_give_up(incoming, &err);
}

/* What nobody comes back for: the note of a process that runs, or the hook of a criu that is gone.
 */
static bool incoming_is_stale(const struct incoming *incoming)
{
    uint64_t age = now_usec() - incoming->since_usec;
    if (incoming->keeper > 0 || incoming->hook || incoming->snapshot->filling)
        return false;
    return incoming->dropping ? age > RETURN_USEC
                              : incoming->snapshot->state == SNAPSHOT_RESTORED && age > NOTE_USEC;
}

void incomings_tick(struct cache *cache)
{
    for (struct incoming *incoming = cache->incomings, *next; incoming; incoming = next) {
        next = incoming->next;
        if (incoming->snapshot->filling) {
            if (incoming->keeper == 0)
                incoming_check_fill(incoming);
            continue;
        }
        if (incoming->hook && incoming->snapshot->state == SNAPSHOT_PREPARED &&
            !incoming_check_pager(incoming))
            client_hook(incoming->hook, HOOK_WAIT, "");
        if (incoming->again)
            incoming_start(incoming);
        incoming_check_started(incoming);
        if (incoming_is_stale(incoming))
            incoming_over(incoming, true);
        else
            incoming_check_prepared(incoming);
    }
}

bool incomings_work(const struct cache *cache)
{
    const struct incoming *incoming = cache->incomings;
    while (incoming && incoming->keeper == 0)
        incoming = incoming->next;
    return incoming;
}

/* Directories of restores of which the store knows nothing (any more). */
static void clear_up(struct cache *cache)
{
    static const char prefix[] = "incoming-";
    int copy = openat(cache->daemon.workdir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        const char *id = entry->d_name + sizeof(prefix) - 1;
        if (strncmp(entry->d_name, prefix, sizeof(prefix) - 1) == 0 &&
            !store_find(cache->store, id))
            remove_directory(cache->daemon.workdir, entry->d_name, false);
    }
    if (dir)
        closedir(dir);
}

void incomings_load(struct cache *cache)
{
    clear_up(cache);
    for (struct snapshot *s = store_first(cache->store), *next; s; s = next) {
        next = s->next;
        if (!s->restore || s->state == SNAPSHOT_READY)
            continue;
        struct incoming *incoming = incoming_new(cache, s);
        log_info(&cache->daemon.log, "snapshot %s: of an earlier image-cache, %s", s->id,
                 snapshot_state_name(s->state));
        if (incoming && s->state == SNAPSHOT_RESTORED)
            incoming_check_fill(incoming); /* which may be the end of both */
    }
}

void incoming_forget(struct cache *cache, const struct snapshot *snapshot)
{
    struct incoming *incoming = incoming_find(cache, snapshot);
    if (incoming)
        incoming_free(incoming);
}

void incomings_free(struct cache *cache)
{
    while (cache->incomings)
        incoming_free(cache->incomings);
}
