/* SPDX-License-Identifier: Apache-2.0 */
#include "store/store.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/io.h"
#include "store/chain.h"

enum {
    SNAPSHOTS_MAX = 1000,       /* two descriptors each */
    SNAPSHOT_CHARGE = 16 << 10, /* what one costs besides its data */
    ABOUT_MAX = 24 << 10,       /* of the file "about" */
    OPTIONS_MAX = 100,
    OPTIONS_BYTES_MAX = 8 << 10,
};

struct store {
    char *path;
    int dirfd;
    struct budget budget;
    struct snapshot *first;
    unsigned count;
};

/* ---- names of states, as they are shown and written down ---- */

static const char *const state_names[] = {
    [SNAPSHOT_RECEIVING] = "receiving",   [SNAPSHOT_HELD] = "held",
    [SNAPSHOT_READY] = "ready",           [SNAPSHOT_RESTORING] = "restoring",
    [SNAPSHOT_DOUBT] = "in-doubt",        [SNAPSHOT_PREPARED] = "prepared",
    [SNAPSHOT_STARTED] = "started",       [SNAPSHOT_RESTORED] = "restored",
    [SNAPSHOT_PRE_DUMPED] = "pre-dumped",
};

const char *snapshot_state_name(enum snapshot_state state)
{
    return state_names[state];
}

const char *snapshot_shown_state(const struct snapshot *snapshot)
{
    if (snapshot->spent)
        return snapshot_state_name(SNAPSHOT_RESTORED);
    return snapshot->filling ? "filling" : snapshot_state_name(snapshot->state);
}

bool snapshot_spools(const struct snapshot *snapshot)
{
    return snapshot->spool == SPOOL_WAITING || snapshot->spool == SPOOL_WRITING;
}

/* What a state means to a cache that was not there when it was written down. */
static int state_after_restart(const char *name, enum snapshot_state *ret)
{
    for (size_t i = 0; i < ARRAY_SIZE(state_names); i++) {
        if (strcmp(state_names[i], name) != 0)
            continue;
        switch ((enum snapshot_state)i) {
        case SNAPSHOT_RECEIVING:
            return -EINVAL;
        case SNAPSHOT_READY:
        case SNAPSHOT_RESTORING:
            *ret = (enum snapshot_state)i;
            return 0;
        case SNAPSHOT_HELD:
        case SNAPSHOT_DOUBT:
            *ret = SNAPSHOT_DOUBT;
            return 0;
        case SNAPSHOT_PREPARED:
        case SNAPSHOT_STARTED:
        case SNAPSHOT_RESTORED:
        case SNAPSHOT_PRE_DUMPED:
            *ret = (enum snapshot_state)i;
            return 0;
        }
    }
    return -EINVAL;
}

/* ---- directories ---- */

static void empty_directory(int dirfd);

static int remove_entry(int dirfd, const char *name, void *user)
{
    (void)user;
    if (unlinkat(dirfd, name, 0) == 0)
        return 0;
    int sub = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (sub >= 0) {
        empty_directory(sub);
        close_fd(sub);
        unlinkat(dirfd, name, AT_REMOVEDIR);
    }
    return 0;
}

/* Removes what is in a directory, and what is in the directories in it. */
static void empty_directory(int dirfd)
{
    directory_for_each(dirfd, remove_entry, NULL);
}

static int make_directory_at(int dirfd, const char *name)
{
    if (mkdirat(dirfd, name, 0700) < 0)
        return -errno;
    int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static bool is_mount_point(const char *path)
{
    struct stat here, above;
    char parent[PATH_MAX];
    snprintf(parent, sizeof(parent), "%s/..", path);
    return stat(path, &here) == 0 && stat(parent, &above) == 0 && here.st_dev != above.st_dev;
}

static int mount_tmpfs(const char *path)
{
    static const char *const options[] = {"mode=0700,size=100%,huge=within_size",
                                          "mode=0700,size=100%"};
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        if (mount("godwit", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options[i]) == 0) {
            mount(NULL, path, NULL, MS_PRIVATE, NULL);
            return 0;
        }
    }
    return -errno;
}

