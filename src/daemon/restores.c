/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/restores.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/io.h"
#include "criu/lazy.h"
#include "criu/process.h"
#include "task/task.h"

#define PREFIX "incoming-"
#define LOG "restore.log"
#define ROOT "root"
#define ROOT_NEW "root.new"

enum { ANCESTORS_MAX = 16 }; /* criu may be started by a script */

/* ---- the directory ---- */

static void directory_name(const char *id, char ret[NAME_MAX + 1])
{
    snprintf(ret, NAME_MAX + 1, PREFIX "%s", id);
}

/* A descriptor, or a negative errno. */
static int directory_of(const struct restores *restores, const char *id)
{
    char name[NAME_MAX + 1];
    directory_name(id, name);
    int fd = openat(restores->workdir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int directory_path(const struct restores *restores, const char *id, const char *file,
                          char ret[PATH_MAX])
{
    int n = snprintf(ret, PATH_MAX, "%s/" PREFIX "%s%s%s", restores->workdir_path, id,
                     *file ? "/" : "", file);
    return n < PATH_MAX ? 0 : -ENAMETOOLONG;
}

/* By name and never recursively: criu may have left mounts in its work-dir. */
static void remove_directory(int workdir, const char *name, bool keep_log)
{
    static const char *const files[] = {"stats-restore", LAZY_SOCKET, PAGER_STATE_NAME, ROOT,
                                        ROOT_NEW};
    int dirfd = openat(workdir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (dirfd < 0)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(files); i++)
        unlinkat(dirfd, files[i], 0);
    if (!keep_log)
        unlinkat(dirfd, LOG, 0);
    close_fd(dirfd);
    unlinkat(workdir, name, AT_REMOVEDIR);
}

void restores_remove(const struct restores *restores, const char *id, bool keep_log)
{
    char name[NAME_MAX + 1];
    directory_name(id, name);
    remove_directory(restores->workdir, name, keep_log);
}

/* The one at work for a snapshot, or NULL. */
static struct restore *restores_find(const struct restores *restores, const char *id)
{
    struct restore *restore = restores->first;
    while (restore && strcmp(restore->id, id) != 0)
        restore = restore->next;
    return restore;
}

static int clear_up(int workdir, const char *name, void *user)
{
    const struct restores *restores = user;
    struct stat st;
    const char *id = name + strlen(PREFIX);
    if (strncmp(name, PREFIX, strlen(PREFIX)) == 0 && *id && !restores_find(restores, id) &&
        fstatat(restores->store, id, &st, AT_SYMLINK_NOFOLLOW) < 0)
        remove_directory(workdir, name, false);
    return 0;
}

void restores_clear_up(const struct restores *restores)
{
    directory_for_each(restores->workdir, clear_up, (void *)restores);
}

/* ---- criu ---- */

static void restore_free(struct restores *restores, struct restore *restore)
{
    struct restore **at = &restores->first;
    while (*at != restore)
        at = &(*at)->next;
    *at = restore->next;
    close_fd(restore->gate_fd);
    close_fd(restore->pidfd);
    free(restore);
}

/* What criu is given. */
struct paths {
    char images[PATH_MAX], directory[PATH_MAX], log[PATH_MAX], hook[PATH_MAX];
    int imagefd;
};

static int paths_find(const struct restores *restores, const char *id, struct paths *ret,
                      struct error *err)
{
    char images[NAME_MAX + 1];
    snprintf(images, sizeof(images), "%s/images", id);
    ret->imagefd = directory_open_beneath(restores->store, images);
    if (ret->imagefd < 0)
        return error_set_errno(err, FAILURE_SYSTEM, ret->imagefd, "%s/%s", restores->store_path,
                               images);
    int n = snprintf(ret->images, sizeof(ret->images), "%s/%s", restores->store_path, images);
    int r = n < (int)sizeof(ret->images) ? 0 : -ENAMETOOLONG;
    if (r == 0)
        r = directory_path(restores, id, "", ret->directory);
    if (r == 0)
        r = directory_path(restores, id, LOG, ret->log);
    if (r == 0 && mkdir(ret->directory, 0700) < 0 && errno != EEXIST)
        r = -errno;
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s/" PREFIX "%s", restores->workdir_path,
                               id);
    return criu_find_hook(ret->hook, sizeof(ret->hook), err);
}

static int start_pager(const struct restores *restores, const char *id, const struct paths *paths,
                       struct error *err)
{
    _cleanup_close_ int directory = directory_of(restores, id);
    if (directory < 0)
        return error_set_errno(err, FAILURE_SYSTEM, directory, "%s", paths->directory);
    pager_stop(directory); /* of an attempt before */
    return pager_start(directory, paths->imagefd, paths->directory, err);
}

static void add_arguments(const struct restores *restores, const struct restore_order *order,
                          const struct paths *paths, struct criu_args *args)
{
    criu_args_add(args, "%s", restores->criu);
    criu_args_add(args, "restore");
    if (order->ahead)
        criu_args_add(args, CRIU_GATE_OPTION);
    criu_args_add(args, "--restore-detached");
    criu_args_add(args, "-D%s", paths->images);
    criu_args_add(args, "-W%s", paths->directory);
    criu_args_add(args, "-o%s", paths->log);
    criu_args_add(args, "--action-script=%s", paths->hook);
    if (order->lazy)
        criu_args_add(args, "--lazy-pages");
    if (order->options)
        criu_args_add_all(args, order->options);
}

/* gate: with two ends, that criu is to wait at; or -EBADF twice. */
static int start_criu(const struct restores *restores, const struct restore_order *order,
                      const struct paths *paths, int gate[2], struct restore *ret,
                      struct error *err)
{
    if (order->ahead && pipe2(gate, O_CLOEXEC) < 0)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "pipe");
    struct criu_args args = {0};
    add_arguments(restores, order, paths, &args);
    struct criu_spawn spawn = {
        .hook_workdir = restores->workdir_path,
        .hook_token = order->token,
        .hook_silence_usec = restores->silence_usec,
        .gate_fd = gate[0],
    };
    ret->keeper = criu_start_kept(&args, &spawn, &ret->pidfd, err);
    criu_args_free(&args);
    close_fd(gate[0]);
    if (ret->keeper < 0) {
        close_fd(gate[1]);
        return -1;
    }
    ret->gate_fd = gate[1];
    return 0;
}

