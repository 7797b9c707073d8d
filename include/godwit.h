/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GODWIT_H
#define GODWIT_H
/*
 * libgodwit: moving a running process tree to another host.
 *
 *     struct godwit_options options = {
 *         .size = sizeof(options), .pid = 4711, .target = "ssh://root@other"};
 *     struct godwit_migration *migration;
 *     struct godwit_error error;
 *     if (godwit_migration_new(&options, on_event, user, &migration, &error) == 0)
 *         godwit_migration_run(migration);
 *     ... godwit_migration_result(migration) ...
 *     godwit_migration_free(migration);
 *
 * What may happen to the process: it is moved (GODWIT_MOVED), or it runs on here as if nothing had
 * been tried, or, if hosts or the way between them break at the wrong moment, one of the two holds
 * it standing still and says so (GODWIT_IN_DOUBT).  It never runs on both, and is lost only if
 * somebody kills both processes of the pager there while its memory is still being put in place.
 *
 * A migration belongs to one thread at a time.  It starts programs (criu, a carrier like ssh) and
 * waits for them by process descriptor; the caller must not reap children that it did not start.
 * Strings that the library hands out are its own and live as long as the migration.
 * Linux; root or what CRIU needs.
 */
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GODWIT_VERSION_MAJOR 0
#define GODWIT_VERSION_MINOR 1

/* How it ended; also the exit status of `godwit migrate`.  Others are errors of any kind, and then
 * nothing has been touched: see godwit(1). */
enum godwit_code {
    GODWIT_MOVED = 0,     /* or: the check found nothing that stands in the way */
    GODWIT_SYSTEM = 1,    /* this host: a system call, a file */
    GODWIT_USAGE = 2,     /* the options */
    GODWIT_CRIU = 3,      /* no criu that works */
    GODWIT_PEER = 4,      /* the other host, or the way to it */
    GODWIT_NOT_FOUND = 5, /* no such process, no such migration */
    GODWIT_LIMIT = 6,     /* too much for the other host */
    GODWIT_IN_DOUBT = 7,  /* an operator's word may be needed: `godwit resolve` */
    GODWIT_BUSY = 8,      /* this process is being moved already */
    GODWIT_REFUSED = 9,   /* pre-flight found what would make it fail: nothing was touched */
    GODWIT_ABORTED = 10,  /* it was tried, and the process runs on here */
};

struct godwit_error {
    int code;       /* enum godwit_code */
    char text[480]; /* one line */
};

enum godwit_flags {
    GODWIT_DRY_RUN = 1,  /* end after pre-flight */
    GODWIT_INSECURE = 2, /* plain text to a TCP target beyond this host: nothing is encrypted */

    /* For godwit_migration_resume(): an operator's word where the journal does not say enough. */
    GODWIT_KEEP_HERE = 4, /* the process runs on here, the other host's copy is void */
    GODWIT_END_HERE = 8,  /* the process ends here, the other host's copy runs */

    GODWIT_STOP_AND_COPY = 16,   /* no rounds: the process stands still while it is copied */
    GODWIT_EAGER = 32,           /* it runs there once all of its memory is in place */
    GODWIT_STRICT = 64,          /* abort when the target for the downtime cannot be met */
    GODWIT_NO_SCAN_FILTER = 128, /* nothing is preloaded into criu; see godwit-migrate(1) */
    GODWIT_VERIFY = 256,         /* compare all that was copied, before the decision */
};

/* How it is told what the process has written since the round before. */
enum godwit_tracker {
    GODWIT_TRACKER_AUTO = 0, /* for each process the first of the next two that works */
    GODWIT_TRACKER_UFFD_WP =
        1, /* the kernel tells (Linux 6.7); what it cannot tell of stands still */
    GODWIT_TRACKER_COMPARE = 2,    /* all is read each time, and compared with what was sent */
    GODWIT_TRACKER_SOFT_DIRTY = 3, /* the kernel tells, and it stands still while it does so */
};

struct godwit_options {
    size_t size;         /* sizeof(struct godwit_options), for later versions; the rest may be 0 */
    pid_t pid;           /* root of the tree.  0, for a dry run: look at the hosts only */
    const char *target;  /* HOST[:PORT], unix:PATH, ssh://[USER@]HOST[:PORT], exec:COMMAND.
                          * NULL, for a dry run: look at this host only */
    const char *workdir; /* journal and logs; NULL: /run/godwit */
    const char *criu;    /* path; NULL: $GODWIT_CRIU, then PATH */
    char *const *criu_options; /* for criu on both hosts, ended by NULL; NULL: none */
    uint64_t timeout_usec;     /* silence after which the other host is dead; 0: 10 s */
    uint32_t flags;            /* enum godwit_flags */
    /* Live: memory is copied in rounds while the process runs, until what it writes meanwhile can
     * be sent within the downtime. */
    unsigned max_rounds;    /* 0: 30 */
    uint64_t downtime_usec; /* target; 0: 100 ms */
    uint64_t max_time_usec; /* of all rounds; 0: no limit */
    uint64_t bytes_per_sec; /* at most that fast while it runs; 0: no limit */
    uint32_t tracker;       /* enum godwit_tracker */
    unsigned streams; /* connections that carry its memory, the link itself among them, at most 16;
                       * 0: 1.  Where one is slower than the way (its window, a carrier's CPU). */
    /* Credentials for a TCP target, files as in godwit-keygen(1): certificates, or a key that both
     * hosts have.  NULL: those in /etc/godwit/tls.  When one is named, TLS is used on loopback
     * too. */
    const char *tls_cacert, *tls_cacrl, *tls_cert, *tls_key;
    const char *psk_file;
};

