/* SPDX-License-Identifier: Apache-2.0 */
/* godwit.h: options in, a machine that runs (migration.c), a result out. */
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>

#include "base/io.h"
#include "migrate/migration.h"

#define DEFAULT_WORKDIR "/run/godwit"
#define DEFAULT_SILENCE_USEC (10 * USEC_PER_SEC)
#define DEFAULT_DOWNTIME_USEC (100 * USEC_PER_MSEC)
#define DEFAULT_ROUNDS 30

/* ---- the loop ---- */

static int on_tick(sd_event_source *source, uint64_t usec, void *user)
{
    (void)usec;
    struct godwit_migration *m = user;
    migration_tick(m);
    sd_event_source_set_time_relative(source, MIGRATION_TICK_USEC);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int on_cancel(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    uint64_t count;
    if (read(fd, &count, sizeof(count)) == sizeof(count))
        migration_cancel(user);
    return 0;
}

/* ---- its beginning ---- */

static void set_error(struct godwit_error *ret, const struct error *err)
{
    if (!ret)
        return;
    ret->code = (int)err->code;
    snprintf(ret->text, sizeof(ret->text), "%s", err->text);
}

static char **copy_options(char *const *options)
{
    size_t count = criu_count_options(options);
    char **copy = calloc(count + 1, sizeof(char *));
    for (size_t i = 0; copy && i < count; i++) {
        copy[i] = strdup(options[i]);
        if (!copy[i])
            abort();
    }
    return copy;
}

static int open_loop(struct godwit_migration *m)
{
    int r = sd_event_new(&m->event);
    if (r < 0)
        return r;
    m->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->cancel_fd < 0)
        return -errno;
    r = sd_event_add_io(m->event, &m->cancel_io, m->cancel_fd, EPOLLIN, on_cancel, m);
    if (r >= 0)
        r = sd_event_add_time_relative(m->event, &m->ticker, CLOCK_MONOTONIC, MIGRATION_TICK_USEC,
                                       USEC_PER_MSEC, on_tick, m);
    return r;
}

static int protect(struct godwit_migration *m, const struct godwit_options *options,
                   struct error *err)
{
    struct credential_files files = {
        .cacert = options->tls_cacert,
        .cacrl = options->tls_cacrl,
        .cert = options->tls_cert,
        .key = options->tls_key,
        .psk = options->psk_file,
    };
    if (m->target.kind != TARGET_TCP)
        return 0;
    return protection_open(&m->protection, &files, m->flags & GODWIT_INSECURE, err);
}

static int migration_set_up(struct godwit_migration *m, const struct godwit_options *options,
                            struct error *err)
{
    int r = open_loop(m);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the event loop");
    if (m->target_text && target_parse(m->target_text, &m->target, err) < 0)
        return -1;
    if (m->target_text && protect(m, options, err) < 0)
        return -1;
    if (m->target_text)
        m->dial =
            dial_new(m->event, &m->target, &m->protection, m->silence_usec, &migration_dial_ops, m);
    return 0;
}

static const enum follow_kind follow_kinds[] = {
    [GODWIT_TRACKER_AUTO] = FOLLOW_AUTO,
    [GODWIT_TRACKER_UFFD_WP] = FOLLOW_UFFD_WP,
    [GODWIT_TRACKER_COMPARE] = FOLLOW_COMPARE,
    [GODWIT_TRACKER_SOFT_DIRTY] = FOLLOW_SOFT_DIRTY,
};

int migration_follow_kind(uint32_t tracker, enum follow_kind *ret)
{
    if (tracker >= ARRAY_SIZE(follow_kinds))
        return -EINVAL;
    *ret = follow_kinds[tracker];
    return 0;
}

static struct godwit_migration *migration_alloc(const struct godwit_options *options,
                                                godwit_event_fn *event, void *user)
{
    struct godwit_migration *m = calloc(1, sizeof(*m));
    if (!m)
        abort();
    *m = (struct godwit_migration){
        .pid = options->pid,
        .silence_usec = options->timeout_usec ? options->timeout_usec : DEFAULT_SILENCE_USEC,
        .bytes_per_sec = options->bytes_per_sec,
        .follow = follow_kinds[options->tracker],
        .stream_count = options->streams ? options->streams : 1,
        .flags = options->flags,
        .converge = {.target_usec =
                         options->downtime_usec ? options->downtime_usec : DEFAULT_DOWNTIME_USEC,
                     .max_usec = options->max_time_usec,
                     .max_rounds = options->max_rounds ? options->max_rounds : DEFAULT_ROUNDS},
        .on_event = event,
        .user = user,
        .state = SOURCE_CONNECTING,
        .began_usec = now_usec(),
        .cancel_fd = -EBADF,
        .place = PLACE_CLOSED,
    };
    m->criu_options = copy_options(options->criu_options);
    if (options->target)
        m->target_text = strdup(options->target);
    return m;
}

