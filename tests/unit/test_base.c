/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/digest.h"
#include "base/io.h"
#include "base/passing.h"
#include "cli/options.h"
#include "daemon/crowd.h"
#include "wire/owner.h"
#include "wire/tcp.h"

/* ---- little-endian ---- */

static void little_endian(void **state)
{
    (void)state;
    uint8_t bytes[8];
    put_le64(bytes, 0x0123456789abcdefu);
    static const uint8_t expected[] = {0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01};
    assert_memory_equal(bytes, expected, sizeof(expected));
    assert_true(get_le64(bytes) == 0x0123456789abcdefu);
    assert_int_equal(get_le32(bytes + 4), 0x01234567);
    assert_int_equal(get_le16(bytes), 0xcdef);
    static const uint8_t high[] = {0xff, 0xff, 0xff, 0xff};
    assert_true(get_le32(high) == UINT32_MAX);
}

/* ---- numbers and sizes ---- */

static void sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"1", 1},
        {"10k", 10240},
        {"64K", 65536},
        {"5M", 5 << 20},
        {"2G", 2ull << 30},
        {"3T", 3ull << 40},
        {"18446744073709551615", UINT64_MAX},
        {"16777215T", 16777215ull << 40},
    };
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        uint64_t bytes = 77;
        assert_int_equal(parse_size(good[i].text, &bytes), 0);
        assert_true(bytes == good[i].bytes);
    }
    static const char *const bad[] = {"",    " 1",  "-1",        "+1",
                                      "K",   "1KB", "1 K",       "1.5G",
                                      "0x1", "1P",  "16777216T", "18446744073709551616"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint64_t bytes = 77;
        if (parse_size(bad[i], &bytes) != -EINVAL || bytes != 77)
            fail_msg("parse_size took \"%s\"", bad[i]);
    }
}

static void numbers(void **state)
{
    (void)state;
    uint64_t value = 77;
    assert_int_equal(parse_number("65535", 65535, &value), 0);
    assert_true(value == 65535);
    assert_int_equal(parse_number("18446744073709551615", UINT64_MAX, &value), 0);
    assert_true(value == UINT64_MAX);
    static const char *const bad[] = {
        "", " 1", "-1", "+1", "65536", "1 ", "1x", "0x10", "99999999999999999999"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        value = 77;
        if (parse_number(bad[i], 65535, &value) != -EINVAL || value != 77)
            fail_msg("parse_number took \"%s\"", bad[i]);
    }
}

static void seconds(void **state)
{
    (void)state;
    uint64_t usec = 77;
    assert_int_equal(parse_seconds("10", &usec), 0);
    assert_true(usec == 10000000);
    assert_int_equal(parse_seconds("0.5", &usec), 0);
    assert_true(usec == 500000);
    assert_int_equal(parse_seconds("0", &usec), 0);
    assert_true(usec == 0);
    static const char *const bad[] = {"", "-1", ".5", "1s", "inf", "nan", "1e10", " 1", "1,5"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        usec = 77;
        if (parse_seconds(bad[i], &usec) != -EINVAL || usec != 77)
            fail_msg("parse_seconds took \"%s\"", bad[i]);
    }
}

static void bytes_for_people(void **state)
{
    (void)state;
    char buf[24];
    assert_string_equal(format_bytes(0, buf), "0 B");
    assert_string_equal(format_bytes(1023, buf), "1023 B");
    assert_string_equal(format_bytes(1024, buf), "1.0 KiB");
    assert_string_equal(format_bytes(MIB(512), buf), "512.0 MiB");
    assert_string_equal(format_bytes(UINT64_MAX, buf), "16777216.0 TiB");
}

/* ---- errors ---- */

static void errors(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(error_set(&err, FAILURE_LIMIT, "%d of %d", 1, 2), -1);
    assert_int_equal(err.code, FAILURE_LIMIT);
    assert_string_equal(err.text, "1 of 2");
    assert_int_equal(error_prefix(&err, "snapshot %s", "a"), -1);
    assert_string_equal(err.text, "snapshot a: 1 of 2");
    assert_int_equal(error_set_errno(&err, FAILURE_SYSTEM, -ENOENT, "file"), -1);
    assert_string_equal(err.text, "file: No such file or directory");
    assert_int_equal(error_set_errno(&err, FAILURE_SYSTEM, ENOENT, "file"), -1);
    assert_string_equal(err.text, "file: No such file or directory");
    assert_int_equal(error_set(NULL, FAILURE_PEER, "x"), -1);
    assert_int_equal(error_prefix(NULL, "x"), -1);
}

