/* SPDX-License-Identifier: Apache-2.0 */
#include "task/tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <search.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "task/kin.h"
#include "task/pipes.h"
#include "task/sockets.h"

enum {
    /* More than these are left out, and tree->cut says so. */
    PROCESSES_MAX = 1 << 15,
    THREADS_MAX = 1 << 17,
    FILES_MAX = 1 << 16,
    TRAITS_MAX = 1 << 12,
    SOCKETS_MAX = 1 << 18,
    NETWORKS_MAX = 64,
    OBJECTS_MAX = 1 << 12,
    TERMINALS_MAX = 256,
    PIPES_MAX = 4096,
    DISK_BLOCK = 512, /* the unit of st_blocks */
    TERMINAL_MAJOR = 136,
    TERMINAL_MAJOR_LAST = 143, /* UNIX98 terminals, devices.txt */
    MASTER_MAJOR = 5,
    MASTER_MINOR = 2, /* /dev/ptmx */
};

struct terminal {
    unsigned index; /* N of /dev/pts/N */
    pid_t pid;
};

struct object {
    dev_t dev;
    ino_t inode;
};

/* What is needed only while looking. */
struct look {
    struct tree *tree;
    void *file_index; /* tsearch() over tree->files, by path */
    struct sockets sockets;
    struct pipes pipes;
    struct {
        ino_t inode;
        pid_t pid; /* one that is in it */
    } networks[NETWORKS_MAX];
    size_t network_count;
    struct object *objects; /* shared memory and ghosts that have been counted */
    size_t object_count;
    struct terminal slaves[TERMINALS_MAX], masters[TERMINALS_MAX];
    size_t slave_count, master_count;
    size_t level; /* which number of NSpid is that of the root's pid namespace */
};

/* ---- growing lists ---- */

/* Room for one more of that size; false, and tree->cut, when there is none. */
static bool make_room(struct tree *tree, void **list, size_t count, size_t size, size_t max)
{
    bool grow = count == 0 || (count >= 16 && (count & (count - 1)) == 0);
    void *larger = *list;
    if (count < max && grow)
        larger = realloc(*list, MAX(count * 2, 16) * size);
    if (count >= max || !larger) {
        tree->cut = true;
        return false;
    }
    *list = larger;
    return true;
}

static void add_trait(struct tree *tree, enum tree_trait_kind kind, pid_t pid, uint64_t number,
                      const char *what)
{
    if (!make_room(tree, (void **)&tree->traits, tree->trait_count, sizeof(*tree->traits),
                   TRAITS_MAX))
        return;
    char *copy = strdup(what);
    if (copy)
        tree->traits[tree->trait_count++] =
            (struct tree_trait){.kind = kind, .pid = pid, .number = number, .what = copy};
}

static void add_socket_trait(void *user, enum tree_trait_kind kind, pid_t pid, uint64_t number,
                             const char *what)
{
    add_trait(user, kind, pid, number, what);
}

static void add_terminal(struct tree *tree, struct terminal *list, size_t *count, unsigned index,
                         pid_t pid)
{
    if (*count < TERMINALS_MAX)
        list[(*count)++] = (struct terminal){.index = index, .pid = pid};
    else
        tree->cut = true;
}

static int compare_files(const void *a, const void *b)
{
    return strcmp(((const struct tree_file *)a)->path, ((const struct tree_file *)b)->path);
}

/* The record of a path, made if there is none; NULL when there is no room. */
static struct tree_file *file_of_path(struct look *look, const char *path, const struct stat *st)
{
    struct tree *tree = look->tree;
    struct tree_file key = {.path = (char *)path};
    struct tree_file **known = tfind(&key, &look->file_index, compare_files);
    if (known)
        return *known;
    if (!make_room(tree, (void **)&tree->files, tree->file_count, sizeof(*tree->files), FILES_MAX))
        return NULL;
    struct tree_file *file = calloc(1, sizeof(*file));
    char *copy = strdup(path);
    if (!file || !copy) {
        free(file);
        free(copy);
        return NULL;
    }
    *file = (struct tree_file){
        .path = copy,
        .size = (uint64_t)st->st_size,
        .mode = st->st_mode,
        .any_size = true, /* until something else is done with it */
    };
    if (!tsearch(file, &look->file_index, compare_files))
        tree->cut = true;
    tree->files[tree->file_count++] = file;
    return file;
}

