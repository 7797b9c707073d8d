/* SPDX-License-Identifier: Apache-2.0 */
/* godwit image-cache and godwit image-proxy. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "daemon/admit.h"
#include "daemon/attach.h"
#include "daemon/cache.h"
#include "daemon/proxy.h"

struct values {
    struct daemon_options options;
    unsigned verbose;
    bool stdio;
};

#define AT(field) offsetof(struct values, field)

/* The two daemons differ in what address and port name. */
#define DAEMON_ROWS(whose)                                                                         \
    {0,                                                                                            \
     "address",                                                                                    \
     OPTION_STRING,                                                                                \
     AT(options.address),                                                                          \
     "HOST",                                                                                       \
     whose " (default: " DAEMON_DEFAULT_ADDRESS ")"},                                              \
        {0,                                                                                        \
         "port",                                                                                   \
         OPTION_STRING,                                                                            \
         AT(options.port),                                                                         \
         "PORT",                                                                                   \
         "its port (default: " DAEMON_DEFAULT_PORT ")"},                                           \
        {0,           "insecure",                                                                  \
         OPTION_FLAG, AT(options.insecure),                                                        \
         NULL,        "plain text beyond this host: nothing is encrypted"},                        \
        {'W',           "work-dir",                                                                \
         OPTION_STRING, AT(options.workdir),                                                       \
         "DIR",         "sockets and state (default: " DAEMON_DEFAULT_WORKDIR ")"},                \
        {'d',         "daemon",                                                                    \
         OPTION_FLAG, AT(options.daemonize.background),                                            \
         NULL,        "go into the background when ready"},                                        \
        {'o',           "log-file",                                                                \
         OPTION_STRING, AT(options.daemonize.log),                                                 \
         "LOG",         "log there, relative to the work-dir; SIGHUP opens it anew"},              \
        {0,                                                                                        \
         "pidfile",                                                                                \
         OPTION_STRING,                                                                            \
         AT(options.daemonize.pidfile),                                                            \
         "FILE",                                                                                   \
         "write the process id there"},                                                            \
        {0,         "status-fd",                                                                   \
         OPTION_FD, AT(options.daemonize.status_fd),                                               \
         "FD",      "write one zero byte there when ready"},                                       \
        {0,         "ps-socket",                                                                   \
         OPTION_FD, AT(options.ps_socket),                                                         \
         "FD",      "use this connected socket as the link"},                                      \
        {0, "once", OPTION_FLAG, AT(options.once), NULL, "end after one migration"},               \
        {0,                                                                                        \
         "timeout",                                                                                \
         OPTION_SECONDS,                                                                           \
         AT(options.silence_usec),                                                                 \
         "SECONDS",                                                                                \
         "silence after which the peer is dead (default: 10)"},                                    \
        CREDENTIAL_ROWS(options.credentials),                                                      \
        {'v', "verbose", OPTION_COUNT, AT(verbose), NULL, "log more"},

const struct option_row cache_options[] = {
    DAEMON_ROWS("listen on this host's address"){0, "memory-limit", OPTION_SIZE,
                                                 AT(options.memory_limit), "SIZE",
                                                 "for snapshots (default: 80 % of what is free)"},
    {0, "accept", OPTION_FLAG, AT(options.accept), NULL, "restore what godwit migrate sends"},
    {0, "accept-from", OPTION_STRING, AT(options.accept_from), "NAMES",
     "only from hosts whose certificate has one of these names"},
    {0, "accept-options", OPTION_STRING, AT(options.accept_options), "NAMES",
     "options for criu that they may ask for (default: harmless ones)"},
    {0, "spool", OPTION_STRING, AT(options.spool), "DIR",
     "write snapshots there too, as images of criu, as soon as they are ready"},
    {0, "stdio", OPTION_FLAG, AT(stdio), NULL,
     "the link is standard input and output; starts an image-cache if there is none"},
    {0, "page-server", OPTION_STRING, AT(options.page_server), "PORT",
     "for criu lazy-pages --page-server: a port of this host"},
    {0, "criu", OPTION_STRING, AT(options.criu), "PATH",
     "with --accept: the criu to use (default: $GODWIT_CRIU, PATH)"},
    {0}};

const struct option_row proxy_options[] = {
    DAEMON_ROWS("host of the image-cache"){
        0, "page-server", OPTION_STRING, AT(options.page_server), "PORT",
        "for criu --page-server: a port of this host, or unix:PATH"},
    {0}};

/* A file given relative to the work-dir, as an absolute path in buf. */
static int in_workdir(const char *workdir, const char **path, char *buf, size_t size,
                      struct error *err)
{
    if (!*path || **path == '/')
        return 0;
    char absolute[PATH_MAX] = "";
    if (*workdir != '/' && !getcwd(absolute, sizeof(absolute)))
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", *path);
    int n = snprintf(buf, size, "%s%s%s/%s", absolute, *absolute ? "/" : "", workdir, *path);
    if (n >= (int)size)
        return error_set_errno(err, FAILURE_USAGE, ENAMETOOLONG, "%s", *path);
    *path = buf;
    return 0;
}

static int run_daemon(const char *name, int argc, char **argv,
                      int (*run)(const struct daemon_options *options, struct error *err))
{
    const struct command *command = command_find(name);
    struct values values = {
        .options =
            {
                .address = DAEMON_DEFAULT_ADDRESS,
                .port = DAEMON_DEFAULT_PORT,
                .workdir = DAEMON_DEFAULT_WORKDIR,
                .ps_socket = -EBADF,
                .silence_usec = DAEMON_DEFAULT_SILENCE_USEC,
                .daemonize = {.status_fd = -EBADF},
            },
    };
    struct daemon_options *options = &values.options;
    char **rest, **passed, log[PATH_MAX], pidfile[PATH_MAX];
    struct error err = {0};
    int r = options_parse(command, argc, argv, &values, &rest, &passed, &err);
    if (r > 0)
        return 0;
    if (r == 0 && (*rest || passed))
        r = error_set(&err, FAILURE_USAGE, "%s: no argument is expected", *rest ? *rest : "--");
    if (r == 0 && options->silence_usec < 100 * USEC_PER_MSEC)
        r = error_set(&err, FAILURE_USAGE, "--timeout: at least 0.1 s");
    if (r == 0 && options->ps_socket >= 0 && credential_files_named(&options->credentials))
        r = error_set(&err, FAILURE_USAGE,
                      "--ps-socket is used as it is: leave out --tls-* and --psk-file");
    if (r == 0)
        r = admit_check(options, &err);
    options->log_level = values.verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO;
    if (options->daemonize.background && !options->daemonize.log) {
        snprintf(log, sizeof(log), "%s.log", name);
        options->daemonize.log = strcpy(pidfile, log);
    }
    if (r == 0)
        r = in_workdir(options->workdir, &options->daemonize.log, log, sizeof(log), &err);
    if (r == 0)
        r = in_workdir(options->workdir, &options->daemonize.pidfile, pidfile, sizeof(pidfile),
                       &err);
    if (r == 0 && values.stdio) {
        r = cache_attach_stdio(options, &err);
        return r < 0 ? command_fail(command, &err) : 0;
    }
    if (r == 0)
        r = daemonize_begin(&options->daemonize, &err);
    if (r == 0)
        r = run(options, &err);
    return r < 0 ? command_fail(command, &err) : r;
}

int command_image_cache(int argc, char **argv)
{
    return run_daemon("image-cache", argc, argv, cache_run);
}

int command_image_proxy(int argc, char **argv)
{
    return run_daemon("image-proxy", argc, argv, proxy_run);
}
