/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a fill map. */
#include "fuzz.h"

#include <string.h>

#include "pager/map.h"

static void check_lookups(const struct fill_map *map, uint64_t i)
{
    const struct fill_map_entry *entry = &map->entries[i];
    uint64_t end = entry->vaddr + entry->pages * PAGE_BYTES;
    must(end > entry->vaddr && end <= FILL_VADDR_END);
    must(entry->offset + entry->pages * PAGE_BYTES <= map->end);
    must(fill_map_above(map, entry->vaddr) == i && fill_map_above(map, end - 1) == i);
    must(fill_map_above(map, end) == i + 1);
    if (i == 0 && entry->vaddr > 0)
        must(fill_map_above(map, entry->vaddr - 1) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fill_map map;
    struct error err = {0};
    uint64_t pages = 0;
    uint8_t *bytes = malloc(size ? size : 1); /* aligned, and of the exact size */
    must(bytes);
    memcpy(bytes, data, size);
    if (fill_map_check(bytes, size, &map, &err) < 0) {
        must(err.code == FAILURE_SYSTEM && err.text[0]);
        free(bytes);
        return 0;
    }
    must(map.count == (size - sizeof(struct fill_map_header)) / sizeof(struct fill_map_entry));
    for (uint64_t i = 0; i < map.count; i++) {
        check_lookups(&map, i);
        pages += map.entries[i].pages;
    }
    must(map.pages == pages);
    must(fill_map_above(&map, FILL_VADDR_END) == map.count);
    free(bytes);
    return 0;
}