static int check_options(const struct godwit_options *options, struct error *err)
{
    bool dry = options->flags & GODWIT_DRY_RUN;
    if (options->size != sizeof(*options))
        return error_set(err, FAILURE_USAGE, "struct godwit_options of another version");
    if (options->pid < 0 || (options->pid == 0 && !dry))
        return error_set(err, FAILURE_USAGE, "which process?");
    if (!options->target && !dry)
        return error_set(err, FAILURE_USAGE, "where to?");
    if (options->tracker >= ARRAY_SIZE(follow_kinds))
        return error_set(err, FAILURE_USAGE, "no such tracker");
    if (options->streams > WIRE_STREAMS_MAX)
        return error_set(err, FAILURE_USAGE, "%u streams; at most %d", options->streams,
                         WIRE_STREAMS_MAX);
    const struct journal_entry *entry = NULL;
    if (options->target && strlen(options->target) >= sizeof(entry->target))
        return error_set(err, FAILURE_USAGE, "the target is longer than %zu bytes",
                         sizeof(entry->target) - 1);
    if (options->target && strpbrk(options->target, "\n\r"))
        return error_set(err, FAILURE_USAGE, "the target has more than one line");
    return criu_check_options(options->criu_options, criu_count_options(options->criu_options),
                              err);
}

static void name_migration(struct godwit_migration *m, const char *target)
{
    struct journal_entry *entry = &m->journal;
    if (getrandom(&entry->nonce, sizeof(entry->nonce), 0) < 0)
        entry->nonce = now_usec();
    entry->nonce |= 1;
    snprintf(entry->id, sizeof(entry->id), "%d-%06x", m->pid, (unsigned)(entry->nonce >> 40));
    snprintf(entry->target, sizeof(entry->target), "%s", target);
    entry->insecure = m->flags & GODWIT_INSECURE;
    entry->pid = m->pid;
    entry->started = task_started(m->pid);
    task_command(m->pid, entry->command, sizeof(entry->command));
    m->result.id = entry->id;
    m->result.pid = m->pid;
    m->result.host = m->host;
}

int godwit_migration_new(const struct godwit_options *options, godwit_event_fn *event, void *user,
                         struct godwit_migration **ret, struct godwit_error *error)
{
    struct error err = {0};
    *ret = NULL;
    if (check_options(options, &err) < 0) {
        set_error(error, &err);
        return (int)err.code;
    }
    struct godwit_migration *m = migration_alloc(options, event, user);
    const char *workdir = options->workdir ? options->workdir : DEFAULT_WORKDIR;
    bool dry = m->flags & GODWIT_DRY_RUN;
    int r = dry ? 0 : place_open(&m->place, workdir, &err);
    if (r == 0)
        r = migration_set_up(m, options, &err);
    if (r == 0 && m->pid > 0 && task_started(m->pid) == 0)
        r = error_set(&err, FAILURE_NOT_FOUND, "there is no process %d", m->pid);
    if (r == 0 && !dry)
        r = place_lock(&m->place, m->pid, &err);
    if (r < 0) {
        set_error(error, &err);
        m->over = true;
        godwit_migration_free(m);
        return (int)err.code;
    }
    name_migration(m, options->target ? options->target : "");
    m->criu = criu_find(options->criu, &m->no_criu);
    *ret = m;
    return 0;
}

int godwit_migration_resume(const struct godwit_options *options, const char *id,
                            godwit_event_fn *event, void *user, struct godwit_migration **ret,
                            struct godwit_error *error)
{
    struct error err = {0};
    *ret = NULL;
    struct godwit_migration *m = migration_alloc(options, event, user);
    m->resumed = m->must_tell = true;
    int r = place_open(&m->place, options->workdir ? options->workdir : DEFAULT_WORKDIR, &err);
    if (r == 0) {
        r = journal_read(m->place.workdir, id, &m->journal);
        if (r < 0)
            r = error_set_errno(&err, FAILURE_NOT_FOUND, r, "%s: no such migration of this host",
                                id);
    }
    if (r == 0) {
        free(m->target_text);
        m->target_text = strdup(m->journal.target);
        m->pid = m->journal.pid;
        m->flags |= m->journal.insecure ? GODWIT_INSECURE : 0;
        if (m->flags & GODWIT_END_HERE)
            m->journal.decision = JOURNAL_COMMIT;
        m->result.id = m->journal.id;
        m->result.pid = m->pid;
        m->result.host = m->host;
        r = migration_set_up(m, options, &err);
    }
    if (r == 0)
        r = place_lock(&m->place, m->pid, &err);
    if (r < 0) {
        set_error(error, &err);
        m->over = true;
        godwit_migration_free(m);
        return (int)err.code;
    }
    *ret = m;
    return 0;
}

/* ---- running ---- */

