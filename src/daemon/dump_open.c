/* SPDX-License-Identifier: Apache-2.0 */
/* How a dump begins: `godwit dump` asks for it, or a criu that has sent its pages already. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>

#include "daemon/dump.h"
#include "task/task.h"

enum { DUMPS_MAX = 200 }; /* fewer than a cache takes on one link */

struct dump *dump_new(struct proxy *proxy, const char *id, uint32_t pid, const char *command)
{
    struct dump *dump = calloc(1, sizeof(*dump));
    if (!dump)
        return NULL;
    *dump = (struct dump){
        .proxy = proxy,
        .pid = pid,
        .command = strdup(command),
        .began_usec = now_usec(),
        .pages_fd = -EBADF,
        .images_fd = -EBADF,
        .root_fd = -EBADF,
    };
    if (!dump->command || getrandom(&dump->token, sizeof(dump->token), 0) < 0) {
        free(dump->command);
        free(dump);
        return NULL;
    }
    dump->token |= 1; /* 0 means: by criu's process id */
    if (*id)
        snprintf(dump->id, sizeof(dump->id), "%s", id);
    else
        snprintf(dump->id, sizeof(dump->id), "%u-%06x", pid, (unsigned)(dump->token >> 40));
    return dump;
}

void dump_start(struct dump *dump)
{
    struct proxy *proxy = dump->proxy;
    dump->next = proxy->dumps;
    proxy->dumps = dump;
    if (proxy->link_up)
        dump_link_up(dump);
}

bool dumps_are_many(const struct proxy *proxy)
{
    unsigned count = 0;
    for (const struct dump *dump = proxy->dumps; dump; dump = dump->next)
        count++;
    return count >= DUMPS_MAX;
}

static bool dump_is_under_way(const struct proxy *proxy, uint32_t pid)
{
    for (const struct dump *dump = proxy->dumps; dump; dump = dump->next) {
        if (dump->pid == pid && !dump->is_stream && dump->state != DUMP_OVER)
            return true;
    }
    return false;
}

static int dump_take_fds(struct dump *dump, struct local_packet *packet)
{
    int r = dump_watch_root(dump, TAKE_FD(packet->fds[DUMP_FD_PROCESS]));
    if (r < 0 || dump->pre_dump)
        return r;
    dump->pages_fd = TAKE_FD(packet->fds[DUMP_FD_PAGES]);
    dump->images_fd = TAKE_FD(packet->fds[DUMP_FD_IMAGES]);
    r = dump_watch_criu(dump, TAKE_FD(packet->fds[DUMP_FD_LIFELINE]));
    if (r >= 0)
        r = dump_watch_filter(dump, TAKE_FD(packet->fds[DUMP_FD_FILTER]));
    return r;
}

void dump_open(struct proxy *proxy, struct client *client, struct local_packet *packet)
{
    struct error err;
    _cleanup_message_ ProtobufCMessage *message =
        message_unpack(&godwit__pb__dump_open__descriptor, packet->bytes, packet->length, &err);
    const Godwit__Pb__DumpOpen *open = (const Godwit__Pb__DumpOpen *)message;
    if (open && *open->id && !snapshot_id_valid(open->id)) {
        error_set(&err, FAILURE_USAGE, "snapshot id %s: use letters, digits, dots, dashes",
                  open->id);
        open = NULL;
    } else if (open && dumps_are_many(proxy)) {
        error_set(&err, FAILURE_BUSY, "%d dumps are under way: try again later", DUMPS_MAX);
        open = NULL;
    } else if (open && dump_is_under_way(proxy, open->pid)) {
        error_set(&err, FAILURE_BUSY, "process %u is being dumped already", open->pid);
        open = NULL;
    }
    struct lineage_choice based = {0};
    lineages_reap(proxy);
    if (open && lineage_choose(proxy, open, packet->fds[DUMP_FD_PROCESS], &based, &err) < 0)
        open = NULL;
    if (!open) {
        client_fail(client, &err);
        return;
    }
    struct dump *dump = dump_new(proxy, open->id, open->pid, open->command);
    if (!dump) {
        err = dump_error(FAILURE_SYSTEM, "no memory for a dump");
        if (based.lineage)
            lineage_failed(based.lineage, &err);
        client_fail(client, &err);
        return;
    }
    dump->client = client;
    dump->based = based;
    dump->pre_dump = open->pre_dump;
    dump->source_lives_on = open->source_lives_on;
    int r = dump_take_fds(dump, packet);
    if (r < 0) {
        error_set_errno(&err, FAILURE_SYSTEM, r, "dump %s", dump->id);
        client_fail(client, &err);
        dump_free(dump);
        return;
    }
    log_info(&proxy->daemon.log, "%s %s: process %u (%s)%s%s", dump->pre_dump ? "pre-dump" : "dump",
             dump->id, dump->pid, dump->command, *based.parent ? ", based on " : "", based.parent);
    dump_start(dump);
}

void dump_open_images(struct proxy *proxy, struct client *client, const struct hook_ask *ask,
                      int images_fd)
{
    pid_t root = (pid_t)ask->root_pid;
    struct intake_memory *memory = intake_take_dumped(proxy, root);
    struct dump *dump = memory ? dump_new(proxy, "", ask->root_pid, "criu --page-server") : NULL;
    int process = dump ? (int)syscall(SYS_pidfd_open, root, 0) : -EBADF;
    int criu = dump ? (int)syscall(SYS_pidfd_open, task_parent(client->pid), 0) : -EBADF;
    if (process < 0 || criu < 0 || dump_watch_root(dump, TAKE_FD(process)) < 0 ||
        dump_watch_criu(dump, TAKE_FD(criu)) < 0) {
        client_hook(
            client, HOOK_NO,
            "its pages have not come by --page-server, or whose they are could not be told, "
            "nor is it another dump");
        close_fd(process);
        close_fd(criu);
        close_fd(images_fd);
        intake_memory_free(memory);
        if (dump)
            dump_free(dump);
        return;
    }
    dump->memory = memory;
    dump->criu_pid = task_parent(client->pid);
    dump->images_fd = images_fd;
    dump->hook = client;
    snprintf(dump->based.parent, sizeof(dump->based.parent), "%s", memory->id);
    dump->based.parent_nonce = memory->nonce;
    log_info(&proxy->daemon.log, "dump %s: process %u, whose pages are %s", dump->id, dump->pid,
             memory->id);
    dump_start(dump);
}
