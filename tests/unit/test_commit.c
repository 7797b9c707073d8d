/* SPDX-License-Identifier: Apache-2.0 */
/* What a migration decides and writes down: the table of states, and the journal. */
#include "testing.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/io.h"
#include "migrate/commit.h"
#include "migrate/journal.h"

/* ---- the table ---- */

/* Only the step from PREPARING by PREPARED leads to COMMITTED, and nothing leads from there back.
 */
static void one_way_to_commit(void **state)
{
    (void)state;
    for (int s = SOURCE_CONNECTING; s < SOURCE_STATES; s++) {
        for (int e = 0; e < SOURCE_EVENTS; e++) {
            enum source_state next = source_next((enum source_state)s, (enum source_event)e);
            bool commits = s == SOURCE_PREPARING && e == EVENT_PREPARED;
            assert_int_equal(next == SOURCE_COMMITTED, commits);
            if (s == SOURCE_COMMITTED)
                assert_true(next == SOURCE_STAY || next == SOURCE_MOVED || next == SOURCE_DOUBT);
            else
                assert_true(next != SOURCE_MOVED && next != SOURCE_DOUBT);
        }
    }
}

/* Before anything is touched a failure refuses, afterwards it aborts; an end is an end. */
static void every_failure_ends(void **state)
{
    (void)state;
    static const enum source_event failures[] = {EVENT_LINK_LOST, EVENT_PEER_FAILED, EVENT_TIMEOUT,
                                                 EVENT_CANCEL};
    for (int s = SOURCE_CONNECTING; s < SOURCE_COMMITTED; s++) {
        enum source_state end = s >= SOURCE_COPYING ? SOURCE_ABORTED : SOURCE_REFUSED;
        for (size_t i = 0; i < ARRAY_SIZE(failures); i++)
            assert_int_equal(source_next((enum source_state)s, failures[i]), end);
    }
    for (int s = SOURCE_ABORTED; s < SOURCE_STATES; s++) {
        for (int e = 0; e < SOURCE_EVENTS; e++)
            assert_int_equal(source_next((enum source_state)s, (enum source_event)e), SOURCE_STAY);
    }
}

static void every_state_has_a_name(void **state)
{
    (void)state;
    for (int s = 0; s < SOURCE_STATES; s++)
        assert_non_null(source_state_name((enum source_state)s));
}

/* ---- the journal ---- */

struct place {
    char path[64];
    int fd;
};

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));
    strcpy(place->path, "/tmp/godwit-journal-XXXXXX");
    place->fd = mkdtemp(place->path) ? open(place->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    *state = place;
    return place->fd < 0;
}

static int place_remove(void **state)
{
    struct place *place = *state;
    close_fd(place->fd);
    int r = rmdir(place->path); /* so every test has to remove what it wrote */
    free(place);
    return r;
}

static struct journal_entry example(const char *id)
{
    struct journal_entry entry = {
        .decision = JOURNAL_OPEN,
        .nonce = UINT64_MAX,
        .pid = 4711,
        .started = 123456789012,
        .insecure = true,
        .target = "exec:echo a=b; cat",
        .command = "redis = server",
    };
    snprintf(entry.id, sizeof(entry.id), "%s", id);
    return entry;
}

static void assert_same(const struct journal_entry *a, const struct journal_entry *b)
{
    assert_string_equal(a->id, b->id);
    assert_int_equal(a->decision, b->decision);
    assert_true(a->nonce == b->nonce && a->started == b->started);
    assert_true(a->pid == b->pid && a->insecure == b->insecure);
    assert_string_equal(a->target, b->target);
    assert_string_equal(a->command, b->command);
}

static void journal_round_trip(void **state)
{
    const struct place *place = *state;
    struct journal_entry entry = example("4711-abc"), read;
    assert_int_equal(journal_read(place->fd, entry.id, &read), -ENOENT);
    for (int d = JOURNAL_OPEN; d <= JOURNAL_ABORT; d++) {
        entry.decision = (enum journal_decision)d;
        assert_int_equal(journal_write(place->fd, &entry), 0);
        assert_int_equal(journal_read(place->fd, entry.id, &read), 0);
        assert_same(&entry, &read);
    }
    journal_remove(place->fd, entry.id);
    assert_int_equal(journal_read(place->fd, entry.id, &read), -ENOENT);
}

