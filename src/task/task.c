/* SPDX-License-Identifier: Apache-2.0 */
#include "task/task.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/io.h"

/* Opens /proc/PID/name; NULL when there is no such process. */
static FILE *open_proc(pid_t pid, const char *name)
{
    char path[128];
    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    return fopen(path, "re");
}

pid_t task_of_pidfd(int pidfd)
{
    char name[32], line[128];
    int pid = 0;
    snprintf(name, sizeof(name), "fdinfo/%d", pidfd);
    FILE *file = open_proc(getpid(), name);
    while (file && fgets(line, sizeof(line), file) && sscanf(line, "Pid: %d", &pid) != 1)
        ;
    if (file)
        fclose(file);
    return MAX(pid, 0);
}

bool task_read_stat(pid_t pid, struct task_stat *ret)
{
    /* Bits of proc(5): PF_EXITING, PF_KTHREAD. */
    enum { FLAG_EXITING = 4, FLAG_KERNEL = 0x200000 };
    char text[1024];
    unsigned flags;
    FILE *file = open_proc(pid, "stat");
    if (!file)
        return false;
    size_t n = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[n] = '\0';
    /* Behind the command, which may hold anything, a line's end too: fields 3, 4, 6, 9, 20, 22. */
    const char *end = strrchr(text, ')');
    if (!end ||
        sscanf(end + 1,
               " %c %d %*d %d %*d %*d %u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %u %*d %llu",
               &ret->state, &ret->parent, &ret->session, &flags, &ret->threads, &ret->started) != 6)
        return false;
    ret->kernel = flags & FLAG_KERNEL;
    ret->exiting = flags & FLAG_EXITING;
    return true;
}

bool task_is_dying(pid_t pid)
{
    enum { PENDING_KILL = 1 << (SIGKILL - 1) }; /* the bit of proc(5) */
    char line[512];
    unsigned long long pending = 0, part;
    FILE *file = open_proc(pid, "status");
    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "SigPnd: %llx", &part) == 1 || sscanf(line, "ShdPnd: %llx", &part) == 1)
            pending |= part;
    }
    if (file)
        fclose(file);
    struct task_stat stat;
    return pending & PENDING_KILL || (task_read_stat(pid, &stat) && stat.exiting);
}

/* A number in /proc/PID/status; 0 when it is not there.  format: its name, and %d. */
__attribute__((format(scanf, 2, 0))) static int status_number(pid_t pid, const char *format)
{
    char line[512];
    int number = 0;
    FILE *file = open_proc(pid, "status");
    while (file && fgets(line, sizeof(line), file) && sscanf(line, format, &number) != 1)
        ;
    if (file)
        fclose(file);
    return number;
}

pid_t task_leader(pid_t pid)
{
    return status_number(pid, "Tgid: %d");
}

pid_t task_tracer(pid_t pid)
{
    return status_number(pid, "TracerPid: %d");
}

bool task_has_seccomp_filter(pid_t pid)
{
    enum { SECCOMP_FILTER = 2 };
    return status_number(pid, "Seccomp: %d") == SECCOMP_FILTER;
}

pid_t task_parent(pid_t pid)
{
    struct task_stat stat;
    return task_read_stat(pid, &stat) ? stat.parent : 0;
}

uint64_t task_own_bytes(pid_t pid)
{
    unsigned long long resident = 0, of_files = 0;
    FILE *file = open_proc(pid, "statm");
    if (file && fscanf(file, "%*u %llu %llu", &resident, &of_files) != 2)
        resident = of_files = 0;
    if (file)
        fclose(file);
    return (resident - MIN(of_files, resident)) * PAGE_BYTES;
}

static bool is_below(pid_t pid, pid_t root)
{
    struct task_stat stat;
    for (; pid > 0 && pid != root; pid = stat.parent) {
        if (!task_read_stat(pid, &stat))
            return true;
    }
    return pid == root;
}

bool task_trees_overlap(pid_t one, pid_t other)
{
    return is_below(one, other) || is_below(other, one);
}

bool task_is_traced(pid_t pid)
{
    struct task_stat stat;
    return task_read_stat(pid, &stat) && stat.state == 't';
}

uint64_t task_started(pid_t pid)
{
    struct task_stat stat;
    return task_read_stat(pid, &stat) ? stat.started : 0;
}

void task_command(pid_t pid, char *buf, size_t size)
{
    FILE *file = open_proc(pid, "comm");
    if (!file || !fgets(buf, (int)size, file))
        *buf = '\0';
    if (file)
        fclose(file);
    buf[strcspn(buf, "\n")] = '\0';
    make_plain(buf); /* a process may call itself anything */
}

pid_t task_inner_pid(pid_t pid)
{
    FILE *file = open_proc(pid, "status");
    char line[256];
    pid_t inner = 0;
    while (file && inner == 0 && fgets(line, sizeof(line), file)) {
        if (strncmp(line, "NSpid:", 6) == 0)
            inner = atoi(strrchr(line, '\t') + 1); /* a tab stands before each number */
    }
    if (file)
        fclose(file);
    return inner;
}

bool task_lacks_pages(pid_t pid)
{
    static const char flags[] = "VmFlags:";
    char *line = NULL;
    size_t size = 0;
    bool lacks = false;
    FILE *smaps = open_proc(pid, "smaps");
    while (smaps && !lacks && getline(&line, &size, smaps) > 0)
        lacks = strncmp(line, flags, sizeof(flags) - 1) == 0 && strstr(line, " um");
    free(line);
    if (smaps)
        fclose(smaps);
    return lacks;
}

