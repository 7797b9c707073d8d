/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A peer whose words are known beforehand: a transport that reads from memory, and whatever is
 * written to it is gone.  A link on one goes through the kernel for the event loop alone, which is
 * the same for all inputs.
 *
 *   canned_open() ─▶ link_new_on() ─▶ canned_give(), canned_end(), the loop runs ─▶ link_free()
 */
#include <systemd/sd-event.h>

#include "wire/transport.h"

struct canned {
    struct transport transport; /* first: one is cast to the other */
    const uint8_t *next;
    size_t left;  /* bytes that have not been read */
    size_t given; /* and how many of them have come */
    bool closes;  /* when they have been read */
};

/* For all inputs; there is no other loop in the program. */
sd_event *canned_loop(void);

/* The bytes and the struct have to outlive the transport, and one is open at a time. */
struct transport *canned_open(struct canned *canned, const void *bytes, size_t length);

/* The next |length| bytes, or what there is, come. */
void canned_give(struct canned *canned, size_t length);

/* Whether all bytes have been given. */
bool canned_is_empty(const struct canned *canned);

/* It closes when it has said all. */
void canned_end(struct canned *canned);