/* ---- snapshots ---- */

static struct snapshot *snapshot_free(struct snapshot *snapshot)
{
    if (!snapshot)
        return NULL;
    close_fd(snapshot->dirfd);
    close_fd(snapshot->imagefd);
    close_fd(snapshot->memoryfd);
    free(snapshot->files);
    free(snapshot->spool_error);
    free(snapshot->parent);
    free(snapshot->id);
    free(snapshot->command);
    free(snapshot->host);
    for (char **option = snapshot->options; option && *option; option++)
        free(*option);
    free(snapshot->options);
    free(snapshot);
    return NULL;
}

static struct snapshot *snapshot_new(struct store *store, const char *id)
{
    struct snapshot *snapshot = calloc(1, sizeof(*snapshot));
    if (!snapshot)
        return NULL;
    *snapshot = (struct snapshot){
        .store = store,
        .id = strdup(id),
        .fallback = SNAPSHOT_READY,
        .command = strdup(""),
        .host = strdup(""),
        .parent = strdup(""),
        .memoryfd = -EBADF,
        .dirfd = -EBADF,
        .imagefd = -EBADF,
        .created_usec = now_usec(),
    };
    if (!snapshot->id || !snapshot->command || !snapshot->host || !snapshot->parent)
        return snapshot_free(snapshot);
    return snapshot;
}

static void store_add(struct store *store, struct snapshot *snapshot)
{
    struct snapshot **at = &store->first;
    while (*at)
        at = &(*at)->next;
    *at = snapshot;
    store->count++;
}

struct snapshot *snapshot_create(struct store *store, const char *id, struct error *err)
{
    if (store_find(store, id)) {
        error_set(err, FAILURE_BUSY, "snapshot %s: exists already: choose another id, or forget it",
                  id);
        return NULL;
    }
    if (store->count >= SNAPSHOTS_MAX) {
        error_set(err, FAILURE_LIMIT, "snapshot %s: the image-cache holds %d already", id,
                  SNAPSHOTS_MAX);
        return NULL;
    }
    if (budget_charge(&store->budget, SNAPSHOT_CHARGE) < 0) {
        error_set(err, FAILURE_LIMIT, "snapshot %s: the image-cache is out of memory", id);
        return NULL;
    }
    struct snapshot *snapshot = snapshot_new(store, id);
    if (!snapshot) {
        budget_refund(&store->budget, SNAPSHOT_CHARGE);
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "snapshot %s", id);
        return NULL;
    }
    snapshot->dirfd = make_directory_at(store->dirfd, id);
    int r = snapshot->dirfd;
    if (r >= 0)
        r = snapshot->imagefd = make_directory_at(snapshot->dirfd, "images");
    if (r < 0) {
        error_set_errno(err, FAILURE_SYSTEM, r, "snapshot %s: %s/%s", id, store->path, id);
        unlinkat(store->dirfd, id, AT_REMOVEDIR);
        budget_refund(&store->budget, SNAPSHOT_CHARGE);
        return snapshot_free(snapshot);
    }
    snapshot->charge = SNAPSHOT_CHARGE;
    store_add(store, snapshot);
    return snapshot;
}

/* The text of "about", in a stream of its own memory. */
static void snapshot_print_about(const struct snapshot *snapshot, FILE *out)
{
    fprintf(out, "state=%s\nfallback=%s\nkept=%d\npid=%u\nnonce=%llu\n",
            snapshot_state_name(snapshot->state), snapshot_state_name(snapshot->fallback),
            snapshot->kept, snapshot->pid, (unsigned long long)snapshot->nonce);
    fprintf(out, "charge=%llu\nbytes=%llu\nimages=%u\nhost=%s\ncommand=%s\n",
            (unsigned long long)(snapshot->charge - snapshot->flat_bytes),
            (unsigned long long)snapshot->bytes, snapshot->images, snapshot->host,
            snapshot->command);
    fprintf(out, "spooled=%d\nspent=%d\n", snapshot->spool == SPOOL_WRITTEN, snapshot->spent);
    if (snapshot->chain)
        fprintf(out, "chain=%llu\nparent=%s\nmoved=%d\n", (unsigned long long)snapshot->chain,
                snapshot->parent, snapshot->moved);
    if (!snapshot->restore)
        return;
    fprintf(out, "restore=1\nlazy=%d\nsettled=%d\ntold_prepared=%d\ntoken=%llu\n", snapshot->lazy,
            snapshot->settled, snapshot->told_prepared, (unsigned long long)snapshot->token);
    for (char **option = snapshot->options; option && *option; option++)
        fprintf(out, "option=%s\n", *option);
}

