/* SPDX-License-Identifier: Apache-2.0 */
/* The destination: whether what the source told would run here. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/io.h"
#include "migrate/facts.h"
#include "pager/pager.h"

#define OK GODWIT__PB__FINDING__SEVERITY__OK
#define WARNING GODWIT__PB__FINDING__SEVERITY__WARNING
#define PROBLEM GODWIT__PB__FINDING__SEVERITY__PROBLEM

/* Findings of one kind that are told one by one; of the rest the number. */
enum { TOLD_MAX = 12 };

/* ---- criu and kernel ---- */

static void judge_criu(const char *theirs, const struct preflight_criu *criu,
                       struct findings *findings)
{
    const char *ours = criu->version;
    preflight_tell_criu(criu, findings);
    if (!ours[0] || !theirs[0])
        return; /* whoever has none has said so */
    if (criu_version_compare(theirs, "4.1") < 0)
        findings_add(findings, PROBLEM, "criu", "install criu 4.1 or newer on the source",
                     "criu of the source is %.40s, older than 4.1: its images cannot be restored",
                     theirs);
    else if (criu_version_compare(theirs, ours) > 0)
        findings_add(findings, WARNING, "criu", "install the same criu on both hosts",
                     "criu of the source is %.40s and this one %s: an older criu may not know what "
                     "a newer one has written",
                     theirs, ours);
    else
        findings_add(findings, OK, "criu", "", "criu %s restores what %.40s has written", ours,
                     theirs);
}

static void judge_kernel(const char *theirs, struct findings *findings)
{
    struct utsname name;
    unsigned there[2] = {0}, here[2] = {0};
    uname(&name);
    sscanf(theirs, "%4u.%4u", &there[0], &there[1]);
    sscanf(name.release, "%4u.%4u", &here[0], &here[1]);
    size_t i = there[0] == here[0];
    if (here[i] < there[i])
        findings_add(findings, WARNING, "kernel", "",
                     "Linux %s is older than %.64s of the source: what the process uses of that "
                     "may not be here",
                     name.release, theirs);
    else
        findings_add(findings, OK, "kernel", "", "Linux %s is not older than %.64s of the source",
                     name.release, theirs);
}

/* ---- processor ---- */

static bool has_flag(const struct preflight_host *host, const char *name)
{
    char wanted[64];
    int n = snprintf(wanted, sizeof(wanted), " %s ", name);
    return n > 0 && (size_t)n < sizeof(wanted) && strstr(host->cpu_flags, wanted);
}

static void judge_cpu(const Godwit__Pb__Facts *part, const struct preflight_host *host,
                      struct findings *findings)
{
    char missing[320] = "";
    size_t count = 0, used = 0;
    if (!host->cpu_flags[0]) {
        findings_add(findings, WARNING, "cpu", "",
                     "/proc/cpuinfo does not tell what the processor can do: not compared");
        return;
    }
    for (size_t i = 0; i < part->n_cpu; i++) {
        if (has_flag(host, part->cpu[i]))
            continue;
        count++;
        if (used < sizeof(missing))
            used +=
                (size_t)snprintf(missing + used, sizeof(missing) - used, " %.32s", part->cpu[i]);
    }
    if (count > 0)
        findings_add(findings, PROBLEM, "cpu",
                     "restore on a host with such a processor, or start the process where it does "
                     "not see them",
                     "this processor lacks %zu abilities of the source's, which the process may be "
                     "using and then die:%s",
                     count, missing);
    else
        findings_add(findings, OK, "cpu", "", "this processor can do all that the source's can");
}

/* ---- pids ---- */

static void tell_pid(uint32_t pid, uint64_t max, const char *command, struct findings *findings)
{
    if (pid == 0 || pid >= max) {
        findings_add(findings, PROBLEM, "pid", "raise kernel.pid_max to that of the source",
                     "pid %u cannot be on this host, whose pids end below %llu: restore would fail",
                     pid, (unsigned long long)max);
        return;
    }
    findings_add(findings, PROBLEM, "pid",
                 "end that process, or keep godwit image-cache in a pid namespace of its own",
                 "pid %u is taken here, by %s: restore would fail", pid, command);
}

