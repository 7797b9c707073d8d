/* SPDX-License-Identifier: Apache-2.0 */
/* What comes of a snapshot's images and memory: where it belongs, and what is told in lists. */
#include <string.h>

#include "migrate/receiver_parts.h"

struct item *receiver_item(const struct stream *stream, const struct frame *frame, bool is_space,
                           struct error *err)
{
    struct item *item =
        frame->item >= 1 && frame->item <= stream->count ? stream->items[frame->item - 1] : NULL;
    if (!item || item->ended || (item->space != NULL) != is_space) {
        receiver_broken(err, frame, "no such item is open");
        return NULL;
    }
    return item;
}

static int image_frame_begin(struct receiver *receiver, struct item *item,
                             const struct frame *frame, struct error *err)
{
    if (frame->offset != item->bytes)
        return receiver_broken(err, frame, "an image is sent from its beginning to its end");
    int r = arena_append(&item->image, frame->length, &item->append_at);
    if (r < 0)
        receiver_refuse_errno(receiver, r, item->name);
    return 0;
}

static int pages_frame_begin(struct item *item, const struct frame *frame, struct error *err)
{
    if (frame->length == 0 || frame->length % PAGE_BYTES || frame->offset % PAGE_BYTES ||
        frame->flags & ~(PAGES_LAZY | PAGES_EXIST))
        return receiver_broken(err, frame, "not whole pages");
    digest_place(&item->digest, frame->offset, frame->length);
    item->run = (struct shadow_run){.vaddr = frame->offset};
    return 0;
}

/* Where byte |done| of a pages frame lies in the arena; refuses the snapshot if there is no room.
 */
static int pages_at(struct receiver *receiver, struct item *item, const struct frame *frame,
                    uint32_t done, uint64_t *ret_offset, size_t *ret_length, struct error *err)
{
    uint64_t vaddr = frame->offset + done;
    if (vaddr >= item->run.vaddr + item->run.pages * PAGE_BYTES) {
        unsigned flags = (frame->flags & PAGES_LAZY ? SHADOW_LAZY : 0) |
                         (frame->flags & PAGES_EXIST ? SHADOW_LISTED : 0);
        int r = shadow_place(item->space->shadow, vaddr, (frame->length - done) / PAGE_BYTES, flags,
                             &item->run);
        if (r == -EINVAL)
            return receiver_broken(err, frame, "no task has such an address");
        if (r < 0) {
            receiver_refuse_errno(receiver, r, "pages");
            return 0;
        }
    }
    *ret_offset = item->run.offset + (vaddr - item->run.vaddr);
    *ret_length = item->run.vaddr + item->run.pages * PAGE_BYTES - vaddr;
    return 0;
}

static void sink(struct receiver *receiver, const struct frame *frame, uint32_t done,
                 void **ret_place, size_t *ret_length)
{
    *ret_place = receiver->sink;
    *ret_length = MIN(SINK_BYTES, frame->length - done);
}

static bool is_list(const struct frame *frame)
{
    return frame->type == FRAME_PAGE_RUNS || frame->type == FRAME_PAGE_SUMS;
}

/* What is copied from: another open space. */
static struct item *copied_item(const struct stream *stream, const struct item *item,
                                const struct frame *frame)
{
    if (frame->offset == 0 || frame->offset > stream->count)
        return NULL;
    struct item *from = stream->items[frame->offset - 1];
    return from != item && from->space && !from->ended ? from : NULL;
}

static int list_frame_begin(struct stream *stream, struct item *item, const struct frame *frame,
                            struct error *err)
{
    bool runs = frame->type == FRAME_PAGE_RUNS, copies = runs && frame->flags == RUNS_COPY;
    if (frame->length % (runs ? WIRE_RUN_BYTES : WIRE_SUM_BYTES) ||
        (runs && !copies && frame->flags != RUNS_ZERO && frame->flags != RUNS_EXIST))
        return receiver_broken(err, frame, "not runs of pages");
    if (copies ? !copied_item(stream, item, frame) : frame->offset != 0)
        return receiver_broken(err, frame, "no such item is open");
    if (!stream->list)
        stream->list = malloc(WIRE_BULK_MAX);
    if (!stream->list)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "a snapshot");
    digest_place(&item->digest, frame->flags, frame->length);
    return 0;
}