static int snapshot_write_about(const struct snapshot *snapshot)
{
    char text[ABOUT_MAX];
    FILE *out = fmemopen(text, sizeof(text), "w");
    if (!out)
        return -errno;
    snapshot_print_about(snapshot, out);
    long length = ftell(out);
    bool whole = !ferror(out);
    if (fclose(out) != 0 || !whole || length >= ABOUT_MAX - 1)
        return -EMSGSIZE;
    _cleanup_close_ int fd = openat(snapshot->dirfd, "about.new",
                                    O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int r = write_all(fd, text, (size_t)length);
    if (r < 0)
        return r;
    return renameat(snapshot->dirfd, "about.new", snapshot->dirfd, "about") < 0 ? -errno : 0;
}

int snapshot_set_state(struct snapshot *snapshot, enum snapshot_state state)
{
    enum snapshot_state before = snapshot->state;
    snapshot->state = state;
    int r = snapshot_write_about(snapshot);
    if (r < 0)
        snapshot->state = before;
    return r;
}

static int snapshot_add_option(struct snapshot *snapshot, const char *option)
{
    size_t count = 0, bytes = strlen(option);
    for (; snapshot->options && snapshot->options[count]; count++)
        bytes += strlen(snapshot->options[count]);
    if (count >= OPTIONS_MAX || bytes > OPTIONS_BYTES_MAX)
        return -E2BIG;
    char **grown = realloc(snapshot->options, (count + 2) * sizeof(char *));
    if (!grown)
        return -ENOMEM;
    snapshot->options = grown;
    grown[count] = strdup(option);
    if (!grown[count])
        return -ENOMEM;
    grown[count + 1] = NULL;
    return 0;
}

int snapshot_set_options(struct snapshot *snapshot, char *const *options, size_t count)
{
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++)
        r = snapshot_add_option(snapshot, options[i]);
    return r;
}

void snapshot_remove_images(struct snapshot *snapshot)
{
    empty_directory(snapshot->imagefd);
    if (snapshot->charge > SNAPSHOT_CHARGE)
        budget_refund(&snapshot->store->budget, snapshot->charge - SNAPSHOT_CHARGE);
    snapshot->charge = MIN(snapshot->charge, (uint64_t)SNAPSHOT_CHARGE);
}

struct snapshot *snapshot_remove(struct snapshot *snapshot)
{
    if (!snapshot)
        return NULL;
    struct store *store = snapshot->store;
    chain_leave(snapshot);
    struct snapshot **at = &store->first;
    while (*at && *at != snapshot)
        at = &(*at)->next;
    if (*at) {
        *at = snapshot->next;
        store->count--;
    }
    empty_directory(snapshot->dirfd);
    unlinkat(store->dirfd, snapshot->id, AT_REMOVEDIR);
    budget_refund(&store->budget, snapshot->charge);
    return snapshot_free(snapshot);
}

int snapshot_path(const struct snapshot *snapshot, const char *which, char *buf, size_t size)
{
    int n = snprintf(buf, size, "%s/%s/%s", snapshot->store->path, snapshot->id, which);
    return n < (int)size ? 0 : -ENAMETOOLONG;
}

/* ---- what an earlier cache left ---- */

static int replace_string(char **string, const char *value)
{
    char *copy = strdup(value);
    if (!copy)
        return -ENOMEM;
    free(*string);
    *string = copy;
    return 0;
}

