/* SPDX-License-Identifier: Apache-2.0 */
/* godwit migrate and godwit check: users of godwit.h like any other. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/io.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "daemon/daemon.h"
#include "godwit.h"

enum { STREAMS_MAX = 16 }; /* as the library has it */

struct values {
    uint64_t pid, timeout_usec, downtime_msec, max_rounds, max_time_usec, bandwidth, streams;
    bool dry_run, json, insecure, stop_and_copy, eager, strict, verify, no_scan_filter;
    const char *workdir, *criu, *progress, *tracker;
    struct credential_files credentials;
};

#define AT(field) offsetof(struct values, field)

/* clang-format off */
/* What both commands take. */
#define COMMON_ROWS \
    {'W', "work-dir", OPTION_STRING, AT(workdir), "DIR", "journal and logs (default: " DAEMON_DEFAULT_WORKDIR ")"}, \
    {0, "criu", OPTION_STRING, AT(criu), "PATH", "the criu to use (default: $GODWIT_CRIU, PATH)"}, \
    {0, "timeout", OPTION_SECONDS, AT(timeout_usec), "SECONDS", "silence after which the other host is dead (default: 10)"}, \
    {0, "insecure", OPTION_FLAG, AT(insecure), NULL, "plain text beyond this host: nothing is encrypted"}, \
    CREDENTIAL_ROWS(credentials), \
    {0, "json", OPTION_FLAG, AT(json), NULL, "one JSON object per line"}

const struct option_row migrate_options[] = {
    {'t', "tree", OPTION_NUMBER, AT(pid), "PID", "root task of the tree to move"},
    COMMON_ROWS,
    {0, "downtime", OPTION_NUMBER, AT(downtime_msec), "MS", "freeze when it will be no longer than that (default: 100)"},
    {0, "max-rounds", OPTION_NUMBER, AT(max_rounds), "N", "copy at most that often before the freeze (default: 30)"},
    {0, "max-time", OPTION_SECONDS, AT(max_time_usec), "SECONDS", "copy at most that long before the freeze (default: no limit)"},
    {0, "bandwidth", OPTION_SIZE, AT(bandwidth), "RATE", "bytes per second while the process runs (default: no limit)"},
    {0, "streams", OPTION_NUMBER, AT(streams), "N", "connections that carry its memory, at most 16 (default: 1)"},
    {0, "tracker", OPTION_STRING, AT(tracker), "HOW", "uffd-wp, soft-dirty, compare or auto: how to tell what it has written (default: auto)"},
    {0, "strict", OPTION_FLAG, AT(strict), NULL, "give up rather than exceed --downtime"},
    {0, "stop-and-copy", OPTION_FLAG, AT(stop_and_copy), NULL, "the process stands still while its memory is copied"},
    {0, "eager", OPTION_FLAG, AT(eager), NULL, "it starts there when all of its memory is in place"},
    {0, "verify", OPTION_FLAG, AT(verify), NULL, "compare all that was copied before the process may start there"},
    {0, "no-scan-filter", OPTION_FLAG, AT(no_scan_filter), NULL, "nothing is preloaded into criu"},
    {0, "dry-run", OPTION_FLAG, AT(dry_run), NULL, "end before anything is touched"},
    {0, "progress", OPTION_STRING, AT(progress), "HOW", "auto, bar, plain or none (default: auto)"},
    {0},
};

const struct option_row check_options[] = {
    {'t', "tree", OPTION_NUMBER, AT(pid), "PID", "also whether this process can be moved"},
    COMMON_ROWS,
    {0},
};
/* clang-format on */

enum progress { PROGRESS_NONE, PROGRESS_PLAIN, PROGRESS_BAR };

struct run {
    const struct values *values;
    const char *target;
    bool check;        /* the findings are what is asked for */
    bool problem_kept; /* the first one: the command's last line tells it */
    enum progress progress;
    enum godwit_tracker tracker;
    bool bar_shown;
    struct godwit_migration *migration;
};

/* ---- what happens, for people ---- */

static void clear_bar(struct run *run)
{
    if (run->bar_shown)
        fputs("\r\033[K", stderr);
    run->bar_shown = false;
}

static double rate(const struct godwit_event *event)
{
    return event->elapsed_usec
               ? (double)event->transferred * USEC_PER_SEC / (double)event->elapsed_usec
               : 0;
}

