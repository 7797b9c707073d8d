/* SPDX-License-Identifier: Apache-2.0 */
#include "migrate/facts.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- findings ---- */

/* What is told may come from a file's name or from a peer, and goes to terminals and peers. */
static char *plain_copy(const char *text)
{
    char *copy = strdup(text);
    for (char *c = copy; c && *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
    return copy;
}

static Godwit__Pb__Finding *finding_make(Godwit__Pb__Finding__Severity severity, const char *topic,
                                         const char *remedy, const char *text)
{
    char host[65] = "";
    Godwit__Pb__Finding *finding = malloc(sizeof(*finding));
    if (!finding)
        return NULL;
    gethostname(host, sizeof(host) - 1);
    godwit__pb__finding__init(finding);
    finding->severity = severity;
    finding->topic = plain_copy(topic);
    finding->host = plain_copy(host);
    finding->text = plain_copy(text);
    finding->remedy = plain_copy(remedy);
    if (finding->topic && finding->host && finding->text && finding->remedy)
        return finding;
    godwit__pb__finding__free_unpacked(finding, NULL);
    return NULL;
}

void findings_add(struct findings *findings, Godwit__Pb__Finding__Severity severity,
                  const char *topic, const char *remedy, const char *format, ...)
{
    char text[800];
    va_list ap;
    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    Godwit__Pb__Finding *finding = finding_make(severity, topic, remedy, text);
    Godwit__Pb__Finding **list =
        realloc(findings->list, (findings->count + 1) * sizeof(*findings->list));
    if (list)
        findings->list = list;
    if (finding && list)
        findings->list[findings->count++] = finding;
    else if (finding)
        godwit__pb__finding__free_unpacked(finding, NULL);
}

void findings_free(struct findings *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        godwit__pb__finding__free_unpacked(findings->list[i], NULL);
    free(findings->list);
    *findings = (struct findings){0};
}

/* ---- parts ---- */

enum { FIELD_BYTES = 12 /* more than the tag, the length or the number of any field */ };

static Godwit__Pb__Facts *last_part(struct facts_builder *builder)
{
    return builder->facts->parts[builder->facts->count - 1];
}

static void add_part(struct facts_builder *builder)
{
    struct preflight_facts *facts = builder->facts;
    Godwit__Pb__Facts *part = malloc(sizeof(*part));
    Godwit__Pb__Facts **parts = realloc(facts->parts, (facts->count + 1) * sizeof(*parts));
    if (parts)
        facts->parts = parts;
    if (!part || !parts) {
        free(part);
        builder->failed = true;
        return;
    }
    godwit__pb__facts__init(part);
    facts->parts[facts->count++] = part;
    builder->bytes = 0;
}

/* The part to which that many bytes can be added; NULL when memory has run out. */
static Godwit__Pb__Facts *part_with_room(struct facts_builder *builder, size_t bytes)
{
    if (!builder->failed && builder->bytes + bytes > PREFLIGHT_PART_BYTES)
        add_part(builder);
    builder->bytes += bytes;
    return builder->failed ? NULL : last_part(builder);
}

/* Makes a list longer by one item, which is at its end then; false when memory has run out. */
static bool grow(struct facts_builder *builder, void **list, size_t count, size_t size)
{
    /* Doubled when it is full, which is when the count is a power of two. */
    bool full = (count & (count - 1)) == 0;
    void *larger = full ? realloc(*list, MAX(2 * count, 1) * size) : *list;
    if (larger)
        *list = larger;
    else
        builder->failed = true;
    return larger;
}

void facts_begin(struct facts_builder *builder, struct preflight_facts *facts)
{
    *facts = (struct preflight_facts){0};
    *builder = (struct facts_builder){.facts = facts};
    add_part(builder);
    builder->bytes = 4 * FIELD_BYTES;
}

void facts_set(struct facts_builder *builder, char **field, const char *text)
{
    char *copy = strdup(text);
    if (copy)
        *field = copy;
    else
        builder->failed = true;
    builder->bytes += FIELD_BYTES + strlen(text);
}

static void add_string(struct facts_builder *builder, char ***list, size_t *count, const char *text)
{
    char *copy = strdup(text);
    if (copy && grow(builder, (void **)list, *count, sizeof(**list)))
        (*list)[(*count)++] = copy;
    else
        free(copy);
    builder->failed = builder->failed || !copy;
}

void facts_add_cpu(struct facts_builder *builder, const char *flag)
{
    Godwit__Pb__Facts *part = part_with_room(builder, FIELD_BYTES + strlen(flag));
    if (part)
        add_string(builder, &part->cpu, &part->n_cpu, flag);
}

void facts_add_option(struct facts_builder *builder, const char *option)
{
    Godwit__Pb__Facts *part = part_with_room(builder, FIELD_BYTES + strlen(option));
    if (part)
        add_string(builder, &part->options, &part->n_options, option);
}

void facts_add_pid(struct facts_builder *builder, uint32_t pid)
{
    Godwit__Pb__Facts *part = part_with_room(builder, FIELD_BYTES);
    if (part && grow(builder, (void **)&part->pids, part->n_pids, sizeof(*part->pids)))
        part->pids[part->n_pids++] = pid;
}

static Godwit__Pb__FileFact *copy_file(const Godwit__Pb__FileFact *file)
{
    Godwit__Pb__FileFact *copy = malloc(sizeof(*copy));
    if (!copy)
        return NULL;
    *copy = *file;
    copy->path = strdup(file->path);
    copy->build_id.data = file->build_id.len > 0 ? malloc(file->build_id.len) : NULL;
    if (!copy->path || (file->build_id.len > 0 && !copy->build_id.data)) {
        godwit__pb__file_fact__free_unpacked(copy, NULL);
        return NULL;
    }
    if (copy->build_id.data)
        memcpy(copy->build_id.data, file->build_id.data, file->build_id.len);
    return copy;
}

void facts_add_file(struct facts_builder *builder, const Godwit__Pb__FileFact *file)
{
    enum { FIELDS = 8 };
    Godwit__Pb__Facts *part =
        part_with_room(builder, FIELDS * FIELD_BYTES + strlen(file->path) + file->build_id.len);
    Godwit__Pb__FileFact *copy = part ? copy_file(file) : NULL;
    if (copy && grow(builder, (void **)&part->files, part->n_files, sizeof(*part->files))) {
        part->files[part->n_files++] = copy;
        return;
    }
    if (copy)
        godwit__pb__file_fact__free_unpacked(copy, NULL);
    builder->failed = true;
}

void preflight_facts_free(struct preflight_facts *facts)
{
    for (size_t i = 0; i < facts->count; i++)
        godwit__pb__facts__free_unpacked(facts->parts[i], NULL);
    free(facts->parts);
    *facts = (struct preflight_facts){0};
}

bool preflight_is_plain(const char *text)
{
    for (; *text; text++) {
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return false;
    }
    return true;
}

/* ---- this host ---- */

void preflight_try_criu(const char *criu, const struct error *no_criu, struct preflight_criu *ret)
{
    *ret = (struct preflight_criu){.found = criu != NULL};
    if (!criu)
        ret->failure = *no_criu;
    else if (criu_version(criu, ret->version, &ret->failure) == 0 &&
             criu_check_kernel(criu, &ret->failure) == 0)
        ret->works = true;
}

void preflight_tell_criu(const struct preflight_criu *criu, struct findings *findings)
{
    static const char install[] =
        "install criu 4.1 or newer, or name one with --criu or GODWIT_CRIU";
    if (!criu->found || !criu->version[0])
        findings_add(findings, GODWIT__PB__FINDING__SEVERITY__PROBLEM, "criu", install, "%s",
                     criu->failure.text);
    else if (!criu->works && criu->failure.code == FAILURE_SYSTEM)
        findings_add(findings, GODWIT__PB__FINDING__SEVERITY__PROBLEM, "criu", "try again",
                     "whether criu works on this kernel is not known: %s", criu->failure.text);
    else if (!criu->works)
        findings_add(findings, GODWIT__PB__FINDING__SEVERITY__PROBLEM, "criu",
                     "run it as root, on a kernel with CONFIG_CHECKPOINT_RESTORE",
                     "criu does not work on this kernel: %s", criu->failure.text);
    else
        findings_add(findings, GODWIT__PB__FINDING__SEVERITY__OK, "criu", "",
                     "criu %s works on this kernel", criu->version);
}

void preflight_check_pages(struct findings *findings)
{
    long bytes = sysconf(_SC_PAGESIZE);
    if (bytes != PAGE_BYTES)
        findings_add(findings, GODWIT__PB__FINDING__SEVERITY__PROBLEM, "memory", "",
                     "pages of this kernel have %ld bytes, not %u: godwit cannot carry them", bytes,
                     PAGE_BYTES);
}

/*
 * The kernel lists many things that no program sees, and which differ between kernels on one
 * processor.  Of those of x86 these are what programs choose their code by; "*": all that begin so.
 */
static const char *const cpu_flags[] = {
    "fpu",         "cx8",     "cmov",       "mmx",       "mmxext",   "fxsr",      "sse*",
    "syscall",     "lm",      "rdtscp",     "3dnow*",    "pni",      "pclmulqdq", "ssse3",
    "fma*",        "cx16",    "movbe",      "popcnt",    "aes",      "xsave",     "xsaveopt",
    "xsavec",      "xgetbv1", "avx*",       "f16c",      "rdrand",   "lahf_lm",   "abm",
    "misalignsse", "xop",     "tbm",        "bmi*",      "fsgsbase", "erms",      "fsrm",
    "hle",         "rtm",     "mpx",        "rdseed",    "adx",      "clflush*",  "clwb",
    "clzero",      "sha_ni",  "sha512",     "sm3",       "sm4",      "gfni",      "vaes",
    "vpclmulqdq",  "rdpid",   "pku",        "ospke",     "waitpkg",  "cldemote",  "movdir*",
    "serialize",   "amx*",    "user_shstk", "cmpccxadd", "apx*",
};

static bool is_for_programs(const char *flag)
{
#if defined(__x86_64__)
    for (size_t i = 0; i < ARRAY_SIZE(cpu_flags); i++) {
        size_t length = strcspn(cpu_flags[i], "*");
        if (strncmp(flag, cpu_flags[i], length) == 0 &&
            (cpu_flags[i][length] == '*' || flag[length] == '\0'))
            return true;
    }
    return false;
#else
    (void)cpu_flags; /* elsewhere the kernel lists only what programs may use */
    return true;
#endif
}

bool preflight_each_cpu_flag(void (*flag)(void *user, const char *name), void *user)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char *line = NULL, *save = NULL;
    size_t size = 0;
    bool found = false;
    /* Those of the first processor: all have the same, or the kernel hides the difference. */
    while (file && !found && getline(&line, &size, file) > 0)
        found = strncmp(line, "flags\t", 6) == 0 || strncmp(line, "Features\t", 9) == 0;
    char *words = found ? strchr(line, ':') : NULL;
    for (char *word = words ? strtok_r(words + 1, " \n", &save) : NULL; word;
         word = strtok_r(NULL, " \n", &save)) {
        if (is_for_programs(word))
            flag(user, word);
    }
    free(line);
    if (file)
        fclose(file);
    return found;
}
