/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A live process tree as /proc and the kernel's tables of sockets show it, for pre-flight.
 *
 * The tree is not stopped: what has gone while it was looked at is left out, and all of it is true
 * only of that moment.  Needs root, and a kernel with CONFIG_PROC_CHILDREN, as CRIU does.
 */
#include "base/error.h"
#include "task/task.h"

/* A file that restore opens by its name.  The same name comes once, however often it is used. */
struct tree_file {
    char *path; /* absolute, as seen from our own root directory; owned */
    uint64_t size;
    uint32_t mode; /* st_mode: a regular file or a directory */
    bool program;  /* mapped, and executable */
    bool written;  /* open for writing */
    bool any_size; /* open, and all it is used for is to append to it */
};

/* What CRIU cannot take along, or only when told to. */
enum tree_trait_kind {
    TREE_SESSION,     /* the root is no session leader */
    TREE_TERMINAL,    /* an open terminal whose other side is not in the tree */
    TREE_TCP,         /* a connection */
    TREE_UNIX_DGRAM,  /* a socket whose peer is not in the tree; number: its inode */
    TREE_UNIX_STREAM, /* the same, of a connection */
    TREE_PIPE,        /* one end of a pipe, the other of which is somebody else's; number: inode */
    TREE_LOCK,        /* a lock on a file */
    TREE_GHOST,       /* a file without a name; number: bytes on disk */
    TREE_RENAMED,     /* a file that has a name, but not the one it was opened by */
    TREE_SYSV,        /* shared memory of System V, of our own IPC namespace */
    TREE_OBJECT,  /* a descriptor of the kernel's that has no file, of a kind CRIU does not know */
    TREE_FILLING, /* pages of it are missing, and a userfaultfd's to bring */
    TREE_TRACED,  /* somebody traces it; number: who */
    TREE_LIMITS,  /* a task whose resource limits we may not read, nor CRIU */
    TREE_KIN,     /* a process that has the same memory as another; number: as which */
};

struct tree_trait {
    enum tree_trait_kind kind;
    pid_t pid; /* whose, in our pid namespace */
    uint64_t number;
    char *what; /* for people: a path (any bytes), two ports; owned */
};

struct tree {
    pid_t *processes; /* in our pid namespace, the root first */
    size_t process_count;
    uint32_t root_pid; /* of the root, in its own pid namespace */
    uint32_t *pids;    /* of all threads, in the root's own pid namespace */
    size_t pid_count;
    /* What a snapshot takes: pages of their own, swapped ones too, shared memory and ghosts once.
     */
    uint64_t memory_bytes;
    uint64_t shared_bytes; /* of that: memory that several may share, which is not followed */
    /* What the private memory of a tree of several takes, where pages that they share since a fork
     * count once, and when each has its own.  Both 0: there is one process, or it is not told. */
    uint64_t together_bytes, apart_bytes;
    struct tree_file **files;
    size_t file_count;
    struct tree_trait *traits;
    size_t trait_count;
    bool other_pid_ns, other_mnt_ns, other_net_ns; /* the root's are not ours */
    bool direct;          /* a file is open with O_DIRECT: devices write into its memory */
    bool cut;             /* some bound was reached: there is more than this */
    bool sockets_unknown; /* the kernel did not tell about UNIX sockets */
    bool kin_unknown;     /* nor which processes have the same memory */
};

/*
 * Looks.  0 with *ret filled, to be freed with tree_free(), or -1 with *err set (FAILURE_NOT_FOUND
 * when there is no such process).
 */
int tree_look(pid_t root, struct tree *ret, struct error *err);
void tree_free(struct tree *tree);
