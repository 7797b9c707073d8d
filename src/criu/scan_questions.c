/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/scan_questions.h"

#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/pagemap_scan.h"
#include "base/passing.h"

enum {
    SCAN_CHECK_TRACKED = 1 << 1, /* PM_SCAN_CHECK_WPASYNC */
    IS_WRITTEN = 1 << 1,
    IS_SWAPPED = 1 << 4,
    REGIONS_MAX = 64 << 10, /* criu asks for some thousand at once */
    ENTRY_BYTES = 8,        /* of a pagemap */
    READ_MAX = 1 << 30,
};

/* ---- in criu's process ---- */

static int send_descriptor(int socket, int fd)
{
    struct iovec byte = {"", 1};
    ssize_t n = send_passing(socket, &byte, 1, &fd, 1);
    return n < 0 ? (int)n : 0;
}

static int add_rules(scmp_filter_ctx filter, bool hides)
{
    /* criu may be under a loader that has set it; godwit does not. */
    int r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_NNP, 0);
    if (r == 0)
        r = seccomp_rule_add(filter, SCMP_ACT_NOTIFY, SCMP_SYS(ioctl), 1,
                             SCMP_A1(SCMP_CMP_MASKED_EQ, UINT32_MAX, SCAN));
    /* A single entry is left alone, see scan_filter.c. */
    if (r == 0 && hides)
        r = seccomp_rule_add(filter, SCMP_ACT_NOTIFY, SCMP_SYS(pread64), 1,
                             SCMP_CMP(2, SCMP_CMP_GT, ENTRY_BYTES, 0));
    return r;
}

int scan_questions_offer(int socket, bool hides)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (!filter)
        return -ENOMEM;
    int r = add_rules(filter, hides);
    if (r == 0)
        r = seccomp_load(filter);
    if (r == 0)
        r = send_descriptor(socket, seccomp_notify_fd(filter));
    seccomp_release(filter);
    return r;
}

/* ---- in godwit ---- */

int scan_questions_take(int socket)
{
    char byte;
    struct iovec iov = {&byte, 1};
    struct passed passed;
    ssize_t n = receive_passed(socket, 0, &iov, 1, &passed);
    if (n < 0)
        return (int)n;
    int fd = passed_take_first(&passed);
    return fd < 0 ? -ENODATA : fd;
}

/* The number of the task in "/proc/12/pagemap", or 0. */
static unsigned task_of(pid_t criu, int fd)
{
    char path[64], target[64];
    unsigned pid = 0;
    int end = 0;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", criu, fd);
    ssize_t n = readlink(path, target, sizeof(target) - 1);
    if (n < 0)
        return 0;
    target[n] = '\0';
    const char *number = strstr(target, "/proc/");
    return number && sscanf(number, "/proc/%u/pagemap%n", &pid, &end) == 1 && end > 0 ? pid : 0;
}

static bool is_listed(const char *list, unsigned pid)
{
    while (pid > 0 && list && *list) {
        char *end;
        if (strtoul(list, &end, 10) == pid)
            return true;
        list = *end ? end + 1 : end;
    }
    return false;
}

static int copy_in(pid_t criu, uint64_t from, void *to, size_t length)
{
    struct iovec here = {to, length}, there = {(void *)(uintptr_t)from, length}; // NOLINT
    ssize_t n = process_vm_readv(criu, &here, 1, &there, 1, 0);
    return n == (ssize_t)length ? 0 : -EFAULT;
}

static int copy_out(pid_t criu, uint64_t to, const void *from, size_t length)
{
    struct iovec here = {(void *)from, length}, there = {(void *)(uintptr_t)to, length}; // NOLINT
    ssize_t n = process_vm_writev(criu, &here, 1, &there, 1, 0);
    return n == (ssize_t)length ? 0 : -EFAULT;
}

/* As the kernel would have answered if it had been asked for what was written alone. */
static int scan_written(pid_t criu, int fd, struct pagemap_scan *ask)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", criu, fd);
    _cleanup_close_ int pagemap = open(path, O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return -errno;
    uint64_t count = MIN(ask->vec_len, (uint64_t)REGIONS_MAX);
    _cleanup_free_ struct page_region *regions = calloc(count, sizeof(*regions));
    if (!regions)
        return -ENOMEM;
    struct pagemap_scan narrow = *ask;
    narrow.flags = SCAN_CHECK_TRACKED;
    narrow.mask |= IS_WRITTEN;
    narrow.vec = (uintptr_t)regions;
    narrow.vec_len = count;
    int n = ioctl(pagemap, SCAN, &narrow);
    if (n < 0)
        return -errno;
    ask->walk_end = narrow.walk_end;
    return copy_out(criu, ask->vec, regions, (size_t)n * sizeof(*regions)) < 0 ? -EFAULT : n;
}

/* What the call returns; a negative errno: the kernel is to do it. */
static int answer_scan(pid_t criu, const struct seccomp_data *call, const char *hidden)
{
    struct pagemap_scan ask = {0};
    int fd = (int)call->args[0], n = 0;
    if (copy_in(criu, call->args[2], &ask, sizeof(ask)) < 0 || ask.size != sizeof(ask) ||
        ask.flags != 0 || !(ask.anyof_mask & IS_SWAPPED))
        return -ENOTSUP; /* it looks for something else */
    if (is_listed(hidden, task_of(criu, fd)))
        ask.walk_end = ask.end;
    else
        n = scan_written(criu, fd, &ask);
    return n >= 0 && copy_out(criu, call->args[2], &ask, sizeof(ask)) == 0 ? n : -ENOTSUP;
}

/* The same, of reading a pagemap: entries that are empty. */
static int answer_read(pid_t criu, const struct seccomp_data *call, const char *hidden)
{
    static const char nothing[64 << 10];
    uint64_t length = MIN(call->args[2], (uint64_t)READ_MAX);
    if (!is_listed(hidden, task_of(criu, (int)call->args[0])))
        return -ENOTSUP;
    for (uint64_t done = 0, n; done < length; done += n) {
        n = MIN(length - done, sizeof(nothing));
        if (copy_out(criu, call->args[1] + done, nothing, n) < 0)
            return -ENOTSUP;
    }
    return (int)length;
}

static int answer(int questions, const struct seccomp_notif *question,
                  struct seccomp_notif_resp *reply, const char *hidden)
{
    pid_t criu = (pid_t)question->pid;
    int n = question->data.nr == SCMP_SYS(pread64) ? answer_read(criu, &question->data, hidden)
                                                   : answer_scan(criu, &question->data, hidden);
    *reply = (struct seccomp_notif_resp){.id = question->id};
    if (n >= 0)
        reply->val = n;
    else
        reply->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    int r = seccomp_notify_respond(questions, reply);
    return r == 0 ? n >= 0 : 0; /* it may have been killed meanwhile */
}

int scan_questions_answer(int questions, const char *hidden)
{
    struct seccomp_notif *question;
    struct seccomp_notif_resp *reply;
    if (seccomp_notify_alloc(&question, &reply) < 0)
        return -ENOMEM;
    int r = seccomp_notify_receive(questions, question);
    if (r == 0)
        r = answer(questions, question, reply, hidden);
    else
        r = errno == ENOENT || errno == EINTR ? 0 : -EPIPE;
    seccomp_notify_free(question, reply);
    return r;
}
