/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Pre-flight: everything that can be known to go wrong is told before the process is touched.
 *
 *   source: look at this host and the process ──▶ findings, and facts for the other host
 *   destination: judge each part of the facts ──▶ findings
 *
 * A finding is one line: what, where, what follows from it, what to do.  Each thing that was looked
 * at has one, also when nothing is wrong.  Any thread; blocks for as long as criu takes to tell its
 * version and to check the kernel (some 100 ms, at most 10 s), and reads files, which takes as long
 * as their file systems do.
 */
#include "base/error.h"
#include "criu/process.h"
#include "link.pb-c.h"
#include "task/file.h"

/* A growing list.  The strings are the list's. */
struct findings {
    Godwit__Pb__Finding **list;
    size_t count;
};

/*
 * Adds one; text from the format, cut at some 800 bytes, with "?" for control characters.  remedy
 * may be "".  Out of memory it is left out.
 */
void findings_add(struct findings *findings, Godwit__Pb__Finding__Severity severity,
                  const char *topic, const char *remedy, const char *format, ...) _printf_(5, 6);
void findings_free(struct findings *findings);

/* What the source asks about. */
struct preflight_request {
    const char *criu; /* path of a criu that criu_find() found, or NULL: that is a finding */
    const struct error *no_criu; /* why it found none */
    pid_t pid;                   /* root task; 0: the hosts only */
    char *const *options;        /* for criu, ended by NULL; may be NULL */
    bool eager;                  /* criu is to place all of its memory */
};

/* Parts of facts, each at most PREFLIGHT_PART_BYTES packed. */
struct preflight_facts {
    Godwit__Pb__Facts **parts;
    size_t count;
    bool direct;           /* for this host: devices may write into the process's memory */
    uint64_t shared_bytes; /* likewise: of its memory, what several may share */
};

enum { PREFLIGHT_PART_BYTES = 48 << 10 };

/*
 * Looks at this host and, if there is one, at the process, which runs on meanwhile: what it finds
 * is true at that moment.  0, or -1 with *err set when it cannot look (no such process:
 * FAILURE_NOT_FOUND).  With a process that cannot be dumped at all there are facts of the host
 * only.
 */
int preflight_look(const struct preflight_request *request, struct findings *findings,
                   struct preflight_facts *ret_facts, struct error *err);
void preflight_facts_free(struct preflight_facts *facts);

/* Tells how long the other host took to answer, in microseconds. */
void preflight_tell_distance(const char *host, uint64_t usec, struct findings *findings);

/* What there is to know of a host's criu.  Some 100 ms, at most 10 s if criu hangs. */
struct preflight_criu {
    bool found, works;
    char version[CRIU_VERSION_BYTES]; /* "": it told none */
    struct error failure;             /* why it does not work */
};

/* criu: path, or NULL where criu_find() found none, and |no_criu| tells why. */
void preflight_try_criu(const char *criu, const struct error *no_criu, struct preflight_criu *ret);

/* What is to be seen of this host. */
struct preflight_host {
    char cpu_flags[8 << 10]; /* each between blanks; "": they cannot be told */
    uint64_t pid_max;        /* pids end below it */
    uint64_t available_bytes;
};

/* What is to be seen of a file. */
struct preflight_file {
    int error; /* not 0: nothing, because of this errno; EBADF: it is no file or directory */
    uint32_t mode;
    uint64_t size;
    uint32_t id_length; /* of the build id, of a program */
    uint8_t id[BUILD_ID_MAX];
};

/* Who looks, in the place of a judge that may not be allowed to. */
struct preflight_eyes {
    void (*host)(void *user, struct preflight_host *ret);
    void (*file)(void *user, const char *path, bool program, struct preflight_file *ret);
    /* Whether a task has this pid, which is neither 0 nor too large; and its name. */
    bool (*pid)(void *user, uint32_t pid, char ret_command[17]);
    void *user;
};

/* The caller's own. */
extern const struct preflight_eyes preflight_own_eyes;
void preflight_see_host(void *user, struct preflight_host *ret);
void preflight_see_file(void *user, const char *path, bool program, struct preflight_file *ret);
bool preflight_see_pid(void *user, uint32_t pid, char ret_command[17]);

/*
 * Judges one part against the host that |eyes| see.  free_bytes: what the store of snapshots can
 * still take.  The part comes from the network: of the paths that it names none is opened but
 * regular files, and the findings about one part are at most some 50.
 */
void preflight_judge(const Godwit__Pb__Facts *part, const struct preflight_criu *criu,
                     uint64_t free_bytes, const struct preflight_eyes *eyes,
                     struct findings *findings);
