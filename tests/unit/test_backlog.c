/* SPDX-License-Identifier: Apache-2.0 */
/* What the messages behind a move tell of it. */
#include "testing.h"

#include "pager/backlog.h"

/* Pages, so that the tables can be read. */
/* clang-format off */
#define REMAP(from_, to_, length) {.event = UFFD_EVENT_REMAP, .arg.remap = {(from_), (to_), (length)}}
#define UNMAP(start_, end_) {.event = UFFD_EVENT_UNMAP, .arg.remove = {(start_), (end_)}}
#define REMOVE(start_, end_) {.event = UFFD_EVENT_REMOVE, .arg.remove = {(start_), (end_)}}
#define FORK {.event = UFFD_EVENT_FORK}
/* clang-format on */

enum { MESSAGES_MAX = 6 };

static const struct {
    const char *name;
    struct uffd_msg messages[MESSAGES_MAX];
    bool found, certain, unmapped;
    uint64_t length;
    uint32_t own;
} cases[] = {
    {"nothing more", {REMAP(100, 200, 8)}, .found = false},
    {"as large as before",
     {REMAP(100, 200, 8), UNMAP(100, 108)},
     .found = true,
     .certain = true,
     .unmapped = true,
     .length = 8,
     .own = 1},
    {"smaller",
     {REMAP(100, 200, 8), UNMAP(102, 108), UNMAP(100, 102)},
     .found = true,
     .certain = true,
     .unmapped = true,
     .length = 2,
     .own = 2},
    {"smaller, and the rest yet to be told", {REMAP(100, 200, 8), UNMAP(102, 108)}, .found = false},
    {"smaller, and nothing of the rest was registered; or it stays, and part of it went",
     {REMAP(100, 200, 8), UNMAP(100, 102)},
     .found = true,
     .certain = false,
     .unmapped = true,
     .length = 2,
     .own = 1},
    {"the rest begins elsewhere",
     {REMAP(100, 200, 8), UNMAP(104, 108), UNMAP(100, 102)},
     .found = true,
     .certain = false,
     .unmapped = true,
     .length = 2,
     .own = 2},
    {"others in between",
     {REMAP(100, 200, 8), FORK, REMOVE(100, 108), UNMAP(102, 108), REMAP(300, 102, 4),
      UNMAP(100, 102)},
     .found = true,
     .certain = true,
     .unmapped = true,
     .length = 2,
     .own = 5},
    {"another's",
     {REMAP(100, 200, 8), UNMAP(101, 104), UNMAP(90, 108), REMAP(90, 300, 20)},
     .found = false},
    {"longer than it", {REMAP(100, 200, 8), UNMAP(100, 109)}, .found = false},
    {"it stays, and is moved once more",
     {REMAP(100, 200, 8), REMAP(100, 300, 8), UNMAP(103, 108), UNMAP(100, 103)},
     .found = true,
     .certain = true,
     .length = 8},
};

static void what_is_told(void **state)
{
    (void)state;
    struct backlog *backlog = calloc(1, sizeof(*backlog));
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        /* Anywhere in the ring, also around its end, and in a word of which a part is another's. */
        for (uint32_t begin = 0; begin <= BACKLOG_COUNTER - 2; begin += BACKLOG_MAX * 7 - 2) {
            uint64_t word = 3 | (uint64_t)begin << BACKLOG_BEGIN | (uint64_t)begin << BACKLOG_END;
            struct backlog_move move;
            for (uint32_t k = 0; k < MESSAGES_MAX && cases[i].messages[k].event; k++) {
                backlog->list[backlog_index(word, k)] = cases[i].messages[k];
                word = backlog_pushed(word);
                assert_int_equal(backlog_count(word), k + 1);
            }
            bool found = backlog_look(backlog, word, &move);
            if (found != cases[i].found)
                fail_msg("%s: %s", cases[i].name, found ? "found" : "not found");
            if (found && (move.length != cases[i].length || move.certain != cases[i].certain ||
                          move.unmapped != cases[i].unmapped ||
                          (move.unmapped && move.own != backlog_index(word, cases[i].own))))
                fail_msg("%s: %lu pages, certain %d, unmapped %d", cases[i].name, move.length,
                         move.certain, move.unmapped);
            while (backlog_count(word) > 0)
                word = backlog_popped(word);
            assert_int_equal(word & 0xffff, 3);
        }
    }
    free(backlog);
}

static void counters_go_round(void **state)
{
    (void)state;
    uint64_t word = 1 | (uint64_t)BACKLOG_COUNTER << BACKLOG_BEGIN | BACKLOG_COUNTER << BACKLOG_END;
    assert_int_equal(backlog_count(word), 0);
    assert_int_equal(backlog_index(word, 0), BACKLOG_MAX - 1);
    for (uint32_t i = 0; i < BACKLOG_MAX; i++)
        word = backlog_pushed(word);
    assert_int_equal(backlog_count(word), BACKLOG_MAX);
    assert_int_equal(backlog_begin(word), BACKLOG_COUNTER);
    word = backlog_popped(word);
    assert_int_equal(backlog_begin(word), 0);
    assert_int_equal(backlog_count(word), BACKLOG_MAX - 1);
    assert_int_equal(word & 0xffff, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_told),
        cmocka_unit_test(counters_go_round),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