/* 0; -ENODATA when it is not there; or another negative errno. */
static int copy_page(struct item *from, struct item *to, uint64_t vaddr)
{
    uint64_t offset;
    struct shadow_run run;
    void *source, *place;
    size_t length = PAGE_BYTES;
    int r = shadow_find(from->space->shadow, vaddr, &offset);
    if (r <= 0)
        return r < 0 ? r : shadow_zero(to->space->shadow, vaddr, 1);
    r = arena_at(item_arena(from), &from->window, offset, &source, &length);
    if (r == 0)
        r = shadow_place(to->space->shadow, vaddr, 1, SHADOW_LAZY, &run);
    if (r == 0)
        r = arena_at(item_arena(to), &to->window, run.offset, &place, &length);
    if (r == 0)
        memcpy(place, source, PAGE_BYTES);
    return r;
}

static int copy_pages(struct item *from, struct item *to, uint64_t vaddr, uint64_t pages)
{
    int r = vaddr % PAGE_BYTES || pages == 0 ? -EINVAL : 0;
    for (uint64_t i = 0; i < pages && r == 0; i++)
        r = copy_page(from, to, vaddr + i * PAGE_BYTES);
    return r;
}

static int take_run(const struct stream *stream, struct item *item, const struct frame *frame,
                    uint64_t vaddr, uint64_t pages)
{
    switch (frame->flags) {
    case RUNS_ZERO:
        return shadow_zero(item->space->shadow, vaddr, pages);
    case RUNS_EXIST:
        return shadow_list(item->space->shadow, vaddr, pages);
    default:
        return copy_pages(copied_item(stream, item, frame), item, vaddr, pages);
    }
}

static int take_page_runs(struct receiver *receiver, const struct stream *stream, struct item *item,
                          const struct frame *frame, struct error *err)
{
    uint64_t left = WIRE_LIST_PAGES_MAX;
    for (uint32_t at = 0; at < frame->length; at += WIRE_RUN_BYTES) {
        uint64_t vaddr = get_le64(stream->list + at), pages = get_le64(stream->list + at + 8);
        if (pages > left)
            return receiver_broken(err, frame, "too many pages in one list");
        left -= pages;
        int r = take_run(stream, item, frame, vaddr, pages);
        if (r == -EINVAL)
            return receiver_broken(err, frame, "no task has such an address");
        if (r == -ENODATA)
            return receiver_broken(err, frame, "a copy of what has not come");
        if (r < 0) {
            receiver_refuse_errno(receiver, r, "pages");
            return 0;
        }
    }
    if (frame->flags == RUNS_COPY && stream != receiver->streams)
        arena_window_close(&copied_item(stream, item, frame)->window);
    return 0;
}

/* Adds a page as it is here.  0; -ENODATA: it is not here; or another negative errno. */
static int sum_page(struct item *item, uint64_t vaddr, struct digest *digest)
{
    static const uint8_t zeros[PAGE_BYTES];
    uint64_t offset;
    void *place = NULL;
    size_t length = PAGE_BYTES;
    int r = shadow_find(item->space->shadow, vaddr, &offset);
    if (r == 1)
        r = arena_at(item_arena(item), &item->window, offset, &place, &length);
    if (r == 0)
        digest_bytes(digest, place ? place : zeros, PAGE_BYTES);
    return r;
}

/* 1: they are what the digest says, 0: they are not, or a negative errno. */
static int check_sum(struct item *item, uint64_t vaddr, uint64_t pages, const uint8_t *expected)
{
    uint8_t is[DIGEST_BYTES];
    struct digest digest;
    int r = digest_begin(&digest);
    if (r < 0)
        return r;
    for (uint64_t i = 0; i < pages && r == 0; i++)
        r = sum_page(item, vaddr + i * PAGE_BYTES, &digest);
    digest_end(&digest, is);
    return r == -ENODATA ? 0 : r < 0 ? r : memcmp(is, expected, DIGEST_BYTES) == 0;
}

