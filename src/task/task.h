/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Looking into live tasks, through /proc.  Any thread.
 */
#include <sys/types.h>

#include "base/util.h"

/* The process of a pidfd, or 0 where it cannot be seen (another pid namespace) or has gone. */
pid_t task_of_pidfd(int pidfd);

/* Whether a process has been killed and has not gone yet: SIGKILL waits for it, or it is exiting.
 */
bool task_is_dying(pid_t pid);

/* What is read of /proc/PID/stat, see proc(5).  Numbers are those of our pid namespace. */
struct task_stat {
    char state; /* 'R', 'S', 'Z', ... */
    pid_t parent, session;
    unsigned threads;
    bool kernel; /* a thread of the kernel */
    bool exiting;
    unsigned long long started; /* in clock ticks since boot */
};

/* False when there is no such task.  Threads are found by their ids too. */
bool task_read_stat(pid_t pid, struct task_stat *ret);

/* The process that a thread belongs to, itself when it is the first one, or 0. */
pid_t task_leader(pid_t pid);

/* The parent of a process, or 0. */
pid_t task_parent(pid_t pid);

/* What it has of memory that no other has by a file: bytes, or 0 when that cannot be told. */
uint64_t task_own_bytes(pid_t pid);

/* Whether one of two processes is the other or below it, so that they have a tree in common.  True
 * also where that cannot be told, because a process has gone meanwhile. */
bool task_trees_overlap(pid_t one, pid_t other);

/* Whether the process stands still under a tracer, as criu's frozen ones do. */
bool task_is_traced(pid_t pid);

/* Who traces it, or 0. */
pid_t task_tracer(pid_t pid);

/* Whether a seccomp filter decides over its system calls. */
bool task_has_seccomp_filter(pid_t pid);

/* Whether pages of it are missing that a userfaultfd is to bring: whoever takes its memory now
 * takes them for zeros.  Reads all of /proc/PID/smaps, some 25 ms per GiB. */
bool task_lacks_pages(pid_t pid);

/* The name of a process, for people: printable characters, "" when there is none. */
void task_command(pid_t pid, char *buf, size_t size);

/* When the process began, in clock ticks since boot (field 22 of /proc/PID/stat): with the pid it
 * tells a process from a later one of the same number.  0 when there is none. */
uint64_t task_started(pid_t pid);

/* The number of a process in the innermost pid namespace that it is in, by which criu calls it; 0
 * when there is none. */
pid_t task_inner_pid(pid_t pid);

/*
 * The root of the tree that is traced by a process which has the socket of that inode open: what
 * criu has in its hands, seen from its connection.  Looks at the likely one first, and then reads
 * the status of every process, until one is found.  0: there is none, or it cannot be seen.
 */
pid_t task_find_traced(pid_t likely, uint64_t socket);

/* The processes of a tree, |root| first, as they are found while it runs.  0 with *ret to be freed,
 * or a negative errno. */
int task_list_tree(pid_t root, pid_t **ret, size_t *ret_count);

/* All processes of a tree, with descriptors (pidfds). */
struct task_tree {
    int *fds;
    pid_t *pids;
    size_t count;
};

/*
 * Opens every process of the tree below and with |root|, which must stand still meanwhile.  0, or a
 * negative errno: -E2BIG when there are more than descriptors; nothing is open then.
 */
int task_tree_open(pid_t root, struct task_tree *ret);

/* Has all their threads, which must stand still and are about to be killed, give way to others:
 * freeing their memory takes a processor some 30 ms for each GiB. */
void task_tree_give_way(const struct task_tree *tree);

/* Queues SIGKILL to all of them; one that has gone already is killed. */
void task_tree_kill(const struct task_tree *tree);
void task_tree_close(struct task_tree *tree);
