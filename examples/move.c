/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moves a process with libgodwit, from a loop of one's own.
 *
 *     cc move.c $(pkg-config --cflags --libs godwit) -o move
 *     ./move 4711 ssh://root@other
 */
#include <godwit.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

static void on_event(const struct godwit_event *event, void *user)
{
    (void)user;
    if (event->type == GODWIT_EVENT_FINDING && event->severity != GODWIT_OK)
        printf("%s: %s %s\n", event->host, event->text, event->remedy);
    else if (event->type == GODWIT_EVENT_STATUS)
        printf("%s, %llu bytes\n", event->status, (unsigned long long)event->transferred);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: %s PID TARGET\n", argv[0]);
        return GODWIT_USAGE;
    }
    struct godwit_options options = {
        .size = sizeof(options), .pid = atoi(argv[1]), .target = argv[2]};
    struct godwit_migration *migration;
    struct godwit_error error;
    if (godwit_migration_new(&options, on_event, NULL, &migration, &error) != 0) {
        fprintf(stderr, "%s\n", error.text);
        return error.code;
    }
    /* A program would have descriptors of its own in here, too. */
    struct pollfd fds[] = {{.fd = godwit_migration_fd(migration), .events = POLLIN}};
    while (godwit_migration_step(migration, 0))
        poll(fds, 1, 1000);

    const struct godwit_result *result = godwit_migration_result(migration);
    int code = result->code;
    if (code == GODWIT_MOVED)
        printf("process %d runs on %s after %.1f ms\n", (int)result->pid, result->host,
               (double)result->downtime_usec / 1000);
    else
        fprintf(stderr, "%s\n", result->text);
    godwit_migration_free(migration);
    return code;
}
