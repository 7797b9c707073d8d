/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte of mode, then the bytes of a cache to a source, which sends it two images.
 *   bit 0   the harness says preamble and hello, the input begins behind them
 *   bit 1   it has no image to send, and ends at once
 *   bit 2   in pieces, of 7 bytes, of 8 and so on
 *   bit 3   checks of frames are mended
 */
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "canned.h"
#include "migrate/sender.h"
#include "unit/peer.h"

enum { MODE_GREETED = 1, MODE_EARLY = 2, MODE_PIECES = 4, MODE_CHECKS = 8 };

struct source {
    struct sender *sender;
    enum sender_state before;
    bool early, up, down;
};

static char *directory;

static void remove_directory(void)
{
    directory_remove(directory);
}

static void make_images(void)
{
    directory = directory_make();
    atexit(remove_directory);
    static const char *const names[] = {"core-1.img", "inventory.img"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        char path[256];
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        must(fd >= 0 && write(fd, names[i], i * 10) == (ssize_t)i * 10);
        close(fd);
    }
}

static void on_changed(struct sender *sender, void *user)
{
    struct source *source = user;
    enum sender_state state = sender_state(sender);
    must(state > source->before); /* never back */
    must(state != SENDER_ACKED || (source->before == SENDER_ENDING && sender_end_is_sent(sender)));
    must(state != SENDER_FAILED || sender_error(sender)->text[0]);
    source->before = state;
    if (state != SENDER_SENDING)
        return;
    if (!source->early)
        must(sender_open_directory(sender, open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) ==
             0);
    sender_finish(sender);
}

static const struct sender_ops sender_ops = {.changed = on_changed};

static void on_up(struct link *link, const Godwit__Pb__Hello *hello, void *user)
{
    struct source *source = user;
    Godwit__Pb__SnapshotBegin begin = GODWIT__PB__SNAPSHOT_BEGIN__INIT;
    must(!source->up && hello->page_bytes == PAGE_BYTES);
    source->up = true;
    begin.id = (char *)"seed";
    begin.streams = 2;
    source->sender = sender_new(canned_loop(), link, 1, &begin, &sender_ops, source);
    must(source->sender);
}

static int on_control(struct link *link, const struct frame *frame, const uint8_t *payload,
                      void *user, struct error *err)
{
    (void)link;
    struct source *source = user;
    if (frame->session != 1)
        return error_set(err, FAILURE_PEER, "no such session");
    return sender_control(source->sender, frame, payload, err);
}

static void on_down(struct link *link, const struct error *err, void *user)
{
    (void)link;
    struct source *source = user;
    must(!source->down && (err->code == FAILURE_NONE || err->text[0]));
    source->down = true;
    struct error lost;
    error_set(&lost, FAILURE_PEER, "the link is gone");
    if (source->sender && sender_state(source->sender) < SENDER_ACKED)
        sender_link_down(source->sender, &lost);
}

static const struct link_ops link_ops = {
    .peer = SENT_BY_CACHE, .up = on_up, .control = on_control, .down = on_down};

static void run(void)
{
    int n = 1;
    for (int i = 0; i < 1000 && n > 0; i++)
        n = sd_event_run(canned_loop(), 0);
    must(n == 0);
}

static void say(const struct source *source, struct canned *canned, size_t step)
{
    for (; !canned_is_empty(canned) && !source->down; step++) {
        canned_give(canned, step);
        run();
    }
    canned_end(canned);
    run();
    must(source->down);
}

/* What becomes of the sender when the cache says that. */
static enum sender_state serve(const struct bytes *bytes, unsigned mode)
{
    struct source source = {.early = mode & MODE_EARLY};
    struct canned canned;
    struct link *link = link_new_on(canned_loop(), canned_open(&canned, bytes->at, bytes->length),
                                    3600 * USEC_PER_SEC, &link_ops, &source);
    must(link);
    say(&source, &canned, mode & MODE_PIECES ? 7 : SIZE_MAX);
    enum sender_state state = source.sender ? sender_state(source.sender) : SENDER_FAILED;
    must(state >= SENDER_ACKED);
    sender_free(source.sender);
    link_free(link);
    return state;
}

/* A cache that says what it should is understood: else no input would get far. */
static void begin(void)
{
    struct bytes bytes = {0};
    make_images();
    bytes_add_greeting(&bytes);
    bytes_add_message(&bytes, FRAME_SNAPSHOT_ACCEPT, 1, 0, NULL);
    bytes_add_message(&bytes, FRAME_SNAPSHOT_ACK, 1, 0, NULL);
    must(serve(&bytes, MODE_PIECES) == SENDER_ACKED);
    bytes_free(&bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!directory)
        begin();
    if (size == 0)
        return 0;
    struct bytes bytes = {0};
    if (data[0] & MODE_GREETED)
        bytes_add_greeting(&bytes);
    size_t begin_at = data[0] & MODE_GREETED ? bytes.length : WIRE_PREAMBLE_BYTES;
    bytes_add(&bytes, data + 1, size - 1);
    if (data[0] & MODE_CHECKS)
        bytes_mend_checks(&bytes, begin_at);
    serve(&bytes, data[0]);
    bytes_free(&bytes);
    return 0;
}
