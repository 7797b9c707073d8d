/* SPDX-License-Identifier: Apache-2.0 */
/* What the half of an image-cache that is root lets itself be asked for. */
#include "testing.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/starter.h"

static const struct ask_limits all = {.accept = true}, none = {.accept = false};

/* The right form of each ask: nothing more than it has to have. */
static struct ask right(uint32_t kind)
{
    struct ask ask = {.kind = kind};
    if (kind <= ASK_KILL && kind != ASK_CLEAR_UP)
        strcpy(ask.id, "some.id");
    if (kind == ASK_START)
        ask.token = 7;
    if (kind == ASK_ROOT || kind == ASK_PID || kind == ASK_PARENT)
        ask.pid = 42;
    if (kind == ASK_FILE)
        assert_int_equal(ask_add_text(&ask, "/bin/sh"), 0);
    return ask;
}

static int check(const struct ask *ask, const struct ask_limits *limits)
{
    struct error err = {0};
    int r = ask_check(ask, ask->kind == ASK_ROOM, limits, &err);
    assert_true(r == 0 || (r == -1 && err.text[0]));
    return r;
}

static void must_refuse(uint32_t kind, const char *what, const struct ask *ask)
{
    if (check(ask, &all) == 0)
        fail_msg("kind %u with another %s is taken", kind, what);
}

static void every_field(void **state)
{
    (void)state;
    struct error err;
    for (uint32_t kind = ASK_START; kind < ASK_KINDS; kind++) {
        struct ask good = right(kind), bad;
        assert_int_equal(check(&good, &all), 0);
        must_refuse(kind, "flags", (bad = good, bad.flags = 1u << 31, &bad));
        must_refuse(kind, "count", (bad = good, bad.count = ASK_OPTIONS_MAX + 1, &bad));
        must_refuse(kind, "token", (bad = good, bad.token = good.token ? 0 : 1, &bad));
        must_refuse(kind, "pid", (bad = good, bad.pid = good.pid ? 0 : 1, &bad));
        must_refuse(kind, "pid", (bad = good, bad.pid = UINT32_MAX, &bad));
        must_refuse(kind, "id", (bad = good, bad.id[0] = good.id[0] ? '\0' : 'x', &bad));
        must_refuse(kind, "id", (bad = good, memset(bad.id, 'x', sizeof(bad.id)), &bad));
        assert_int_equal(ask_check(&good, kind == ASK_ROOM ? 0 : 1, &all, &err), -1);
        assert_int_equal(ask_check(&good, 2, &all, &err), -1);
    }
    static const char *const ids[] = {"..", ".", "a/b", "../images/x", "a b", "a\n", "/etc", "%s/"};
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        struct ask bad = right(ASK_START);
        strcpy(bad.id, ids[i]);
        must_refuse(ASK_START, ids[i], &bad);
    }
    struct ask unknown = {.kind = 0};
    must_refuse(0, "kind", &unknown);
    must_refuse(ASK_KINDS, "kind", (unknown.kind = ASK_KINDS, &unknown));
    must_refuse(UINT32_MAX, "kind", (unknown.kind = UINT32_MAX, &unknown));
}

static void text(void **state)
{
    (void)state;
    struct ask ask = right(ASK_FILE);
    must_refuse(ASK_FILE, "path", (ask.text[0] = 'x', &ask));
    memset(ask.text, '/', sizeof(ask.text)); /* without an end */
    must_refuse(ASK_FILE, "path", &ask);
    ask = right(ASK_START);
    ask.count = 1;
    memset(ask.text, 'x', sizeof(ask.text));
    must_refuse(ASK_START, "option", &ask);
    ask.text[sizeof(ask.text) - 1] = '\0';
    ask.count = 2; /* of which the second would begin behind the text */
    must_refuse(ASK_START, "option", &ask);
    ask = right(ASK_START);
    for (size_t i = 0; i < ASK_OPTIONS_MAX; i++)
        assert_int_equal(ask_add_text(&ask, "--shell-job"), 0);
    assert_int_equal(check(&ask, &all), 0);
    assert_int_equal(ask_add_text(&ask, "--shell-job"), 0);
    must_refuse(ASK_START, "101st option", &ask);
    struct ask full = right(ASK_START);
    char longest[ASK_TEXT_BYTES];
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(ask_add_text(&full, longest), 0);
    assert_int_equal(ask_add_text(&full, ""), -E2BIG);
}

