/* SPDX-License-Identifier: Apache-2.0 */
/* Input: what an earlier image-cache has written of a snapshot. */
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "store/store.h"
#include "unit/peer.h"

static char *directory;

static void remove_directory(void)
{
    directory_remove(directory);
}

static void write_about(const uint8_t *data, size_t size)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/seed", directory);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/seed/images", directory);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/seed/about", directory);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    close(fd);
}

static bool is_there(void)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/seed/about", directory);
    return access(path, F_OK) == 0;
}

static void check_snapshot(struct store *store, const struct snapshot *snapshot)
{
    must(!snapshot->next && strcmp(snapshot->id, "seed") == 0);
    must(snapshot->host && snapshot->command);
    must(snapshot->state != SNAPSHOT_RECEIVING && snapshot->state != SNAPSHOT_HELD &&
         snapshot->state != SNAPSHOT_RESTORING);
    must(snapshot_state_name(snapshot->state) && snapshot_shown_state(snapshot));
    must(store_budget(store)->used == snapshot->charge);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!directory) {
        directory = directory_make();
        atexit(remove_directory);
    }
    write_about(data, size);
    struct error err = {0};
    struct store *store = store_open(directory, MIB(1), &err);
    if (!store) {
        must(err.code == FAILURE_SYSTEM && err.text[0]);
        must(is_there()); /* it may be the only copy */
        return 0;
    }
    must((store_first(store) != NULL) == is_there());
    if (store_first(store))
        check_snapshot(store, store_first(store));
    store_close(store);
    return 0;
}
