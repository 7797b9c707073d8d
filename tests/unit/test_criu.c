/* SPDX-License-Identifier: Apache-2.0 */
#include "testing.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/io.h"
#include "child.h"
#include "criu.pb-c.h"
#include "criu/cow_areas.h"
#include "criu/hook_memory.h"
#include "criu/images.h"
#include "criu/lazy_areas.h"
#include "criu/mm_image.h"
#include "criu/page_server.h"
#include "criu/pagemap.h"
#include "criu/stream.h"
#include "task/task.h"

/* ---- directories of images ---- */

static void make_directory(const char *directory, const char *name, const char *link, char *path)
{
    char at[PATH_MAX];
    snprintf(path, PATH_MAX, "%s/%s", directory, name);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(at, sizeof(at), "%s/parent", path);
    assert_true(!link || symlink(link, at) == 0);
}

/* What a criu is seen to have that has this directory open, and others. */
static int images_of(const char *path, struct criu_images *ret)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY), proc = open("/proc/self", O_RDONLY | O_DIRECTORY);
    int twice = dup(fd), file = memfd_create("file", MFD_CLOEXEC);
    assert_true(fd >= 0 && proc >= 0 && twice >= 0 && file >= 0);
    int r = criu_images_look(getpid(), 7, ret);
    close(fd);
    close(proc);
    close(twice);
    close(file);
    return r;
}

static void directories_that_follow(void **state)
{
    (void)state;
    struct criu_images first, images;
    char *directory = directory_make(), path[PATH_MAX], one[PATH_MAX];
    make_directory(directory, "1", NULL, one);
    assert_int_equal(images_of(one, &first), 0);
    assert_false(first.based);
    assert_false(criu_images_follow(&first, &first));
    make_directory(directory, "2", "../1", path);
    assert_int_equal(images_of(path, &images), 0);
    assert_true(criu_images_follow(&images, &first));
    assert_false(criu_images_follow(&images, &images));
    make_directory(directory, "3", one, path); /* absolute */
    assert_int_equal(images_of(path, &images), 0);
    assert_true(criu_images_follow(&images, &first));
    make_directory(directory, "4", "../2", path);
    assert_int_equal(images_of(path, &images), 0);
    assert_true(images.based && !criu_images_follow(&images, &first));
    make_directory(directory, "5", "../no/such", path);
    assert_int_equal(images_of(path, &images), -ENOLINK);
    assert_false(criu_images_follow(&images, &first));
    assert_int_equal(criu_images_look(0, 7, &images), -ENOENT);
    directory_remove(directory);
}

static void directories_that_do_not(void **state)
{
    (void)state;
    struct criu_images first, images;
    char *directory = directory_make(), path[PATH_MAX], one[PATH_MAX], other[PATH_MAX];
    make_directory(directory, "1", NULL, one);
    assert_int_equal(images_of(one, &first), 0);
    make_directory(directory, "2", "../1", path);
    make_directory(directory, "3", "../2", other);

    int fd = open(other, O_RDONLY | O_DIRECTORY);
    assert_int_equal(images_of(path, &images), -EMLINK);
    assert_false(criu_images_follow(&images, &first));
    close(fd);

    /* It has pages of another task, and of this one. */
    int at = open(one, O_PATH | O_DIRECTORY);
    close(openat(at, "pagemap-77.img", O_CREAT | O_WRONLY, 0600));
    assert_int_equal(images_of(path, &images), 0);
    assert_true(criu_images_follow(&images, &first));
    close(openat(at, "pagemap-7.img", O_CREAT | O_WRONLY, 0600));
    assert_int_equal(images_of(path, &images), 0);
    assert_true(images.based && !criu_images_follow(&images, &first));

    close(at);

    int fds[IMAGES_OPEN_MAX];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        char name[16];
        snprintf(name, sizeof(name), "many%zu", i);
        make_directory(directory, name, NULL, other);
        fds[i] = open(other, O_RDONLY | O_DIRECTORY);
    }
    assert_int_equal(images_of(path, &images), -E2BIG);
    assert_false(criu_images_follow(&images, &first));
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    directory_remove(directory);
}

/* ---- pagemap images ---- */

#define ADDRESS_END (1ull << 57)

static struct bytes pagemap_written(uint32_t pages_id, const struct pagemap_run *runs, size_t count)
{
    int fd = memfd_create("pagemap", MFD_CLOEXEC);
    assert_true(fd >= 0);
    struct pagemap_writer *writer = pagemap_begin(fd, pages_id);
    assert_non_null(writer);
    for (size_t i = 0; i < count; i++)
        pagemap_add(writer, &runs[i]);
    assert_int_equal(pagemap_finish(writer), 0);
    struct bytes bytes = {0};
    off_t length = lseek(fd, 0, SEEK_END);
    uint8_t *copy = malloc((size_t)length);
    assert_non_null(copy);
    assert_int_equal(pread(fd, copy, (size_t)length, 0), length);
    bytes_add(&bytes, copy, (size_t)length);
    free(copy);
    close(fd);
    return bytes;
}

static void pagemap_round_trip(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    enum { RUNS = 20000 };
    struct pagemap_run *runs = calloc(RUNS, sizeof(*runs));
    assert_non_null(runs);
    uint64_t vaddr = 0;
    for (size_t i = 0; i < RUNS; i++) {
        vaddr += (test_random(&seed) % 3) << (12 + test_random(&seed) % 24);
        runs[i] = (struct pagemap_run){vaddr, 1 + test_random(&seed) % 5000,
                                       (uint32_t)(test_random(&seed) % 8)};
        vaddr += runs[i].pages * PAGE_BYTES;
    }
    struct bytes bytes = pagemap_written(77, runs, RUNS);
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t id;
    assert_int_equal(pagemap_read_begin(&reader, bytes.at, bytes.length, &id, &err), 0);
    assert_int_equal(id, 77);
    for (size_t i = 0; i < RUNS; i++) {
        assert_int_equal(pagemap_read_next(&reader, &run, &err), 1);
        assert_true(run.vaddr == runs[i].vaddr && run.pages == runs[i].pages);
        assert_int_equal(run.flags, runs[i].flags);
    }
    assert_int_equal(pagemap_read_next(&reader, &run, &err), 0);
    assert_int_equal(pagemap_read_next(&reader, &run, &err), 0);
    bytes_free(&bytes);
    free(runs);
}

