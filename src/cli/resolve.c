/* SPDX-License-Identifier: Apache-2.0 */
/* godwit resolve: what of a migration is in doubt on this host, and the operator's word on it. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/session.h"
#include "daemon/attach.h"
#include "godwit.h"
#include "migrate/journal.h"
#include "migrate/place.h"
#include "wire/message.h"

struct values {
    const char *workdir;
    bool resume, kill;
    uint64_t timeout_usec;
    struct credential_files credentials;
};

#define AT(field) offsetof(struct values, field)

const struct option_row resolve_options[] = {
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR",
     "of the migration (default: " DAEMON_DEFAULT_WORKDIR ")"},
    {0, "resume", OPTION_FLAG, AT(resume), NULL, "the process is to run on this host"},
    {0, "kill", OPTION_FLAG, AT(kill), NULL, "this host's copy of the process is to end"},
    {0, "timeout", OPTION_SECONDS, AT(timeout_usec), "SECONDS",
     "silence after which the other host is dead (default: 10)"},
    CREDENTIAL_ROWS(credentials),
    {0},
};

/* ---- what there is ---- */

struct count {
    unsigned entries;
};

static void print_entry(const struct journal_entry *entry, void *user)
{
    struct count *count = user;
    count->entries++;
    printf("  %-24s source, %-12s pid %d %s, to %s\n", entry->id,
           journal_decision_name(entry->decision), (int)entry->pid, entry->command, entry->target);
}

static int list(const struct values *values, struct error *err)
{
    _cleanup_close_ int workdir = workdir_open(values->workdir, false, NULL, err);
    if (workdir < 0 && workdir != -ENOENT)
        return -1;
    struct count count = {0};
    if (workdir >= 0) {
        place_clear_up(workdir);
        journal_list(workdir, print_entry, &count);
    }
    count.entries += status_print_store(values->workdir);
    if (count.entries == 0)
        printf("nothing is in doubt on this host\n");
    return 0;
}

/* ---- on the source: the journal knows ---- */

static int resolve_source(const struct values *values, int workdir, const char *id,
                          struct error *err)
{
    struct godwit_options options = {
        .size = sizeof(options),
        .workdir = values->workdir,
        .timeout_usec = values->timeout_usec,
        .tls_cacert = values->credentials.cacert,
        .tls_cacrl = values->credentials.cacrl,
        .tls_cert = values->credentials.cert,
        .tls_key = values->credentials.key,
        .psk_file = values->credentials.psk,
        .flags = (values->resume ? GODWIT_KEEP_HERE : 0) | (values->kill ? GODWIT_END_HERE : 0),
    };
    struct godwit_migration *migration;
    struct godwit_error error = {0};
    if (godwit_migration_resume(&options, id, NULL, NULL, &migration, &error) != 0)
        return error_set(err, failure_from_wire((uint32_t)error.code), "%s", error.text);
    int code = godwit_migration_run(migration);
    const struct godwit_result *result = godwit_migration_result(migration);
    struct journal_entry entry; /* stays until the other host has heard it */
    bool settled =
        code == GODWIT_MOVED || (code == GODWIT_ABORTED && journal_read(workdir, id, &entry) < 0);
    if (code == GODWIT_MOVED)
        printf("%s: process %d runs on %s\n", id, (int)result->pid, result->host);
    else if (settled)
        printf("%s: %s\n", id, result->text);
    else
        error_set(err, code == GODWIT_ABORTED ? FAILURE_PEER : (enum failure)code, "%s",
                  result->text);
    godwit_migration_free(migration);
    return settled ? 0 : -1;
}

/* ---- on the destination: the image-cache knows ---- */

static int resolve_destination(const struct values *values, int workdir, const char *id,
                               struct error *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "images/%s", id);
    if (faccessat(workdir, path, F_OK, 0) < 0)
        return error_set(err, FAILURE_NOT_FOUND,
                         "%s: no such migration is open here, neither from this host nor to it",
                         id);
    if (!values->resume && !values->kill)
        return error_set(err, FAILURE_DOUBT,
                         "%s: say whether the copy of this host is to run (--resume) or to end "
                         "(--kill); where it came from, godwit resolve %s asks nobody",
                         id, id);
    struct session session = {.silence_usec = values->timeout_usec};
    struct local_packet packet;
    if (cache_ensure(values->workdir, err) < 0)
        return -1;
    int r = session_open(&session, values->workdir, LOCAL_CACHE_SOCKET, "image-cache", err);
    if (r == 0) {
        Godwit__Pb__Resolve resolve = GODWIT__PB__RESOLVE__INIT;
        resolve.id = (char *)id;
        resolve.resume = values->resume;
        r = local_send(session.daemon, LOCAL_RESOLVE, &resolve.base, NULL, 0);
        if (r < 0)
            error_set_errno(err, FAILURE_PEER, r, "asking the image-cache");
        else
            r = session_expect(&session, LOCAL_DONE, &packet, err);
    }
    session_close(&session);
    return r;
}

static int resolve(const struct values *values, const char *id, struct error *err)
{
    struct journal_entry entry;
    _cleanup_close_ int workdir = workdir_open(values->workdir, false, NULL, err);
    if (workdir == -ENOENT)
        err->code = FAILURE_NOT_FOUND;
    if (workdir < 0)
        return -1;
    if (journal_read(workdir, id, &entry) == 0)
        return resolve_source(values, workdir, id, err);
    return resolve_destination(values, workdir, id, err);
}

int command_resolve(int argc, char **argv)
{
    const struct command *command = command_find("resolve");
    struct values values = {.workdir = DAEMON_DEFAULT_WORKDIR,
                            .timeout_usec = DAEMON_DEFAULT_SILENCE_USEC};
    struct error err = {0};
    char **rest, **passed;
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && (passed || (rest[0] && rest[1])))
        r = error_set(&err, FAILURE_USAGE, "the id of one migration is expected");
    if (r == 0 && values.resume && values.kill)
        r = error_set(&err, FAILURE_USAGE, "--resume or --kill, not both");
    if (r == 0 && !rest[0] && (values.resume || values.kill))
        r = error_set(&err, FAILURE_USAGE, "of which migration?  godwit resolve lists them");
    if (r == 0)
        r = rest[0] ? resolve(&values, rest[0], &err) : list(&values, &err);
    return r < 0 ? command_fail(command, &err) : 0;
}
