/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/daemon.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "base/io.h"
#include "wire/message.h"

enum { TICK_USEC = 500000 };

struct target daemon_target(const struct daemon_options *options)
{
    static const char prefix[] = "unix:";
    const char *address = options->address;
    if (strncmp(address, prefix, strlen(prefix)) == 0)
        return (struct target){.kind = TARGET_UNIX, .rest = (char *)address + strlen(prefix)};
    return (struct target){
        .kind = TARGET_TCP, .host = (char *)address, .port = (char *)options->port};
}

/* ---- clients ---- */

static void client_close(struct client *client)
{
    struct daemon *daemon = client->daemon;
    struct client **at = &daemon->clients;
    while (*at != client)
        at = &(*at)->next;
    *at = client->next;
    daemon->ops->gone(daemon, client);
    sd_event_source_disable_unref(client->io);
    close_fd(client->fd);
    free(client);
}

static int on_client(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct client *client = user;
    struct local_packet packet;
    int r = local_receive(fd, &packet);
    if (r == -EAGAIN)
        return 0;
    if (r < 0) {
        client_close(client);
        return 0;
    }
    client->daemon->ops->packet(client->daemon, client, &packet);
    local_packet_close(&packet);
    return 0;
}

int daemon_accept(int fd)
{
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    /* Out of descriptors the listener stays readable: do not spin on it. */
    if (accepted < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))
        usleep(10000);
    return accepted;
}

/* A status of a full store has to fit; what is not taken is not sent again. */
static void make_room(struct daemon *daemon, int fd)
{
    int room = DAEMON_CLIENT_ROOM;
    if (daemon->ops->make_room)
        daemon->ops->make_room(daemon, fd);
    else
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room));
}

static int on_accept(sd_event_source *source, int fd, uint32_t events, void *user)
{
    (void)source;
    (void)events;
    struct daemon *daemon = user;
    _cleanup_close_ int accepted = daemon_accept(fd);
    struct client *client = accepted < 0 ? NULL : calloc(1, sizeof(*client));
    if (!client)
        return 0;
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &peer, &length);
    make_room(daemon, accepted);
    *client = (struct client){.daemon = daemon, .fd = accepted, .pid = peer.pid};
    if (sd_event_add_io(daemon->event, &client->io, accepted, EPOLLIN, on_client, client) < 0) {
        free(client);
        return 0;
    }
    client->fd = TAKE_FD(accepted);
    client->next = daemon->clients;
    daemon->clients = client;
    return 0;
}

void client_send(struct client *client, uint32_t kind, const ProtobufCMessage *message)
{
    int r = local_send(client->fd, kind, message, NULL, 0);
    if (r < 0)
        log_debug(&client->daemon->log, "a local client of pid %d takes nothing: %s", client->pid,
                  strerror(-r));
}

void client_fail(struct client *client, const struct error *err)
{
    Godwit__Pb__Failure failure = failure_message(err);
    client_send(client, LOCAL_FAILURE, &failure.base);
}

static void client_send_progress(struct client *client, uint32_t kind, uint64_t bytes,
                                 const char *phase)
{
    Godwit__Pb__Progress progress = GODWIT__PB__PROGRESS__INIT;
    progress.bytes = bytes;
    progress.phase = (char *)phase;
    client_send(client, kind, &progress.base);
}

void client_done(struct client *client, uint64_t bytes)
{
    client_send_progress(client, LOCAL_DONE, bytes, "");
}

void client_progress(struct client *client, uint64_t bytes, const char *phase)
{
    client_send_progress(client, LOCAL_PROGRESS, bytes, phase);
}

int client_hook(struct client *client, uint32_t kind, const char *text)
{
    char packet[sizeof(kind) + 500];
    memcpy(packet, &kind, sizeof(kind));
    int n = snprintf(packet + sizeof(kind), sizeof(packet) - sizeof(kind), "%s", text);
    size_t length = MIN((size_t)n, sizeof(packet) - sizeof(kind) - 1);
    return send(client->fd, packet, sizeof(kind) + length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno
                                                                                            : 0;
}

/* ---- signals and time ---- */

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *info, void *user)
{
    (void)source;
    struct daemon *daemon = user;
    if (info->ssi_signo == SIGHUP) {
        if (daemon->ops->open_log)
            daemonize_use_log(daemon->ops->open_log(daemon));
        else
            close_fd(daemonize_reopen_log(&daemon->daemonize));
        return 0;
    }
    log_info(&daemon->log, "ending: %s", strsignal((int)info->ssi_signo));
    daemon_exit(daemon, 0);
    return 0;
}