/* A run of more pages than the old field holds is written as several. */
static void pagemap_of_a_huge_run(void **state)
{
    (void)state;
    struct pagemap_run huge = {0x10000, (5ull << 32) + 3, PAGEMAP_PRESENT};
    struct bytes bytes = pagemap_written(1, &huge, 1);
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t id;
    uint64_t next = huge.vaddr, pages = 0;
    int r;
    assert_int_equal(pagemap_read_begin(&reader, bytes.at, bytes.length, &id, &err), 0);
    while ((r = pagemap_read_next(&reader, &run, &err)) > 0) {
        assert_true(run.vaddr == next && run.pages <= UINT32_MAX);
        next += run.pages * PAGE_BYTES;
        pages += run.pages;
    }
    assert_int_equal(r, 0);
    assert_true(pages == huge.pages);
    bytes_free(&bytes);
}

static void pagemap_of_nothing(void **state)
{
    (void)state;
    struct bytes bytes = pagemap_written(UINT32_MAX, NULL, 0);
    struct pagemap_reader reader;
    struct pagemap_run run;
    struct error err;
    uint32_t id;
    assert_int_equal(pagemap_read_begin(&reader, bytes.at, bytes.length, &id, &err), 0);
    assert_true(id == UINT32_MAX);
    assert_int_equal(pagemap_read_next(&reader, &run, &err), 0);
    bytes_free(&bytes);
}

static void pagemap_on_a_full_disk(void **state)
{
    (void)state;
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        test_skip("there is no /dev/full");
    struct pagemap_writer *writer = pagemap_begin(fd, 1);
    struct pagemap_run run = {0, 1, PAGEMAP_PRESENT};
    for (int i = 0; i < 20000; i++, run.vaddr += 2 * PAGE_BYTES)
        pagemap_add(writer, &run);
    assert_int_equal(pagemap_finish(writer), -ENOSPC);
    close(fd);
}

static void add_varint(struct bytes *bytes, uint64_t value)
{
    do {
        uint8_t byte = (value & 0x7f) | (value > 0x7f ? 0x80 : 0);
        bytes_add(bytes, &byte, 1);
        value >>= 7;
    } while (value);
}

static void add_field(struct bytes *bytes, unsigned id, uint64_t value)
{
    add_varint(bytes, id << 3);
    add_varint(bytes, value);
}

static void add_prefixed(struct bytes *bytes, struct bytes *message)
{
    uint8_t size[4];
    put_le32(size, (uint32_t)message->length);
    bytes_add(bytes, size, 4);
    bytes_add(bytes, message->at, message->length);
    bytes_free(message);
}

/* Fields of an entry; those that are -1 are not there. */
struct entry {
    int64_t vaddr, compat, in_parent, flags, pages;
};

static struct bytes pagemap_by_hand(const struct entry *entries, size_t count)
{
    struct bytes bytes = {0}, message = {0};
    bytes_add(&bytes, "\x19\x43\x56\x54\x25\x40\x08\x56", 8);
    add_field(&message, 1, 5);
    add_prefixed(&bytes, &message);
    for (size_t i = 0; i < count; i++) {
        const int64_t fields[] = {entries[i].vaddr, entries[i].compat, entries[i].in_parent,
                                  entries[i].flags, entries[i].pages};
        for (unsigned f = 0; f < ARRAY_SIZE(fields); f++) {
            if (fields[f] != -1)
                add_field(&message, f + 1, (uint64_t)fields[f]);
        }
        add_prefixed(&bytes, &message);
    }
    return bytes;
}

/* Reads a whole one from memory of its exact size: the number of runs, or -EPROTO. */
static int pagemap_read(const struct bytes *bytes, struct pagemap_run *runs)
{
    uint8_t *exact = malloc(bytes->length + !bytes->length);
    assert_non_null(exact);
    if (bytes->length > 0)
        memcpy(exact, bytes->at, bytes->length);
    struct pagemap_reader reader;
    struct error err = {0};
    uint32_t id;
    int n = 0, r = pagemap_read_begin(&reader, exact, bytes->length, &id, &err);
    while (r == 0 && (r = pagemap_read_next(&reader, &runs[n], &err)) > 0) {
        n++;
        r = 0;
    }
    free(exact);
    if (r < 0) {
        assert_int_equal(r, -EPROTO);
        assert_int_equal(err.code, FAILURE_CRIU);
        assert_contains(err.text, "pagemap");
    }
    return r < 0 ? r : n;
}

static void pagemap_forms(void **state)
{
    (void)state;
    static const struct entry entries[] = {
        {0x1000, 2, -1, 4, -1},               /* 4.1 */
        {0x3000, 0, -1, 6, 3},                /* 4.2: field 5 */
        {0x6000, 9, -1, 4, 1},                /* both: field 5 */
        {0x7000, 1, 1, -1, -1},               /* before flags: in the parent */
        {0x8000, 1, 0, -1, -1},               /* the same: present */
        {0x9000, 1, -1, -1, -1},              /* the same */
        {0x100000000, 0, -1, 4, 0x100000000}, /* 16 TiB */
    };
    static const struct pagemap_run expected[] = {
        {0x1000, 2, PAGEMAP_PRESENT},
        {0x3000, 3, PAGEMAP_PRESENT | PAGEMAP_LAZY},
        {0x6000, 1, PAGEMAP_PRESENT},
        {0x7000, 1, PAGEMAP_PARENT},
        {0x8000, 1, PAGEMAP_PRESENT},
        {0x9000, 1, PAGEMAP_PRESENT},
        {0x100000000, 0x100000000, PAGEMAP_PRESENT},
    };
    struct pagemap_run runs[16];
    struct bytes bytes = pagemap_by_hand(entries, ARRAY_SIZE(entries));
    assert_int_equal(pagemap_read(&bytes, runs), ARRAY_SIZE(expected));
    for (size_t i = 0; i < ARRAY_SIZE(expected); i++) {
        assert_true(runs[i].vaddr == expected[i].vaddr && runs[i].pages == expected[i].pages);
        assert_int_equal(runs[i].flags, expected[i].flags);
    }
    /* cut anywhere it is malformed, but between two entries */
    int whole = 0;
    for (size_t cut = 0; cut < bytes.length; cut++) {
        struct bytes part = {bytes.at, cut, 0};
        int n = pagemap_read(&part, runs);
        assert_true(n == -EPROTO || n == whole);
        whole += n == whole;
    }
    assert_int_equal(whole, ARRAY_SIZE(expected));
    bytes_free(&bytes);
}

