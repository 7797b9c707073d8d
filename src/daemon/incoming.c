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
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>

#include "criu/process.h"
#include "daemon/cache.h"
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
    char id[WIRE_ID_MAX + 1]; /* its, also when it has gone */
    struct client *hook;      /* that waits for the answer; NULL: none */
    bool kept;                /* a keeper of ours is at work */
    uint64_t token;           /* of its criu's hook */
    uint64_t since_usec;      /* of this attempt, or since this cache has known of it */
    uint64_t running_usec;    /* since when the process runs; 0: not yet */
    unsigned attempts;
    bool dropping, criu_failed, again;
    bool orphaned; /* the keeper was killed, and criu works on: only its hook tells of it */
    bool ahead;    /* criu has been started, and waits for incoming_go() */
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
    free(incoming);
}

static struct incoming *incoming_new(struct cache *cache, struct snapshot *snapshot)
{
    struct incoming *incoming = calloc(1, sizeof(*incoming));
    if (!incoming)
        return NULL;
    *incoming = (struct incoming){
        .cache = cache,
        .snapshot = snapshot,
        .next = cache->incomings,
        .since_usec = now_usec(),
    };
    strcpy(incoming->id, snapshot->id);
    cache->incomings = incoming;
    return incoming;
}

/* Tells the source, if it can be reached now; if not, it will ask. */
static void incoming_tell(const struct incoming *incoming, uint16_t type, const struct error *err)
{
    struct link *link = peers_link(incoming->cache, incoming->snapshot->origin);
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

static struct starter *starter_of(const struct incoming *incoming)
{
    return incoming->cache->starter;
}

/* criu's log stays where criu failed. */
static void incoming_remove_directory(const struct incoming *incoming)
{
    starter_remove(starter_of(incoming), incoming->snapshot->id, incoming->criu_failed);
}

static void incoming_over(struct incoming *incoming, bool remove)
{
    struct cache *cache = incoming->cache;
    if (incoming->snapshot->lazy)
        starter_stop_pager(starter_of(incoming), incoming->snapshot->id);
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
    if (incoming->kept)
        starter_stop(starter_of(incoming), incoming->snapshot->id);
    else if (!incoming->hook && incoming->snapshot->state != SNAPSHOT_PREPARED)
        incoming_over(incoming, true);
    /* Else the hook of a predecessor's criu still has to hear it. */
}

/* ---- its memory ---- */

/*
 * Whether the pager has nothing more to do; *ret_lost tells that it cannot do what it has.  Of a
 * process that runs nothing is left of it when all has been filled in.
 */
static bool pager_is_over(const struct incoming *incoming, bool *ret_lost, struct pager_view *view)
{
    const struct snapshot *snapshot = incoming->snapshot;
    *ret_lost = false;
    if (!snapshot->lazy)
        return true;
    int r = starter_look(starter_of(incoming), snapshot->id, view);
    if (r < 0)
        *view = (struct pager_view){.text = "it has left nothing"};
    if (view->phase == PAGER_DONE || (r == -ENOENT && snapshot->state == SNAPSHOT_RESTORED))
        return true;
    *ret_lost = restores_is_lost(view);
    return *ret_lost;
}

/*
 * What the process lacks will not come any more: what it would read instead is zeros, or nothing,
 * for ever.
 */
static void incoming_kill(const struct incoming *incoming, const struct pager_view *view)
{
    const struct snapshot *snapshot = incoming->snapshot;
    int r = starter_kill(starter_of(incoming), snapshot->id);
    log_error(&incoming->cache->daemon.log,
              "snapshot %s: process %u %s: %llu of its %llu pages have been lost with "
              "the pager: %s",
              snapshot->id, snapshot->pid,
              r == 0        ? "has been killed"
              : r == -ESRCH ? "is not there any more"
                            : "is to be killed, which failed",
              (unsigned long long)(view->pages - view->filled), (unsigned long long)view->pages,
              view->text[0] ? view->text : "it was killed");
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
    else if (incoming->kept)
        starter_stop(starter_of(incoming), incoming->snapshot->id);
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
        starter_release(starter_of(incoming), snapshot->id);
}

/* ---- criu ---- */

static void incoming_start(struct incoming *incoming);
static void incoming_over_ahead(struct incoming *incoming);

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

/* err: why, which is the caller's to lose. */
static void incoming_failed(struct incoming *incoming, int status, struct error *err)
{
    struct cache *cache = incoming->cache;
    struct snapshot *snapshot = incoming->snapshot;
    error_prefix(err, "snapshot %s", snapshot->id);
    log_error(&cache->daemon.log, "%s", err->text);
    incoming->criu_failed = !criu_killed_by(status);
    if (snapshot->state == SNAPSHOT_STARTED && incoming->attempts < ATTEMPTS_MAX) {
        incoming->again = true; /* at the next tick: process ids take a moment to be free */
        return;
    }
    incoming_give_up(incoming, err);
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

/* The keeper has ended. */
static void incoming_ended(struct incoming *incoming, struct restore_end *end)
{
    incoming->kept = false;
    if (incoming->ahead) {
        log_error(&incoming->cache->daemon.log, "snapshot %s: criu, started ahead, has ended",
                  incoming->snapshot->id);
        incoming_over_ahead(incoming);
        return;
    }
    if (WIFSIGNALED(end->status) && !incoming->running_usec) {
        incoming_orphaned(incoming, WTERMSIG(end->status));
        return;
    }
    incoming->hook = NULL; /* it has gone with criu */
    int status = criu_exit_status(end->status);
    if (status == 0)
        incoming_runs(incoming);
    if (incoming->running_usec)
        incoming_check_fill(incoming);
    else if (incoming->dropping)
        incoming_over(incoming, true);
    else
        incoming_failed(incoming, status, &end->err);
}

int incomings_told(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)fd;
    (void)events;
    struct cache *cache = user;
    struct tell tell;
    if (starter_told(cache->starter, &tell) < 0)
        return 0;
    struct incoming *incoming = cache->incomings;
    /* Not of one that has been let go of, with the same id. */
    while (incoming &&
           (!incoming->kept || incoming->token != tell.token || strcmp(incoming->id, tell.id) != 0))
        incoming = incoming->next;
    if (incoming)
        incoming_ended(incoming, &tell.end);
    return 0;
}

/* ahead: criu waits for incoming_go(). */
static int incoming_spawn(struct incoming *incoming, bool ahead, struct error *err)
{
    const struct snapshot *snapshot = incoming->snapshot;
    const struct restore_order order = {
        .id = snapshot->id,
        .token = snapshot->token,
        .lazy = snapshot->lazy,
        .ahead = ahead,
        .options = snapshot->options,
    };
    incoming->ahead = ahead;
    incoming->token = snapshot->token;
    if (starter_start(starter_of(incoming), &order, err) < 0)
        return -1;
    incoming->kept = true;
    return 0;
}

static void incoming_new_token(struct snapshot *snapshot)
{
    if (getrandom(&snapshot->token, sizeof(snapshot->token), 0) < 0)
        snapshot->token += 2;
    snapshot->token |= 1;
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
    incoming_new_token(snapshot);
    cache_set_state(cache, snapshot,
                    snapshot->state == SNAPSHOT_STARTED ? SNAPSHOT_STARTED : SNAPSHOT_RESTORING);
    if (incoming_spawn(incoming, false, &err) == 0)
        return;
    log_error(&cache->daemon.log, "snapshot %s: %s", snapshot->id, err.text);
    cache_set_state(cache, snapshot,
                    snapshot->state == SNAPSHOT_STARTED ? SNAPSHOT_READY : SNAPSHOT_HELD);
    incoming_tell(incoming, FRAME_RESTORE_FAILED, &err);
}

/* ---- ahead ---- */

/* It came to nothing; the snapshot may be gone already. */
static void incoming_over_ahead(struct incoming *incoming)
{
    starter_leave(starter_of(incoming), incoming->id);
    incoming_free(incoming);
}

/* criu takes one configuration more than its own, and the user may want that. */
static bool wants_config(char *const *options)
{
    for (; options && *options; options++) {
        if (strncmp(*options, "--config", strlen("--config")) == 0)
            return true;
    }
    return false;
}

/*
 * criu's start, and the pager's, are over when the last byte of the snapshot comes: they are not in
 * the downtime.  What goes wrong here is nothing to the snapshot: criu is then started as late as
 * ever.
 */
void incoming_expect(struct cache *cache, struct snapshot *snapshot)
{
    struct error err;
    struct incoming *incoming =
        wants_config(snapshot->options) ? NULL : incoming_new(cache, snapshot);
    if (!incoming)
        return;
    incoming_new_token(snapshot);
    if (incoming_spawn(incoming, true, &err) == 0)
        return;
    log_error(&cache->daemon.log, "snapshot %s: %s", snapshot->id, err.text);
    incoming_over_ahead(incoming);
}

void incoming_expect_no_more(struct cache *cache, const char *id)
{
    for (struct incoming *incoming = cache->incomings; incoming; incoming = incoming->next) {
        if (!incoming->ahead || strcmp(incoming->id, id) != 0)
            continue;
        incoming_over_ahead(incoming);
        return;
    }
}

/* Lets a criu that was started ahead do its work. */
static bool incoming_go(struct incoming *incoming)
{
    if (!incoming->ahead)
        return false;
    if (!starter_go(starter_of(incoming), incoming->id, incoming->snapshot->lazy)) {
        incoming_over_ahead(incoming);
        return false;
    }
    incoming->ahead = false;
    incoming->attempts = 1;
    incoming->since_usec = now_usec();
    cache_set_state(incoming->cache, incoming->snapshot, SNAPSHOT_RESTORING);
    return true;
}

void incoming_begin(struct cache *cache, struct snapshot *snapshot)
{
    struct incoming *incoming = incoming_find(cache, snapshot);
    if (incoming && incoming_go(incoming))
        return;
    incoming = incoming_new(cache, snapshot);
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

/* What is not known to be of our making is not killed by us: that is all that comes of it. */
static void incoming_is_root(struct incoming *incoming, const struct hook_ask *ask)
{
    struct snapshot *snapshot = incoming->snapshot;
    if (!ask->root_pid || strcmp(ask->action, "post-restore") != 0)
        return;
    snapshot->pid = ask->root_pid; /* as it is called here */
    int r = starter_root(starter_of(incoming), snapshot->id, (pid_t)ask->root_pid);
    if (r < 0)
        log_error(&incoming->cache->daemon.log, "snapshot %s: process %u, says criu's hook: %s",
                  snapshot->id, snapshot->pid, strerror(-r));
}

bool incoming_hook(struct cache *cache, struct client *client, const struct hook_ask *ask)
{
    for (struct incoming *incoming = cache->incomings; incoming; incoming = incoming->next) {
        if (incoming->snapshot->token != ask->token)
            continue;
        incoming_is_root(incoming, ask);
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
        if (incoming->dropping && !incoming->kept)
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
    if (!incoming->kept && !snapshot->filling)
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
        incoming->dropping || incoming->kept || incoming->again)
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
    if (snapshot->state != SNAPSHOT_STARTED || incoming->kept || incoming->hook ||
        incoming->again || now_usec() - incoming->since_usec < RETURN_USEC)
        return;
    bool there = starter_root_lives(starter_of(incoming), snapshot->id);
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
    if (incoming->snapshot->state != SNAPSHOT_PREPARED || incoming->kept || incoming->hook ||
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
    if (incoming->kept || incoming->hook || incoming->snapshot->filling)
        return false;
    return incoming->dropping ? age > RETURN_USEC
                              : incoming->snapshot->state == SNAPSHOT_RESTORED && age > NOTE_USEC;
}

void incomings_tick(struct cache *cache)
{
    for (struct incoming *incoming = cache->incomings, *next; incoming; incoming = next) {
        next = incoming->next;
        if (incoming->snapshot->filling) {
            if (!incoming->kept)
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
    while (incoming && !incoming->kept)
        incoming = incoming->next;
    return incoming;
}

void incomings_load(struct cache *cache)
{
    starter_clear_up(cache->starter);
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