static void errors_are_cut(void **state)
{
    (void)state;
    struct error err;
    char longer[2 * sizeof(err.text)];
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    error_set_errno(&err, FAILURE_SYSTEM, EIO, "%s", longer);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    error_prefix(&err, "%s", longer);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    error_set(&err, FAILURE_SYSTEM, "end");
    error_prefix(&err, "begin");
    assert_string_equal(err.text, "begin: end");
}

static void failures_from_the_wire(void **state)
{
    (void)state;
    assert_int_equal(failure_from_wire(FAILURE_LIMIT), FAILURE_LIMIT);
    assert_int_equal(failure_from_wire(FAILURE_LAST), FAILURE_LAST);
    assert_int_equal(failure_from_wire(FAILURE_LAST + 1), FAILURE_PEER);
    assert_int_equal(failure_from_wire(0), FAILURE_PEER);
    assert_int_equal(failure_from_wire(UINT32_MAX), FAILURE_PEER);
}

/* ---- descriptors ---- */

static void whole_reads(void **state)
{
    (void)state;
    int fds[2];
    char buf[8] = "";
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(write_all(fds[1], "abcdef", 6), 0);
    assert_int_equal(read_all(fds[0], buf, 4), 0);
    assert_string_equal(buf, "abcd");
    close(fds[1]);
    assert_int_equal(read_all(fds[0], buf, 4), -ENODATA);
    close(fds[0]);
    assert_int_equal(read_all(-1, buf, 1), -EBADF);
    assert_int_equal(write_all(-1, buf, 1), -EBADF);
}