static void print_progress(struct run *run, const struct godwit_event *event)
{
    char done[24], total[24], speed[24], left[32] = "";
    uint64_t estimate = MAX(event->total, event->transferred);
    double per_second = rate(event);
    if (per_second > 0 && event->transferred > 0 && estimate > event->transferred)
        snprintf(left, sizeof(left), ", %.0f s left",
                 (double)(estimate - event->transferred) / per_second);
    if (run->progress == PROGRESS_BAR)
        fputs("\r\033[K", stderr);
    fprintf(stderr, "%s: %s of %s, %s/s%s%s", event->status, format_bytes(event->transferred, done),
            format_bytes(estimate, total), format_bytes((uint64_t)per_second, speed), left,
            run->progress == PROGRESS_BAR ? "" : "\n");
    run->bar_shown = run->progress == PROGRESS_BAR;
}

static const char *const severities[] = {"ok", "warning", "problem"};

static void print_finding(struct run *run, const struct godwit_event *event)
{
    if (!run->check && event->severity == GODWIT_OK)
        return;
    if (!run->check && event->severity == GODWIT_PROBLEM && !run->problem_kept) {
        run->problem_kept = true;
        return;
    }
    clear_bar(run);
    fprintf(run->check ? stdout : stderr, "%-8s %s: %s%s%s\n", severities[event->severity],
            event->host, event->text, *event->remedy ? ": " : "", event->remedy);
}

/* ---- and for programs: names as in QEMU's query-migrate where it has one ---- */

/* event: what it has of rounds; NULL: nothing. */
static void print_ram_json(const struct godwit_event *event, uint64_t transferred, uint64_t total,
                           double per_second)
{
    uint64_t estimate = MAX(total, transferred);
    printf("\"ram\": {\"transferred\": %llu, \"remaining\": %llu, \"total\": %llu, \"mbps\": %.1f",
           (unsigned long long)transferred, (unsigned long long)(estimate - transferred),
           (unsigned long long)estimate, per_second * 8 / 1e6);
    if (event && event->round)
        printf(", \"dirty-sync-count\": %u, \"dirty-pages-rate\": %llu", event->round,
               (unsigned long long)event->dirty_bytes_per_sec / PAGE_BYTES);
    printf("}");
}

static void print_event_json(const struct godwit_event *event)
{
    if (event->type == GODWIT_EVENT_FINDING) {
        printf("{\"severity\": \"%s\", \"topic\": ", severities[event->severity]);
        json_print_string(event->topic);
        printf(", \"host\": ");
        json_print_string(event->host);
        printf(", \"text\": ");
        json_print_string(event->text);
        printf(", \"remedy\": ");
        json_print_string(event->remedy);
        printf("}\n");
    } else {
        printf("{\"status\": \"%s\", \"total-time\": %llu, ", event->status,
               (unsigned long long)(event->elapsed_usec / USEC_PER_MSEC));
        if (event->expected_downtime_usec)
            printf("\"expected-downtime\": %.1f, ",
                   (double)event->expected_downtime_usec / USEC_PER_MSEC);
        print_ram_json(event, event->transferred, event->total, rate(event));
        printf("}\n");
    }
    fflush(stdout);
}

static void on_event(const struct godwit_event *event, void *user)
{
    struct run *run = user;
    if (run->values->json)
        print_event_json(event);
    else if (event->type == GODWIT_EVENT_FINDING)
        print_finding(run, event);
    else if (run->progress != PROGRESS_NONE)
        print_progress(run, event);
}

/* ---- the end ---- */

static const char *result_name(int code)
{
    switch (code) {
    case GODWIT_MOVED:
        return "moved";
    case GODWIT_ABORTED:
        return "aborted";
    case GODWIT_IN_DOUBT:
        return "in-doubt";
    default:
        return "refused";
    }
}

