/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tmpfsroot DIR: lives in a mount namespace of its own whose root is a tmpfs with files of known
 * content, as a container does.  DIR is where that is put together.  It looks at the files again
 * and again, and says in /status of its own root, seen from outside as /proc/PID/root/status, "ok
 * N" or "bad N NAME".  Static: its root holds nothing but itself.
 */
#include "pages.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>

static const struct {
    const char *name;
    size_t pages;
} files[] = {
    {"/data/empty", 0},
    {"/data/large", 768},
    {"/data/directory/inner", 3},
    {"/data/a-name-that-is-not-short-"
     "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
     "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
     1},
};

enum { FILES = sizeof(files) / sizeof(files[0]) };

static void must(bool good, const char *what)
{
    if (!good)
        die(what);
}

static void write_file(unsigned i)
{
    uint64_t words[PAGE_WORDS];
    int fd = open(files[i].name, O_WRONLY | O_CREAT | O_EXCL, 0640);
    must(fd >= 0, files[i].name);
    for (size_t page = 0; page < files[i].pages; page++) {
        page_fill(words, mix(1000 * i + page));
        must(write(fd, words, PAGE) == PAGE, files[i].name);
    }
    close(fd);
}

static bool file_holds(unsigned i)
{
    uint64_t want[PAGE_WORDS], got[PAGE_WORDS];
    struct stat st;
    int fd = open(files[i].name, O_RDONLY);
    bool holds = fd >= 0 && fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0640 &&
                 st.st_size == (off_t)(files[i].pages * PAGE);
    for (size_t page = 0; holds && page < files[i].pages; page++) {
        page_fill(want, mix(1000 * i + page));
        holds = pread(fd, got, PAGE, (off_t)(page * PAGE)) == PAGE && memcmp(got, want, PAGE) == 0;
    }
    if (fd >= 0)
        close(fd);
    return holds;
}

static bool link_holds(void)
{
    char target[16] = "";
    return readlink("/data/link", target, sizeof(target) - 1) == 5 && strcmp(target, "large") == 0;
}

static void copy_self(const char *to)
{
    char buf[65536];
    ssize_t n;
    int in = open("/proc/self/exe", O_RDONLY), out = open(to, O_WRONLY | O_CREAT, 0755);
    must(in >= 0 && out >= 0, to);
    while ((n = read(in, buf, sizeof(buf))) > 0)
        must(write(out, buf, (size_t)n) == n, to);
    close(in);
    close(out);
}

/* Makes the root, and goes on in it, with nothing left of the old one. */
static _Noreturn void move_in(const char *directory)
{
    settle();
    must(unshare(CLONE_NEWNS) == 0, "unshare");
    must(mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0, "private");
    must(mount("tmpfsroot", directory, "tmpfs", 0, "mode=0755") == 0, directory);
    must(chdir(directory) == 0, directory);
    copy_self("self");
    must(mkdir("proc", 0755) == 0 && mkdir("dev", 0755) == 0 && mkdir("old", 0755) == 0 &&
             mkdir("data", 0755) == 0,
         "directories");
    must(mknod("dev/null", S_IFCHR | 0666, makedev(1, 3)) == 0, "dev/null");
    must(syscall(SYS_pivot_root, ".", "old") == 0 && chdir("/") == 0, "pivot_root");
    must(mount("proc", "/proc", "proc", 0, NULL) == 0, "proc");
    must(mount("data", "/data", "tmpfs", 0, "mode=0755") == 0 &&
             mkdir("/data/directory", 0750) == 0,
         "/data");
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    must(open("/dev/null", O_RDWR) == 0 && dup(0) == 1 && dup(0) == 2, "/dev/null");
    must(umount2("/old", MNT_DETACH) == 0 && rmdir("/old") == 0, "/old");
    char *argv[] = {(char *)"/self", NULL};
    execv(argv[0], argv);
    die("/self");
}

int main(int argc, char **argv)
{
    if (argc > 1)
        move_in(argv[1]);
    for (unsigned i = 0; i < FILES; i++)
        write_file(i);
    must(symlink("large", "/data/link") == 0, "/data/link");
    for (unsigned round = 0;; round++, sleep_us(20000)) {
        unsigned i = 0;
        while (i < FILES && file_holds(i))
            i++;
        if (i < FILES || !link_holds())
            report("/data/status", "bad %u %s", round, i < FILES ? files[i].name : "/data/link");
        else
            report("/data/status", "ok %u", round);
    }
}
