/* SPDX-License-Identifier: Apache-2.0 */
/* When the rounds of a migration end. */
#include "testing.h"

#include "migrate/converge.h"

#define MB 1000000ull

/* A process that writes, and a link that sends, at steady rates: what the rounds of its migration
 * come to.  The number of rounds; *ret: how they ended. */
static unsigned play(struct converge *converge, double written_per_sec, double sent_per_sec,
                     uint64_t working_set, enum converge_verdict *ret)
{
    uint64_t bytes = converge->memory_bytes, before = 0, elapsed = 0;
    for (unsigned n = 1;; n++) {
        uint64_t usec = (uint64_t)((double)bytes / sent_per_sec * 1e6) + 1000;
        elapsed += usec;
        struct converge_round round = {.number = n,
                                       .written = bytes,
                                       .written_usec = before,
                                       .usec = usec,
                                       .elapsed_usec = elapsed};
        *ret = converge_round(converge, &round);
        if (*ret != CONVERGE_AGAIN)
            return n;
        assert_true(n < 1000);
        before = usec;
        bytes = MIN((uint64_t)(written_per_sec * (double)usec / 1e6), working_set);
    }
}

static void an_idle_process(void **state)
{
    (void)state;
    struct converge converge = {.target_usec = 100000, .max_rounds = 30, .memory_bytes = GIB(1)};
    enum converge_verdict verdict;
    assert_int_equal(play(&converge, 0, 1e9, GIB(1), &verdict), 2);
    assert_int_equal(verdict, CONVERGE_GO);
    assert_int_equal(converge.predicted_usec, converge.fixed_usec);
    assert_int_equal(converge.fixed_usec, 44000); /* of criu, and of 1 GiB */
}

/* What is written in a round takes a fifth of its time to be sent. */
static void a_busy_process(void **state)
{
    (void)state;
    struct converge converge = {.target_usec = 100000, .max_rounds = 30, .memory_bytes = GIB(1)};
    enum converge_verdict verdict;
    unsigned rounds = play(&converge, 200e6, 1e9, GIB(1), &verdict);
    assert_int_equal(verdict, CONVERGE_GO);
    assert_true(rounds >= 2 && rounds <= 5);
    assert_true(converge.predicted_usec <= 100000);
    assert_true(converge.written_bytes_per_sec > 150 * MB &&
                converge.written_bytes_per_sec < 250 * MB);
}

/* It writes faster than can be sent: more rounds are of no use. */
static void a_process_that_wins(void **state)
{
    (void)state;
    struct converge converge = {.target_usec = 100000, .max_rounds = 30, .memory_bytes = GIB(1)};
    enum converge_verdict verdict;
    unsigned rounds = play(&converge, 2e9, 1e9, GIB(1) / 2, &verdict);
    assert_int_equal(verdict, CONVERGE_STALLED);
    assert_true(rounds <= 6);
    assert_true(converge.predicted_usec > 100000);
}

/* The size alone costs more than is allowed: no round changes that. */
static void a_large_process(void **state)
{
    (void)state;
    struct converge converge = {.target_usec = 100000, .max_rounds = 30, .memory_bytes = GIB(8)};
    enum converge_verdict verdict;
    assert_true(play(&converge, 1e6, 1e9, GIB(1), &verdict) <= 5);
    assert_int_equal(verdict, CONVERGE_STALLED);
}

static void limits(void **state)
{
    (void)state;
    enum converge_verdict verdict;
    for (unsigned max = 1; max < 4; max++) {
        struct converge converge = {.target_usec = 1, .max_rounds = max, .memory_bytes = GIB(1)};
        assert_int_equal(play(&converge, 300e6, 1e9, GIB(1), &verdict), max);
        assert_int_equal(verdict, CONVERGE_LIMIT);
    }
    struct converge converge = {.target_usec = 1, .max_usec = 500000, .memory_bytes = GIB(1)};
    assert_int_equal(play(&converge, 300e6, 1e9, GIB(1), &verdict), 1);
    assert_int_equal(verdict, CONVERGE_LIMIT);
}

/* A round of a few pages says nothing of how fast the link is. */
static void a_small_round(void **state)
{
    (void)state;
    struct converge converge = {.target_usec = 100000, .memory_bytes = GIB(1)};
    struct converge_round first = {.number = 1, .written = GIB(1), .usec = 1000000};
    struct converge_round second = {
        .number = 2, .written = 4096, .written_usec = 1000000, .usec = 20000};
    assert_int_equal(converge_round(&converge, &first), CONVERGE_AGAIN);
    uint64_t rate = converge.sent_bytes_per_sec;
    assert_int_equal(converge_round(&converge, &second), CONVERGE_GO);
    assert_int_equal(converge.sent_bytes_per_sec, rate);
}

/* An idle process, of which much is read once more, or left to criu. */
static void what_the_freeze_has_besides(void **state)
{
    (void)state;
    static const struct {
        uint64_t again_usec, criu_bytes;
        unsigned least_msec, most_msec;
    } cases[] = {{0, 0, 30, 60}, {400000, 0, 430, 460}, {0, MIB(512), 770, 820}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct converge converge = {
            .target_usec = 100000, .memory_bytes = GIB(1), .criu_bytes = cases[i].criu_bytes};
        struct converge_round round = {.number = 1, .written = GIB(1), .usec = 1000000};
        assert_int_equal(converge_round(&converge, &round), CONVERGE_AGAIN);
        round = (struct converge_round){.number = 2,
                                        .written_usec = 1000000,
                                        .usec = 400000,
                                        .again_usec = cases[i].again_usec};
        bool late = cases[i].least_msec > 100;
        assert_int_equal(converge_round(&converge, &round), late ? CONVERGE_AGAIN : CONVERGE_GO);
        assert_in_range(converge.predicted_usec, cases[i].least_msec * USEC_PER_MSEC,
                        cases[i].most_msec * USEC_PER_MSEC);
        assert_int_equal(converge.fixed_usec, converge.predicted_usec); /* nothing is written */
    }
}

/* Nothing divides by nothing. */
static void nothing_at_all(void **state)
{
    (void)state;
    struct converge converge = {.target_usec = 100000};
    struct converge_round round = {.number = 1};
    assert_int_equal(converge_round(&converge, &round), CONVERGE_AGAIN);
    round = (struct converge_round){.number = 2, .written_usec = 1};
    assert_int_equal(converge_round(&converge, &round), CONVERGE_GO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_idle_process),
        cmocka_unit_test(a_busy_process),
        cmocka_unit_test(a_process_that_wins),
        cmocka_unit_test(a_large_process),
        cmocka_unit_test(limits),
        cmocka_unit_test(a_small_round),
        cmocka_unit_test(what_the_freeze_has_besides),
        cmocka_unit_test(nothing_at_all),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
