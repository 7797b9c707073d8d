/* SPDX-License-Identifier: Apache-2.0 */
#include "pager/pager.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/io.h"
#include "criu/lazy.h"
#include "pager/state.h"

enum { PATIENCE_MSEC = 5000 };

/* ---- the state file ---- */

/* Whether a pager lives that has locked it: fd is one of our own. */
static bool is_locked(int fd)
{
    bool locked = flock(fd, LOCK_SH | LOCK_NB) < 0;
    if (!locked)
        flock(fd, LOCK_UN);
    return locked;
}

static struct pager_state *state_map(int fd)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return NULL;
    if (st.st_size != sizeof(struct pager_state)) {
        errno = EPROTO;
        return NULL;
    }
    void *state = mmap(NULL, sizeof(struct pager_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return state == MAP_FAILED ? NULL : state;
}

/* The state of a pager that was started: mapped, and *ret_fd to be closed; or NULL with errno. */
static struct pager_state *state_open(int dirfd, int *ret_fd)
{
    _cleanup_close_ int fd = openat(dirfd, PAGER_STATE_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return NULL;
    struct pager_state *state = state_map(fd);
    if (!state)
        return NULL;
    if (memcmp(state->magic, PAGER_STATE_MAGIC, sizeof(state->magic)) != 0) {
        munmap(state, sizeof(*state));
        errno = EPROTO;
        return NULL;
    }
    *ret_fd = TAKE_FD(fd);
    return state;
}

static void state_close(struct pager_state *state)
{
    munmap(state, sizeof(*state));
}

/* A new state file: its descriptor, or a negative errno. */
static int state_create(int dirfd, struct pager_state **ret)
{
    _cleanup_close_ int old = openat(dirfd, PAGER_STATE_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (old >= 0 && is_locked(old))
        return -EBUSY;
    if (unlinkat(dirfd, PAGER_STATE_NAME, 0) < 0 && errno != ENOENT)
        return -errno;
    _cleanup_close_ int fd =
        openat(dirfd, PAGER_STATE_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    if (fallocate(fd, 0, 0, sizeof(struct pager_state)) < 0)
        return -errno;
    *ret = state_map(fd);
    if (!*ret)
        return -errno;
    memcpy((*ret)->magic, PAGER_STATE_MAGIC, sizeof((*ret)->magic));
    return TAKE_FD(fd);
}

/* ---- starting ---- */

struct start {
    struct pager_state *state;
    int state_fd, listener, imagefd, workdir, ready;
};

/* Closes what is not ours. */
static void keep_only(struct start *start)
{
    int *ours[] = {&start->state_fd, &start->listener, &start->imagefd, &start->workdir,
                   &start->ready};
    int keep[STDERR_FILENO + 1 + ARRAY_SIZE(ours)] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
    for (size_t i = 0; i < ARRAY_SIZE(ours); i++) {
        if (*ours[i] <= STDERR_FILENO) /* a caller without standard descriptors */
            *ours[i] = fcntl(*ours[i], F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        keep[STDERR_FILENO + 1 + i] = *ours[i];
    }
    close_all_but(keep, ARRAY_SIZE(keep));
}

/* What the caller has mapped of files: a deleted one would take its memory as long as we live. */
static void unmap_foreign(const struct pager_state *state)
{
    char line[PATH_MAX + 128], shared;
    unsigned long start, end;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx %*c%*c%*c%c", &start, &end, &shared) == 3 && shared == 's' &&
            start != (uintptr_t)state)
            munmap((void *)start, end - start);
    }
    if (maps)
        fclose(maps);
}

/* In a child of the caller's. */
static _Noreturn void be_started(struct start *start, int dirfd)
{
    setsid();
    pid_t pid = fork();
    if (pid != 0)
        _exit(pid < 0);
    /* Opened anew: the lock must not be the caller's too. */
    start->state_fd = openat(dirfd, PAGER_STATE_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    while (flock(start->state_fd, LOCK_EX) < 0) {
        if (errno != EINTR)
            _exit(1);
    }
    keep_only(start);
    unmap_foreign(start->state);
    pager_run(start->state, start->state_fd, start->listener, start->imagefd, start->workdir,
              start->ready);
}

/* Waits for the word that it is there. */
static int wait_ready(int fd, struct error *err)
{
    struct error told;
    size_t used = 0;
    ssize_t n;
    while (used < sizeof(told) && ((n = read(fd, (char *)&told + used, sizeof(told) - used)) > 0 ||
                                   (n < 0 && errno == EINTR)))
        used += n > 0 ? (size_t)n : 0;
    if (used == 1)
        return 0;
    if (used < sizeof(told))
        return error_set(err, FAILURE_SYSTEM, "the pager ended when it was started");
    if (err)
        *err = told;
    return -1;
}

static int start_process(struct start *start, int dirfd, struct error *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "pipe");
    start->ready = fds[1];
    pid_t pid = fork();
    if (pid == 0)
        be_started(start, dirfd);
    int error = errno;
    close_fd(fds[1]);
    _cleanup_close_ int ready = fds[0];
    if (pid < 0)
        return error_set_errno(err, FAILURE_SYSTEM, error, "fork");
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return wait_ready(ready, err);
}

/* ---- whether it can work here ---- */

/* What a userfaultfd's message of a move tells, see backlog.h. */
enum kernel {
    KERNEL_REFUSES, /* no such userfaultfd, or it has not been tried */
    KERNEL_TELLS_MOVED,
    KERNEL_TELLS_ASKED, /* before Linux 6.17 */
};

/* In a child, and a thread of it: the move waits until its message is read. */
static void *shrink_and_move(void *user)
{
    char *pages = user;
    mremap(pages, 2 * PAGE_BYTES, PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
           pages + 3 * PAGE_BYTES);
    return NULL;
}

/* In a child. */
static enum kernel moves_of_kernel(int uffd)
{
    char *pages =
        mmap(NULL, 4 * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register area = {
        .range = {.start = (uintptr_t)pages, .len = 2 * PAGE_BYTES},
        .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    struct pollfd poll_fd = {.fd = uffd, .events = POLLIN};
    struct uffd_msg message;
    pthread_t thread;
    if (pages == MAP_FAILED || ioctl(uffd, UFFDIO_REGISTER, &area) < 0 ||
        pthread_create(&thread, NULL, shrink_and_move, pages) != 0)
        return KERNEL_REFUSES;
    while (poll(&poll_fd, 1, PATIENCE_MSEC) == 1 &&
           read(uffd, &message, sizeof(message)) == sizeof(message)) {
        if (message.event == UFFD_EVENT_REMAP)
            return message.arg.remap.len == PAGE_BYTES ? KERNEL_TELLS_MOVED : KERNEL_TELLS_ASKED;
    }
    return KERNEL_REFUSES;
}

static enum kernel try_kernel(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        /* CRIU criu/uffd.c, NEED_UFFD_API_FEATURES. */
        struct uffdio_api api = {.api = UFFD_API,
                                 .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                             UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE};
        int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
        _exit(fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 ? KERNEL_REFUSES : moves_of_kernel(fd));
    }
    int status = -1;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? (enum kernel)WEXITSTATUS(status) : KERNEL_REFUSES;
}

/* Once in a process: the kernel stays. */
static enum kernel know_kernel(void)
{
    static enum kernel kernel;
    static bool tried;
    if (!tried)
        kernel = try_kernel();
    tried = true;
    return kernel;
}

bool pager_is_possible(void)
{
    return know_kernel() != KERNEL_REFUSES;
}

/* ---- starting it ---- */

int pager_start(int dirfd, int imagefd, const char *workdir, struct error *err)
{
    struct start start = {.imagefd = imagefd};
    _cleanup_close_ int workdir_fd = open(workdir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (workdir_fd < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "%s", workdir);
    _cleanup_close_ int state_fd = state_create(dirfd, &start.state);
    if (state_fd == -EBUSY)
        return error_set(err, FAILURE_BUSY, "a pager is at work for this snapshot");
    if (state_fd < 0)
        return error_set_errno(err, FAILURE_SYSTEM, state_fd, "the pager's state");
    _cleanup_close_ int listener = unix_listen_at(workdir_fd, LAZY_SOCKET, SOCK_STREAM);
    int r;
    if (listener < 0) {
        r = error_set_errno(err, FAILURE_SYSTEM, listener, "%s/%s", workdir, LAZY_SOCKET);
    } else {
        start.state->moves_exact = know_kernel() == KERNEL_TELLS_MOVED;
        snprintf(start.state->socket, sizeof(start.state->socket), "%s/%s", workdir, LAZY_SOCKET);
        start.listener = listener;
        start.workdir = workdir_fd;
        r = start_process(&start, dirfd, err);
    }
    if (r < 0 && listener >= 0)
        unlinkat(workdir_fd, LAZY_SOCKET, 0);
    state_close(start.state);
    if (r < 0) {
        pager_stop(dirfd);
        unlinkat(dirfd, PAGER_STATE_NAME, 0);
    }
    return r;
}

/* ---- looking, and a word to it ---- */

static void copy_text(const struct pager_state *state, char *text, size_t size)
{
    for (unsigned i = 0; i < 1000; i++) {
        uint32_t version = __atomic_load_n(&state->text_version, __ATOMIC_SEQ_CST);
        memcpy(text, state->text, size);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (version % 2 == 0 && version == __atomic_load_n(&state->text_version, __ATOMIC_SEQ_CST))
            break;
    }
    text[size - 1] = '\0';
}

int pager_look(int dirfd, struct pager_view *ret)
{
    int fd = -EBADF;
    struct pager_state *state = state_open(dirfd, &fd);
    if (!state)
        return -errno;
    /* The lock first: what is written before its end is seen. */
    bool alive = is_locked(fd);
    *ret = (struct pager_view){
        .phase = MIN(__atomic_load_n(&state->phase, __ATOMIC_SEQ_CST), (uint32_t)PAGER_FAILED),
        .alive = alive,
        .pages = state->pages,
        .filled = state->filled,
        .faults = state->faults,
        .began_usec = state->began_usec,
        .done_usec = state->done_usec,
        .takeovers = state->takeovers,
        .leader = state->leader,
        .standby = state->standby,
    };
    copy_text(state, ret->text, sizeof(ret->text));
    state_close(state);
    close_fd(fd);
    return 0;
}

void pager_release(int dirfd)
{
    int fd = -EBADF;
    struct pager_state *state = state_open(dirfd, &fd);
    if (!state)
        return;
    __atomic_store_n(&state->release, 1, __ATOMIC_SEQ_CST);
    state_close(state);
    close_fd(fd);
}

/* Kills a process if it is a pager: its number may be somebody else's by now. */
static void kill_pager(pid_t pid)
{
    char path[32], name[32] = "";
    if (pid <= 0)
        return;
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (pidfd < 0 || fd < 0 || read(fd, name, sizeof(name) - 1) <= 0 ||
        strcmp(name, "godwit-pager\n") != 0)
        return;
    syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

void pager_stop(int dirfd)
{
    int fd = -EBADF;
    struct pager_state *state = state_open(dirfd, &fd);
    if (!state)
        return;
    /* Nobody takes over from now on. */
    __atomic_store_n(&state->stopping, 1, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < PATIENCE_MSEC && is_locked(fd); i++) {
        kill_pager(state->leader);
        kill_pager(state->standby);
        usleep(1000);
    }
    if (state->began_usec == 0 && !is_locked(fd))
        unlink(state->socket); /* criu has never come */
    state_close(state);
    close_fd(fd);
}
