/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A process that is followed between two commands: what it writes is noted (task/follow.h), so that
 * the next snapshot of it need have only that, and is based on the one before.
 *
 *   godwit pre-dump s1 ──▶ all of its memory ───────────┐
 *   godwit pre-dump s2 ──▶ what was written since s1 ───┼─▶ each is based on the one before
 *   godwit dump     s3 ──▶ what was written since s2 ───┘
 *
 * It ends with the process, with a dump that ends the process, and with this daemon; and whenever a
 * snapshot of it fails that had begun to be sent, for what it was to have is not noted any more.
 * Then the next one has all of the memory again, and says why.
 *
 * A process is told from a later one of the same number by when it began.
 *
 * The soft-dirty bits of a process are one set for all who look at them, and whoever clears them
 * takes from the others what these were to be told.  So of those that are known to this daemon one
 * at a time goes by them: who comes last.
 */
#include "daemon/proxy.h"
#include "migrate/rounds.h"

struct lineage;

/* What a snapshot is going to be. */
struct lineage_choice {
    struct lineage *lineage; /* NULL: a dump of a process that is not followed */
    char parent[WIRE_ID_MAX + 1];
    uint64_t parent_nonce;
    char
        why_full[300]; /* although the process was followed; "": it was not, or there is a parent */
};

/*
 * Chooses for a request of that process (the pidfd is borrowed; the number may be another one
 * here).  0, or -1 with *err set: the parent that was asked for is none that the process can be
 * compared with.
 */
int lineage_choose(struct proxy *proxy, const Godwit__Pb__DumpOpen *open, int pidfd,
                   struct lineage_choice *ret, struct error *err);

/* Begins to send what was written since the last snapshot of it; dump_copied() is called when all
 * has been given to the link.  0, or -1 with *err set. */
int lineage_copy(struct lineage *lineage, struct dump *dump, struct sender *sender,
                 struct error *err);

/* Which processes that has begun cannot be followed, and why, to be freed; NULL: there is none. */
char *lineage_skipped(const struct lineage *lineage);

/* Tasks that criu is to be shown nothing of, to be freed, or NULL. */
char *lineage_hide(struct lineage *lineage);

/* The tasks stand still: sends which pages exist.  |held|: criu has done with them; else it may be
 * too early, and nothing is done.  1 when it was done, 0, or -1 with *err set. */
int lineage_list(struct lineage *lineage, bool held, struct error *err);

/* Pages that the round has sent. */
uint64_t lineage_pages(const struct lineage *lineage);

/* The snapshot is complete: the next one can be based on it. */
void lineage_keep(struct lineage *lineage, const char *id, uint64_t nonce);

/* The snapshot has come to nothing, and perhaps the parent is not there any more. */
void lineage_failed(struct lineage *lineage, const struct error *err);

/* The process has ended here as it was meant to. */
void lineage_end(struct lineage *lineage);

/*
 * |who| is about to clear the soft-dirty bits of that process and of all below it (0: it cannot be
 * told of which).  What goes by these bits, but for |except|, is lost: of such a process, or of a
 * tree that has it.  0, or -1 with *err set: a snapshot is being made by them, and nothing is lost.
 */
int lineages_lose_dirty(struct proxy *proxy, pid_t process, const struct lineage *except,
                        const char *who, struct error *err);

/* Frees what is over.  From the loop, where nothing of them is at work: a failure may be told from
 * the midst of it. */
void lineages_reap(struct proxy *proxy);

/* Follows no process any more whose newest snapshot has that id.  0; -ENOENT: there is none;
 * -EBUSY: one is being made of it. */
int lineages_forget(struct proxy *proxy, const char *id);

void lineages_describe(const struct proxy *proxy, struct client *client);
void lineages_free(struct proxy *proxy);
