/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/io.h"
#include "child.h"
#include "task/file.h"
#include "task/task.h"
#include "task/tree.h"

/* ---- files ---- */

static int open_status(const char *path)
{
    struct stat st;
    int fd = file_open(path, &st);
    close_fd(fd);
    return fd < 0 ? fd : 0;
}

static void files_that_are_opened(void **state)
{
    (void)state;
    struct stat st;
    int fd = file_open("/proc/../etc/passwd", &st);
    assert_true(fd >= 0 && S_ISREG(st.st_mode) && fcntl(fd, F_GETFD) & FD_CLOEXEC);
    close(fd);
    fd = file_open("/usr", &st);
    assert_true(fd >= 0 && S_ISDIR(st.st_mode));
    close(fd);
}

static void files_that_are_not(void **state)
{
    (void)state;
    char *directory = directory_make(), path[PATH_MAX], longest[PATH_MAX + 1];
    memset(longest, '/', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(open_status(longest), -ENAMETOOLONG);
    assert_int_equal(open_status("etc/passwd"), -EINVAL);
    assert_int_equal(open_status(""), -EINVAL);
    assert_int_equal(open_status("/no/such/thing"), -ENOENT);
    assert_int_equal(open_status("/etc/passwd/x"), -ENOTDIR);
    assert_int_equal(open_status("/dev/null"), -EBADF);
    assert_int_equal(open_status("/proc/kmsg"), -EBADF);
    assert_int_equal(open_status("/proc"), -EBADF);
    assert_int_equal(open_status("/proc/self/root/etc/passwd"), -ELOOP);
    snprintf(path, sizeof(path), "%s/fifo", directory);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(open_status(path), -EBADF); /* and does not wait for a writer */
    snprintf(path, sizeof(path), "%s/link", directory);
    assert_int_equal(symlink("/proc/self/fd/0", path), 0);
    assert_int_equal(open_status(path), -ELOOP);
    directory_remove(directory);
}

/* ---- build ids ---- */

static size_t build_id_of(const void *bytes, size_t length, uint8_t *id)
{
    int fd = memfd_create("elf", MFD_CLOEXEC);
    assert_int_equal(write_all(fd, bytes, length), 0);
    size_t r = file_build_id(fd, id);
    close(fd);
    return r;
}

struct small_elf {
    Elf64_Ehdr header;
    Elf64_Phdr segment;
    Elf64_Nhdr note;
    char owner[4];
    uint8_t id[20];
};

static struct small_elf small_elf(void)
{
    struct small_elf elf = {
        .header = {.e_phoff = offsetof(struct small_elf, segment),
                   .e_phentsize = sizeof(Elf64_Phdr),
                   .e_phnum = 1},
        .segment = {.p_type = PT_NOTE,
                    .p_offset = offsetof(struct small_elf, note),
                    .p_filesz = sizeof(Elf64_Nhdr) + 24},
        .note = {.n_namesz = 4, .n_descsz = 20, .n_type = NT_GNU_BUILD_ID},
        .owner = "GNU",
    };
    memcpy(elf.header.e_ident, ELFMAG, SELFMAG);
    elf.header.e_ident[EI_CLASS] = ELFCLASS64;
    elf.header.e_ident[EI_DATA] = ELFDATA2LSB;
    for (uint8_t i = 0; i < sizeof(elf.id); i++)
        elf.id[i] = i;
    return elf;
}

static void build_ids(void **state)
{
    (void)state;
    uint8_t id[BUILD_ID_MAX];
    struct small_elf elf = small_elf();
    assert_int_equal(build_id_of(&elf, sizeof(elf), id), 20);
    assert_memory_equal(id, elf.id, 20);
    /* cut short anywhere there is none, and nothing is read that is not there */
    for (size_t length = 0; length < offsetof(struct small_elf, id) + sizeof(elf.id); length++)
        assert_int_equal(build_id_of(&elf, length, id), 0);
    assert_int_equal(build_id_of("#!/bin/sh\n", 10, id), 0);
}

static void build_ids_absurd(void **state)
{
    (void)state;
    uint8_t id[BUILD_ID_MAX];
#define ABSURD(field, value)                                                                       \
    do {                                                                                           \
        struct small_elf elf = small_elf();                                                        \
        elf.field = (__typeof__(elf.field))(value);                                                \
        assert_int_equal(build_id_of(&elf, sizeof(elf), id), 0);                                   \
    } while (0)
    ABSURD(header.e_phoff, UINT64_MAX);
    ABSURD(header.e_phoff, INT64_MAX);
    ABSURD(header.e_phnum, 0);
    ABSURD(header.e_phentsize, 1);
    ABSURD(header.e_ident[EI_CLASS], 3);
    ABSURD(header.e_ident[EI_CLASS], ELFCLASS32);
    ABSURD(header.e_ident[EI_DATA], ELFDATA2MSB);
    ABSURD(segment.p_offset, UINT64_MAX);
    ABSURD(segment.p_filesz, 0);
    ABSURD(note.n_namesz, UINT32_MAX);
    ABSURD(note.n_descsz, UINT32_MAX);
    ABSURD(note.n_descsz, 0);
    ABSURD(note.n_type, 1);
    ABSURD(owner[0], 'X');
#undef ABSURD
    struct small_elf elf = small_elf();
    elf.segment.p_filesz = UINT64_MAX; /* as much as there is */
    elf.header.e_phnum = UINT16_MAX;
    assert_int_equal(build_id_of(&elf, sizeof(elf), id), 20);
    uint64_t seed = test_seed();
    for (int i = 0; i < 5000; i++) {
        elf = small_elf();
        for (int n = 0; n < 4; n++)
            ((uint8_t *)&elf)[test_random(&seed) % sizeof(elf)] = (uint8_t)test_random(&seed);
        assert_true(build_id_of(&elf, sizeof(elf), id) <= BUILD_ID_MAX);
    }
}

static void build_id_of_ourselves(void **state)
{
    (void)state;
    uint8_t id[BUILD_ID_MAX];
    int fd = open("/bin/sh", O_RDONLY | O_CLOEXEC);
    assert_int_equal(file_build_id(fd, id), 20);
    close(fd);
}

/* ---- tasks ---- */

static void tasks(void **state)
{
    (void)state;
    struct task_stat stat;
    char command[17];
    pid_t pid = child_start(NULL, NULL);
    assert_true(task_read_stat(pid, &stat));
    assert_int_equal(stat.parent, getpid());
    assert_int_equal(stat.session, pid);
    assert_true(stat.state == 'S' && !stat.kernel && !stat.exiting);
    task_command(pid, command, sizeof(command));
    assert_string_equal(command, "test_task");
    assert_int_equal(task_leader(pid), pid);
    child_end();
    assert_false(task_read_stat(pid, &stat));
    assert_int_equal(task_leader(pid), 0);
    task_command(pid, command, sizeof(command));
    assert_string_equal(command, "");
}

/* ---- trees ---- */

static void *thread(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static pid_t family(void *shared_bytes)
{
    size_t bytes = *(size_t *)shared_bytes;
    char *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *own = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(shared, 1, bytes);
    memset(own, 1, bytes);
    pthread_t id;
    pthread_create(&id, NULL, thread, NULL);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        memset(shared, 2, bytes);
        thread(NULL);
    }
    until_asleep(child); /* it has touched all */
    return 0;
}

static const struct tree_file *find_file(const struct tree *tree, const char *path)
{
    const struct tree_file *found = NULL;
    for (size_t i = 0; i < tree->file_count; i++) {
        if (strcmp(tree->files[i]->path, path) != 0)
            continue;
        assert_null(found); /* once */
        found = tree->files[i];
    }
    return found;
}

static void a_family(void **state)
{
    (void)state;
    size_t bytes = MIB(32);
    struct tree tree;
    struct error err;
    char self[PATH_MAX] = "", cwd[PATH_MAX];
    pid_t pid = child_start(family, &bytes);
    assert_int_equal(tree_look(pid, &tree, &err), 0);
    assert_int_equal(tree.process_count, 2);
    assert_int_equal(tree.processes[0], pid);
    assert_int_equal(tree.pid_count, 3);
    assert_int_equal(tree.root_pid, pid);
    /* twice what is private (copy on write is lost), once what is shared */
    assert_true(tree.memory_bytes >= 3 * bytes && tree.memory_bytes < 4 * bytes);
    assert_true(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    const struct tree_file *file = find_file(&tree, self);
    assert_true(file && file->program && !file->written && !file->any_size && file->size > 0);
    file = find_file(&tree, getcwd(cwd, sizeof(cwd)));
    assert_true(file && S_ISDIR(file->mode));
    assert_non_null(find_file(&tree, "/"));
    assert_null(find_file(&tree, "/dev/null"));
    assert_false(tree.cut || tree.other_pid_ns || tree.other_mnt_ns || tree.other_net_ns);
    assert_false(tree.sockets_unknown);
    tree_free(&tree);
    child_end();
    assert_int_equal(tree_look(pid, &tree, &err), -1);
    assert_int_equal(err.code, FAILURE_NOT_FOUND);
}

static void trees_that_overlap(void **state)
{
    (void)state;
    pid_t one = child_start(NULL, NULL);
    struct servant other;
    servant_start(&other, NULL);
    assert_true(task_trees_overlap(one, one));
    assert_true(task_trees_overlap(getpid(), one));
    assert_true(task_trees_overlap(one, getpid()));
    assert_false(task_trees_overlap(one, other.pid));
    assert_false(task_trees_overlap(other.pid, one));
    servant_kill(&other);
    assert_true(task_trees_overlap(other.pid, one)); /* that cannot be told */
    child_end();
}

static pid_t three_files(void *directory)
{
    static const struct {
        const char *name;
        int flags;
    } files[] = {{"read", O_RDONLY}, {"log", O_WRONLY | O_APPEND}, {"data", O_RDWR | O_APPEND}};
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof(path), "%s/%s", (char *)directory, files[i].name);
        close(creat(path, 0640));
        open(path, files[i].flags | O_CLOEXEC);
    }
    return 0;
}