static void pagemap_malformed(void **state)
{
    (void)state;
    static const struct entry bad[][2] = {
        {{0x1000, 0, -1, 4, -1}, {0x9000, 1, -1, 4, -1}},             /* of no pages */
        {{0x1000, 1, -1, 4, 0}, {0x9000, 1, -1, 4, -1}},              /* the same, field 5 */
        {{0x1001, 1, -1, 4, -1}, {0x9000, 1, -1, 4, -1}},             /* not aligned */
        {{0x1000, 2, -1, 4, -1}, {0x2000, 1, -1, 4, -1}},             /* overlapping */
        {{0x2000, 1, -1, 4, -1}, {0x1000, 1, -1, 4, -1}},             /* descending */
        {{0x1000, 1, -1, 4, -1}, {0x1000, 1, -1, 4, -1}},             /* twice */
        {{0x1000, 1, -1, 4, -1}, {1ll << 57, 1, -1, 4, -1}},          /* beyond the end */
        {{0x1000, 1, -1, 4, -1}, {(1ll << 57) - 4096, 2, -1, 4, -1}}, /* across the end */
        {{0x1000, 1, -1, 4, -1}, {0x2000, 0, -1, 4, INT64_MAX}},      /* absurd */
        {{0x1000, 1, -1, 4, -1}, {0x2000, 0, -1, 4, -2}},             /* 2^64 - 2 */
        {{0x1000, 1, -1, 4, -1}, {0x2000, 0, -1, 4, 1ll << 52}},      /* overflows in bytes */
        {{0x1000, 1, -1, 4, -1}, {-4096, 1, -1, 4, -1}},              /* the kernel's */
        {{0x1000, 1, -1, 4, -1}, {-1, 1, -1, 4, -1}},                 /* a field is missing */
        {{0x1000, 1, -1, 4, -1}, {0x2000, -1, -1, 4, 1}},             /* the same */
    };
    struct pagemap_run runs[4];
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct bytes bytes = pagemap_by_hand(bad[i], 2);
        if (pagemap_read(&bytes, runs) != -EPROTO)
            fail_msg("malformed pagemap %zu was taken", i);
        bytes_free(&bytes);
    }
    static const struct entry last = {(1ll << 57) - 4096, 1, -1, 4, -1};
    struct bytes bytes = pagemap_by_hand(&last, 1);
    assert_int_equal(pagemap_read(&bytes, runs), 1);
    bytes.at[0] ^= 1; /* another magic */
    assert_int_equal(pagemap_read(&bytes, runs), -EPROTO);
    bytes.at[0] ^= 1;
    bytes.at[7] ^= 1;
    assert_int_equal(pagemap_read(&bytes, runs), -EPROTO);
    bytes.at[7] ^= 1;
    static const uint32_t lengths[] = {129, 1 << 20, INT32_MAX, UINT32_MAX, UINT32_MAX - 3};
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        put_le32(bytes.at + 14, lengths[i]);
        assert_int_equal(pagemap_read(&bytes, runs), -EPROTO);
    }
    bytes_free(&bytes);
}

/* ---- the page server's headers ---- */

/* One header in the form of 24 or 32 bytes. */
static void add_request(struct bytes *bytes, unsigned form, uint16_t command, uint16_t flags,
                        uint64_t pages, uint64_t vaddr, uint64_t object)
{
    uint8_t header[32] = {0};
    unsigned at = form == 32 ? 16 : 8;
    put_le32(header, command | (uint32_t)flags << 16);
    if (form == 32)
        put_le64(header + 8, pages);
    else
        put_le32(header + 4, (uint32_t)pages);
    put_le64(header + at, vaddr);
    put_le64(header + at + 8, object);
    bytes_add(bytes, header, form);
}

enum { OBJECT_TASK_7 = 7 << 8 | 1, OBJECT_SHARED_9 = 9 << 8 | 2 };

static void page_server_forms(void **state)
{
    (void)state;
    for (unsigned bytes_each = 24; bytes_each <= 32; bytes_each += 8) {
        for (int first = PAGE_SERVER_OPEN; first <= PAGE_SERVER_PARENT; first++) {
            struct bytes bytes = {0};
            add_request(&bytes, bytes_each, (uint16_t)first, 0, 0, 0, OBJECT_TASK_7);
            add_request(&bytes, bytes_each, PAGE_SERVER_ADD, PAGEMAP_PRESENT | PAGEMAP_LAZY, 3,
                        0x7fff00001000, OBJECT_SHARED_9);
            add_request(&bytes, bytes_each, PAGE_SERVER_CLOSE, 0, 0, 0, 0);
            unsigned form = 0;
            size_t at = 0;
            struct page_server_request requests[3];
            struct error err;
            for (unsigned i = 0; i < 3; i++) {
                /* one byte more at a time, in memory of exactly that size */
                int n = 0;
                for (size_t length = 0; n == 0; length++) {
                    uint8_t *exact = malloc(length + 1);
                    assert_non_null(exact);
                    memcpy(exact, bytes.at + at, length);
                    n = page_server_parse(&form, exact, length, &requests[i], &err);
                    free(exact);
                    assert_true(n == 0 || (size_t)n == length);
                    assert_true(at + length <= bytes.length);
                }
                assert_int_equal(n, bytes_each);
                at += (size_t)n;
            }
            assert_int_equal(requests[0].command, first);
            assert_int_equal(requests[0].kind, PAGE_SERVER_TASK);
            assert_true(requests[0].id == 7);
            assert_int_equal(requests[1].command, PAGE_SERVER_ADD);
            assert_int_equal(requests[1].flags, PAGEMAP_PRESENT | PAGEMAP_LAZY);
            assert_true(requests[1].pages == 3 && requests[1].vaddr == 0x7fff00001000);
            assert_int_equal(requests[1].kind, PAGE_SERVER_SHARED);
            assert_true(requests[1].id == 9);
            assert_int_equal(requests[2].command, PAGE_SERVER_CLOSE);
            bytes_free(&bytes);
        }
    }
}