static void judge_pids(const Godwit__Pb__Facts *part, const struct preflight_host *host,
                       const struct preflight_eyes *eyes, struct findings *findings)
{
    uint64_t max = host->pid_max;
    char command[17];
    size_t bad = 0;
    for (size_t i = 0; i < part->n_pids; i++) {
        uint32_t pid = part->pids[i];
        *command = '\0';
        if (pid > 0 && pid < max && !eyes->pid(eyes->user, pid, command))
            continue;
        if (bad++ < TOLD_MAX)
            tell_pid(pid, max, command, findings);
    }
    if (bad > TOLD_MAX)
        findings_add(findings, PROBLEM, "pid", "", "%zu more pids cannot be had here",
                     bad - TOLD_MAX);
    if (bad == 0)
        findings_add(findings, OK, "pid", "", "%zu pids are free here", part->n_pids);
}

/* ---- memory ---- */

static void judge_memory(uint64_t needed, uint64_t free_bytes, uint64_t available,
                         struct findings *findings)
{
    char need[24], have[24];
    format_bytes(needed, need);
    if (needed > free_bytes)
        findings_add(
            findings, PROBLEM, "memory",
            "restore or forget other snapshots, or raise --memory-limit of the image-cache",
            "the snapshot takes %s and the image-cache has room for %s: it would be refused", need,
            format_bytes(free_bytes, have));
    if (needed > available)
        findings_add(findings, PROBLEM, "memory", "free memory on this host, or add some",
                     "the snapshot takes %s and this host has %s available: it would be refused",
                     need, format_bytes(available, have));
    else if (needed > available / 2)
        findings_add(findings, WARNING, "memory", "free memory on this host, or add some",
                     "restoring %s takes up to twice that for a moment, and this host has %s "
                     "available: restore may run out of memory",
                     need, format_bytes(available, have));
    else if (needed <= free_bytes)
        findings_add(findings, OK, "memory", "", "there is room for %s", need);
}

/* ---- files ---- */

struct verdict {
    Godwit__Pb__Finding__Severity severity;
    const char *remedy;
    char text[160];
};

static const char copy_it[] = "copy it from the source, or keep it on storage that both share";

static void _printf_(4, 5) decide(struct verdict *ret, Godwit__Pb__Finding__Severity severity,
                                  const char *remedy, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    vsnprintf(ret->text, sizeof(ret->text), format, ap);
    va_end(ap);
    ret->severity = severity;
    ret->remedy = remedy;
}

static bool has_other_build_id(const struct preflight_file *ours, const ProtobufCBinaryData *theirs)
{
    return theirs->len > 0 &&
           (ours->id_length != theirs->len || memcmp(ours->id, theirs->data, theirs->len) != 0);
}

/* A directory's size means nothing, and criu does not compare it. */
static bool has_other_size(const Godwit__Pb__FileFact *fact, const struct preflight_file *ours)
{
    return !S_ISDIR(ours->mode) && !fact->any_size && fact->size != ours->size;
}