/* Counts what an object takes, once however many tasks have it.  Its bytes; 0 the next times. */
static uint64_t count_object(struct look *look, const struct stat *st)
{
    for (size_t i = 0; i < look->object_count; i++) {
        if (look->objects[i].inode == st->st_ino && look->objects[i].dev == st->st_dev)
            return 0;
    }
    if (!make_room(look->tree, (void **)&look->objects, look->object_count, sizeof(*look->objects),
                   OBJECTS_MAX))
        return 0;
    look->objects[look->object_count].dev = st->st_dev;
    look->objects[look->object_count++].inode = st->st_ino;
    look->tree->memory_bytes += (uint64_t)st->st_blocks * DISK_BLOCK;
    return (uint64_t)st->st_blocks * DISK_BLOCK;
}

/* ---- names of files ---- */

static const char deleted_mark[] = " (deleted)";

static bool is_deleted(const char *name)
{
    size_t length = strlen(name), mark = strlen(deleted_mark);
    /* A file may really be called that; then it is there. */
    return length > mark && strcmp(name + length - mark, deleted_mark) == 0 &&
           access(name, F_OK) < 0;
}

/* Memory that only looks like a deleted file; CRIU takes it along as shared memory. */
static bool is_shared_memory(const char *name)
{
    static const char *const names[] = {"/dev/zero (deleted)", "/SYSV",
                                        "/memfd:", "/anon_hugepage (deleted)"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        if (strncmp(name, names[i], strlen(names[i])) == 0)
            return true;
    }
    return false;
}

static bool is_below(const char *path, const char *directory)
{
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* Those are made by each kernel for itself, and are restored by name. */
static bool is_of_the_kernel(const char *path)
{
    return is_below(path, "/proc") || is_below(path, "/sys");
}

/* A file without its name: what CRIU does with it depends on whether it has another one. */
static void look_at_nameless(struct look *look, pid_t pid, const char *name, const struct stat *st)
{
    if (st->st_nlink > 0) {
        add_trait(look->tree, TREE_RENAMED, pid, 0, name);
        return;
    }
    count_object(look, st);
    add_trait(look->tree, TREE_GHOST, pid, (uint64_t)st->st_blocks * DISK_BLOCK, name);
}

/*
 * A file or directory that was found by any way.  Returns the record of what restore opens by name,
 * NULL when it is not such a thing.  The names in another mount namespace mean nothing in ours.
 */
static struct tree_file *look_at_named(struct look *look, pid_t pid, const char *name,
                                       const struct stat *st)
{
    if (name[0] != '/' || !(S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)))
        return NULL;
    if (is_shared_memory(name) && st->st_nlink == 0) {
        look->tree->shared_bytes += count_object(look, st);
        return NULL;
    }
    if (st->st_nlink == 0 || is_deleted(name)) {
        look_at_nameless(look, pid, name, st);
        return NULL;
    }
    if (look->tree->other_mnt_ns || is_of_the_kernel(name))
        return NULL;
    return file_of_path(look, name, st);
}

/* ---- one process: mappings ---- */

static FILE *open_in(int process, const char *name)
{
    int fd = openat(process, name, O_RDONLY | O_CLOEXEC);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    if (fd >= 0 && !file)
        close_fd(fd);
    return file;
}

/* The target of a link of /proc; false when it is gone or too long. */
static bool read_link(int process, const char *name, char ret[PATH_MAX])
{
    ssize_t n = readlinkat(process, name, ret, PATH_MAX);
    if (n <= 0 || n >= PATH_MAX)
        return false;
    ret[n] = '\0';
    return true;
}

/*
 * A mapped file, through its link in map_files: a name in maps is written with escapes, and the
 * link leads to the file that is mapped, whatever has its name by now.
 */
static void look_at_mapping(struct look *look, int process, pid_t pid, const char *range,
                            bool program)
{
    char link[64], name[PATH_MAX];
    struct stat st;
    snprintf(link, sizeof(link), "map_files/%s", range);
    if (!read_link(process, link, name) || fstatat(process, link, &st, 0) < 0)
        return;
    if (strncmp(name, "/SYSV", 5) == 0 && st.st_nlink == 0)
        add_trait(look->tree, TREE_SYSV, pid, 0, name);
    struct tree_file *file = look_at_named(look, pid, name, &st);
    if (file) {
        file->any_size = false;
        file->program = file->program || program;
    }
}

