/* SPDX-License-Identifier: Apache-2.0 */
/* The source: what this host and the process are like, and what CRIU must be told. */
#include "migrate/preflight.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

#include "base/io.h"
#include "migrate/facts.h"
#include "task/file.h"
#include "task/tree.h"

#define OK GODWIT__PB__FINDING__SEVERITY__OK
#define WARNING GODWIT__PB__FINDING__SEVERITY__WARNING
#define PROBLEM GODWIT__PB__FINDING__SEVERITY__PROBLEM

enum { FAR_USEC = 250 * USEC_PER_MSEC };

/* ---- options for criu ---- */

/* Whether a word is this option; getopt_long takes any beginning of a name for the whole. */
static bool is_option(const char *word, const char *name)
{
    size_t length = strncmp(word, "--", 2) == 0 ? strcspn(word + 2, "=") : 0;
    return length > 0 && strncmp(word + 2, name, length) == 0;
}

/* Among the short options in one word, of which one that takes an argument is the last. */
static bool has_letter(const char *word, char letter)
{
    static const char with_argument[] = "tDorJWLMvx";
    if (!letter || word[0] != '-' || word[1] == '-')
        return false;
    const char *at = word + 1;
    while (*at && *at != letter && !strchr(with_argument, *at))
        at++;
    return *at == letter;
}

static bool has_option(char *const *options, const char *name, char letter)
{
    for (; name && options && *options; options++) {
        if (is_option(*options, name) || has_letter(*options, letter))
            return true;
    }
    return false;
}

/* What an option was given as its argument: the last one counts. */
static const char *option_value(char *const *options, const char *name)
{
    const char *value = NULL;
    for (; options && *options; options++) {
        if (!is_option(*options, name))
            continue;
        const char *equal = strchr(*options, '=');
        value = equal ? equal + 1 : options[1];
    }
    return value;
}

/* Whether it was given with this argument at least once. */
static bool has_value(char *const *options, const char *name, const char *value)
{
    for (; options && *options; options++) {
        const char *equal = strchr(*options, '=');
        const char *given = equal ? equal + 1 : options[1];
        if (is_option(*options, name) && given && strcmp(given, value) == 0)
            return true;
    }
    return false;
}

static uint64_t ghost_limit(char *const *options)
{
    uint64_t limit;
    const char *value = option_value(options, "ghost-limit");
    return value && parse_size(value, &limit) == 0 ? limit : MIB(1); /* CRIU's own */
}

/* Of shared memory: reading and placing it takes as long as all else in a freeze. */
#define SHARED_BYTES_MANY MIB(64)

/* What a tree may take more there than here before it is worth a warning: this much, and a tenth.
 */
#define GROWTH_BYTES_MANY MIB(16)

/* ---- this host ---- */

static void check_userfaultfd(struct findings *findings)
{
    _cleanup_close_ int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd >= 0)
        findings_add(findings, OK, "kernel", "", "userfaultfd works");
    else
        findings_add(findings, WARNING, "kernel", "a kernel with CONFIG_USERFAULTFD, and root",
                     "userfaultfd does not work (%s): what is written is found by comparing all "
                     "memory, and the process stands still for longer",
                     strerror(errno));
}

/* As linux/fs.h has it from 6.7 on. */
struct pagemap_scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t inverted, mask, anyof_mask, return_mask;
};

static void check_pagemap_scan(struct findings *findings)
{
    struct pagemap_scan scan = {.size = sizeof(scan)}; /* of no pages */
    _cleanup_close_ int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && ioctl(fd, _IOWR('f', 16, struct pagemap_scan), &scan) == 0)
        findings_add(findings, OK, "kernel", "", "PAGEMAP_SCAN works");
    else
        findings_add(findings, WARNING, "kernel", "Linux 6.7 or newer",
                     "PAGEMAP_SCAN does not work (%s): what is written is found by comparing all "
                     "memory, and the process stands still for longer",
                     strerror(errno));
}

