/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/page_server.h"

#include <string.h>

enum {
    HEADER_SHORT = 24,
    HEADER_LONG = 32,
    OBJECT_BITS = 8,
};

#define VADDR_END (1ull << 57) /* of user space with five-level page tables */

static uint32_t host_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t host_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

bool page_server_opens(uint16_t command)
{
    return command == PAGE_SERVER_OPEN || command == PAGE_SERVER_OPEN_1 ||
           command == PAGE_SERVER_PARENT;
}

static int check(const struct page_server_request *request, uint64_t object, struct error *err)
{
    switch (request->command) {
    case PAGE_SERVER_CLOSE:
    case PAGE_SERVER_FORCE_CLOSE:
        return 0;
    case PAGE_SERVER_OPEN:
    case PAGE_SERVER_OPEN_1:
    case PAGE_SERVER_PARENT:
    case PAGE_SERVER_ADD:
        break;
    default:
        error_set(err, FAILURE_CRIU, "page-server: command %u is not known", request->command);
        return -EPROTO;
    }
    if (request->kind != PAGE_SERVER_TASK && request->kind != PAGE_SERVER_SHARED) {
        error_set(err, FAILURE_CRIU, "page-server: object %#llx is of no known kind",
                  (unsigned long long)object);
        return -EPROTO;
    }
    if (request->command == PAGE_SERVER_ADD &&
        (request->pages == 0 || request->vaddr % PAGE_BYTES || request->vaddr >= VADDR_END ||
         request->pages > (VADDR_END - request->vaddr) / PAGE_BYTES)) {
        error_set(err, FAILURE_CRIU, "page-server: a run of %llu pages at %#llx cannot be",
                  (unsigned long long)request->pages, (unsigned long long)request->vaddr);
        return -EPROTO;
    }
    return 0;
}

/* What has taken the place of a command of old. */
static void modernise(struct page_server_request *request)
{
    if (request->command != PAGE_SERVER_ADD_1 && request->command != PAGE_SERVER_HOLE_1)
        return;
    request->flags = request->command == PAGE_SERVER_ADD_1 ? PAGEMAP_PRESENT : PAGEMAP_PARENT;
    request->command = PAGE_SERVER_ADD;
}

int page_server_parse(unsigned *form, const uint8_t *bytes, size_t length,
                      struct page_server_request *ret, struct error *err)
{
    if (length < HEADER_SHORT)
        return 0;
    uint32_t word = host_u32(bytes);
    struct page_server_request request = {.command = (uint16_t)word, .flags = word >> 16};
    modernise(&request);
    if (*form == 0)
        *form = page_server_opens(request.command) && host_u64(bytes + 16) == 0 ? HEADER_LONG
                                                                                : HEADER_SHORT;
    if (length < *form)
        return 0;
    bool is_long = *form == HEADER_LONG;
    request.pages = is_long ? host_u64(bytes + 8) : host_u32(bytes + 4);
    request.vaddr = host_u64(bytes + (is_long ? 16 : 8));
    uint64_t object = host_u64(bytes + (is_long ? 24 : 16));
    request.kind = object & ((1u << OBJECT_BITS) - 1);
    request.id = object >> OBJECT_BITS;
    int r = check(&request, object, err);
    if (r < 0)
        return r;
    *ret = request;
    return (int)*form;
}

static int check_get(const struct page_server_request *request, struct error *err)
{
    if (request->pages > 0 && request->vaddr % PAGE_BYTES == 0 && request->vaddr < VADDR_END &&
        request->pages <= (VADDR_END - request->vaddr) / PAGE_BYTES && request->id <= INT32_MAX)
        return 0;
    error_set(err, FAILURE_CRIU,
              "page-server: %llu pages at %#llx of task %llu are asked for, which cannot be",
              (unsigned long long)request->pages, (unsigned long long)request->vaddr,
              (unsigned long long)request->id);
    return -EPROTO;
}

int page_server_parse_get(unsigned *form, const uint8_t *bytes, size_t length,
                          struct page_server_request *ret, struct error *err)
{
    if (length < HEADER_SHORT)
        return 0;
    struct page_server_request request = {.command = (uint16_t)host_u32(bytes),
                                          .kind = PAGE_SERVER_TASK};
    if (request.command == PAGE_SERVER_CLOSE || request.command == PAGE_SERVER_FORCE_CLOSE) {
        *ret = request;
        return HEADER_SHORT; /* nothing comes after it */
    }
    if (request.command != PAGE_SERVER_GET) {
        error_set(err, FAILURE_CRIU, "page-server: command %u, where pages are asked for",
                  request.command);
        return -EPROTO;
    }
    uint64_t word = host_u64(bytes + 8);
    if (*form == 0)
        *form = word > 0 && word < PAGE_BYTES ? HEADER_LONG : HEADER_SHORT;
    if (length < *form)
        return 0;
    bool is_long = *form == HEADER_LONG;
    request.pages = is_long ? word : host_u32(bytes + 4);
    request.vaddr = is_long ? host_u64(bytes + 16) : word;
    request.id = host_u64(bytes + (is_long ? 24 : 16));
    int r = check_get(&request, err);
    if (r < 0)
        return r;
    *ret = request;
    return (int)*form;
}

size_t page_server_answer(unsigned form, const struct page_server_request *request, uint64_t pages,
                          uint8_t ret[PAGE_SERVER_HEADER_MAX])
{
    bool is_long = form == HEADER_LONG;
    uint32_t command = PAGE_SERVER_ADD | PAGEMAP_PRESENT << 16, count = (uint32_t)pages;
    memset(ret, 0, PAGE_SERVER_HEADER_MAX);
    memcpy(ret, &command, sizeof(command));
    if (is_long)
        memcpy(ret + 8, &pages, sizeof(pages));
    else
        memcpy(ret + 4, &count, sizeof(count));
    memcpy(ret + (is_long ? 16 : 8), &request->vaddr, sizeof(request->vaddr));
    memcpy(ret + (is_long ? 24 : 16), &request->id, sizeof(request->id));
    return form;
}