/* The operator's word counts here too, not only where links are. */
static void limits(void **state)
{
    (void)state;
    static const uint32_t accepting[] = {ASK_START, ASK_GO, ASK_HOST, ASK_FILE, ASK_PID};
    for (size_t i = 0; i < ARRAY_SIZE(accepting); i++) {
        struct ask ask = right(accepting[i]);
        assert_int_equal(check(&ask, &none), -1);
    }
    static const char *const harmful[] = {"--action-script=/tmp/x",
                                          "--libdir=/tmp",
                                          "--root=/",
                                          "--images-dir=/etc",
                                          "-D/etc",
                                          "-W/etc",
                                          "/tmp/x",
                                          "--lazy-pages"};
    for (size_t i = 0; i < ARRAY_SIZE(harmful); i++) {
        struct ask ask = right(ASK_START);
        assert_int_equal(ask_add_text(&ask, harmful[i]), 0);
        must_refuse(ASK_START, harmful[i], &ask);
    }
    const struct ask_limits narrow = {.accept = true, .options = "tcp-established"};
    struct ask ask = right(ASK_START);
    assert_int_equal(ask_add_text(&ask, "--tcp-established"), 0);
    assert_int_equal(check(&ask, &narrow), 0);
    assert_int_equal(ask_add_text(&ask, "--shell-job"), 0);
    assert_int_equal(check(&ask, &narrow), -1);
}

/* ---- one that works ---- */

struct world {
    char *directory;
    char store[PATH_MAX];
    int asks, tells, workdir, storefd;
    pid_t pid;
};

static const struct logger quiet = {.name = "image-cache", .level = LOG_LEVEL_ERROR};

static void begin(struct world *world, bool accept)
{
    int asks[2], tells[2];
    static const struct error no_criu = {.code = FAILURE_CRIU, .text = "none for this test"};
    world->directory = directory_make();
    snprintf(world->store, sizeof(world->store), "%s/images", world->directory);
    assert_int_equal(mkdir(world->store, 0700), 0);
    world->workdir = open(world->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    world->storefd = open(world->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, asks), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, tells), 0);
    const struct daemon_options options = {
        .accept = accept, .address = "localhost", .daemonize = {.status_fd = -EBADF}};
    const struct starter_setup setup = {
        .options = &options,
        .log = &quiet,
        .restores =
            {
                .workdir = world->workdir,
                .store = world->storefd,
                .workdir_path = world->directory,
                .store_path = world->store,
                .criu = accept ? "/bin/false" : NULL,
                .criu_error = &no_criu,
            },
    };
    world->pid = fork();
    if (world->pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, STDERR_FILENO);
        starter_serve(&setup, asks[1], tells[1]);
    }
    close(asks[1]);
    close(tells[1]);
    world->asks = asks[0];
    world->tells = tells[0];
}

/* Its exit status. */
static int ended(struct world *world)
{
    int status = -1;
    struct pollfd poll_fd = {.fd = world->asks, .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, 5000), 1);
    assert_int_equal(waitpid(world->pid, &status, 0), world->pid);
    close(world->asks);
    close(world->tells);
    close(world->workdir);
    close(world->storefd);
    directory_remove(world->directory);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int ask_for(const struct world *world, const struct ask *ask, int passed, struct answer *ret)
{
    int back;
    size_t count;
    assert_int_equal(ask_send(world->asks, ask, sizeof(*ask), passed), 0);
    assert_int_equal(ask_receive(world->asks, ret, sizeof(*ret), &back, &count), 0);
    assert_int_equal(back, -EBADF);
    return ret->result;
}

static int end(struct world *world)
{
    struct answer answer;
    struct ask ask = right(ASK_END);
    assert_int_equal(ask_for(world, &ask, -1, &answer), 0);
    return ended(world);
}

static void not_accepting(void **state)
{
    (void)state;
    struct world world;
    struct answer answer;
    begin(&world, false);
    struct ask ask = right(ASK_START);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), -1);
    assert_contains(answer.err.text, "without --accept");
    ask = right(ASK_FILE);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), -EPERM);
    ask = right(ASK_KILL);
    assert_true(ask_for(&world, &ask, -1, &answer) < 0);
    assert_int_equal(end(&world), 0);
}