static void add_cpu_flag(void *builder, const char *name)
{
    facts_add_cpu(builder, name);
}

static int look_at_host(const struct preflight_request *request, struct findings *findings,
                        struct facts_builder *builder, struct error *err)
{
    enum { OPTIONS_BYTES_MAX = 16 << 10 };
    struct preflight_criu criu;
    struct utsname name;
    size_t bytes = 0;
    preflight_try_criu(request->criu, request->no_criu, &criu);
    preflight_tell_criu(&criu, findings);
    preflight_check_pages(findings);
    check_userfaultfd(findings);
    check_pagemap_scan(findings);
    uname(&name);
    Godwit__Pb__Facts *part = builder->facts->parts[0];
    facts_set(builder, &part->criu, criu.version);
    facts_set(builder, &part->kernel, name.release);
    for (char *const *option = request->options; option && *option; option++) {
        bytes += strlen(*option);
        if (!preflight_is_plain(*option) || bytes > OPTIONS_BYTES_MAX)
            return error_set(err, FAILURE_USAGE,
                             "the options for criu are too long or hold control characters");
        facts_add_option(builder, *option);
    }
    if (!preflight_each_cpu_flag(add_cpu_flag, builder))
        findings_add(findings, WARNING, "cpu", "",
                     "/proc/cpuinfo does not tell what the processor can do: not compared");
    return 0;
}

void preflight_tell_distance(const char *host, uint64_t usec, struct findings *findings)
{
    unsigned long long ms = usec / USEC_PER_MSEC, tenths = usec / 100 % 10;
    /* Frozen it waits for the answer to the last of its memory, and for the way of the verdict. */
    if (usec > FAR_USEC)
        findings_add(
            findings, WARNING, "link", "",
            "%s answers in %llu ms: the pause of a process will be about twice that longer", host,
            ms);
    else
        findings_add(findings, OK, "link", "", "%s answers in %llu.%llu ms", host, ms, tenths);
}

/* ---- what CRIU has to be told ---- */

/* One kind of trait of the process. */
static const struct rule {
    enum tree_trait_kind kind;
    const char *topic;
    const char *option, *other_option; /* either lets it pass; NULL: nothing does */
    char letter;                       /* short for the first */
    const char *none;                  /* when there are none */
    const char *what;                  /* behind "process N " and what the trait is */
    const char *remedy;
} rules[] = {
    {TREE_SESSION, "tty", "shell-job", NULL, 'j', "it leads a session",
     "is not the leader of its session: criu would refuse to dump it",
     "pass --shell-job, or start it with setsid"},
    {TREE_TERMINAL, "tty", "shell-job", "orphan-pts-master", 'j',
     "no terminal is open whose other side stays behind",
     "has a terminal open whose other side stays behind: criu would refuse to dump it",
     "pass --shell-job, or start it with its output in a file"},
    {TREE_TCP, "tcp", "tcp-established", "tcp-close", 0, "no TCP connection",
     "has a TCP connection: criu would refuse to dump it",
     "pass --tcp-established (the address must move along), or --tcp-close"},
    {TREE_UNIX_DGRAM, "unix", "ext-unix-sk", NULL, 'x',
     "no UNIX datagram socket is connected to another process",
     "is connected to a process that stays behind: criu would refuse to dump it",
     "pass --ext-unix-sk"},
    {TREE_UNIX_STREAM, "unix", NULL, NULL, 0, "no UNIX stream is connected to another process",
     "is connected to a process that stays behind: CRIU cannot take half of a stream along",
     "close that connection, or migrate both processes as one tree"},
    {TREE_PIPE, "pipe", NULL, NULL, 0, "no pipe leads to another process",
     "leads to a process that stays behind: it would read an end of file, or be killed by SIGPIPE",
     "start it with its input and output in files, or migrate both processes as one tree"},
    {TREE_LOCK, "lock", "file-locks", NULL, 'l', "no file is locked",
     "holds a lock on a file: criu would refuse to dump it", "pass --file-locks"},
    {TREE_GHOST, "ghost", NULL, NULL, 0, "no large file without a name is in use",
     "uses a file that has been removed and is larger than criu takes along",
     "pass --ghost-limit with more than the size of that file"},
    {TREE_RENAMED, "file", "link-remap", NULL, 0, "no file is in use under a name that has gone",
     "uses a file whose name has been removed while it has another one: criu would refuse to dump "
     "it",
     "pass --link-remap"},
    {TREE_SYSV, "ipc", NULL, NULL, 0, "no System V shared memory of the host",
     "uses System V shared memory of the host's IPC namespace: CRIU cannot take it along",
     "start it in an IPC namespace of its own: unshare --ipc"},
    {TREE_OBJECT, "object", NULL, NULL, 0, "no object of the kernel that CRIU does not know",
     "has something of the kernel's open that CRIU cannot take along",
     "start it so that it does without (io_uring: sysctl kernel.io_uring_disabled=2)"},
    {TREE_FILLING, "fill", NULL, NULL, 0, "all of its memory is there",
     "is still being filled in by a userfaultfd: what is missing would be lost",
     "wait until it is there: godwit status shows it as filling, if it was moved here"},
    {TREE_TRACED, "trace", NULL, NULL, 0, "nobody traces it", "is traced: criu cannot stop it",
     "end the debugger, or have it let go"},
    {TREE_LIMITS, "limits", NULL, NULL, 0, "its limits can be read",
     "runs as another user, and its limits may not be read without CAP_SYS_RESOURCE: criu would "
     "fail to dump it",
     "give godwit CAP_SYS_RESOURCE, or run the process as the user that godwit runs as"},
    {TREE_KIN, "memory", NULL, NULL, 0, "no process shares its memory with another",
     "shares its memory with another process, as by clone(CLONE_VM): criu would refuse to dump it",
     "start it as a thread or by fork; one by vfork: wait until it has executed its program"},
};