static void look_at_process(struct godwit_migration *m)
{
    struct preflight_request request = {
        .criu = m->criu,
        .no_criu = &m->no_criu,
        .pid = m->pid,
        .options = m->criu_options,
        .eager = m->flags & GODWIT_EAGER,
    };
    struct findings findings = {0};
    struct error err = {0};
    int r = preflight_look(&request, &findings, &m->facts, &err);
    migration_report_findings(m, &findings);
    if (r < 0) {
        m->reason = err;
        m->problems++;
    }
    if (m->facts.count > 0)
        m->total_bytes = m->facts.parts[0]->memory_bytes;
}

static void start(struct godwit_migration *m)
{
    migration_report(m, GODWIT_EVENT_STATUS);
    look_at_process(m);
    if (m->problems > 0 && m->target_text && !(m->flags & GODWIT_DRY_RUN)) {
        migration_enter(m, SOURCE_REFUSED);
        return;
    }
    if (!m->target_text) {
        m->state = m->problems > 0 ? SOURCE_REFUSED : SOURCE_MOVED;
        migration_over(m);
        return;
    }
    struct error err;
    if (!m->dial || dial_begin(m->dial, &err) < 0)
        migration_happens(m, EVENT_LINK_LOST, &err);
}

/* Decided long ago, the process should have ended.  False: it runs, and nobody has said what to do.
 */
static bool end_process(struct godwit_migration *m)
{
    if (!migration_process_runs(m))
        return true;
    if (m->flags & GODWIT_END_HERE) {
        struct task_tree tree;
        if (task_tree_open(m->pid, &tree) == 0)
            task_tree_kill(&tree);
        task_tree_close(&tree);
        return true;
    }
    error_set(&m->reason, FAILURE_DOUBT,
              "process %d was to end and still runs here: say whether it stays (--resume) or the "
              "copy on the other host is to run (--kill)",
              m->pid);
    return false;
}

static void start_resumed(struct godwit_migration *m)
{
    struct error err = {0};
    m->state = SOURCE_COMMITTED;
    m->decided_usec = now_usec();
    if (m->flags & GODWIT_KEEP_HERE)
        m->journal.decision = JOURNAL_ABORT;
    if (m->journal.decision == JOURNAL_COMMIT && !end_process(m)) {
        migration_over(m);
        return;
    }
    if (m->journal.decision != JOURNAL_COMMIT) {
        m->journal.decision = JOURNAL_ABORT;
        m->state = SOURCE_ABORTED;
        error_set(&m->reason, FAILURE_ABORTED, "process %d was not moved", m->pid);
    }
    if (dial_begin(m->dial, &err) < 0) {
        m->reason = err;
        migration_over(m);
    }
}

static void start_once(struct godwit_migration *m)
{
    if (m->state == SOURCE_CONNECTING && m->entered_usec == 0 && !m->over) {
        m->entered_usec = m->waiting_since = now_usec();
        if (m->resumed)
            start_resumed(m);
        else
            start(m);
    }
}

int godwit_migration_fd(struct godwit_migration *m)
{
    return sd_event_get_fd(m->event);
}

int godwit_migration_step(struct godwit_migration *m, int timeout_msec)
{
    start_once(m);
    if (m->over)
        return 0;
    uint64_t usec = timeout_msec < 0 ? UINT64_MAX : (uint64_t)timeout_msec * USEC_PER_MSEC;
    if (sd_event_run(m->event, usec) < 0)
        usleep(1000); /* out of memory for an event: there is another time */
    return !m->over;
}

int godwit_migration_run(struct godwit_migration *m)
{
    while (godwit_migration_step(m, -1))
        ;
    return m->result.code;
}

void godwit_migration_cancel(struct godwit_migration *m)
{
    uint64_t one = 1;
    if (write(m->cancel_fd, &one, sizeof(one)) < 0)
        return; /* it is asked for already */
}

const struct godwit_result *godwit_migration_result(const struct godwit_migration *m)
{
    return &m->result;
}

void godwit_migration_free(struct godwit_migration *m)
{
    if (!m)
        return;
    if (m->entered_usec > 0 && !m->over) {
        godwit_migration_cancel(m);
        godwit_migration_run(m);
    }
    rounds_free(m->rounds);
    sender_free(m->sender);
    streams_free(m->streams);
    if (m->frozen)
        freeze_close(&m->freeze);
    if (m->link_up) {
        struct error goodbye = {.code = FAILURE_NONE, .text = ""};
        link_goodbye(m->link, &goodbye);
    }
    link_free(m->link);
    dial_free(m->dial);
    protection_close(&m->protection);
    sd_event_source_disable_unref(m->ticker);
    sd_event_source_disable_unref(m->cancel_io);
    sd_event_unref(m->event);
    close_fd(m->cancel_fd);
    /* criu's log stays when criu failed, for whoever wants to know. */
    place_close(&m->place, m->criu_failed);
    preflight_facts_free(&m->facts);
    target_free(&m->target);
    for (char **option = m->criu_options; option && *option; option++)
        free(*option);
    free(m->criu_options);
    free(m->target_text);
    free(m->criu);
    free(m);
}

const char *godwit_version(void)
{
    return GODWIT_VERSION;
}