static int snapshot_take_line(struct snapshot *snapshot, char *line)
{
    char *value = strchr(line, '=');
    uint64_t number = 0;
    if (!value)
        return -EINVAL;
    *value++ = '\0';
    if (strcmp(line, "state") == 0)
        return state_after_restart(value, &snapshot->state);
    if (strcmp(line, "fallback") == 0)
        return state_after_restart(value, &snapshot->fallback);
    if (strcmp(line, "host") == 0)
        return replace_string(&snapshot->host, value);
    if (strcmp(line, "command") == 0)
        return replace_string(&snapshot->command, value);
    if (strcmp(line, "parent") == 0)
        return replace_string(&snapshot->parent, value);
    if (strcmp(line, "option") == 0)
        return snapshot_add_option(snapshot, value);
    if (parse_number(value, UINT64_MAX, &number) < 0)
        return 0; /* of a newer release */
    if (strcmp(line, "pid") == 0)
        snapshot->pid = (uint32_t)number;
    else if (strcmp(line, "nonce") == 0)
        snapshot->nonce = number;
    else if (strcmp(line, "chain") == 0)
        snapshot->chain = number;
    else if (strcmp(line, "moved") == 0)
        snapshot->moved = number;
    else if (strcmp(line, "charge") == 0)
        snapshot->charge = number;
    else if (strcmp(line, "bytes") == 0)
        snapshot->bytes = number;
    else if (strcmp(line, "images") == 0)
        snapshot->images = (uint32_t)number;
    else if (strcmp(line, "kept") == 0)
        snapshot->kept = number;
    else if (strcmp(line, "spooled") == 0)
        snapshot->spool = number ? SPOOL_WRITTEN : SPOOL_NONE;
    else if (strcmp(line, "spent") == 0)
        snapshot->spent = number;
    else if (strcmp(line, "restore") == 0)
        snapshot->restore = number;
    else if (strcmp(line, "lazy") == 0)
        snapshot->lazy = number;
    else if (strcmp(line, "settled") == 0)
        snapshot->settled = number;
    else if (strcmp(line, "told_prepared") == 0)
        snapshot->told_prepared = number;
    else if (strcmp(line, "token") == 0)
        snapshot->token = number;
    return 0;
}

static int snapshot_read_about(struct snapshot *snapshot)
{
    char text[ABOUT_MAX];
    _cleanup_close_ int fd = openat(snapshot->dirfd, "about", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    if (n < 0)
        return -errno;
    text[n] = '\0';
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        int r = snapshot_take_line(snapshot, line);
        if (r < 0)
            return r;
    }
    /* The source has not heard that it is prepared, so it has not ended its process. */
    if (snapshot->restore && !snapshot->told_prepared && snapshot->state != SNAPSHOT_READY)
        return -ENOENT;
    /* The hook of a criu that restores it cannot reach us, so it will not let it run. */
    if (snapshot->state == SNAPSHOT_RESTORING)
        snapshot->state = snapshot->fallback;
    return snapshot->state == SNAPSHOT_RECEIVING || snapshot->state == SNAPSHOT_RESTORING ? -EINVAL
                                                                                          : 0;
}

static int store_load_one(struct store *store, const char *id)
{
    struct snapshot *snapshot = snapshot_new(store, id);
    if (!snapshot)
        return -ENOMEM;
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    snapshot->dirfd = openat(store->dirfd, id, flags);
    snapshot->imagefd = snapshot->dirfd < 0 ? -EBADF : openat(snapshot->dirfd, "images", flags);
    int r = snapshot->imagefd < 0 ? -errno : snapshot_read_about(snapshot);
    if (r == 0 && snapshot->chain) {
        snapshot->memoryfd = openat(snapshot->dirfd, "memory", flags);
        r = snapshot->memoryfd < 0 ? -EBADMSG : 0;
    }
    if (r < 0) {
        snapshot_free(snapshot);
        return r;
    }
    /* Over the limit or not, what is here is here. */
    if (snapshot->state != SNAPSHOT_RESTORED && !snapshot->chain)
        snapshot->charge = MAX(snapshot->charge, snapshot->bytes);
    store->budget.used += snapshot->charge;
    store_add(store, snapshot);
    return 0;
}