static void print_downtime_json(const struct godwit_result *result)
{
    printf("\"downtime\": %.1f, \"stages\": {\"dump\": %.1f, \"send\": %.1f, \"restore\": %.1f, "
           "\"commit\": %.1f}, ",
           (double)result->downtime_usec / USEC_PER_MSEC, (double)result->dump_usec / USEC_PER_MSEC,
           (double)result->send_usec / USEC_PER_MSEC, (double)result->restore_usec / USEC_PER_MSEC,
           (double)result->commit_usec / USEC_PER_MSEC);
    if (result->rounds)
        printf("\"rounds\": %u, \"stopped\": %.3f, \"first-round\": {\"time\": %.1f, "
               "\"transferred\": %llu}, ",
               result->rounds, (double)result->stopped_usec / USEC_PER_MSEC,
               (double)result->first_round_usec / USEC_PER_MSEC,
               (unsigned long long)result->first_round_bytes);
}

static void print_result_json(const struct run *run, const struct godwit_result *result)
{
    bool moved = result->code == GODWIT_MOVED && !run->values->dry_run;
    printf("{\"status\": \"%s\", \"result\": \"%s\", \"code\": %d, \"pid\": %d, \"total-time\": "
           "%llu, ",
           result->code == GODWIT_MOVED ? "completed" : "failed",
           run->values->dry_run && result->code == GODWIT_MOVED ? "possible"
                                                                : result_name(result->code),
           result->code, (int)result->pid,
           (unsigned long long)(result->total_usec / USEC_PER_MSEC));
    if (moved)
        print_downtime_json(result);
    print_ram_json(NULL, result->transferred, result->transferred,
                   result->total_usec
                       ? (double)result->transferred * USEC_PER_SEC / (double)result->total_usec
                       : 0);
    printf(", \"id\": ");
    json_print_string(result->id);
    printf(", \"host\": ");
    json_print_string(result->host);
    if (result->code != GODWIT_MOVED) {
        printf(", \"error-desc\": ");
        json_print_string(result->text);
    }
    printf("}\n");
}

static void print_result(const struct run *run, const struct godwit_result *result)
{
    char size[24];
    if (result->code != GODWIT_MOVED)
        return; /* the error's line tells */
    if (run->values->dry_run)
        printf("%d can be moved to %s\n", (int)result->pid, result->host);
    else
        printf("%d moved to %s: down %.0f ms, total %.1f s, %s sent\n", (int)result->pid,
               result->host, (double)result->downtime_usec / USEC_PER_MSEC,
               (double)result->total_usec / USEC_PER_SEC, format_bytes(result->transferred, size));
}

/* ---- running ---- */

static struct godwit_migration *interruptible;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    godwit_migration_cancel(interruptible);
}

static int run_migration(struct run *run, char **passed, uint32_t flags, struct error *err)
{
    const struct values *values = run->values;
    struct godwit_options options = {
        .size = sizeof(options),
        .pid = (pid_t)values->pid,
        .target = run->target,
        .workdir = values->workdir,
        .criu = values->criu,
        .criu_options = passed,
        .timeout_usec = values->timeout_usec,
        .downtime_usec = values->downtime_msec * USEC_PER_MSEC,
        .max_rounds = (unsigned)values->max_rounds,
        .max_time_usec = values->max_time_usec,
        .bytes_per_sec = values->bandwidth,
        .tracker = run->tracker,
        .streams = (unsigned)values->streams,
        .tls_cacert = values->credentials.cacert,
        .tls_cacrl = values->credentials.cacrl,
        .tls_cert = values->credentials.cert,
        .tls_key = values->credentials.key,
        .psk_file = values->credentials.psk,
        .flags = flags | (values->insecure ? GODWIT_INSECURE : 0) |
                 (values->stop_and_copy ? GODWIT_STOP_AND_COPY : 0) |
                 (values->eager ? GODWIT_EAGER : 0) | (values->verify ? GODWIT_VERIFY : 0) |
                 (values->strict ? GODWIT_STRICT : 0) |
                 (values->no_scan_filter ? GODWIT_NO_SCAN_FILTER : 0),
    };
    struct godwit_error error = {0};
    if (godwit_migration_new(&options, on_event, run, &run->migration, &error) != 0)
        return error_set(err, failure_from_wire((uint32_t)error.code), "%s", error.text);
    interruptible = run->migration;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    godwit_migration_run(run->migration);
    const struct godwit_result *result = godwit_migration_result(run->migration);
    clear_bar(run);
    if (values->json && !run->check)
        print_result_json(run, result);
    else if (!run->check)
        print_result(run, result);
    fflush(stdout);
    error_set(err, (enum failure)result->code, "%s", result->text);
    return result->code == GODWIT_MOVED ? 0 : -1;
}

