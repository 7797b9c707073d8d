/* SPDX-License-Identifier: Apache-2.0 */
/* What pre-flight sees of the host that it runs on. */
#include <stdio.h>
#include <string.h>

#include "migrate/facts.h"
#include "task/file.h"
#include "task/task.h"

static void add_flag(void *user, const char *name)
{
    struct preflight_host *host = user;
    size_t used = strlen(host->cpu_flags), left = sizeof(host->cpu_flags) - used;
    int n = snprintf(host->cpu_flags + used, left, used ? "%s " : " %s ", name);
    if (n < 0 || (size_t)n >= left)
        host->cpu_flags[used] = '\0';
}

static uint64_t pid_max(void)
{
    unsigned long long max = UINT32_MAX;
    FILE *file = fopen("/proc/sys/kernel/pid_max", "re");
    if (file && fscanf(file, "%llu", &max) != 1)
        max = UINT32_MAX;
    if (file)
        fclose(file);
    return max;
}

static uint64_t memory_available(void)
{
    char line[128];
    unsigned long long kib;
    uint64_t bytes = UINT64_MAX;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && bytes == UINT64_MAX && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
            bytes = KIB(kib);
    }
    if (file)
        fclose(file);
    return bytes;
}

void preflight_see_host(void *user, struct preflight_host *ret)
{
    (void)user;
    *ret = (struct preflight_host){
        .pid_max = pid_max(),
        .available_bytes = memory_available(),
    };
    preflight_each_cpu_flag(add_flag, ret);
}

void preflight_see_file(void *user, const char *path, bool program, struct preflight_file *ret)
{
    (void)user;
    struct stat st;
    *ret = (struct preflight_file){0};
    _cleanup_close_ int fd = file_open(path, &st);
    if (fd < 0) {
        ret->error = -fd;
        return;
    }
    ret->mode = st.st_mode;
    ret->size = (uint64_t)st.st_size;
    if (program)
        ret->id_length = (uint32_t)file_build_id(fd, ret->id);
}

bool preflight_see_pid(void *user, uint32_t pid, char ret_command[17])
{
    (void)user;
    char path[32];
    snprintf(path, sizeof(path), "/proc/%u", pid);
    if (access(path, F_OK) != 0)
        return false;
    task_command((pid_t)pid, ret_command, 17);
    return true;
}

const struct preflight_eyes preflight_own_eyes = {
    .host = preflight_see_host,
    .file = preflight_see_file,
    .pid = preflight_see_pid,
};