static void page_server_absurd(void **state)
{
    (void)state;
    static const struct {
        uint16_t command;
        uint64_t pages, vaddr, object;
        int taken; /* in the long form */
    } cases[] = {
        {PAGE_SERVER_ADD, 1, 0, OBJECT_TASK_7, 32},
        {PAGE_SERVER_ADD, 1, ADDRESS_END - 4096, OBJECT_TASK_7, 32},
        {PAGE_SERVER_ADD, 0, 0x1000, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, 1, 0x1001, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, UINT64_MAX, 0x1000, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, 1ull << 52, 0x1000, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, (1ull << 52) + 1, 0x1000, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, 2, ADDRESS_END - 4096, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, 1, ADDRESS_END, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, 1, 0 - 4096ull, OBJECT_TASK_7, -EPROTO},
        {PAGE_SERVER_ADD, 1, 0x1000, 7 << 8, -EPROTO},
        {PAGE_SERVER_ADD, 1, 0x1000, 7 << 8 | 3, -EPROTO},
        {PAGE_SERVER_OPEN, 0, 0, 7 << 8 | 255, -EPROTO},
        {PAGE_SERVER_FORCE_CLOSE, 0, 0, 0, 32},
        {0, 0, 0, OBJECT_TASK_7, -EPROTO},
        {1, 0, 0, OBJECT_TASK_7, -EPROTO},
        {7, 0, 0, OBJECT_TASK_7, -EPROTO},
        {UINT16_MAX, 0, 0, OBJECT_TASK_7, -EPROTO},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct bytes bytes = {0};
        struct page_server_request request;
        struct error err = {0};
        unsigned form = 32;
        add_request(&bytes, 32, cases[i].command, 0, cases[i].pages, cases[i].vaddr,
                    cases[i].object);
        if (page_server_parse(&form, bytes.at, bytes.length, &request, &err) != cases[i].taken)
            fail_msg("page-server case %zu", i);
        if (cases[i].taken < 0) {
            assert_int_equal(err.code, FAILURE_CRIU);
            assert_contains(err.text, "page-server");
        }
        bytes_free(&bytes);
    }
    /* the short form's count has 32 bits */
    struct bytes bytes = {0};
    struct page_server_request request;
    struct error err;
    unsigned form = 24;
    add_request(&bytes, 24, PAGE_SERVER_ADD, PAGEMAP_PRESENT, UINT32_MAX, 0x1000, OBJECT_TASK_7);
    assert_int_equal(page_server_parse(&form, bytes.at, bytes.length, &request, &err), 24);
    assert_true(request.pages == UINT32_MAX);
    bytes_free(&bytes);
}

/* ---- the requests of --stream ---- */

static void add_stream_request(struct bytes *bytes, const char *name)
{
    uint8_t packed[8192], size[4];
    Godwit__Pb__CriuStreamRequest request = GODWIT__PB__CRIU_STREAM_REQUEST__INIT;
    request.filename = (char *)name;
    assert_true(strlen(name) < sizeof(packed) - 16);
    size_t length = godwit__pb__criu_stream_request__pack(&request, packed);
    put_le32(size, (uint32_t)length);
    bytes_add(bytes, size, 4);
    bytes_add(bytes, packed, length);
}

static void stream_requests(void **state)
{
    (void)state;
    char longest[256];
    memset(longest, 'n', 255);
    longest[255] = '\0';
    const char *const names[] = {"inventory.img", "a", longest, "pages-1.img"};
    for (size_t step = 1; step < 600; step = 2 * step + 1) {
        struct stream_parser parser = {0};
        struct bytes bytes = {0};
        for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
            add_stream_request(&bytes, names[i]);
            bytes_add(&bytes, "", 1); /* the byte that carries the pipe */
        }
        size_t at = 0, found = 0;
        while (at < bytes.length) {
            size_t want = stream_want(&parser);
            assert_true(want > 0 && want <= bytes.length - at); /* never beyond the request */
            size_t take = MIN(want, step);
            if (parser.want_pipe) {
                assert_int_equal(want, 1);
                parser.want_pipe = false;
                at++;
                continue;
            }
            _cleanup_free_ char *name = NULL;
            struct error err;
            int r = stream_take(&parser, bytes.at + at, take, &name, &err);
            at += take;
            assert_true(r >= 0);
            if (r == 0)
                continue;
            assert_string_equal(name, names[found++]);
            parser.want_pipe = true;
        }
        assert_int_equal(found, ARRAY_SIZE(names));
        bytes_free(&bytes);
    }
}

static int stream_take_all(const struct bytes *bytes, struct error *err)
{
    struct stream_parser parser = {0};
    _cleanup_free_ char *name = NULL;
    int r = 0;
    for (size_t at = 0; r == 0 && at < bytes->length;) {
        size_t take = MIN(stream_want(&parser), bytes->length - at);
        r = stream_take(&parser, bytes->at + at, take, &name, err);
        at += take;
    }
    return r;
}