/* Whether this very one needs nothing more. */
static bool is_excused(const struct tree_trait *trait, char *const *options)
{
    char id[32];
    snprintf(id, sizeof(id), "unix[%llu]", (unsigned long long)trait->number);
    switch (trait->kind) {
    case TREE_GHOST:
        return trait->number <= ghost_limit(options);
    case TREE_UNIX_DGRAM:
    case TREE_UNIX_STREAM:
        return has_value(options, "external", id);
    default:
        return false;
    }
}

static void apply_rule(const struct rule *rule, const struct tree *tree, char *const *options,
                       struct findings *findings)
{
    const struct tree_trait *first = NULL;
    size_t count = 0;
    for (size_t i = 0; i < tree->trait_count; i++) {
        const struct tree_trait *trait = &tree->traits[i];
        if (trait->kind != rule->kind || is_excused(trait, options))
            continue;
        first = first ? first : trait;
        count++;
    }
    char command[17], more[32] = "", what[300] = "";
    if (!first && rule->kind == TREE_KIN && tree->kin_unknown)
        return; /* which is told */
    if (!first) {
        findings_add(findings, OK, rule->topic, "", "%s", rule->none);
        return;
    }
    if (has_option(options, rule->option, rule->letter) ||
        has_option(options, rule->other_option, 0))
        return; /* the user knows: nothing to tell */
    task_command(first->pid, command, sizeof(command));
    if (first->what[0])
        snprintf(what, sizeof(what), " (%s)", first->what);
    if (count > 1)
        snprintf(more, sizeof(more), ", and %zu more", count - 1);
    findings_add(findings, PROBLEM, rule->topic, rule->remedy, "process %d, %s%s%s: %s", first->pid,
                 command, what, more, rule->what);
}

/* ---- the process ---- */