static int start_both(struct restores *restores, const struct restore_order *order,
                      const struct paths *paths, struct error *err)
{
    int gate[2] = {-EBADF, -EBADF};
    if (order->lazy && start_pager(restores, order->id, paths, err) < 0)
        return -1;
    struct restore *restore = calloc(1, sizeof(*restore));
    if (!restore)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "the restore");
    if (start_criu(restores, order, paths, gate, restore, err) < 0) {
        free(restore);
        return -1;
    }
    snprintf(restore->id, sizeof(restore->id), "%s", order->id);
    restore->token = order->token;
    restore->next = restores->first;
    restores->first = restore;
    return 0;
}

int restores_start(struct restores *restores, const struct restore_order *order, struct error *err)
{
    struct paths paths;
    if (!restores->criu)
        return error_set(err, FAILURE_CRIU, "no criu on this host: %s", restores->criu_error->text);
    if (restores_find(restores, order->id))
        return error_set(err, FAILURE_BUSY, "a restore is at work");
    int r = paths_find(restores, order->id, &paths, err);
    if (r == 0)
        r = start_both(restores, order, &paths, err);
    close_fd(paths.imagefd);
    return r;
}

bool restores_go(struct restores *restores, const char *id, bool lazy)
{
    char word = 0;
    struct pager_view view;
    struct restore *restore = restores_find(restores, id);
    if (!restore || restore->gate_fd < 0 ||
        (lazy && (restores_look(restores, id, &view) < 0 || !view.alive)))
        return false;
    /* If nobody reads it any more, the end of the keeper tells. */
    (void)!write(restore->gate_fd, &word, 1);
    restore->gate_fd = close_fd(restore->gate_fd);
    return true;
}

void restores_leave(struct restores *restores, const char *id)
{
    struct restore *restore = restores_find(restores, id);
    if (restore && restore->gate_fd < 0)
        return;
    if (restore) {
        restore->gate_fd = close_fd(restore->gate_fd); /* which ends criu, and the keeper */
        while (waitpid(restore->keeper, NULL, 0) < 0 && errno == EINTR)
            ;
        restore_free(restores, restore);
    }
    restores_stop_pager(restores, id);
    restores_remove(restores, id, false);
}

