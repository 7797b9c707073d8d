/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The directories of images of a criu that is at work: the one that it writes to, which it keeps
 * open among others, and what it takes for the snapshot before (--prev-images-dir), to which it
 * makes a link in that one.  By these, and by nothing that it says, is it told which snapshot criu
 * leaves pages to.  Any thread.
 */
#include "base/util.h"

#include <sys/types.h>

/* A directory, whatever it is called, and in whichever mount namespace. */
struct images_directory {
    uint64_t device, inode;
};

enum { IMAGES_OPEN_MAX = 32 };

struct criu_images {
    struct images_directory open[IMAGES_OPEN_MAX]; /* one of them has its images */
    size_t count;
    bool based; /* it takes another for that of the snapshot before */
    struct images_directory previous;
    bool previous_has_pages; /* of that task: they have gone to no page server */
};

/*
 * Looks at a criu that stands still, or waits for an answer.  |task|: the root of what it dumps, by
 * the number that criu gives it.  0, or a negative errno: -E2BIG when it has more directories open,
 * -EMLINK when links of several lead here and there.
 */
int criu_images_look(pid_t criu, uint64_t task, struct criu_images *ret);

/* Whether what that one takes for the snapshot before is what |before| has written. */
bool criu_images_follow(const struct criu_images *images, const struct criu_images *before);