/* What makes it useless to look any closer. */
static const char *why_never(pid_t pid)
{
    struct task_stat stat;
    if (!task_read_stat(pid, &stat))
        return NULL; /* gone: whoever looks next says so */
    if (stat.kernel)
        return "is a thread of the kernel";
    if (stat.state == 'Z' || stat.state == 'X')
        return "has ended already and only waits for its parent to notice";
    if (task_leader(pid) != pid)
        return "is a thread, not a process";
    if (pid == 1)
        return "is the init of this host";
    for (pid_t at = getpid(); at > 0; at = task_parent(at)) {
        if (at == pid)
            return at == getpid() ? "is godwit itself" : "is an ancestor of godwit itself";
    }
    return NULL;
}

static void judge_namespaces(const struct tree *tree, struct findings *findings)
{
    if (tree->other_pid_ns && tree->root_pid != 1)
        findings_add(findings, PROBLEM, "namespace",
                     "run godwit in that pid namespace, or migrate the init of it",
                     "the process is in a pid namespace of which it is not the init: CRIU cannot "
                     "take part of one along");
    else
        findings_add(findings, OK, "namespace", "", "its namespaces:%s%s%s%s",
                     tree->other_pid_ns ? " pid" : "", tree->other_mnt_ns ? " mount" : "",
                     tree->other_net_ns ? " network" : "",
                     tree->other_pid_ns || tree->other_mnt_ns || tree->other_net_ns
                         ? " are its own, and taken along"
                         : " those of the host");
    if (tree->other_mnt_ns)
        findings_add(findings, WARNING, "file", "compare the root file systems yourself",
                     "files of its own mount namespace are not compared");
}

static void tell_what_is_unknown(const struct tree *tree, struct findings *findings)
{
    if (tree->cut)
        findings_add(findings, WARNING, "process", "",
                     "the process has more tasks, files or sockets than are looked at: the rest is "
                     "not compared");
    if (tree->sockets_unknown)
        findings_add(findings, WARNING, "unix", "a kernel with CONFIG_UNIX_DIAG, as CRIU wants it",
                     "the kernel does not tell what UNIX sockets are connected to");
    if (tree->kin_unknown)
        findings_add(findings, WARNING, "memory",
                     "root, and a kernel with CONFIG_KCMP, as CRIU wants it",
                     "the kernel does not tell whether processes share their memory with others");
}

static void add_file(struct facts_builder *builder, const struct tree_file *file, bool with_mode)
{
    uint8_t id[BUILD_ID_MAX];
    struct stat st;
    Godwit__Pb__FileFact fact = GODWIT__PB__FILE_FACT__INIT;
    fact.path = file->path;
    fact.kind = S_ISDIR(file->mode) ? GODWIT__PB__FILE_FACT__KIND__DIRECTORY
                : file->program     ? GODWIT__PB__FILE_FACT__KIND__PROGRAM
                                    : GODWIT__PB__FILE_FACT__KIND__FILE;
    fact.mode = with_mode ? file->mode : 0;
    if (!S_ISDIR(file->mode)) {
        fact.size = file->size;
        fact.written = file->written;
        fact.any_size = file->any_size;
    }
    if (file->program) {
        _cleanup_close_ int fd = file_open(file->path, &st);
        fact.build_id.len = fd >= 0 ? file_build_id(fd, id) : 0;
        fact.build_id.data = id;
    }
    facts_add_file(builder, &fact);
}

static void add_files(struct facts_builder *builder, const struct tree *tree, bool with_mode,
                      struct findings *findings)
{
    size_t unsaid = 0;
    for (size_t i = 0; i < tree->file_count; i++) {
        const char *path = tree->files[i]->path;
        /* The other side takes no strings that could not be shown to a person. */
        if (preflight_is_plain(path) && strlen(path) < PATH_MAX)
            add_file(builder, tree->files[i], with_mode);
        else
            unsaid++;
    }
    if (unsaid > 0)
        findings_add(findings, WARNING, "file", "compare them yourself",
                     "%zu files have control characters in their names: they are not compared",
                     unsaid);
}