static int store_load(struct store *store, struct error *err)
{
    int copy = openat(store->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    if (!dir)
        return error_set_errno(err, FAILURE_SYSTEM, errno, "the store at %s", store->path);
    struct dirent *entry;
    int r = 0;
    while (r == 0 && (entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        r = store_load_one(store, entry->d_name);
        if (r == 0 || r == -ENOTDIR) {
            r = 0;
            continue;
        }
        /* Without a written state it was never whole; anything else may be the only copy. */
        if (r != -ENOENT) {
            error_set_errno(err, FAILURE_SYSTEM, r,
                            "snapshot %s of an earlier image-cache cannot be taken over: look into "
                            "%s/%s, and remove it if it is of no use",
                            entry->d_name, store->path, entry->d_name);
            break;
        }
        r = 0;
        int fd =
            openat(store->dirfd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0)
            empty_directory(fd);
        close_fd(fd);
        unlinkat(store->dirfd, entry->d_name, fd >= 0 ? AT_REMOVEDIR : 0);
    }
    closedir(dir);
    if (r == 0)
        chains_load(store);
    return r < 0 ? -1 : 0;
}

void store_peek(const char *path, void (*each)(const struct snapshot *snapshot, void *user),
                void *user)
{
    struct store store = {.dirfd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)};
    int copy = store.dirfd < 0 ? -EBADF : openat(store.dirfd, ".", O_RDONLY | O_CLOEXEC);
    DIR *dir = copy < 0 ? NULL : fdopendir(copy);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.')
            store_load_one(&store, entry->d_name);
    }
    if (dir)
        closedir(dir);
    while (store.first) {
        struct snapshot *snapshot = store.first;
        each(snapshot, user);
        store.first = snapshot->next;
        snapshot_free(snapshot);
    }
    close_fd(store.dirfd);
}

/* ---- the store ---- */

/* A descriptor of the directory, which is made if missing, or -1 with *err set. */
static int store_directory(const char *path, struct error *err)
{
    int r = mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
    int fd = r < 0 ? r : open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (r == 0 && fd < 0)
        r = -errno;
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "the store at %s", path) : fd;
}

int store_mount(const char *path, struct error *err)
{
    int fd = store_directory(path, err);
    if (fd < 0 || is_mount_point(path))
        return fd;
    close_fd(fd);
    int r = mount_tmpfs(path);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "the store at %s", path)
                 : store_directory(path, err);
}

/* Not by a list of snapshots: what could not be taken over is in the directory only. */
void store_unmount(const char *path, int dirfd)
{
    if (directory_is_empty(dirfd) != 1)
        return;
    umount2(path, MNT_DETACH);
    rmdir(path);
}

struct store *store_open_at(const char *path, int dirfd, uint64_t limit_bytes, struct error *err)
{
    struct store *store = calloc(1, sizeof(*store));
    if (!store) {
        close_fd(dirfd);
        error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "the store at %s", path);
        return NULL;
    }
    store->dirfd = dirfd;
    store->budget.limit = limit_bytes;
    store->path = strdup(path);
    int r = store->path ? store_load(store, err)
                        : error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "the store at %s", path);
    return r < 0 ? store_close(store) : store;
}

struct store *store_open(const char *path, uint64_t limit_bytes, struct error *err)
{
    int fd = store_directory(path, err);
    return fd < 0 ? NULL : store_open_at(path, fd, limit_bytes, err);
}

struct store *store_close(struct store *store)
{
    if (!store)
        return NULL;
    while (store->first) {
        struct snapshot *snapshot = store->first;
        store->first = snapshot->next;
        snapshot_free(snapshot);
    }
    close_fd(store->dirfd);
    free(store->path);
    free(store);
    return NULL;
}

struct budget *store_budget(struct store *store)
{
    return &store->budget;
}

struct snapshot *store_first(struct store *store)
{
    return store->first;
}

struct snapshot *store_find(struct store *store, const char *id)
{
    for (struct snapshot *snapshot = store->first; snapshot; snapshot = snapshot->next) {
        if (strcmp(snapshot->id, id) == 0)
            return snapshot;
    }
    return NULL;
}