static void ways_of_opening(void **state)
{
    (void)state;
    struct tree tree;
    struct error err;
    char *directory = directory_make(), path[PATH_MAX];
    assert_int_equal(tree_look(child_start(three_files, directory), &tree, &err), 0);
    snprintf(path, sizeof(path), "%s/read", directory);
    const struct tree_file *file = find_file(&tree, path);
    assert_true(file && !file->written && !file->any_size && !file->program);
    assert_int_equal(file->mode & 07777, 0640);
    snprintf(path, sizeof(path), "%s/log", directory);
    file = find_file(&tree, path);
    assert_true(file && file->written && file->any_size);
    snprintf(path, sizeof(path), "%s/data", directory);
    file = find_file(&tree, path);
    assert_true(file && file->written && !file->any_size);
    tree_free(&tree);
    child_end();
    directory_remove(directory);
}

/* What is about to be killed does not compete with what has to be done meanwhile: all threads of
 * all processes. */
static void those_that_give_way(void **state)
{
    (void)state;
    size_t bytes = MIB(1);
    struct task_tree tree;
    struct tree seen;
    struct error err;
    pid_t root = child_start(family, &bytes);
    assert_int_equal(tree_look(root, &seen, &err), 0);
    assert_int_equal(seen.pid_count, 3); /* one of the two processes has a second thread */
    assert_int_equal(task_tree_open(root, &tree), 0);
    assert_int_equal(tree.count, 2);
    task_tree_give_way(&tree);
    for (size_t i = 0; i < seen.pid_count; i++) {
        pid_t tid = (pid_t)seen.pids[i];
        assert_int_equal(sched_getscheduler(tid), SCHED_BATCH);
        assert_int_equal(getpriority(PRIO_PROCESS, (id_t)tid), 5);
    }
    task_tree_close(&tree);
    tree_free(&seen);
    child_end();
}