/* What criu restore compares; each failure there is one after the source has been ended. */
static void compare(const Godwit__Pb__FileFact *fact, const struct preflight_file *ours,
                    struct verdict *ret)
{
    unsigned long long here = ours->size, there = fact->size;
    if (S_ISDIR(ours->mode) != (fact->kind == GODWIT__PB__FILE_FACT__KIND__DIRECTORY))
        decide(ret, PROBLEM, copy_it, "is %s directory here: restore would fail",
               S_ISDIR(ours->mode) ? "a" : "no");
    else if (fact->kind == GODWIT__PB__FILE_FACT__KIND__PROGRAM &&
             has_other_build_id(ours, &fact->build_id))
        decide(ret, PROBLEM, "install the same build on both hosts",
               "is another build than on the source: the process would break");
    else if (has_other_size(fact, ours) && fact->written && here > there)
        /* On storage that both share the process itself has written more since it was looked at. */
        decide(ret, WARNING, "if the hosts do not share this file, copy it",
               "has %llu bytes here, %llu on the source a moment ago", here, there);
    else if (has_other_size(fact, ours))
        decide(ret, PROBLEM, copy_it, "has %llu bytes here, %llu on the source: restore would fail",
               here, there);
    else if (fact->mode && fact->mode != ours->mode)
        decide(ret, PROBLEM, "chmod it, or pass --skip-file-rwx-check",
               "has mode 0%o here, 0%o on the source: restore would fail", ours->mode, fact->mode);
}

static void judge_file(const Godwit__Pb__FileFact *fact, const struct preflight_eyes *eyes,
                       struct verdict *ret)
{
    struct preflight_file ours;
    eyes->file(eyes->user, fact->path, fact->build_id.len > 0, &ours);
    ret->severity = OK;
    if (ours.error == 0)
        compare(fact, &ours, ret);
    else if (ours.error == ENOENT || ours.error == ENOTDIR)
        decide(ret, PROBLEM, copy_it, "is not here: restore would fail");
    else if (ours.error == EBADF)
        decide(ret, PROBLEM, copy_it, "is no file or directory here: restore would fail");
    else if (ours.error == EINVAL)
        decide(ret, PROBLEM, "", "is no absolute path");
    else
        decide(ret, PROBLEM, "make it readable", "cannot be looked at (%s): restore may fail",
               strerror(ours.error));
}

static void judge_files(const Godwit__Pb__Facts *part, const struct preflight_eyes *eyes,
                        struct findings *findings)
{
    struct verdict verdict;
    Godwit__Pb__Finding__Severity worst = OK;
    size_t bad = 0;
    for (size_t i = 0; i < part->n_files; i++) {
        judge_file(part->files[i], eyes, &verdict);
        worst = MAX(worst, verdict.severity);
        if (verdict.severity != OK && bad++ < TOLD_MAX)
            findings_add(findings, verdict.severity, "file", verdict.remedy, "%.500s %s",
                         part->files[i]->path, verdict.text);
    }
    if (bad > TOLD_MAX)
        findings_add(findings, worst, "file", copy_it, "%zu more files differ or are not here",
                     bad - TOLD_MAX);
    if (bad == 0)
        findings_add(findings, OK, "file", "", "%zu files and directories are the same here",
                     part->n_files);
}

static void judge_pager(struct findings *findings)
{
    if (pager_is_possible())
        findings_add(findings, OK, "kernel", "",
                     "a process can run here before its memory is there");
    else
        findings_add(findings, WARNING, "kernel", "a kernel with CONFIG_USERFAULTFD",
                     "memory cannot be filled in later: a process runs here only when all of it "
                     "is there");
}

void preflight_judge(const Godwit__Pb__Facts *part, const struct preflight_criu *criu,
                     uint64_t free_bytes, const struct preflight_eyes *eyes,
                     struct findings *findings)
{
    struct preflight_host host;
    if (part->n_cpu > 0 || part->n_pids > 0 || part->memory_bytes > 0)
        eyes->host(eyes->user, &host);
    if (part->kernel[0]) { /* the first part: it has what is true of the whole host */
        judge_criu(part->criu, criu, findings);
        judge_kernel(part->kernel, findings);
        preflight_check_pages(findings);
        judge_pager(findings);
    }
    if (part->n_cpu > 0)
        judge_cpu(part, &host, findings);
    if (part->n_pids > 0)
        judge_pids(part, &host, eyes, findings);
    if (part->memory_bytes > 0)
        judge_memory(part->memory_bytes, free_bytes, host.available_bytes, findings);
    if (part->n_files > 0)
        judge_files(part, eyes, findings);
}
