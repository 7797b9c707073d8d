/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a map of a space.  A map that is taken is given to a shadow, and what the shadow writes
 * down of it says the same. */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>

#include "store/space_map.h"
#include "unit/peer.h"

static char *path;
static int directory = -1;

static void remove_directory(void)
{
    directory_remove(path);
}

static void make_directory(void)
{
    path = directory_make();
    directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(directory >= 0);
    atexit(remove_directory);
}

static void check_written(const struct shadow *shadow, const struct space_map *map)
{
    struct space_map again = {0};
    must(space_map_write(shadow, map->shared, map->id, directory, "map") == 0);
    must(space_map_open(&again, directory, "map") == 0);
    must(again.pages == map->pages && again.end == map->end && again.id == map->id &&
         again.shared == map->shared);
    space_map_close(&again);
}

static void check_inherited(const struct space_map *map)
{
    struct budget budget = {.limit = KIB(32)}; /* of a chunk's cost: eleven of them */
    struct arena arena = {.budget = &budget, .fd = -EBADF};
    struct shadow *shadow = shadow_new(&arena);
    must(shadow);
    int r = space_map_inherit(map, shadow);
    must(r == 0 || r == -EDQUOT);
    if (r == 0) {
        must(shadow_pages(shadow) == map->pages);
        check_written(shadow, map);
    }
    shadow_free(shadow);
    must(budget.used == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct space_map map;
    uint64_t pages = 0;
    if (!path)
        make_directory();
    uint8_t *bytes = malloc(size ? size : 1); /* aligned, and of the exact size */
    must(bytes);
    memcpy(bytes, data, size);
    if (space_map_check(bytes, size, &map) == 0) {
        must(map.count ==
             (size - sizeof(struct space_map_header)) / sizeof(struct space_map_entry));
        for (uint64_t i = 0; i < map.count; i++)
            pages += space_map_has_pages(&map.entries[i]) ? map.entries[i].pages : 0;
        must(map.pages == pages);
        check_inherited(&map);
    }
    free(bytes);
    return 0;
}