/* ---- whom a tracer traces ---- */

static bool has_socket(pid_t pid, uint64_t inode)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    DIR *dir = opendir(path);
    struct dirent *entry;
    struct stat st;
    bool found = false;
    while (dir && !found && (entry = readdir(dir)))
        found = fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 && S_ISSOCK(st.st_mode) &&
                st.st_ino == inode;
    if (dir)
        closedir(dir);
    return found;
}

/* The root of what it traces together with this one. */
static pid_t traced_root(pid_t pid, pid_t tracer)
{
    pid_t parent;
    while ((parent = task_parent(pid)) > 0 && task_tracer(parent) == tracer)
        pid = parent;
    return pid;
}

/* The root, if the process is traced by one that has the socket.  *stranger: a tracer that has not.
 */
static pid_t root_of_traced(pid_t pid, uint64_t socket, pid_t *stranger)
{
    pid_t tracer = pid > 0 ? task_tracer(pid) : 0;
    if (tracer <= 0 || tracer == *stranger)
        return 0;
    if (has_socket(tracer, socket))
        return traced_root(pid, tracer);
    *stranger = tracer;
    return 0;
}

pid_t task_find_traced(pid_t likely, uint64_t socket)
{
    pid_t stranger = 0, found = root_of_traced(likely, socket, &stranger);
    DIR *dir = found > 0 ? NULL : opendir("/proc");
    struct dirent *entry;
    while (dir && found == 0 && (entry = readdir(dir)))
        found = root_of_traced((pid_t)strtol(entry->d_name, NULL, 10), socket, &stranger);
    if (dir)
        closedir(dir);
    return found;
}

/* ---- trees ---- */

/* A growing list of process ids, in which those from `next` on have not been looked into. */
struct pid_list {
    pid_t *pids;
    size_t count, room, next;
};

static int pid_list_add(struct pid_list *list, pid_t pid)
{
    if (list->count == list->room) {
        size_t room = MAX(64, 2 * list->room);
        pid_t *grown = realloc(list->pids, room * sizeof(pid_t));
        if (!grown)
            return -ENOMEM;
        list->pids = grown;
        list->room = room;
    }
    list->pids[list->count++] = pid;
    return 0;
}

/* Adds the children of one thread. */
static int pid_list_add_children(struct pid_list *list, pid_t pid, const char *tid)
{
    char name[64];
    snprintf(name, sizeof(name), "task/%.16s/children", tid);
    FILE *file = open_proc(pid, name);
    int child, r = 0;
    while (file && r == 0 && fscanf(file, "%d", &child) == 1)
        r = pid_list_add(list, child);
    if (file)
        fclose(file);
    return r;
}

static int pid_list_look_into(struct pid_list *list, pid_t pid)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    struct dirent *entry;
    int r = 0;
    while (dir && r == 0 && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.')
            r = pid_list_add_children(list, pid, entry->d_name);
    }
    if (dir)
        closedir(dir);
    return r;
}

static int pid_list_fill(struct pid_list *list, pid_t root)
{
    int r = pid_list_add(list, root);
    while (r == 0 && list->next < list->count)
        r = pid_list_look_into(list, list->pids[list->next++]);
    return r;
}

int task_list_tree(pid_t root, pid_t **ret, size_t *ret_count)
{
    struct pid_list list = {0};
    int r = pid_list_fill(&list, root);
    if (r < 0) {
        free(list.pids);
        return r;
    }
    *ret = list.pids;
    *ret_count = list.count;
    return 0;
}

static int task_tree_open_list(struct task_tree *tree, const struct pid_list *list)
{
    tree->fds = calloc(list->count, sizeof(*tree->fds));
    tree->pids = calloc(list->count, sizeof(*tree->pids));
    if (!tree->fds || !tree->pids)
        return -ENOMEM;
    for (size_t i = 0; i < list->count; i++) {
        int fd = (int)syscall(SYS_pidfd_open, list->pids[i], 0);
        if (fd < 0 && errno != ESRCH)
            return errno == EMFILE ? -E2BIG : -errno;
        if (fd < 0)
            continue;
        tree->pids[tree->count] = list->pids[i];
        tree->fds[tree->count++] = fd;
    }
    return tree->count > 0 ? 0 : -ESRCH;
}

int task_tree_open(pid_t root, struct task_tree *ret)
{
    *ret = (struct task_tree){0};
    struct pid_list list = {0};
    int r = pid_list_fill(&list, root);
    if (r == 0)
        r = task_tree_open_list(ret, &list);
    free(list.pids);
    if (r < 0)
        task_tree_close(ret);
    return r;
}

static void give_way(pid_t pid)
{
    enum { NICE = 5 }; /* a third of the weight: with more it would take ages where others work */
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);
        if (tid <= 0)
            continue;
        sched_setscheduler(tid, SCHED_BATCH, &(struct sched_param){0});
        setpriority(PRIO_PROCESS, (id_t)tid, NICE);
    }
    if (dir)
        closedir(dir);
}

void task_tree_give_way(const struct task_tree *tree)
{
    for (size_t i = 0; i < tree->count; i++)
        give_way(tree->pids[i]);
}

void task_tree_kill(const struct task_tree *tree)
{
    for (size_t i = 0; i < tree->count; i++)
        syscall(SYS_pidfd_send_signal, tree->fds[i], SIGKILL, NULL, 0);
}

void task_tree_close(struct task_tree *tree)
{
    for (size_t i = 0; i < tree->count; i++)
        close_fd(tree->fds[i]);
    free(tree->fds);
    free(tree->pids);
    *tree = (struct task_tree){0};
}
