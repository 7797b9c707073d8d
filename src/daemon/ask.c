/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/ask.h"

#include <string.h>

#include "base/passing.h"
#include "criu/allow.h"

enum field { FIELD_ID = 1, FIELD_TOKEN = 2, FIELD_PID = 4, FIELD_OPTIONS = 8, FIELD_PATH = 16 };

/* What each kind of ask has. */
static const struct rule {
    const char *name;
    uint32_t fields;
    uint32_t flags;
    size_t fds;
    bool accept; /* only where restores may be started */
} rules[ASK_KINDS] = {
    [ASK_START] = {"start", FIELD_ID | FIELD_TOKEN | FIELD_OPTIONS, ASK_LAZY | ASK_AHEAD, 0, true},
    [ASK_GO] = {"go", FIELD_ID, ASK_LAZY, 0, true},
    [ASK_LEAVE] = {"leave", FIELD_ID, 0, 0, false},
    [ASK_STOP] = {"stop", FIELD_ID, 0, 0, false},
    [ASK_REMOVE] = {"remove", FIELD_ID, ASK_KEEP_LOG, 0, false},
    [ASK_CLEAR_UP] = {"clear-up", 0, 0, 0, false},
    [ASK_LOOK] = {"look", FIELD_ID, 0, 0, false},
    [ASK_RELEASE] = {"release", FIELD_ID, 0, 0, false},
    [ASK_STOP_PAGER] = {"stop-pager", FIELD_ID, 0, 0, false},
    [ASK_ROOT] = {"root", FIELD_ID | FIELD_PID, 0, 0, false},
    [ASK_ROOT_LIVES] = {"root-lives", FIELD_ID, 0, 0, false},
    [ASK_KILL] = {"kill", FIELD_ID, 0, 0, false},
    [ASK_HOST] = {"host", 0, 0, 0, true},
    [ASK_FILE] = {"file", FIELD_PATH, ASK_PROGRAM, 0, true},
    [ASK_PID] = {"pid", FIELD_PID, 0, 0, true},
    [ASK_PARENT] = {"parent", FIELD_PID, 0, 0, false},
    [ASK_ROOM] = {"room", 0, 0, 1, false},
    [ASK_LOG] = {"log", 0, 0, 0, false},
    [ASK_READY] = {"ready", 0, 0, 0, false},
    [ASK_END] = {"end", 0, ASK_UNIX_SOCKET | ASK_PIDFILE, 0, false},
};

/* ---- what may be asked ---- */

/* How many strings there are in the text, of which the last one has to have its end. */
static bool has_strings(const struct ask *ask, size_t count)
{
    const char *at = ask->text, *end = ask->text + sizeof(ask->text);
    for (size_t i = 0; i < count; i++) {
        const char *zero = at < end ? memchr(at, '\0', (size_t)(end - at)) : NULL;
        if (!zero)
            return false;
        at = zero + 1;
    }
    return true;
}

void ask_options(const struct ask *ask, char *ret[ASK_OPTIONS_MAX + 1])
{
    char *at = (char *)ask->text;
    for (size_t i = 0; i < ask->count; i++) {
        ret[i] = at;
        at += strlen(at) + 1;
    }
    ret[ask->count] = NULL;
}

static int check_options(const struct ask *ask, const struct ask_limits *limits, struct error *err)
{
    char *options[ASK_OPTIONS_MAX + 1];
    if (ask->count > ASK_OPTIONS_MAX || !has_strings(ask, ask->count))
        return error_set(err, FAILURE_REFUSED, "options");
    ask_options(ask, options);
    return criu_allow(limits->options, options, ask->count, err);
}

static int check_text(const struct ask *ask, uint32_t fields, const struct ask_limits *limits,
                      struct error *err)
{
    if (fields & FIELD_OPTIONS)
        return check_options(ask, limits, err);
    bool path = fields & FIELD_PATH;
    if (ask->count != path || !has_strings(ask, 1) || ask->text[0] != (path ? '/' : '\0'))
        return error_set(err, FAILURE_REFUSED, "text");
    return 0;
}

static bool is_id(const struct ask *ask)
{
    return memchr(ask->id, '\0', sizeof(ask->id)) && snapshot_id_valid(ask->id);
}

static bool has_no_id(const struct ask *ask)
{
    static const char none[sizeof(ask->id)];
    return memcmp(ask->id, none, sizeof(none)) == 0;
}

static int check_fields(const struct ask *ask, const struct rule *rule, size_t fds,
                        const struct ask_limits *limits, struct error *err)
{
    uint32_t fields = rule->fields;
    const char *wrong = NULL;
    if (ask->flags & ~rule->flags)
        wrong = "flags";
    else if (fields & FIELD_ID ? !is_id(ask) : !has_no_id(ask))
        wrong = "id";
    else if (!(fields & FIELD_TOKEN) != (ask->token == 0))
        wrong = "token";
    else if (fields & FIELD_PID ? ask->pid == 0 || ask->pid > INT32_MAX : ask->pid != 0)
        wrong = "pid";
    else if (fds != rule->fds)
        wrong = "descriptors";
    return wrong ? error_set(err, FAILURE_REFUSED, "%s", wrong)
                 : check_text(ask, fields, limits, err);
}

int ask_check(const struct ask *ask, size_t fds, const struct ask_limits *limits, struct error *err)
{
    if (ask->kind >= ASK_KINDS || !rules[ask->kind].name)
        return error_set(err, FAILURE_REFUSED, "asked for something unknown: %u", ask->kind);
    const struct rule *rule = &rules[ask->kind];
    if (rule->accept && !limits->accept)
        return error_set(err, FAILURE_REFUSED, "asked for %s: without --accept", rule->name);
    if (check_fields(ask, rule, fds, limits, err) < 0)
        return error_prefix(err, "asked for %s", rule->name);
    return 0;
}

int ask_add_text(struct ask *ask, const char *text)
{
    size_t used = 0, length = strlen(text) + 1;
    for (size_t i = 0; i < ask->count; i++)
        used += strlen(ask->text + used) + 1;
    if (length > sizeof(ask->text) - used)
        return -E2BIG;
    memcpy(ask->text + used, text, length);
    ask->count++;
    return 0;
}

/* ---- sending and receiving ---- */

int ask_send(int fd, const void *record, size_t size, int passed)
{
    struct iovec iov = {(void *)record, size};
    ssize_t n = send_passing(fd, &iov, 1, &passed, passed >= 0);
    return n < 0 ? (int)n : 0;
}

int ask_receive(int fd, void *record, size_t size, int *ret_passed, size_t *ret_fds)
{
    struct iovec iov = {record, size};
    struct passed passed;
    *ret_passed = -EBADF;
    *ret_fds = 0;
    ssize_t n = receive_passed(fd, 0, &iov, 1, &passed);
    if (n < 0)
        return n == -ECONNRESET ? -ENODATA : (int)n;
    if (n != (ssize_t)size || passed.cut) {
        passed_close(&passed);
        return n == 0 ? -ENODATA : -EBADMSG;
    }
    *ret_fds = passed.count;
    *ret_passed = passed_take_first(&passed);
    return 0;
}