static void what_is_not_there(void **state)
{
    (void)state;
    struct world world;
    struct answer answer;
    begin(&world, true);
    struct ask ask = right(ASK_START);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), -1); /* no such snapshot */
    assert_int_equal(mkdirat(world.storefd, "some.id", 0700), 0);
    assert_int_equal(symlinkat("/etc", world.storefd, "some.id/images"), 0);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), -1);
    assert_contains(answer.err.text, "some.id/images");
    assert_int_equal(faccessat(world.workdir, "incoming-some.id", F_OK, 0), -1);
    static const uint32_t kinds[] = {ASK_GO, ASK_LOOK, ASK_KILL, ASK_ROOT};
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        ask = right(kinds[i]);
        assert_true(ask_for(&world, &ask, -1, &answer) < 0);
    }
    ask = right(ASK_ROOT_LIVES);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), 0);
    unlinkat(world.storefd, "some.id/images", 0);
    assert_int_equal(end(&world), 0);
}

/* A process that no restore has built is not to be killed, whoever says what. */
static void not_ours_to_kill(void **state)
{
    (void)state;
    struct world world;
    struct answer answer;
    begin(&world, true);
    assert_int_equal(mkdirat(world.workdir, "incoming-some.id", 0700), 0);
    pid_t other = fork();
    if (other == 0) {
        pause();
        _exit(0);
    }
    struct ask ask = right(ASK_ROOT);
    ask.pid = (uint32_t)other;
    assert_int_equal(ask_for(&world, &ask, -1, &answer), -ESRCH);
    ask = right(ASK_KILL);
    assert_true(ask_for(&world, &ask, -1, &answer) < 0);
    assert_int_equal(waitpid(other, NULL, WNOHANG), 0);
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    assert_int_equal(end(&world), 0);
}

static void what_it_tells(void **state)
{
    (void)state;
    struct stat st;
    struct world world;
    struct answer answer;
    begin(&world, true);
    struct ask ask = right(ASK_FILE);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), 0);
    assert_int_equal(stat("/bin/sh", &st), 0);
    assert_int_equal(answer.file.size, st.st_size);
    ask = right(ASK_HOST);
    assert_int_equal(ask_for(&world, &ask, -1, &answer), 0);
    assert_true(answer.host.pid_max > 1 && answer.host.available_bytes > 0);
    ask = right(ASK_PID);
    ask.pid = (uint32_t)getpid();
    assert_int_equal(ask_for(&world, &ask, -1, &answer), 1);
    assert_string_equal(answer.command, "test_starter");
    ask = right(ASK_PARENT);
    ask.pid = (uint32_t)world.pid;
    assert_int_equal(ask_for(&world, &ask, -1, &answer), 0);
    assert_int_equal(answer.pid, getpid());
    ask = right(ASK_ROOM);
    assert_int_equal(ask_for(&world, &ask, world.workdir, &answer), -EINVAL);
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    assert_int_equal(ask_for(&world, &ask, pair[0], &answer), -EINVAL);
    close(pair[0]);
    close(pair[1]);
    assert_int_equal(ask_for(&world, &ask, world.tells, &answer), 0);
    assert_int_equal(end(&world), 0);
}

static void broken_form(void **state)
{
    (void)state;
    struct world world;
    struct ask ask = right(ASK_HOST);
    begin(&world, true);
    assert_int_equal(send(world.asks, &ask, sizeof(ask) - 1, 0), sizeof(ask) - 1);
    assert_int_equal(ended(&world), FAILURE_SYSTEM);
    char more[sizeof(ask) + 1] = {ASK_HOST};
    begin(&world, true);
    assert_int_equal(send(world.asks, more, sizeof(more), 0), sizeof(more));
    assert_int_equal(ended(&world), FAILURE_SYSTEM);
    begin(&world, true);
    shutdown(world.asks, SHUT_WR);
    assert_int_equal(ended(&world), FAILURE_SYSTEM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field),
        cmocka_unit_test(text),
        cmocka_unit_test(limits),
        cmocka_unit_test(not_accepting),
        cmocka_unit_test(what_is_not_there),
        cmocka_unit_test(not_ours_to_kill),
        cmocka_unit_test(what_it_tells),
        cmocka_unit_test(broken_form),
    };
    return test_exit(cmocka_run_group_tests(tests, NULL, NULL));
}