static void stream_malformed(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {0, STREAM_REQUEST_MAX + 1, INT32_MAX, UINT32_MAX};
    struct error err;
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        uint8_t size[4];
        struct bytes bytes = {0};
        put_le32(size, lengths[i]);
        bytes_add(&bytes, size, 4);
        assert_int_equal(stream_take_all(&bytes, &err), -EPROTO);
        assert_int_equal(err.code, FAILURE_CRIU);
        bytes_free(&bytes);
    }
    static const char *const bad[] = {"\x0b", "\x12\x01x", "\x0a\x05x", "\x08\x01", "\xff"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        uint8_t size[4];
        struct bytes bytes = {0};
        put_le32(size, (uint32_t)strlen(bad[i]));
        bytes_add(&bytes, size, 4);
        bytes_add(&bytes, bad[i], strlen(bad[i]));
        assert_int_equal(stream_take_all(&bytes, &err), -EPROTO);
        bytes_free(&bytes);
    }
    char longest[STREAM_REQUEST_MAX - 2];
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    struct bytes bytes = {0};
    add_stream_request(&bytes, longest); /* as long as a request may be */
    assert_int_equal(bytes.length, 4 + STREAM_REQUEST_MAX);
    assert_int_equal(stream_take_all(&bytes, &err), 1);
    bytes_free(&bytes);
}

static void stream_replies(void **state)
{
    (void)state;
    uint8_t reply[STREAM_REPLY_BYTES];
    stream_reply(true, reply);
    assert_memory_equal(reply, "\2\0\0\0\x08\1", 6);
    stream_reply(false, reply);
    assert_memory_equal(reply, "\2\0\0\0\x08\0", 6);
}