/* Facts for the other host.  An init of a pid namespace brings its pids with it: none is taken. */
static void add_tree(struct facts_builder *builder, const struct tree *tree, char *const *options,
                     struct findings *findings)
{
    if (!builder->failed)
        builder->facts->parts[0]->memory_bytes = tree->memory_bytes;
    builder->facts->direct = tree->direct;
    builder->facts->shared_bytes = tree->shared_bytes;
    for (size_t i = 0; i < tree->pid_count && !tree->other_pid_ns; i++)
        facts_add_pid(builder, tree->pids[i]);
    add_files(builder, tree, !has_option(options, "skip-file-rwx-check", 0), findings);
}

/* Writes to it may come from anywhere, by system calls too: criu reads it all for the last word. */
static void tell_shared_memory(const struct tree *tree, struct findings *findings)
{
    char size[24];
    format_bytes(tree->shared_bytes, size);
    if (tree->shared_bytes >= SHARED_BYTES_MANY)
        findings_add(findings, WARNING, "shared", "",
                     "%s of shared memory: all of it is read while the process stands still", size);
    else
        findings_add(findings, OK, "shared", "",
                     "%s of shared memory, which is read while the process stands still", size);
}

/* The pager gives each process pages of its own; criu has children inherit what is equal. */
static void tell_growth(const struct tree *tree, bool eager, struct findings *findings)
{
    char now[24], then[24];
    uint64_t together = tree->together_bytes, apart = tree->apart_bytes;
    if (eager || apart == 0)
        return;
    format_bytes(together, now);
    format_bytes(apart, then);
    if (apart > together + GROWTH_BYTES_MANY && apart > together + together / 10)
        findings_add(findings, WARNING, "memory", "pass --eager, which keeps them shared",
                     "its processes share pages since they were forked, and take %s of private "
                     "memory: there each gets its own, and they take up to %s",
                     now, then);
    else
        findings_add(findings, OK, "memory", "",
                     "its processes take %s of private memory, and there up to %s", now, then);
}

static int look_at_process(const struct preflight_request *request, struct findings *findings,
                           struct facts_builder *builder, struct error *err)
{
    struct tree tree;
    char command[17], size[24];
    const char *never = why_never(request->pid);
    task_command(request->pid, command, sizeof(command));
    if (never) {
        findings_add(findings, PROBLEM, "process", "name the root of a tree of ordinary processes",
                     "process %d, %s: %s: it cannot be migrated", request->pid, command, never);
        return 0;
    }
    if (tree_look(request->pid, &tree, err) < 0)
        return -1;
    findings_add(findings, OK, "process", "",
                 "process %d, %s: %zu process%s, %zu thread%s, %s of memory", request->pid, command,
                 tree.process_count, tree.process_count == 1 ? "" : "es", tree.pid_count,
                 tree.pid_count == 1 ? "" : "s", format_bytes(tree.memory_bytes, size));
    tell_shared_memory(&tree, findings);
    tell_growth(&tree, request->eager, findings);
    if (tree.direct)
        findings_add(
            findings, WARNING, "direct", "",
            "it has a file open with O_DIRECT, by which devices write into its memory, "
            "and the kernel does not tell: by --tracker auto its memory is compared instead");
    judge_namespaces(&tree, findings);
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
        apply_rule(&rules[i], &tree, request->options, findings);
    tell_what_is_unknown(&tree, findings);
    add_tree(builder, &tree, request->options, findings);
    tree_free(&tree);
    return 0;
}

int preflight_look(const struct preflight_request *request, struct findings *findings,
                   struct preflight_facts *ret_facts, struct error *err)
{
    struct preflight_facts facts;
    struct facts_builder builder;
    facts_begin(&builder, &facts);
    int r = builder.failed ? 0 : look_at_host(request, findings, &builder, err);
    if (r == 0 && !builder.failed && request->pid > 0)
        r = look_at_process(request, findings, &builder, err);
    if (r == 0 && builder.failed)
        r = error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "pre-flight");
    if (r == 0)
        *ret_facts = facts;
    else
        preflight_facts_free(&facts);
    return r;
}
