/* SPDX-License-Identifier: Apache-2.0 */
#include "store/feed.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "store/chain.h"

enum { PIECES_MAX = FEED_BYTES / PAGE_BYTES }; /* as many as the pipe has room for pages */

static int open_space(struct feed *feed, const struct snapshot *snapshot, const char *name)
{
    feed->file = chain_open_pages(snapshot, name, &feed->map);
    if (feed->file < 0)
        return feed->file;
    int r = feed->map.pages > 0 ? space_map_arena(&feed->map, feed->file, &feed->arena) : 0;
    if (r < 0)
        feed_close(feed);
    return r;
}

int feed_open(struct feed *feed, const struct snapshot *snapshot, const char *name)
{
    *feed =
        (struct feed){.file = openat(snapshot->imagefd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC)};
    if (feed->file >= 0)
        return 0;
    return errno == ENOENT ? open_space(feed, snapshot, name) : -errno;
}

void feed_close(struct feed *feed)
{
    if (feed->arena)
        munmap(feed->arena, feed->map.end << PAGE_SHIFT);
    space_map_close(&feed->map);
    close_fd(feed->file);
    *feed = (struct feed){.file = -EBADF};
}

/* Many runs in one call: each by itself would wake the reader. */
static ssize_t feed_pages(struct feed *feed, int pipe)
{
    struct iovec pieces[PIECES_MAX];
    struct space_map_cursor ahead = feed->cursor;
    struct space_map_entry part;
    size_t count = 0;
    for (uint64_t left = PIECES_MAX; space_map_take(&feed->map, &ahead, left, &part); count++) {
        pieces[count] = (struct iovec){feed->arena + ((uint64_t)part.where << PAGE_SHIFT),
                                       (size_t)part.pages * PAGE_BYTES};
        left -= part.pages;
    }
    ssize_t n = count > 0 ? vmsplice(pipe, pieces, count, SPLICE_F_NONBLOCK) : 0;
    if (n > 0)
        space_map_skip(&feed->map, &feed->cursor, (uint64_t)n / PAGE_BYTES);
    return n;
}

ssize_t feed_some(struct feed *feed, int pipe)
{
    ssize_t n = feed->map.entries
                    ? feed_pages(feed, pipe)
                    : splice(feed->file, NULL, pipe, NULL, FEED_BYTES, SPLICE_F_NONBLOCK);
    if (n < 0)
        return errno == EINTR ? -EAGAIN : -errno;
    return n;
}
