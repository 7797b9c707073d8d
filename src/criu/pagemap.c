/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/pagemap.h"

#include <string.h>

#include "base/io.h"
#include "criu.pb-c.h"
#include "criu/page_server.h"

enum {
    IMAGE_MAGIC = 0x54564319,   /* CRIU criu/include/magic.h: IMG_COMMON_MAGIC */
    PAGEMAP_MAGIC = 0x56084025, /* PAGEMAP_MAGIC */
    MESSAGE_MAX = 128,          /* a pagemap entry with every field at its longest has 40 bytes */
};

#define RUN_PAGES_MAX (UINT32_MAX / 2) /* the field that both releases read has 32 bits */
#define VADDR_END (1ull << 57)

struct pagemap_writer {
    int fd;
    int error;
    size_t used;
    uint8_t buf[64 << 10];
};

static void writer_flush(struct pagemap_writer *writer)
{
    if (writer->error == 0)
        writer->error = write_all(writer->fd, writer->buf, writer->used);
    writer->used = 0;
}

static uint8_t *writer_room(struct pagemap_writer *writer, size_t bytes)
{
    if (writer->used + bytes > sizeof(writer->buf))
        writer_flush(writer);
    uint8_t *room = writer->buf + writer->used;
    writer->used += bytes;
    return room;
}

static void writer_message(struct pagemap_writer *writer, const ProtobufCMessage *message)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *room = writer_room(writer, 4 + size);
    put_le32(room, (uint32_t)size);
    protobuf_c_message_pack(message, room + 4);
}

struct pagemap_writer *pagemap_begin(int fd, uint32_t pages_id)
{
    struct pagemap_writer *writer = calloc(1, sizeof(*writer));
    if (!writer)
        return NULL;
    writer->fd = fd;
    uint8_t *magic = writer_room(writer, 8);
    put_le32(magic, IMAGE_MAGIC);
    put_le32(magic + 4, PAGEMAP_MAGIC);
    Godwit__Pb__CriuPagemapHead head = GODWIT__PB__CRIU_PAGEMAP_HEAD__INIT;
    head.pages_id = pages_id;
    writer_message(writer, &head.base);
    return writer;
}

void pagemap_add(struct pagemap_writer *writer, const struct pagemap_run *run)
{
    for (uint64_t done = 0, n; done < run->pages; done += n) {
        n = MIN(run->pages - done, RUN_PAGES_MAX);
        Godwit__Pb__CriuPagemapEntry entry = GODWIT__PB__CRIU_PAGEMAP_ENTRY__INIT;
        entry.vaddr = run->vaddr + done * PAGE_BYTES;
        entry.compat_nr_pages = (uint32_t)n;
        entry.has_flags = true;
        entry.flags = run->flags;
        writer_message(writer, &entry.base);
    }
}

int pagemap_finish(struct pagemap_writer *writer)
{
    writer_flush(writer);
    int r = writer->error;
    free(writer);
    return r;
}

/* ---- reading ---- */

static int malformed(struct error *err, const char *what)
{
    error_set(err, FAILURE_CRIU, "pagemap image: %s", what);
    return -EPROTO;
}

/* The next length-prefixed message.  1, 0 at the end, or -EPROTO. */
static int reader_message(struct pagemap_reader *reader, const uint8_t **ret, size_t *ret_length,
                          struct error *err)
{
    size_t left = reader->length - reader->at;
    if (left == 0)
        return 0;
    if (left < 4)
        return malformed(err, "cut short");
    uint32_t size = get_le32(reader->bytes + reader->at);
    if (size > MESSAGE_MAX || size > left - 4)
        return malformed(err, "a message is too long or cut short");
    *ret = reader->bytes + reader->at + 4;
    *ret_length = size;
    reader->at += 4 + size;
    return 1;
}

int pagemap_read_begin(struct pagemap_reader *reader, const uint8_t *bytes, size_t length,
                       uint32_t *ret_pages_id, struct error *err)
{
    *reader = (struct pagemap_reader){.bytes = bytes, .length = length, .at = 8};
    if (length < 8 || get_le32(bytes) != IMAGE_MAGIC || get_le32(bytes + 4) != PAGEMAP_MAGIC)
        return malformed(err, "its magic is not that of a pagemap");
    const uint8_t *body;
    size_t size;
    if (reader_message(reader, &body, &size, err) != 1)
        return malformed(err, "no head");
    Godwit__Pb__CriuPagemapHead *head = godwit__pb__criu_pagemap_head__unpack(NULL, size, body);
    if (!head)
        return malformed(err, "its head is malformed");
    *ret_pages_id = head->pages_id;
    godwit__pb__criu_pagemap_head__free_unpacked(head, NULL);
    return 0;
}

int pagemap_read_next(struct pagemap_reader *reader, struct pagemap_run *ret, struct error *err)
{
    const uint8_t *body;
    size_t size;
    int r = reader_message(reader, &body, &size, err);
    if (r <= 0)
        return r;
    Godwit__Pb__CriuPagemapEntry *entry = godwit__pb__criu_pagemap_entry__unpack(NULL, size, body);
    if (!entry)
        return malformed(err, "an entry is malformed");
    struct pagemap_run run = {
        .vaddr = entry->vaddr,
        .pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages,
        /* Flags came later than in_parent: without them an entry is present or in the parent. */
        .flags = entry->has_flags                           ? entry->flags
                 : entry->has_in_parent && entry->in_parent ? PAGEMAP_PARENT
                                                            : PAGEMAP_PRESENT,
    };
    reader->wide |= entry->has_nr_pages;
    godwit__pb__criu_pagemap_entry__free_unpacked(entry, NULL);
    if (run.vaddr % PAGE_BYTES || run.pages == 0 || run.vaddr < reader->last_end ||
        run.vaddr >= VADDR_END || run.pages > (VADDR_END - run.vaddr) / PAGE_BYTES)
        return malformed(err, "a run is out of order or out of the address space");
    reader->last_end = run.vaddr + run.pages * PAGE_BYTES;
    *ret = run;
    return 1;
}