/* ---- whom a tracer traces ---- */

/* Traces a child, which it returns, and has the socket that it is told of. */
static pid_t trace_a_child(void *user)
{
    int *sockets = user;
    close(sockets[1]);
    pid_t child = child_fork();
    return ptrace(PTRACE_SEIZE, child, 0, 0) == 0 ? child : -1;
}

static void whom_a_tracer_traces(void **state)
{
    (void)state;
    int sockets[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    pid_t child = child_start(trace_a_child, sockets);
    assert_true(child > 0);
    const pid_t likely[] = {child, getpid(), 0, -1, INT_MAX};
    for (size_t i = 0; i < ARRAY_SIZE(likely); i++) {
        assert_int_equal(task_find_traced(likely[i], inode_of(sockets[0])), child);
        assert_int_equal(task_find_traced(likely[i], inode_of(sockets[1])), 0); /* only ours */
    }
    child_end();
    assert_int_equal(task_find_traced(child, inode_of(sockets[0])), 0);
    close(sockets[0]);
    close(sockets[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_that_are_opened),
        cmocka_unit_test(files_that_are_not),
        cmocka_unit_test(build_ids),
        cmocka_unit_test(build_ids_absurd),
        cmocka_unit_test(build_id_of_ourselves),
        cmocka_unit_test(tasks),
        cmocka_unit_test(a_family),
        cmocka_unit_test(trees_that_overlap),
        cmocka_unit_test(ways_of_opening),
        cmocka_unit_test(those_that_give_way),
        cmocka_unit_test(whom_a_tracer_traces),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