static void look_at_mappings(struct look *look, int process, pid_t pid)
{
    FILE *maps = open_in(process, "maps");
    char *line = NULL;
    size_t size = 0;
    unsigned long long start, end;
    char rights[8], first[2], range[48];
    while (maps && getline(&line, &size, maps) > 0) {
        /* Not by the inode: that of the first segment of System V is 0. */
        if (sscanf(line, "%llx-%llx %7s %*s %*s %*s %1s", &start, &end, rights, first) != 4 ||
            first[0] != '/')
            continue;
        snprintf(range, sizeof(range), "%llx-%llx", start, end);
        look_at_mapping(look, process, pid, range, rights[2] == 'x');
    }
    free(line);
    if (maps)
        fclose(maps);
}

/* ---- one process: open files ---- */

struct fdinfo {
    unsigned flags; /* of open() */
    bool locked;
    bool has_terminal;
    unsigned terminal; /* of a /dev/ptmx: the N of its /dev/pts/N */
};

static struct fdinfo read_fdinfo(int process, const char *fd)
{
    char path[64], line[512];
    struct fdinfo info = {0};
    snprintf(path, sizeof(path), "fdinfo/%s", fd);
    FILE *file = open_in(process, path);
    while (file && fgets(line, sizeof(line), file)) {
        if (strncmp(line, "lock:", 5) == 0)
            info.locked = true;
        else if (sscanf(line, "tty-index: %u", &info.terminal) == 1)
            info.has_terminal = true;
        else
            sscanf(line, "flags: %o", &info.flags);
    }
    if (file)
        fclose(file);
    return info;
}

static void look_at_device(struct look *look, pid_t pid, const struct stat *st,
                           const struct fdinfo *info)
{
    unsigned kind = major(st->st_rdev), number = minor(st->st_rdev);
    if (kind >= TERMINAL_MAJOR && kind <= TERMINAL_MAJOR_LAST)
        add_terminal(look->tree, look->slaves, &look->slave_count,
                     (kind - TERMINAL_MAJOR) * 256 + number, pid);
    else if (kind == MASTER_MAJOR && number == MASTER_MINOR && info->has_terminal)
        add_terminal(look->tree, look->masters, &look->master_count, info->terminal, pid);
}

static void look_at_socket(struct look *look, pid_t pid, const struct stat *st)
{
    struct sockets *sockets = &look->sockets;
    if (make_room(look->tree, (void **)&sockets->list, sockets->count, sizeof(*sockets->list),
                  SOCKETS_MAX))
        sockets->list[sockets->count++] = (struct socket_owner){.inode = st->st_ino, .pid = pid};
}

static void look_at_pipe(struct look *look, pid_t pid, const struct stat *st, unsigned mode)
{
    struct pipes *pipes = &look->pipes;
    struct pipe_end *end = pipes_find(pipes, st->st_dev, st->st_ino);
    if (!end) {
        if (!make_room(look->tree, (void **)&pipes->list, pipes->count, sizeof(*pipes->list),
                       PIPES_MAX))
            return;
        end = &pipes->list[pipes->count++];
        *end = (struct pipe_end){.device = st->st_dev, .inode = st->st_ino, .pid = pid};
    }
    end->reads |= mode != O_WRONLY;
    end->writes |= mode != O_RDONLY;
}

/* What CRIU refuses of the descriptors without a file; it knows eventfd, epoll, timerfd and others.
 */
static void look_at_object(struct look *look, pid_t pid, const char *name)
{
    static const char *const unknown[] = {"[io_uring]", "[userfaultfd]", "[perf_event]", "kvm-"};
    static const char prefix[] = "anon_inode:";
    if (strncmp(name, prefix, sizeof(prefix) - 1) != 0)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
        if (strncmp(name + sizeof(prefix) - 1, unknown[i], strlen(unknown[i])) == 0)
            add_trait(look->tree, TREE_OBJECT, pid, 0, name + sizeof(prefix) - 1);
    }
}