/* The hook reads the first six bytes, and nothing else may begin like that. */
static void journal_begins_with_the_decision(void **state)
{
    const struct place *place = *state;
    struct journal_entry entry = example("it");
    char path[128], text[8] = "";
    assert_int_equal(journal_path(place->path, entry.id, path, sizeof(path)), 0);
    for (int d = JOURNAL_OPEN; d <= JOURNAL_ABORT; d++) {
        entry.decision = (enum journal_decision)d;
        assert_int_equal(journal_write(place->fd, &entry), 0);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        assert_int_equal(read(fd, text, 6), 6);
        assert_int_equal(memcmp(text, "commit", 6) == 0, d == JOURNAL_COMMIT);
    }
    journal_remove(place->fd, entry.id);
    assert_int_equal(journal_path(place->path, entry.id, path, 10), -ENAMETOOLONG);
}

static void count_entry(const struct journal_entry *entry, void *user)
{
    assert_true(entry->id[0] == 'm');
    ++*(unsigned *)user;
}

static void write_raw(const struct place *place, const char *name, const char *text)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/journal/%s", place->path, name);
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write_all(fd, text, strlen(text)), 0);
}

/* What is no entry is left out, and stays where it is. */
static void journal_of_many(void **state)
{
    const struct place *place = *state;
    unsigned count = 0;
    assert_int_equal(journal_list(place->fd, count_entry, &count), 0);
    assert_int_equal(count, 0);
    char id[16];
    for (unsigned i = 0; i < 5; i++) {
        snprintf(id, sizeof(id), "m%u", i);
        struct journal_entry entry = example(id);
        assert_int_equal(journal_write(place->fd, &entry), 0);
    }
    static const char *const bad[][2] = {{"b0", ""},
                                         {"b1", "comm"},
                                         {"b2", "commit yes\n"},
                                         {"b3", "\n\ncommit\n"},
                                         {".m9", "open\n"}};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        write_raw(place, bad[i][0], bad[i][1]);
    write_raw(place, "m5", "abort\nnonce=x\npid=99999999999\ntarget\nfuture=1\n");
    assert_int_equal(journal_list(place->fd, count_entry, &count), 0);
    assert_int_equal(count, 6);
    struct journal_entry read;
    assert_int_equal(journal_read(place->fd, "b1", &read), -EBADMSG);
    assert_int_equal(journal_read(place->fd, "m5", &read), 0);
    assert_int_equal(read.decision, JOURNAL_ABORT);
    assert_int_equal(read.nonce, 0);
    assert_int_equal(journal_read(place->fd, "../m5", &read), -EINVAL);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        journal_remove(place->fd, bad[i][0]);
    for (unsigned i = 0; i < 6; i++) {
        snprintf(id, sizeof(id), "m%u", i);
        journal_remove(place->fd, id);
    }
}

/* A target that does not fit is refused, not cut: it is dialled one day. */
static void journal_too_long(void **state)
{
    const struct place *place = *state;
    struct journal_entry entry = example("long"), read;
    memset(entry.target, 'x', sizeof(entry.target) - 1);
    entry.target[sizeof(entry.target) - 1] = '\0';
    assert_int_equal(journal_write(place->fd, &entry), 0);
    assert_int_equal(journal_read(place->fd, entry.id, &read), 0);
    assert_same(&entry, &read);
    journal_remove(place->fd, entry.id);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_way_to_commit),
        cmocka_unit_test(every_failure_ends),
        cmocka_unit_test(every_state_has_a_name),
        cmocka_unit_test_setup_teardown(journal_round_trip, place_make, place_remove),
        cmocka_unit_test_setup_teardown(journal_begins_with_the_decision, place_make, place_remove),
        cmocka_unit_test_setup_teardown(journal_of_many, place_make, place_remove),
        cmocka_unit_test_setup_teardown(journal_too_long, place_make, place_remove),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