static int take_page_sums(struct receiver *receiver, const struct stream *stream, struct item *item,
                          const struct frame *frame, struct error *err)
{
    uint64_t left = WIRE_LIST_PAGES_MAX;
    for (uint32_t at = 0; at < frame->length; at += WIRE_SUM_BYTES) {
        const uint8_t *sum = stream->list + at;
        uint64_t vaddr = get_le64(sum), pages = get_le64(sum + 8);
        if (pages > left)
            return receiver_broken(err, frame, "too many pages in one list");
        left -= pages;
        if (pages == 0 || pages > WIRE_SUM_PAGES_MAX || vaddr % PAGE_BYTES)
            return receiver_broken(err, frame, "not runs of pages");
        int r = check_sum(item, vaddr, pages, sum + WIRE_RUN_BYTES);
        if (r == 1)
            continue;
        struct error wrong;
        error_set(&wrong, FAILURE_PEER,
                  "snapshot %s: task %llu: %llu pages at %#llx are not what they are at the source",
                  receiver->id, (unsigned long long)item->space->id, (unsigned long long)pages,
                  (unsigned long long)vaddr);
        if (r == 0)
            receiver_refuse(receiver, &wrong);
        else
            receiver_refuse_errno(receiver, r, "what is to be compared");
        return 0;
    }
    return 0;
}

int receiver_bulk_place(struct receiver *receiver, unsigned number, const struct frame *frame,
                        uint32_t done, void **ret_place, size_t *ret_length, struct error *err)
{
    if (receiver->refused) {
        sink(receiver, frame, done, ret_place, ret_length);
        return 0;
    }
    if (receiver_check_place(number, frame, err) < 0)
        return -1;
    struct stream *stream = &receiver->streams[number];
    bool is_space = frame->type != FRAME_IMAGE_DATA;
    struct item *item = receiver_item(stream, frame, is_space, err);
    if (!item)
        return -1;
    stream_map_one(receiver, stream, item);
    if (is_list(frame)) {
        if (done == 0 && list_frame_begin(stream, item, frame, err) < 0)
            return -1;
        *ret_place = stream->list + done;
        *ret_length = frame->length - done;
        return 0;
    }
    if (done == 0 && (is_space ? pages_frame_begin(item, frame, err)
                               : image_frame_begin(receiver, item, frame, err)) < 0)
        return -1;

    /* A refusal on the way frees the item: then the rest of the frame is swallowed. */
    uint64_t offset = 0;
    size_t length = frame->length - done;
    if (is_space && pages_at(receiver, item, frame, done, &offset, &length, err) < 0)
        return -1;
    if (!is_space && !receiver->refused)
        offset = item->append_at + done;
    if (!receiver->refused) {
        int r = arena_at(item_arena(item), &item->window, offset, ret_place, &length);
        *ret_length = length;
        if (r == 0)
            return 0;
        receiver_refuse_errno(receiver, r, is_space ? "pages" : item->name);
    }
    sink(receiver, frame, done, ret_place, ret_length);
    return 0;
}

int receiver_bulk_landed(struct receiver *receiver, unsigned number, const struct frame *frame,
                         uint32_t done, const void *place, size_t length, struct error *err)
{
    if (receiver->refused)
        return 0;
    struct stream *stream = &receiver->streams[number];
    struct item *item = receiver_item(stream, frame, frame->type != FRAME_IMAGE_DATA, err);
    if (!item)
        return -1;
    digest_bytes(&item->digest, place, length);
    item->bytes += length;
    if (!is_list(frame) || done + length < frame->length)
        return 0;
    return frame->type == FRAME_PAGE_RUNS ? take_page_runs(receiver, stream, item, frame, err)
                                          : take_page_sums(receiver, stream, item, frame, err);
}