static void look_at_open_file(struct look *look, int process, pid_t pid, const char *fd)
{
    char link[64], name[PATH_MAX];
    struct stat st;
    snprintf(link, sizeof(link), "fd/%s", fd);
    if (!read_link(process, link, name) || fstatat(process, link, &st, 0) < 0)
        return;
    if (S_ISSOCK(st.st_mode)) {
        look_at_socket(look, pid, &st);
        return;
    }
    struct fdinfo info = read_fdinfo(process, fd);
    /* Pipes have that flag too, for their packets. */
    look->tree->direct |= info.flags & O_DIRECT && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
    if (info.locked)
        add_trait(look->tree, TREE_LOCK, pid, 0, name);
    if (S_ISCHR(st.st_mode))
        look_at_device(look, pid, &st, &info);
    if (S_ISFIFO(st.st_mode))
        look_at_pipe(look, pid, &st, info.flags & O_ACCMODE);
    look_at_object(look, pid, name);
    struct tree_file *file = look_at_named(look, pid, name, &st);
    if (file) {
        unsigned mode = info.flags & O_ACCMODE;
        file->written = file->written || mode != O_RDONLY;
        file->any_size = file->any_size && mode == O_WRONLY && info.flags & O_APPEND;
    }
}

/* Calls what looks at one for each entry of a directory of the process. */
static void look_at_entries(struct look *look, int process, pid_t pid, const char *directory,
                            void (*look_at)(struct look *, int, pid_t, const char *))
{
    int fd = openat(process, directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    const struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.')
            look_at(look, process, pid, entry->d_name);
    }
    if (dir)
        closedir(dir);
    else
        close_fd(fd);
}

static void look_at_place(struct look *look, int process, pid_t pid, const char *link)
{
    char name[PATH_MAX];
    struct stat st;
    if (read_link(process, link, name) && fstatat(process, link, &st, 0) == 0)
        look_at_named(look, pid, name, &st);
}

/* ---- one process: the rest ---- */

/* The number of a task in the pid namespace of that level; the last one's number in *ret_level. */
static uint32_t read_inner_pid(int process, const char *path, size_t level, size_t *ret_level)
{
    char *line = NULL;
    size_t size = 0, found = 0;
    uint32_t pid = 0;
    FILE *status = open_in(process, path);
    while (status && getline(&line, &size, status) > 0) {
        if (strncmp(line, "NSpid:", 6) != 0)
            continue;
        char *at = line + 6, *end;
        for (unsigned long n; n = strtoul(at, &end, 10), end != at; at = end, found++) {
            if (found <= level)
                pid = (uint32_t)n;
        }
    }
    free(line);
    if (status)
        fclose(status);
    *ret_level = found > 0 ? found - 1 : 0;
    return pid;
}

/* A thread: its number where the tree is restored, and its children. */
static void look_at_thread(struct look *look, int process, pid_t pid, const char *tid)
{
    struct tree *tree = look->tree;
    char path[64];
    size_t level;
    snprintf(path, sizeof(path), "task/%s/status", tid);
    uint32_t inner = read_inner_pid(process, path, look->level, &level);
    if (inner > 0 &&
        make_room(tree, (void **)&tree->pids, tree->pid_count, sizeof(*tree->pids), THREADS_MAX))
        tree->pids[tree->pid_count++] = inner;
    snprintf(path, sizeof(path), "task/%s/children", tid);
    FILE *children = open_in(process, path);
    pid_t child;
    while (children && fscanf(children, "%d", &child) == 1) {
        if (make_room(tree, (void **)&tree->processes, tree->process_count,
                      sizeof(*tree->processes), PROCESSES_MAX))
            tree->processes[tree->process_count++] = child;
    }
    if (children)
        fclose(children);
}

static void look_at_memory(struct look *look, int process)
{
    char line[512];
    unsigned long long kib;
    FILE *status = open_in(process, "status");
    while (status && fgets(line, sizeof(line), status)) {
        if (sscanf(line, "RssAnon: %llu", &kib) == 1 || sscanf(line, "VmSwap: %llu", &kib) == 1)
            look->tree->memory_bytes += KIB(kib);
    }
    if (status)
        fclose(status);
}