static void nonblocking(void **state)
{
    (void)state;
    int fds[2];
    socket_pair(fds);
    assert_int_equal(set_nonblocking(fds[0], true), 0);
    assert_true(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
    assert_int_equal(set_nonblocking(fds[0], false), 0);
    assert_false(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
    assert_int_equal(set_nonblocking(-1, true), -EBADF);
    close(fds[0]);
    close(fds[1]);
}

/* A work-dir whose path is longer than a UNIX socket's address can be. */
static int count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void descriptors_that_are_passed(void **state)
{
    (void)state;
    int pair[2], fds[PASSING_MAX + 1], before = count_descriptors();
    char bytes[2] = "ab", got[2];
    struct iovec all = {bytes, 2}, room = {got, 2}, little = {got, 1};
    struct passed passed;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    for (int i = 0; i <= PASSING_MAX; i++)
        fds[i] = pair[0];
    assert_int_equal(send_passing(pair[0], &all, 1, fds, PASSING_MAX + 1), -EINVAL);
    assert_int_equal(send_passing(pair[0], &all, 1, fds, PASSING_MAX), 2);
    assert_int_equal(receive_passed(pair[1], 0, &room, 1, &passed), 2);
    assert_true(passed.count == PASSING_MAX && !passed.cut);
    int first = passed_take_first(&passed);
    assert_int_equal(fcntl(first, F_GETFD), FD_CLOEXEC);
    assert_int_equal(count_descriptors(), before + 3);
    close(first);
    assert_int_equal(send_passing(pair[0], &all, 1, fds, 2), 2);
    assert_int_equal(receive_passed(pair[1], 0, &little, 1, &passed), 1);
    assert_true(passed.count == 2 && passed.cut);
    passed_close(&passed);
    assert_int_equal(send_passing(pair[0], &all, 1, NULL, 0), 2);
    assert_int_equal(receive_passed(pair[1], 0, &room, 1, &passed), 2);
    assert_int_equal(passed_take_first(&passed), -EBADF);
    assert_int_equal(receive_passed(pair[1], MSG_DONTWAIT, &room, 1, &passed), -EAGAIN);
    close(pair[0]);
    assert_int_equal(receive_passed(pair[1], 0, &room, 1, &passed), 0);
    assert_int_equal(send_passing(pair[1], &all, 1, NULL, 0), -EPIPE);
    close(pair[1]);
    assert_int_equal(count_descriptors(), before);
}

static void sockets_in_a_deep_directory(void **state)
{
    (void)state;
    char *top = directory_make(), path[512];
    snprintf(path, sizeof(path), "%s/%0150d", top, 0);
    assert_int_equal(mkdir(path, 0700), 0);
    int dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dirfd >= 0);
    assert_int_equal(unix_connect_at(dirfd, "s", SOCK_STREAM), -ENOENT);
    int listener = unix_listen_at(dirfd, "s", SOCK_STREAM);
    assert_true(listener >= 0);
    struct stat st;
    assert_int_equal(fstatat(dirfd, "s", &st, 0), 0);
    assert_int_equal(st.st_mode & 077, 0);
    int fd = unix_connect_at(dirfd, "s", SOCK_STREAM);
    assert_true(fd >= 0);
    close(fd);
    /* what a killed daemon left is taken over */
    close(listener);
    assert_int_equal(unix_connect_at(dirfd, "s", SOCK_STREAM), -ECONNREFUSED);
    listener = unix_listen_at(dirfd, "s", SOCK_STREAM);
    assert_true(listener >= 0);
    char name[200];
    memset(name, 'n', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    assert_int_equal(unix_listen_at(dirfd, name, SOCK_STREAM), -ENAMETOOLONG);
    close(listener);
    close(dirfd);
    directory_remove(top);
}

/* What is in the place of a socket and is none stays. */
static void sockets_replace_sockets_only(void **state)
{
    (void)state;
    char *top = directory_make();
    int dirfd = open(top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    close(openat(dirfd, "file", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    assert_int_equal(symlinkat("file", dirfd, "link"), 0);
    assert_int_equal(unix_listen_at(dirfd, "file", SOCK_STREAM), -EEXIST);
    assert_int_equal(unix_listen_at(dirfd, "link", SOCK_STREAM), -EEXIST);
    assert_int_equal(faccessat(dirfd, "file", F_OK, 0), 0);
    close(dirfd);
    directory_remove(top);
}

static void workdir_refused(const char *path, int expected, const char *text)
{
    struct error err = {0};
    char *absolute = NULL;
    assert_int_equal(workdir_open(path, true, &absolute, &err), expected);
    assert_null(absolute);
    assert_contains(err.text, text);
    assert_contains(err.text, path);
}

static void workdirs(void **state)
{
    (void)state;
    char *top = directory_make(), path[256], *absolute = NULL;
    struct error err;
    struct stat st;
    snprintf(path, sizeof(path), "%s/a/b/c/", top);
    int fd = workdir_open(path, false, NULL, &err);
    assert_int_equal(fd, -ENOENT);
    fd = workdir_open(path, true, &absolute, &err);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    close(fd);
    assert_string_equal(absolute + strlen(absolute) - 6, "/a/b/c");
    free(absolute);
    /* The links of root and of this user lead there as well, but it is no link itself. */
    snprintf(path, sizeof(path), "%s/l", top);
    assert_int_equal(symlink("a/b", path), 0);
    workdir_refused(path, -ENOTDIR, "symbolic link");
    snprintf(path, sizeof(path), "%s/l/c", top);
    fd = workdir_open(path, false, &absolute, &err);
    assert_true(fd >= 0 && !strstr(absolute, "/l/"));
    close(fd);
    free(absolute);
    assert_int_equal(chmod(path, 0720), 0);
    workdir_refused(path, -EPERM, "writable by nobody else");
    assert_int_equal(chmod(path, 0755), 0);
    snprintf(path, sizeof(path), "%s/a", top);
    assert_int_equal(chmod(path, 0702), 0);
    snprintf(path, sizeof(path), "%s/a/b", top);
    workdir_refused(path, -EACCES, "above it");
    snprintf(path, sizeof(path), "%s/a", top);
    assert_int_equal(chmod(path, 01777), 0);
    snprintf(path, sizeof(path), "%s/a/b", top);
    fd = workdir_open(path, false, NULL, &err);
    assert_true(fd >= 0);
    close(fd);
    snprintf(path, sizeof(path), "%s/file", top);
    close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    workdir_refused(path, -ENOTDIR, "no directory");
    directory_remove(top);
}

/* ---- the digest: known answers of XXH3-128, canonical ---- */

static void digest_of(const void *bytes, size_t length, char hex[33])
{
    struct digest digest;
    uint8_t out[DIGEST_BYTES];
    assert_int_equal(digest_begin(&digest), 0);
    digest_bytes(&digest, bytes, length);
    digest_end(&digest, out);
    assert_null(digest.state);
    for (size_t i = 0; i < sizeof(out); i++)
        snprintf(hex + 2 * i, 3, "%02x", out[i]);
}

static void digests(void **state)
{
    (void)state;
    char hex[33], same[33];
    digest_of("", 0, hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
    digest_of("a", 1, hex);
    assert_string_equal(hex, "a96faf705af16834e6c632b61e964e1f");
    digest_of("abc", 3, hex);
    assert_string_equal(hex, "06b05ab6733a618578af5f94892f3950");

    /* in pieces, and with a place, which counts as its 16 bytes */
    uint8_t flat[16 + 4096] = {0};
    put_le64(flat, 0x7fff12345000);
    put_le64(flat + 8, 4096);
    for (size_t i = 16; i < sizeof(flat); i++)
        flat[i] = (uint8_t)(i * 7);
    digest_of(flat, sizeof(flat), hex);
    struct digest digest;
    uint8_t out[DIGEST_BYTES];
    assert_int_equal(digest_begin(&digest), 0);
    digest_place(&digest, 0x7fff12345000, 4096);
    digest_bytes(&digest, flat + 16, 1);
    digest_bytes(&digest, flat + 17, 4095);
    digest_end(&digest, out);
    for (size_t i = 0; i < sizeof(out); i++)
        snprintf(same + 2 * i, 3, "%02x", out[i]);
    assert_string_equal(hex, same);
    flat[100] ^= 1;
    digest_of(flat, sizeof(flat), same);
    assert_string_not_equal(hex, same);
    digest = (struct digest){0};
    digest_drop(&digest);
}

/* ---- command lines ---- */

struct values {
    bool flag;
    const char *string;
    uint64_t number, size, seconds;
    int fd;
    unsigned count;
};

static const struct option_row rows[] = {
    {'f', "flag", OPTION_FLAG, offsetof(struct values, flag), NULL, "a flag"},
    {'s', "string", OPTION_STRING, offsetof(struct values, string), "TEXT", "a string"},
    {'n', "number", OPTION_NUMBER, offsetof(struct values, number), "N", "a number"},
    {0, "size", OPTION_SIZE, offsetof(struct values, size), "SIZE", "a size"},
    {0, "seconds", OPTION_SECONDS, offsetof(struct values, seconds), "SECONDS", "a time"},
    {0, "fd", OPTION_FD, offsetof(struct values, fd), "FD", "a descriptor"},
    {'v', "verbose", OPTION_COUNT, offsetof(struct values, count), NULL, "more"},
    {0},
};

static const struct command command = {"try", "Tries", "THING", rows, NULL};

static char **rest, **passed;

/* Parses words that a NULL ends. */
static int parse(struct values *values, struct error *err, ...)
{
    static char words[32][64];
    static char *argv[33];
    int argc = 0;
    va_list ap;
    va_start(ap, err);
    for (const char *word = "try"; word; word = va_arg(ap, const char *)) {
        snprintf(words[argc], sizeof(words[argc]), "%s", word);
        argv[argc] = words[argc];
        argc++;
    }
    va_end(ap);
    argv[argc] = NULL;
    *values = (struct values){0};
    *err = (struct error){0};
    rest = passed = NULL;
    return options_parse(&command, argc, argv, values, &rest, &passed, err);
}

static void options_of_every_kind(void **state)
{
    (void)state;
    struct values values;
    struct error err;
    assert_int_equal(parse(&values, &err, "-f", "-s", "text", "--number=5", "--size", "2M",
                           "--seconds", "1.5", "--fd", "0", "-vv", "rest", "--verbose", NULL),
                     0);
    assert_true(values.flag);
    assert_string_equal(values.string, "text");
    assert_true(values.number == 5 && values.size == MIB(2) && values.seconds == 1500000);
    assert_int_equal(values.fd, 0);
    assert_int_equal(values.count, 3);
    assert_string_equal(rest[0], "rest"); /* options may follow an argument */
    assert_null(rest[1]);
    assert_null(passed);

    assert_int_equal(parse(&values, &err, "-vfstext", "--num", "7", NULL), 0);
    assert_true(values.flag && values.count == 1 && values.number == 7);
    assert_string_equal(values.string, "text");
    assert_null(rest[0]);

    assert_int_equal(parse(&values, &err, NULL), 0);
    assert_null(rest[0]);
}

static void options_refused(void **state)
{
    (void)state;
    struct values values;
    struct error err;
    assert_int_equal(parse(&values, &err, "--nonsense", NULL), -1);
    assert_int_equal(err.code, FAILURE_USAGE);
    assert_contains(err.text, "--nonsense");
    assert_int_equal(parse(&values, &err, "--s", "x", NULL), -1); /* string, size, seconds */
    assert_int_equal(parse(&values, &err, "-x", NULL), -1);
    assert_contains(err.text, "-x");
    assert_int_equal(parse(&values, &err, "-fxv", NULL), -1);
    assert_contains(err.text, "x:");
    assert_int_equal(parse(&values, &err, "-s", NULL), -1);
    assert_contains(err.text, "-s: its argument is missing");
    assert_int_equal(parse(&values, &err, "--size", NULL), -1);
    assert_contains(err.text, "--size: its argument is missing");
    assert_int_equal(parse(&values, &err, "--flag=1", NULL), -1);
    static const char *const bad[][2] = {
        {"--number", "x"},     {"--number", "-1"}, {"--number", "2147483648"}, {"--size", "1Q"},
        {"--seconds", "soon"}, {"--fd", "x"},      {"--fd", "1000000"},        {"--fd", "-1"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(parse(&values, &err, bad[i][0], bad[i][1], NULL), -1);
        assert_int_equal(err.code, FAILURE_USAGE);
        assert_contains(err.text, bad[i][0]);
        assert_contains(err.text, bad[i][1]);
    }
}

static void options_passed_on(void **state)
{
    (void)state;
    struct values values;
    struct error err;
    assert_int_equal(parse(&values, &err, "-f", "--", "--shell-job", "-s", NULL), 0);
    assert_true(values.flag);
    assert_null(values.string);
    assert_null(rest[0]);
    assert_string_equal(passed[0], "--shell-job");
    assert_string_equal(passed[1], "-s");
    assert_null(passed[2]);
    assert_int_equal(parse(&values, &err, "a", "--", "--", NULL), 0);
    assert_string_equal(rest[0], "a");
    assert_null(rest[1]);
    assert_string_equal(passed[0], "--");
    assert_int_equal(parse(&values, &err, "--", NULL), 0);
    assert_non_null(passed);
    assert_null(passed[0]);
    /* an argument is not taken from beyond the border */
    assert_int_equal(parse(&values, &err, "-s", "--", "x", NULL), -1);
    assert_contains(err.text, "missing");
}

static void commands_by_name(void **state)
{
    (void)state;
    assert_null(command_find("no-such-command"));
    fflush(stdout);
    int silence = open("/dev/null", O_WRONLY | O_CLOEXEC), out = dup(STDOUT_FILENO);
    assert_true(dup2(silence, STDOUT_FILENO) >= 0);
    int asked = 0, answered = 0;
    for (const struct command *c = commands; c->name; c++) {
        answered -= command_find(c->name) != c;
        char *argv[] = {(char *)c->name, (char *)"--help", NULL};
        char values[4096] = "";
        struct error err;
        if (!c->options)
            continue;
        asked++;
        answered += options_parse(c, 2, argv, values, &rest, &passed, &err) == 1;
    }
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    close(silence);
    assert_true(asked > 0);
    assert_int_equal(answered, asked);
    assert_int_equal(option_count(rows), 7);
    assert_int_equal(option_count(NULL), 0);
}

/* ---- whose is the other end ---- */

/* A connection within this host: the end that has connected, and the one that was accepted. */
static void connect_to(const char *address, bool accept_it, int fds[2])
{
    const struct protection none = {0};
    int listeners[TCP_LISTENERS_MAX];
    struct sockaddr_storage name = {0};
    socklen_t length = sizeof(name);
    struct error err;
    if (tcp_listen(address, "0", &none, listeners, &err) != 1)
        skip(); /* no IPv6 */
    assert_int_equal(getsockname(listeners[0], (struct sockaddr *)&name, &length), 0);
    fds[0] = socket(name.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fds[0], (struct sockaddr *)&name, length), 0);
    fds[1] = accept_it ? accept4(listeners[0], NULL, NULL, SOCK_CLOEXEC) : -1;
    if (accept_it)
        close(listeners[0]);
    else
        fds[1] = listeners[0];
}

static void owner_told(const char *address)
{
    int fds[2];
    uid_t uid = 1234567;
    connect_to(address, true, fds);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(tcp_owner(fds[i], &uid), 0);
        assert_int_equal(uid, geteuid());
    }
    /* Of another user. */
    if (geteuid() == 0) {
        struct error err;
        assert_int_equal(fchown(fds[0], 4242, -1), 0);
        assert_int_equal(tcp_owner(fds[1], &uid), 0);
        assert_int_equal(uid, 4242);
        assert_int_equal(tcp_check_owner(fds[1], &err), -1);
        assert_contains(err.text, "user 4242");
        assert_int_equal(tcp_check_owner(fds[0], &err), 1);
    }
    close(fds[0]);
    assert_int_equal(tcp_owner(fds[1], &uid), -ENOENT);
    close(fds[1]);
}

static void owner_by_ipv4(void **state)
{
    (void)state;
    owner_told("127.0.0.1");
}

static void owner_by_ipv6(void **state)
{
    (void)state;
    owner_told("::1");
}

/* What nobody has accepted is told of as root's: it is nobody's. */
static void owner_before_accept(void **state)
{
    (void)state;
    int fds[2];
    uid_t uid;
    connect_to("127.0.0.1", false, fds);
    assert_int_equal(tcp_owner(fds[0], &uid), -ENOENT);
    close(fds[0]);
    close(fds[1]);
}

/* ---- the inode of the other end ---- */

static uint64_t inode_of_network(void)
{
    struct stat st;
    assert_int_equal(stat("/proc/self/ns/net", &st), 0);
    return st.st_ino;
}

/* Closes both. */
static void assert_peers(int fds[2])
{
    uint64_t inode;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(socket_peer_inode(fds[i], &inode), 0);
        assert_int_equal(inode, inode_of(fds[1 - i]));
    }
    close(fds[0]);
    assert_int_equal(socket_peer_inode(fds[1], &inode), -ENOENT);
    close(fds[1]);
}

static void peer_by_tcp(void **state)
{
    (void)state;
    int fds[2];
    connect_to("127.0.0.1", true, fds);
    assert_peers(fds);
    connect_to("::1", true, fds);
    assert_peers(fds);
}

/* By a path, from another network. */
static void connect_from_elsewhere(const char *path, int ready)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path, sizeof(name.sun_path), "%s", path);
    int moved = unshare(CLONE_NEWNET), fd = socket(AF_UNIX, SOCK_STREAM, 0);
    uint64_t inode = inode_of(fd);
    if (moved < 0 || connect(fd, (struct sockaddr *)&name, sizeof(name)) < 0 ||
        write(ready, &inode, sizeof(inode)) < 0)
        _exit(1);
    pause();
}

static void peer_by_unix(void **state)
{
    (void)state;
    int fds[2], ready[2];
    if (geteuid() != 0)
        test_skip("wants CAP_NET_ADMIN");
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_peers(fds);

    char *top = directory_make(), path[100];
    snprintf(path, sizeof(path), "%s/socket", top);
    int listener = unix_listen_path(path, SOCK_STREAM);
    assert_true(listener >= 0);
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0)
        connect_from_elsewhere(path, ready[1]);
    uint64_t expected, inode, here = inode_of_network();
    assert_int_equal(read(ready[0], &expected, sizeof(expected)), sizeof(expected));
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_int_equal(socket_peer_inode(fd, &inode), 0);
    assert_int_equal(inode, expected);
    assert_int_equal(inode_of_network(), here); /* we are back */
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(fd);
    close(listener);
    close(ready[0]);
    close(ready[1]);
    directory_remove(top);
}

/* ---- the crowd ---- */

static void crowd_networks(void **state)
{
    (void)state;
    int fds[2];
    uint8_t network[CROWD_NETWORK_BYTES], zeros[CROWD_NETWORK_BYTES] = {0};
    connect_to("127.0.0.1", true, fds);
    stranger_network(fds[1], network);
    assert_memory_equal(network + 1, "\x7f\0\0\1", 4);
    close(fds[0]);
    close(fds[1]);
    socket_pair(fds);
    stranger_network(fds[1], network);
    assert_memory_equal(network + 1, zeros, sizeof(network) - 1);
    close(fds[0]);
    close(fds[1]);
    stranger_network(-1, network);
    assert_memory_equal(network, zeros, sizeof(network));
}

/* The oldest of those that are the most; of as many, the oldest of all. */
static void crowd_who_goes(void **state)
{
    (void)state;
    static const struct {
        const char *networks; /* a letter each */
        uint64_t since[6];
        size_t goes;
    } cases[] = {
        {"a", {5}, 0},
        {"abb", {1, 9, 8}, 2},
        {"abab", {4, 3, 2, 1}, 3},
        {"aaabb", {7, 5, 6, 1, 2}, 1},
        {"abcccc", {1, 2, 9, 8, 7, 9}, 4},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct stranger crowd[6] = {0};
        size_t count = strlen(cases[i].networks);
        for (size_t n = 0; n < count; n++) {
            crowd[n].network[3] = (uint8_t)cases[i].networks[n];
            crowd[n].since_usec = cases[i].since[n];
        }
        assert_int_equal(crowd_choose(crowd, count), cases[i].goes);
    }
}

/* ---- addresses ---- */

static void tcp_stays_at_home(void **state)
{
    (void)state;
    struct error err;
    int fds[TCP_LISTENERS_MAX];
    const struct protection none = {0};
    assert_int_equal(tcp_listen("192.0.2.1", "9996", &none, fds, &err), -1);
    assert_int_equal(err.code, FAILURE_USAGE);
    assert_contains(err.text, "--insecure");
    assert_int_equal(tcp_listen("0.0.0.0", "9996", &none, fds, &err), -1);
    assert_int_equal(err.code, FAILURE_USAGE);
    struct tcp_dial dial;
    assert_int_equal(tcp_dial_begin(&dial, "2001:db8::1", "9996", &none, &err), -1);
    assert_int_equal(err.code, FAILURE_USAGE);
    tcp_dial_end(&dial);
    assert_int_equal(tcp_dial_begin(&dial, "localhost", "no-such-port", &none, &err), -1);
    assert_int_equal(err.code, FAILURE_PEER);
    tcp_dial_end(&dial);
    int count = tcp_listen("127.0.0.1", "0", &none, fds, &err);
    assert_int_equal(count, 1);
    close(fds[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(little_endian),
        cmocka_unit_test(sizes),
        cmocka_unit_test(numbers),
        cmocka_unit_test(seconds),
        cmocka_unit_test(bytes_for_people),
        cmocka_unit_test(errors),
        cmocka_unit_test(errors_are_cut),
        cmocka_unit_test(failures_from_the_wire),
        cmocka_unit_test(whole_reads),
        cmocka_unit_test(nonblocking),
        cmocka_unit_test(descriptors_that_are_passed),
        cmocka_unit_test(sockets_in_a_deep_directory),
        cmocka_unit_test(sockets_replace_sockets_only),
        cmocka_unit_test(workdirs),
        cmocka_unit_test(digests),
        cmocka_unit_test(options_of_every_kind),
        cmocka_unit_test(options_refused),
        cmocka_unit_test(options_passed_on),
        cmocka_unit_test(commands_by_name),
        cmocka_unit_test(crowd_networks),
        cmocka_unit_test(crowd_who_goes),
        cmocka_unit_test(owner_by_ipv4),
        cmocka_unit_test(owner_by_ipv6),
        cmocka_unit_test(owner_before_accept),
        cmocka_unit_test(peer_by_tcp),
        cmocka_unit_test(peer_by_unix),
        cmocka_unit_test(tcp_stays_at_home),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