static int check_streams(const struct values *values, struct error *err)
{
    if (values->streams < 1 || values->streams > STREAMS_MAX)
        return error_set(err, FAILURE_USAGE, "--streams: 1 to %d", STREAMS_MAX);
    return 0;
}

static int take_progress(struct run *run, struct error *err)
{
    const char *how = run->values->progress;
    bool terminal = isatty(STDERR_FILENO);
    if (!how || strcmp(how, "auto") == 0)
        run->progress = terminal && !run->values->json ? PROGRESS_BAR : PROGRESS_NONE;
    else if (strcmp(how, "bar") == 0)
        run->progress = PROGRESS_BAR;
    else if (strcmp(how, "plain") == 0)
        run->progress = PROGRESS_PLAIN;
    else if (strcmp(how, "none") != 0)
        return error_set(err, FAILURE_USAGE, "--progress %s: auto, bar, plain or none", how);
    return 0;
}

static int parse(const struct command *command, int argc, char **argv, struct values *values,
                 struct run *run, char ***passed, struct error *err)
{
    char **rest;
    *run = (struct run){.values = values};
    int r = options_parse(command, argc, argv, values, &rest, passed, err);
    if (r != 0)
        return r;
    run->target = rest[0];
    if (rest[0] && rest[1])
        return error_set(err, FAILURE_USAGE, "%s: one target is expected", rest[1]);
    if (values->timeout_usec < 100 * USEC_PER_MSEC)
        return error_set(err, FAILURE_USAGE, "--timeout: at least 0.1 s");
    return options_take_tracker(run->values->tracker, &run->tracker, err) < 0
               ? -1
               : take_progress(run, err);
}

/* What is not given is the library's to choose, and no round at all is another way of doing it. */
static int take_rounds(struct values *values, struct error *err)
{
    if (values->downtime_msec == 0)
        return error_set(err, FAILURE_USAGE, "--downtime: at least 1 ms");
    values->downtime_msec = values->downtime_msec == UINT64_MAX ? 0 : values->downtime_msec;
    if (values->max_rounds > UINT32_MAX)
        values->max_rounds = values->max_rounds == UINT64_MAX ? 0 : UINT32_MAX;
    else if (values->max_rounds == 0)
        values->stop_and_copy = true;
    if (values->verify && values->stop_and_copy)
        return error_set(err, FAILURE_USAGE,
                         "--verify compares what rounds have copied: not with --stop-and-copy or "
                         "--max-rounds 0");
    return 0;
}

int command_migrate(int argc, char **argv)
{
    const struct command *command = command_find("migrate");
    struct values values = {.timeout_usec = DAEMON_DEFAULT_SILENCE_USEC,
                            .downtime_msec = UINT64_MAX,
                            .max_rounds = UINT64_MAX,
                            .streams = 1};
    struct run run;
    struct error err = {0};
    char **passed;
    int r = parse(command, argc, argv, &values, &run, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0)
        r = take_rounds(&values, &err);
    if (r == 0)
        r = check_streams(&values, &err);
    if (r == 0 && values.pid == 0)
        r = error_set(&err, FAILURE_USAGE, "-t PID is missing or 0: the process to move");
    if (r == 0 && !run.target)
        r = error_set(&err, FAILURE_USAGE, "TARGET is missing: the host to move it to");
    if (r == 0)
        r = run_migration(&run, passed, values.dry_run ? GODWIT_DRY_RUN : 0, &err);
    godwit_migration_free(run.migration);
    return r < 0 ? command_fail(command, &err) : 0;
}

int command_check(int argc, char **argv)
{
    const struct command *command = command_find("check");
    struct values values = {.timeout_usec = DAEMON_DEFAULT_SILENCE_USEC};
    struct run run;
    struct error err = {0};
    char **passed;
    int r = parse(command, argc, argv, &values, &run, &passed, &err);
    if (r > 0)
        return 0;
    run.check = true;
    if (r == 0)
        r = run_migration(&run, passed, GODWIT_DRY_RUN, &err);
    godwit_migration_free(run.migration);
    return r < 0 ? command_fail(command, &err) : 0;
}