/* Of one process: its shares of pages that others have as well, and all of them. */
static bool read_private(int process, uint64_t *ret_together, uint64_t *ret_apart)
{
    char line[256];
    unsigned long long kib;
    bool told = false; /* from Linux 5.3 on */
    *ret_together = *ret_apart = 0;
    FILE *rollup = open_in(process, "smaps_rollup");
    while (rollup && fgets(line, sizeof(line), rollup)) {
        bool share = sscanf(line, "Pss_Anon: %llu", &kib) == 1;
        told |= share;
        if (share || sscanf(line, "SwapPss: %llu", &kib) == 1)
            *ret_together += KIB(kib);
        else if (sscanf(line, "Anonymous: %llu", &kib) == 1 ||
                 sscanf(line, "Swap: %llu", &kib) == 1)
            *ret_apart += KIB(kib);
    }
    if (rollup)
        fclose(rollup);
    return told;
}

static void look_at_tracer(struct look *look, pid_t pid)
{
    char what[48];
    pid_t tracer = task_tracer(pid);
    snprintf(what, sizeof(what), "by process %d", tracer);
    if (tracer > 0)
        add_trait(look->tree, TREE_TRACED, pid, (uint64_t)tracer, what);
}

static void look_at_limits(struct look *look, pid_t pid)
{
    struct rlimit limit;
    if (prlimit(pid, RLIMIT_NOFILE, NULL, &limit) < 0 && errno == EPERM)
        add_trait(look->tree, TREE_LIMITS, pid, 0, "");
}

static ino_t namespace_of(int process, const char *name)
{
    char path[32];
    struct stat st;
    snprintf(path, sizeof(path), "ns/%s", name);
    return fstatat(process, path, &st, 0) == 0 ? st.st_ino : 0;
}

static bool in_other_namespace(int process, const char *name)
{
    char path[64];
    struct stat st;
    snprintf(path, sizeof(path), "/proc/thread-self/ns/%s", name);
    ino_t theirs = namespace_of(process, name);
    return theirs && stat(path, &st) == 0 && st.st_ino != theirs;
}

static void remember_network(struct look *look, int process, pid_t pid)
{
    ino_t inode = namespace_of(process, "net");
    for (size_t i = 0; i < look->network_count; i++) {
        if (look->networks[i].inode == inode)
            return;
    }
    if (look->network_count == NETWORKS_MAX) {
        look->tree->cut = true;
        return;
    }
    look->networks[look->network_count].inode = inode;
    look->networks[look->network_count++].pid = pid;
}

/* A directory that stays that of this process, even if its number is given to another one. */
static int open_process(pid_t pid)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/%d", pid);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static void look_at_process(struct look *look, pid_t pid)
{
    _cleanup_close_ int process = open_process(pid);
    if (process < 0)
        return;
    look_at_entries(look, process, pid, "task", look_at_thread);
    look_at_memory(look, process);
    if (task_lacks_pages(pid))
        add_trait(look->tree, TREE_FILLING, pid, 0, "");
    look_at_tracer(look, pid);
    look_at_limits(look, pid);
    remember_network(look, process, pid);
    look_at_mappings(look, process, pid);
    look_at_entries(look, process, pid, "fd", look_at_open_file);
    look_at_place(look, process, pid, "cwd");
    look_at_place(look, process, pid, "root");
}

/* ---- the tree ---- */

static void look_at_root(struct look *look, int process, pid_t root)
{
    struct tree *tree = look->tree;
    struct task_stat stat;
    read_inner_pid(process, "status", 0, &look->level);
    tree->root_pid = read_inner_pid(process, "status", look->level, &look->level);
    tree->other_pid_ns = in_other_namespace(process, "pid");
    tree->other_mnt_ns = in_other_namespace(process, "mnt");
    tree->other_net_ns = in_other_namespace(process, "net");
    if (task_read_stat(root, &stat) && stat.session != root)
        add_trait(tree, TREE_SESSION, root, (uint64_t)MAX(stat.session, 0), "");
}

static bool has_master(const struct look *look, unsigned index)
{
    for (size_t i = 0; i < look->master_count; i++) {
        if (look->masters[i].index == index)
            return true;
    }
    return false;
}

/* A terminal whose other side is in the tree too is taken along with it. */
static void find_terminals(struct look *look)
{
    for (size_t i = 0; i < look->slave_count; i++) {
        char what[32];
        const struct terminal *slave = &look->slaves[i];
        snprintf(what, sizeof(what), "/dev/pts/%u", slave->index);
        if (!has_master(look, slave->index))
            add_trait(look->tree, TREE_TERMINAL, slave->pid, slave->index, what);
    }
}