enum godwit_event_type {
    GODWIT_EVENT_STATUS = 1,   /* another phase */
    GODWIT_EVENT_PROGRESS = 2, /* at least every second */
    GODWIT_EVENT_FINDING = 3,  /* of pre-flight, and warnings while it is copied */
};

enum godwit_severity { GODWIT_OK = 0, GODWIT_WARNING = 1, GODWIT_PROBLEM = 2 };

struct godwit_event {
    enum godwit_event_type type;

    /* STATUS, PROGRESS.  setup: connecting and pre-flight; active: rounds of copying, the process
     * runs; device: it stands still, is dumped, and built there; completed, cancelling, failed: the
     * end (names as in QEMU). */
    const char *status;
    uint64_t transferred; /* bytes of images and memory so far */
    uint64_t total;       /* estimated; 0: not known yet */
    uint64_t elapsed_usec;
    unsigned round;                  /* the present one, from 1; 0: none */
    uint64_t dirty_bytes_per_sec;    /* what the process writes; 0: not known yet */
    uint64_t expected_downtime_usec; /* the same */

    /* FINDING */
    enum godwit_severity severity;
    const char *topic, *host, *text, *remedy; /* remedy may be "" */
};

/* Called from godwit_migration_run() and _step() only.  The event is valid during the call. */
typedef void godwit_event_fn(const struct godwit_event *event, void *user);

struct godwit_result {
    int code;         /* enum godwit_code */
    const char *text; /* why not, one line; "" when moved */
    const char *id;   /* of the migration, for `godwit resolve`; "" before there is one */
    const char *host; /* the other host's name; "" when it was not reached */
    pid_t pid;
    uint64_t downtime_usec; /* from the freeze to the first instruction there; 0: not moved */
    /* What that is made of: criu's dump; the rest on its way and checked; criu's restore until it
     * is built; the decision, until it runs. */
    uint64_t dump_usec, send_usec, restore_usec, commit_usec;
    uint64_t first_round_usec, first_round_bytes; /* 0: there were none */
    unsigned rounds;
    uint64_t stopped_usec; /* the longest that a thread stood still in them, to be followed */
    uint64_t total_usec;
    uint64_t transferred; /* bytes */
};

struct godwit_migration;

/* Checks the options; nothing is touched.  0 and *ret, to be freed, or enum godwit_code with *error
 * (which may be NULL) set. */
int godwit_migration_new(const struct godwit_options *options, godwit_event_fn *event, void *user,
                         struct godwit_migration **ret, struct godwit_error *error);

/*
 * Takes up a migration that an earlier program left undecided or untold, by the journal in the
 * work-dir (options: workdir, timeout and flags count): tells the other host how it ended.
 */
int godwit_migration_resume(const struct godwit_options *options, const char *id,
                            godwit_event_fn *event, void *user, struct godwit_migration **ret,
                            struct godwit_error *error);

/* Works until the end; the code of the result. */
int godwit_migration_run(struct godwit_migration *migration);

/*
 * The same in pieces, for a caller with a loop of his own: when the descriptor is readable (poll),
 * or a second has passed, call _step(), which does what there is to do and waits for at most
 * timeout_msec (-1: as long as it takes).  1: it goes on; 0: it is over.
 */
int godwit_migration_fd(struct godwit_migration *migration);
int godwit_migration_step(struct godwit_migration *migration, int timeout_msec);

/* Asks it to end: before the decision the process runs on here.  Afterwards only the waiting for
 * the other host ends: at once if there is no link to it, otherwise after its timeout, or when it
 * is asked again.  From any thread, or a signal handler; the result tells what came of it. */
void godwit_migration_cancel(struct godwit_migration *migration);

/* Once it is over, or at any time for what is known. */
const struct godwit_result *godwit_migration_result(const struct godwit_migration *migration);

/* Takes NULL.  One that is not over is cancelled and brought to its end first. */
void godwit_migration_free(struct godwit_migration *migration);

/* "0.1.0" */
const char *godwit_version(void);

#ifdef __cplusplus
}
#endif
#endif