void restores_stop(struct restores *restores, const char *id)
{
    const struct restore *restore = restores_find(restores, id);
    if (restore)
        kill(restore->keeper, SIGTERM);
}

void restores_reap(struct restores *restores, struct restore *restore, struct restore_end *ret)
{
    char log[PATH_MAX] = "";
    *ret = (struct restore_end){0};
    while (waitpid(restore->keeper, &ret->status, 0) < 0 && errno == EINTR)
        ;
    int status = criu_exit_status(ret->status);
    directory_path(restores, restore->id, LOG, log);
    if (status != 0)
        criu_explain("criu restore", status, log, &ret->err);
    restore_free(restores, restore);
}

/* ---- the pager ---- */

int restores_look(const struct restores *restores, const char *id, struct pager_view *ret)
{
    _cleanup_close_ int directory = directory_of(restores, id);
    return directory < 0 ? directory : pager_look(directory, ret);
}

void restores_release(const struct restores *restores, const char *id)
{
    _cleanup_close_ int directory = directory_of(restores, id);
    if (directory >= 0)
        pager_release(directory);
}

void restores_stop_pager(const struct restores *restores, const char *id)
{
    _cleanup_close_ int directory = directory_of(restores, id);
    if (directory >= 0)
        pager_stop(directory);
}

bool restores_is_lost(const struct pager_view *view)
{
    return view->phase == PAGER_FAILED || (view->phase != PAGER_DONE && !view->alive);
}

/* ---- what was built ---- */

struct root {
    pid_t pid;
    uint64_t started;
};

static int root_read(const struct restores *restores, const char *id, struct root *ret)
{
    char text[64];
    unsigned long long started;
    _cleanup_close_ int directory = directory_of(restores, id);
    _cleanup_close_ int fd =
        directory < 0 ? -EBADF : openat(directory, ROOT, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n <= 0)
        return -ESRCH;
    text[n] = '\0';
    if (sscanf(text, "%d %llu", &ret->pid, &started) != 2 || ret->pid <= 0)
        return -ESRCH;
    ret->started = started;
    return 0;
}

static int root_write(const struct restores *restores, const char *id, const struct root *root)
{
    char text[64];
    int n = snprintf(text, sizeof(text), "%d %llu\n", root->pid, (unsigned long long)root->started);
    _cleanup_close_ int directory = directory_of(restores, id);
    if (directory < 0)
        return directory;
    _cleanup_close_ int fd =
        openat(directory, ROOT_NEW, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    int r = fd < 0 ? -errno : write_all(fd, text, (size_t)n);
    if (r < 0)
        return r;
    return renameat(directory, ROOT_NEW, directory, ROOT) < 0 ? -errno : 0;
}

static bool descends_from(pid_t pid, pid_t ancestor)
{
    for (int i = 0; i < ANCESTORS_MAX && pid > 1; i++) {
        pid = task_parent(pid);
        if (pid == ancestor)
            return true;
    }
    return false;
}

int restores_root(const struct restores *restores, const char *id, pid_t pid)
{
    const struct restore *restore = restores_find(restores, id);
    struct root root = {.pid = pid, .started = task_started(pid)}, before;
    if (root.started == 0)
        return -ESRCH;
    if (restore && descends_from(pid, restore->keeper))
        return root_write(restores, id, &root);
    /* A hook that has come back to an image-cache which has not started its criu. */
    return root_read(restores, id, &before) == 0 && before.pid == root.pid &&
                   before.started == root.started
               ? 0
               : -ESRCH;
}

bool restores_root_lives(const struct restores *restores, const char *id)
{
    struct root root;
    return root_read(restores, id, &root) == 0 && task_started(root.pid) == root.started;
}

int restores_kill(const struct restores *restores, const char *id)
{
    struct root root = {0};
    struct pager_view view;
    int r = restores_look(restores, id, &view);
    if (r == 0 && !restores_is_lost(&view))
        r = -EPERM;
    if (r == 0)
        r = root_read(restores, id, &root);
    if (r < 0)
        return r;
    struct task_tree tree;
    r = task_tree_open(root.pid, &tree);
    if (r == 0 && task_started(root.pid) != root.started)
        r = -ESRCH; /* its number is somebody else's by now */
    if (r == 0)
        task_tree_kill(&tree);
    task_tree_close(&tree);
    return r;
}