static void find_pipes(struct look *look)
{
    pipes_find_outside(&look->pipes, look->tree);
    for (size_t i = 0; i < look->pipes.count; i++) {
        const struct pipe_end *end = &look->pipes.list[i];
        char what[48];
        snprintf(what, sizeof(what), "pipe:[%llu]", (unsigned long long)end->inode);
        if (end->outside)
            add_trait(look->tree, TREE_PIPE, end->pid, end->inode, what);
    }
}

static void find_connections(struct look *look)
{
    struct tree *tree = look->tree;
    sockets_sort(&look->sockets);
    for (size_t i = 0; i < look->network_count; i++) {
        pid_t pid = look->networks[i].pid;
        sockets_look_tcp(&look->sockets, pid, add_socket_trait, tree);
        if (sockets_look_unix(&look->sockets, pid, add_socket_trait, tree) < 0)
            tree->sockets_unknown = true;
    }
}

/* Some 10 to 25 ms per GiB: only where there may be something to tell. */
static void count_private(struct tree *tree)
{
    for (size_t i = 0; tree->process_count > 1 && i < tree->process_count; i++) {
        uint64_t together, apart;
        _cleanup_close_ int process = open_process(tree->processes[i]);
        if (process < 0 || !read_private(process, &together, &apart))
            continue;
        tree->together_bytes += together;
        tree->apart_bytes += apart;
    }
}

static void find_kin(struct tree *tree)
{
    _cleanup_free_ struct kin_pair *pairs = calloc(tree->process_count, sizeof(*pairs));
    if (!pairs) {
        tree->cut = true;
        return;
    }
    size_t count = kin_find(tree->processes, tree->process_count, pairs, &tree->kin_unknown);
    for (size_t i = 0; i < count; i++) {
        char what[48];
        snprintf(what, sizeof(what), "with process %d", pairs[i].with);
        add_trait(tree, TREE_KIN, pairs[i].pid, (uint64_t)pairs[i].with, what);
    }
}

/* System V memory of an IPC namespace of its own is dumped with that. */
static void forget_sysv(struct tree *tree)
{
    size_t kept = 0;
    for (size_t i = 0; i < tree->trait_count; i++) {
        if (tree->traits[i].kind == TREE_SYSV)
            free(tree->traits[i].what);
        else
            tree->traits[kept++] = tree->traits[i];
    }
    tree->trait_count = kept;
}

static void keep_file(void *file)
{
    (void)file; /* it is the tree's */
}

int tree_look(pid_t root, struct tree *ret, struct error *err)
{
    struct tree tree = {0};
    _cleanup_close_ int process = open_process(root);
    if (process < 0)
        return error_set_errno(err, process == -ENOENT ? FAILURE_NOT_FOUND : FAILURE_SYSTEM,
                               process, "process %d", root);
    _cleanup_free_ struct look *look = calloc(1, sizeof(*look));
    if (!look || !make_room(&tree, (void **)&tree.processes, 0, sizeof(*tree.processes), 1))
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "process %d", root);
    look->tree = &tree;
    tree.processes[tree.process_count++] = root;
    look_at_root(look, process, root);
    for (size_t i = 0; i < tree.process_count; i++) /* each adds its children at the end */
        look_at_process(look, tree.processes[i]);
    find_terminals(look);
    find_connections(look);
    find_pipes(look);
    find_kin(&tree);
    count_private(&tree);
    if (in_other_namespace(process, "ipc"))
        forget_sysv(&tree);
    tdestroy(look->file_index, keep_file);
    free(look->sockets.list);
    free(look->pipes.list);
    free(look->objects);
    *ret = tree;
    return 0;
}

void tree_free(struct tree *tree)
{
    for (size_t i = 0; i < tree->file_count; i++) {
        free(tree->files[i]->path);
        free(tree->files[i]);
    }
    for (size_t i = 0; i < tree->trait_count; i++)
        free(tree->traits[i].what);
    free(tree->files);
    free(tree->traits);
    free(tree->processes);
    free(tree->pids);
    *tree = (struct tree){0};
}
