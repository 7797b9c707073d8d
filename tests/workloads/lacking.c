/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lacking FEATURE... PROGRAM [ARGUMENT...]: runs a program, and what that runs, as on a kernel that
 * lacks features, by a seccomp filter that makes their ioctls fail.
 *
 *   scan   PAGEMAP_SCAN, which came with Linux 6.7
 *   async  asynchronous write protection by userfaultfd, the same
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

static const struct feature {
    const char *name;
    uint32_t request;
    uint32_t error_number;
} features[] = {
    {"scan", 0xc0606610, ENOTTY},
    {"async", (uint32_t)UFFDIO_API, EINVAL},
};

static int lack(const struct feature *feature)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, feature->request, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | feature->error_number),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {ARRAY_SIZE(code), code};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static const struct feature *find_feature(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
        if (strcmp(features[i].name, name) == 0)
            return &features[i];
    }
    return NULL;
}

int main(int argc, char **argv)
{
    const struct feature *feature;
    int at = 1;
    for (; at < argc && (feature = find_feature(argv[at])); at++) {
        if (lack(feature) < 0) {
            perror("seccomp");
            return 1;
        }
    }
    if (at == argc)
        return 2;
    execv(argv[at], argv + at);
    perror(argv[at]);
    return 127;
}