static int on_tick(sd_event_source *source, uint64_t usec, void *user)
{
    (void)usec;
    struct daemon *daemon = user;
    daemon->ops->tick(daemon);
    sd_event_source_set_time_relative(source, TICK_USEC);
    return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int daemon_watch(struct daemon *daemon)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP};
    sigset_t mask;
    sigemptyset(&mask);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
        sigaddset(&mask, signals[i]);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        int r =
            sd_event_add_signal(daemon->event, &daemon->signals[i], signals[i], on_signal, daemon);
        if (r < 0)
            return r;
    }
    return sd_event_add_time_relative(daemon->event, &daemon->ticker, CLOCK_MONOTONIC, TICK_USEC,
                                      10 * USEC_PER_MSEC, on_tick, daemon);
}

/* ---- its life ---- */

static int daemon_lock(struct daemon *daemon, struct error *err)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.lock", daemon->socket_name);
    daemon->lock = openat(daemon->workdir, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (daemon->lock < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s/%s", daemon->workdir_path, name);
    if (flock(daemon->lock, LOCK_EX | LOCK_NB) < 0) {
        daemon->lock = close_fd(daemon->lock); /* the socket there is not ours to remove */
        return error_set(err, FAILURE_BUSY,
                         "another %s works in %s: choose another work-dir with -W, or end it",
                         daemon->log.name, daemon->workdir_path);
    }
    return 0;
}

int daemon_open(struct daemon *daemon, const struct daemon_options *options, const char *name,
                const char *socket_name, const struct daemon_ops *ops, void *user,
                struct error *err)
{
    *daemon = (struct daemon){
        .options = options,
        .daemonize = options->daemonize,
        .log = {.name = name, .level = options->log_level},
        .workdir = -EBADF,
        .lock = -EBADF,
        .socket_name = socket_name,
        .ops = ops,
        .user = user,
    };
    raise_nofile_limit();
    daemon->workdir = workdir_open(options->workdir, true, &daemon->workdir_path, err);
    if (daemon->workdir < 0)
        return -1;
    if (daemon_lock(daemon, err) < 0)
        return -1;
    int r = sd_event_new(&daemon->event);
    if (r >= 0)
        r = daemon_watch(daemon);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the event loop");
    _cleanup_close_ int fd = unix_listen_at(daemon->workdir, socket_name, SOCK_SEQPACKET);
    r = fd < 0 ? fd
               : sd_event_add_io(daemon->event, &daemon->listener, fd, EPOLLIN, on_accept, daemon);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s/%s", daemon->workdir_path, socket_name);
    sd_event_source_set_io_fd_own(daemon->listener, true);
    TAKE_FD(fd);
    return 0;
}

int daemon_protect(struct daemon *daemon, struct error *err)
{
    const struct daemon_options *options = daemon->options;
    int r = protection_open(&daemon->protection, &options->credentials, options->insecure, err);
    if (r == 0 && options->insecure)
        log_error(&daemon->log, "--insecure: what goes beyond this host is neither encrypted nor "
                                "authenticated; " CREDENTIALS_ADVICE);
    return r;
}

int daemon_prepare(struct daemon *daemon, struct error *err)
{
    if (daemonize_prepare(&daemon->daemonize, err) < 0)
        return -1;
    daemon->prepared = true;
    return 0;
}

int daemon_run(struct daemon *daemon, struct error *err)
{
    if (daemon->ops->tell_ready)
        daemon->ops->tell_ready(daemon);
    else
        sd_notify(0, "READY=1");
    daemonize_ready(&daemon->daemonize);
    int r = sd_event_loop(daemon->event);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "the event loop");
    return r;
}

void daemon_exit(struct daemon *daemon, int status)
{
    sd_event_exit(daemon->event, status);
}

void daemon_close(struct daemon *daemon)
{
    while (daemon->clients)
        client_close(daemon->clients);
    if (daemon->lock >= 0 && daemon->workdir >= 0) {
        unlinkat(daemon->workdir, daemon->socket_name, 0);
        if (daemon->prepared)
            daemonize_end(&daemon->daemonize);
    }
    sd_event_source_disable_unref(daemon->listener);
    for (size_t i = 0; i < ARRAY_SIZE(daemon->signals); i++)
        sd_event_source_disable_unref(daemon->signals[i]);
    sd_event_source_disable_unref(daemon->ticker);
    sd_event_unref(daemon->event);
    protection_close(&daemon->protection);
    close_fd(daemon->lock);
    close_fd(daemon->workdir);
    free(daemon->workdir_path);
}