static void send_fds(int socket, const int *fds, size_t count)
{
    union {
        char bytes[CMSG_SPACE(8 * sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {(char *)"x", 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, count * sizeof(int));
    }
    assert_int_equal(sendmsg(socket, &message, 0), 1);
}

static void stream_descriptors(void **state)
{
    (void)state;
    int fds[2], passed, one[8];
    char buf[8];
    socket_pair(fds);
    assert_int_equal(stream_receive(fds[0], buf, 1, &passed), -EAGAIN);
    for (size_t i = 0; i < ARRAY_SIZE(one); i++)
        one[i] = STDERR_FILENO;
    send_fds(fds[1], one, 0);
    assert_int_equal(stream_receive(fds[0], buf, 1, &passed), 1);
    assert_int_equal(passed, -EBADF);
    send_fds(fds[1], one, 1);
    assert_int_equal(stream_receive(fds[0], buf, 1, &passed), 1);
    assert_true(passed >= 0);
    assert_true(fcntl(passed, F_GETFD) & FD_CLOEXEC);
    close(passed);
    /* however many come, none is left open behind the caller's back */
    int before = dup(STDERR_FILENO);
    close(before);
    for (size_t count = 2; count <= ARRAY_SIZE(one); count++) {
        send_fds(fds[1], one, count);
        assert_int_equal(stream_receive(fds[0], buf, 1, &passed), 1);
        close_fd(passed);
    }
    int after = dup(STDERR_FILENO);
    close(after);
    assert_int_equal(after, before);
    close(fds[1]);
    assert_int_equal(stream_receive(fds[0], buf, 1, &passed), 0);
    close(fds[0]);
}

/* ---- memory that the hook writes ---- */

enum { TASK_PAGES = 10240, TASK_END = 64 }; /* more than goes in one call; and not writable */

static uint8_t *task_memory; /* at the same address in the child */
static char memory_path[] = "/dev/shm/test-criu-XXXXXX";

static void write_file(int dir, const char *name, const void *bytes, size_t length)
{
    int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write_all(fd, bytes, length), 0);
    close(fd);
}

static uint64_t page_word(size_t page)
{
    return page * 0x9e3779b97f4a7c15 | 1;
}

static int open_task(void **state)
{
    size_t length = TASK_PAGES * PAGE_BYTES;
    task_memory = mmap(NULL, length + TASK_END * PAGE_BYTES, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(task_memory != MAP_FAILED);
    assert_int_equal(mprotect(task_memory, length, PROT_READ | PROT_WRITE), 0);
    *state = (void *)(intptr_t)child_start(NULL, NULL);
    strcpy(strrchr(memory_path, '-'), "-XXXXXX");
    assert_non_null(mkdtemp(memory_path));
    int dir = open(memory_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    uint64_t *pages =
        mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(dir >= 0 && pages != MAP_FAILED);
    for (size_t i = 0; i < TASK_PAGES; i++)
        pages[i * PAGE_BYTES / sizeof(*pages)] = page_word(i);
    write_file(dir, HOOK_PAGES, pages, length);
    munmap(pages, length);
    close(dir);
    return 0;
}

static int close_task(void **state)
{
    (void)state;
    child_end();
    munmap(task_memory, (TASK_PAGES + TASK_END) * PAGE_BYTES);
    int dir = open(memory_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    unlinkat(dir, HOOK_PIECES, 0);
    unlinkat(dir, HOOK_PAGES, 0);
    close(dir);
    return rmdir(memory_path);
}

static int write_pieces(void **state, const struct hook_piece *pieces, size_t count)
{
    int dir = open(memory_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    write_file(dir, HOOK_PIECES, pieces, count * sizeof(*pieces));
    close(dir);
    return hook_write_memory(memory_path, (pid_t)(intptr_t)*state);
}

static uint64_t word_of_task(void **state, size_t page)
{
    uint64_t word = 0;
    struct iovec here = {&word, sizeof(word)},
                 there = {task_memory + page * PAGE_BYTES, sizeof(word)};
    assert_int_equal(process_vm_readv((pid_t)(intptr_t)*state, &here, 1, &there, 1, 0),
                     sizeof(word));
    return word;
}

/* Every third page stays what it is; the others come singly and by twos, from all over the file. */
static void memory_here_and_there(void **state)
{
    static struct hook_piece pieces[TASK_PAGES];
    size_t count = 0;
    for (size_t page = 0; page < TASK_PAGES - 2; page += 3) {
        uint64_t at = (uint64_t)(uintptr_t)task_memory + page * PAGE_BYTES;
        size_t from = (page * 7919 + 13) % (TASK_PAGES - 1);
        bool by_two = page % 2;
        pieces[count++] = (struct hook_piece){at, from * PAGE_BYTES, (1 + by_two) * PAGE_BYTES};
        if (!by_two)
            pieces[count++] =
                (struct hook_piece){at + PAGE_BYTES, (from + 1) * PAGE_BYTES, PAGE_BYTES};
    }
    assert_int_equal(write_pieces(state, pieces, count), 0);
    for (size_t page = 0; page < TASK_PAGES - 2; page++) {
        size_t from = ((page - page % 3) * 7919 + 13) % (TASK_PAGES - 1) + page % 3;
        if (word_of_task(state, page) != (page % 3 == 2 ? 0 : page_word(from)))
            fail_msg("page %zu", page);
    }
}

static void memory_in_one_piece(void **state)
{
    struct hook_piece piece = {(uintptr_t)task_memory, 0, TASK_PAGES * PAGE_BYTES};
    assert_int_equal(write_pieces(state, &piece, 1), 0);
    for (size_t page = 0; page < TASK_PAGES; page++) {
        if (word_of_task(state, page) != page_word(page))
            fail_msg("page %zu", page);
    }
}

static void memory_that_is_not_there(void **state)
{
    uint64_t at = (uintptr_t)task_memory, length = TASK_PAGES * PAGE_BYTES;
    const struct {
        struct hook_piece piece;
        int expected;
    } cases[] = {
        {{at, length - PAGE_BYTES, 2 * PAGE_BYTES}, ENODATA}, /* beyond the end of the file */
        {{at, length + PAGE_BYTES, PAGE_BYTES}, ENODATA},
        {{at, UINT64_MAX - PAGE_BYTES + 1, 2 * PAGE_BYTES}, ENODATA},
        {{at + length, 0, PAGE_BYTES}, EFAULT}, /* it may not be written to */
        {{at + length - PAGE_BYTES, 0, 2 * PAGE_BYTES}, EFAULT},
        {{PAGE_BYTES, 0, PAGE_BYTES}, EFAULT}, /* nothing is mapped there */
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        errno = 0;
        if (write_pieces(state, &cases[i].piece, 1) != -1 || errno != cases[i].expected)
            fail_msg("case %zu: %s", i, strerror(errno));
    }
    /* What only the last of those that write comes to. */
    const struct hook_piece two[] = {{at, 0, length}, {at + length, 0, PAGE_BYTES}};
    assert_int_equal(write_pieces(state, two, ARRAY_SIZE(two)), -1);
    assert_int_equal(errno, EFAULT);
    assert_int_equal(hook_write_memory("/dev/shm/none", (pid_t)(intptr_t)*state), -1);
    assert_int_equal(errno, ENOENT);
    child_end();
    assert_int_equal(write_pieces(state, &(struct hook_piece){at, 0, PAGE_BYTES}, 1), -1);
    assert_int_equal(errno, ESRCH);
    *state = (void *)(intptr_t)child_start(NULL, NULL);
}

/* ---- areas ---- */

static void areas_that_may_be_written_to(void **state)
{
    (void)state;
    Godwit__Pb__CriuVma vmas[4], *list[4];
    static const uint32_t prots[] = {PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_WRITE};
    for (size_t i = 0; i < ARRAY_SIZE(vmas); i++) {
        godwit__pb__criu_vma__init(&vmas[i]);
        vmas[i].start = (1 + i) << 20;
        vmas[i].end = (2 + i) << 20;
        vmas[i].flags = MAP_PRIVATE | MAP_ANONYMOUS;
        vmas[i].has_prot = true;
        vmas[i].prot = prots[i];
        list[i] = &vmas[i];
    }
    Godwit__Pb__CriuMm mm = GODWIT__PB__CRIU_MM__INIT;
    mm.n_vmas = ARRAY_SIZE(vmas);
    mm.vmas = list;
    uint8_t image[512] = {0};
    put_le32(image, 0x54564319);
    put_le32(image + 4, 0x57492820);
    put_le32(image + 8, (uint32_t)godwit__pb__criu_mm__pack(&mm, image + 12));
    size_t length = 12 + get_le32(image + 8);
    struct lazy_areas areas;
    assert_int_equal(lazy_areas_parse(image, length, false, &areas), 0);
    assert_int_equal(areas.count, 1);
    assert_int_equal(areas.list[0].end, 5 << 20);
    lazy_areas_free(&areas);
    assert_int_equal(lazy_areas_parse(image, length, true, &areas), 0);
    assert_int_equal(areas.count, 2);
    assert_int_equal(areas.list[0].end, 2 << 20);
    assert_int_equal(areas.list[1].start, 4 << 20);
    lazy_areas_free(&areas);
}

static void areas_are_cut(void **state)
{
    (void)state;
    struct lazy_areas areas = {calloc(2, sizeof(struct lazy_area)), 2};
    assert_non_null(areas.list);
    areas.list[0] = (struct lazy_area){0x10000, 0x14000};
    areas.list[1] = (struct lazy_area){0x20000, 0x24000};
    struct lazy_area out[] = {
        {0x1000, 0x2000},   /* below */
        {0x11000, 0x13000}, /* two pages of the first */
        {0x15000, 0x1f000}, /* between both: none */
        {0x23000, 0x25000}, /* the end of the second */
    };
    assert_int_equal(lazy_areas_cut(&areas, &(struct lazy_areas){out, ARRAY_SIZE(out)}), 0);
    static const struct lazy_area expected[] = {
        {0x10000, 0x11000}, {0x13000, 0x14000}, {0x20000, 0x23000}};
    assert_int_equal(areas.count, ARRAY_SIZE(expected));
    assert_memory_equal(areas.list, expected, sizeof(expected));
    struct lazy_area all = {0, UINT64_MAX / 2};
    assert_int_equal(lazy_areas_cut(&areas, &(struct lazy_areas){&all, 1}), 0);
    assert_int_equal(areas.count, 0);
    lazy_areas_free(&areas);
}

static void write_image(const char *directory, const char *name, const uint8_t *image,
                        size_t length)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(image, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

static void write_core(const char *directory, unsigned number, uint64_t rseq)
{
    Godwit__Pb__CriuRseq entry = GODWIT__PB__CRIU_RSEQ__INIT;
    entry.rseq_abi_pointer = rseq;
    entry.rseq_abi_size = 32;
    Godwit__Pb__CriuThreadCore thread = GODWIT__PB__CRIU_THREAD_CORE__INIT;
    thread.rseq_entry = rseq ? &entry : NULL;
    Godwit__Pb__CriuCore core = GODWIT__PB__CRIU_CORE__INIT;
    core.thread_core = &thread;
    uint8_t image[128];
    char name[32];
    put_le32(image, 0x54564319);
    put_le32(image + 4, 0x55053847);
    put_le32(image + 8, (uint32_t)godwit__pb__criu_core__pack(&core, image + 12));
    snprintf(name, sizeof(name), "core-%u.img", number);
    write_image(directory, name, image, 12 + get_le32(image + 8));
}

/* Of five threads: one has none, two have it in one page, one across two, and two side by side. */
static void rseq_is_found(void **state)
{
    (void)state;
    static const uint64_t at[] = {0x7fff0fe8, 0, 0x1010, 0x1ff0, 0x7fff0040};
    char *directory = directory_make();
    for (unsigned i = 0; i < ARRAY_SIZE(at); i++)
        write_core(directory, i + 1, at[i]);
    int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct lazy_areas areas;
    assert_int_equal(lazy_areas_read_rseq(dirfd, &areas), 0);
    static const struct lazy_area expected[] = {{0x1000, 0x3000}, {0x7fff0000, 0x7fff2000}};
    assert_int_equal(areas.count, ARRAY_SIZE(expected));
    assert_memory_equal(areas.list, expected, sizeof(expected));
    lazy_areas_free(&areas);
    close(dirfd);
    directory_remove(directory);
}

/* ---- what criu takes for inherited ---- */

enum { FILE_PRIVATE = 1 | 1 << 6 };

static void write_mm(const char *directory, unsigned pid, const Godwit__Pb__CriuVma *vmas,
                     size_t count, uint32_t exe)
{
    Godwit__Pb__CriuVma *list[8];
    assert_in_range(count, 0, ARRAY_SIZE(list));
    for (size_t i = 0; i < count; i++)
        list[i] = (Godwit__Pb__CriuVma *)&vmas[i];
    Godwit__Pb__CriuMm mm = GODWIT__PB__CRIU_MM__INIT;
    mm.has_exe_file_id = true;
    mm.exe_file_id = exe;
    mm.n_vmas = count;
    mm.vmas = list;
    uint8_t image[512];
    char name[32];
    put_le32(image, 0x54564319);
    put_le32(image + 4, 0x57492820);
    put_le32(image + 8, (uint32_t)godwit__pb__criu_mm__pack(&mm, image + 12));
    snprintf(name, sizeof(name), "mm-%u.img", pid);
    write_image(directory, name, image, 12 + get_le32(image + 8));
}

static size_t pstree_image(uint8_t *image, const struct pstree_task *tasks, size_t count)
{
    size_t length = 8;
    put_le32(image, 0x54564319);
    put_le32(image + 4, 0x50273030);
    for (size_t i = 0; i < count; i++) {
        Godwit__Pb__CriuPstreeEntry entry = GODWIT__PB__CRIU_PSTREE_ENTRY__INIT;
        entry.pid = tasks[i].pid;
        entry.ppid = tasks[i].ppid;
        uint32_t size = (uint32_t)godwit__pb__criu_pstree_entry__pack(&entry, image + length + 4);
        put_le32(image + length, size);
        length += 4 + size;
    }
    return length;
}

static Godwit__Pb__CriuVma part_of_a_file(uint64_t start, uint64_t end, uint64_t offset)
{
    Godwit__Pb__CriuVma vma = GODWIT__PB__CRIU_VMA__INIT;
    vma.start = start;
    vma.end = end;
    vma.has_pgoff = vma.has_shmid = true;
    vma.pgoff = offset;
    vma.shmid = 7;
    vma.flags = MAP_PRIVATE;
    vma.status = FILE_PRIVATE;
    return vma;
}

/* A root, two children of it and a zombie; of the second child the second mapping is the case. */
static int check_parts(const Godwit__Pb__CriuVma *vma, uint32_t exe, struct error *err)
{
    static const struct pstree_task tasks[] = {{10, 0}, {12, 10}, {11, 10}, {13, 12}};
    const Godwit__Pb__CriuVma whole[] = {part_of_a_file(0x1000, 0x2000, 0),
                                         part_of_a_file(0x4000, 0x6000, 0x1000),
                                         part_of_a_file(0x8000, 0x9000, 0)};
    char *directory = directory_make();
    uint8_t image[256];
    write_image(directory, "pstree.img", image, pstree_image(image, tasks, ARRAY_SIZE(tasks)));
    write_mm(directory, 10, whole, ARRAY_SIZE(whole), 1);
    write_mm(directory, 11, whole, ARRAY_SIZE(whole), 1);
    const Godwit__Pb__CriuVma other[] = {part_of_a_file(0x2000, 0x3000, 0), *vma};
    write_mm(directory, 12, other, ARRAY_SIZE(other), exe);
    int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *err = (struct error){0};
    int r = cow_areas_check(dirfd, err);
    close(dirfd);
    directory_remove(directory);
    return r;
}

static void another_part_is_found(void **state)
{
    (void)state;
    struct error err;
    Godwit__Pb__CriuVma vma = part_of_a_file(0x4000, 0x6000, 0x2000);
    assert_int_equal(check_parts(&vma, 1, &err), -1);
    assert_int_equal(err.code, FAILURE_CRIU);
    assert_non_null(strstr(err.text, "process 12 "));
    assert_non_null(strstr(err.text, "0x4000"));
    assert_non_null(strstr(err.text, "parent 10"));
}

static void what_criu_tells_apart_is_none(void **state)
{
    (void)state;
    struct error err;
    Godwit__Pb__CriuVma vma = part_of_a_file(0x4000, 0x6000, 0x2000);
    assert_int_equal(check_parts(&vma, 2, &err), 0); /* another program */
    const Godwit__Pb__CriuVma same = part_of_a_file(0x4000, 0x6000, 0x1000);
    assert_int_equal(check_parts(&same, 1, &err), 0);
    Godwit__Pb__CriuVma other = vma;
    other.end = 0x5000;
    assert_int_equal(check_parts(&other, 1, &err), 0);
    other = vma;
    other.shmid = 8;
    assert_int_equal(check_parts(&other, 1, &err), 0);
    other = vma;
    other.status = 1 | 1 << 9; /* no file */
    assert_int_equal(check_parts(&other, 1, &err), 0);
    other = vma;
    other.flags |= MAP_HUGETLB;
    assert_int_equal(check_parts(&other, 1, &err), 0);
}

/* libprotobuf-c keeps what it does not know, field by field, in some twenty times the memory. */
static void images_that_grow(void **state)
{
    (void)state;
    enum { BYTES = 8 << 20, VMAS = 65530 };
    uint8_t *image = malloc(12 + BYTES);
    assert_non_null(image);
    put_le32(image, 0x54564319);
    put_le32(image + 4, 0x57492820);
    put_le32(image + 8, BYTES);
    for (size_t i = 0; i < BYTES; i += 2)
        memcpy(image + 12 + i, "\x78\x01", 2); /* field 15 */
    Godwit__Pb__CriuMm *mm;
    assert_int_equal(mm_image_parse(image, 12 + BYTES, &mm), -EBADMSG);

    /* As many mappings as a process may have, in as few bytes as criu writes them in. */
    Godwit__Pb__CriuVma vma = part_of_a_file(1, 2, 0);
    vma.has_fd = vma.has_fdflags = vma.has_prot = true;
    vma.fd = -1;
    size_t size = godwit__pb__criu_vma__get_packed_size(&vma), length = 0;
    for (size_t i = 0; i < VMAS; i++) {
        image[12 + length++] = 14 << 3 | 2;
        image[12 + length++] = (uint8_t)size;
        length += godwit__pb__criu_vma__pack(&vma, image + 12 + length);
    }
    put_le32(image + 8, (uint32_t)length);
    assert_int_equal(mm_image_parse(image, 12 + length, &mm), 0);
    assert_int_equal(mm->n_vmas, VMAS);
    godwit__pb__criu_mm__free_unpacked(mm, NULL);
    free(image);
}

static void trees_that_are_none(void **state)
{
    (void)state;
    struct pstree_task *tasks;
    size_t count;
    uint8_t image[256];
    size_t length = pstree_image(image, (struct pstree_task[]){{2, 1}, {1, 0}}, 2);
    assert_int_equal(cow_areas_parse_tree(image, length, &tasks, &count), 0);
    assert_int_equal(count, 2);
    assert_int_equal(tasks[0].pid, 1);
    assert_int_equal(tasks[1].ppid, 1);
    free(tasks);
    for (size_t cut = 0; cut < length; cut++) {
        int r = cow_areas_parse_tree(image, cut, &tasks, &count);
        assert_int_equal(r, cut == 8 + 4 + 4 ? 0 : -EBADMSG); /* behind the first */
        free(tasks);
    }
    length = pstree_image(image, (struct pstree_task[]){{1, 0}, {2, 1}, {2, 3}}, 3);
    assert_int_equal(cow_areas_parse_tree(image, length, &tasks, &count), -EBADMSG);

    char *directory = directory_make();
    int dirfd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct error err;
    assert_int_equal(cow_areas_check(dirfd, &err), 0); /* pre-dump has none */
    write_image(directory, "pstree.img", image, 11);
    assert_int_equal(cow_areas_check(dirfd, &err), -1);
    assert_non_null(strstr(err.text, "pstree.img"));
    write_image(directory, "pstree.img", image,
                pstree_image(image, (struct pstree_task[]){{2, 1}}, 1));
    write_image(directory, "mm-1.img", image, 11);
    assert_int_equal(cow_areas_check(dirfd, &err), -1);
    assert_non_null(strstr(err.text, "mm-1.img"));
    close(dirfd);
    directory_remove(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(areas_are_cut),
        cmocka_unit_test(another_part_is_found),
        cmocka_unit_test(what_criu_tells_apart_is_none),
        cmocka_unit_test(trees_that_are_none),
        cmocka_unit_test(images_that_grow),
        cmocka_unit_test(rseq_is_found),
        cmocka_unit_test_setup_teardown(memory_here_and_there, open_task, close_task),
        cmocka_unit_test_setup_teardown(memory_in_one_piece, open_task, close_task),
        cmocka_unit_test_setup_teardown(memory_that_is_not_there, open_task, close_task),
        cmocka_unit_test(areas_that_may_be_written_to),
        cmocka_unit_test(directories_that_follow),
        cmocka_unit_test(directories_that_do_not),
        cmocka_unit_test(pagemap_round_trip),
        cmocka_unit_test(pagemap_of_a_huge_run),
        cmocka_unit_test(pagemap_of_nothing),
        cmocka_unit_test(pagemap_on_a_full_disk),
        cmocka_unit_test(pagemap_forms),
        cmocka_unit_test(pagemap_malformed),
        cmocka_unit_test(page_server_forms),
        cmocka_unit_test(page_server_absurd),
        cmocka_unit_test(stream_requests),
        cmocka_unit_test(stream_malformed),
        cmocka_unit_test(stream_replies),
        cmocka_unit_test(stream_descriptors),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
