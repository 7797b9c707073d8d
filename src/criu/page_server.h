/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The sender's side of CRIU's page-server protocol, as read (CRIU criu/page-xfer.c).  It has no
 * version and no magic, and integers are in host byte order:
 *
 *   up to 4.1, 24 bytes:  u32 command   u32 pages            u64 vaddr   u64 object
 *   from 4.2,  32 bytes:  u32 command   u32 -      u64 pages u64 vaddr   u64 object
 *
 * Which of the two is told by the first header: it opens an object and has no address, so bytes
 * 16-23 are the object (never zero) in the short form and the address (zero) in the long one.
 */
#include "base/error.h"

enum page_server_command {
    PAGE_SERVER_ADD_1 = 1,            /* of old: as ADD with PRESENT */
    PAGE_SERVER_HOLE_1 = 2,           /* of old: as ADD with PARENT */
    PAGE_SERVER_OPEN_1 = 3,           /* of old: as OPEN, and no answer */
    PAGE_SERVER_OPEN = 4,             /* answer: u8, whether there is a parent */
    PAGE_SERVER_PARENT = 5,           /* answer: s32, whether there is a parent */
    PAGE_SERVER_ADD = 6,              /* followed by the pages if flags has PRESENT */
    PAGE_SERVER_GET = 7,              /* answer: the same header as ADD with PRESENT, then pages */
    PAGE_SERVER_CLOSE = 0x1023,       /* answer: s32, zero if all is well */
    PAGE_SERVER_FORCE_CLOSE = 0x1024, /* the same */
};

/* Flags of a page run (CRIU criu/include/pagemap.h). */
enum {
    PAGEMAP_PARENT = 1,
    PAGEMAP_LAZY = 2,
    PAGEMAP_PRESENT = 4,
};

enum page_server_object { PAGE_SERVER_TASK = 1, PAGE_SERVER_SHARED = 2 };

struct page_server_request {
    uint16_t command;
    uint16_t flags;
    uint64_t pages;
    uint64_t vaddr;
    enum page_server_object kind; /* of commands that name an object */
    uint64_t id;                  /* pid, or number of the shared-memory object */
};

enum { PAGE_SERVER_HEADER_MAX = 32 };

/* Whether a command is about an object that has not been named before, as the first one is. */
bool page_server_opens(uint16_t command);

/*
 * The same of what criu lazy-pages says: GET, whose object is the bare number of a task, and CLOSE.
 * Their form is told by a GET: bytes 8-15 are a page's address in the short one, and a number of
 * pages in the long one, which is less than a page has bytes (criu asks for 4 MiB at most).
 */
int page_server_parse_get(unsigned *form, const uint8_t *bytes, size_t length,
                          struct page_server_request *ret, struct error *err);

/* The header of the answer: so many pages of the request follow.  Its length, which is the form. */
size_t page_server_answer(unsigned form, const struct page_server_request *request, uint64_t pages,
                          uint8_t ret[PAGE_SERVER_HEADER_MAX]);

/*
 * Takes one header from the beginning of |bytes|; commands of old are told as what has taken their
 * place, OPEN_1 apart.  *form is 0 at first and remembers the length of
 * headers.  Returns the bytes used, 0 when more are needed, or -EPROTO with *err set.
 */
int page_server_parse(unsigned *form, const uint8_t *bytes, size_t length,
                      struct page_server_request *ret, struct error *err);
