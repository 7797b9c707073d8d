/* SPDX-License-Identifier: Apache-2.0 */
#include "criu/allow.h"

#include <string.h>

#include "criu/process.h"

#define ANY "any"

static const char harmless[] =
    "cpu-cap,display-stats,evasive-devices,ext-unix-sk,file-locks,file-validation,force-irmap,"
    "ghost-fiemap,ghost-limit,link-remap,manage-cgroups,mntns-compat-mode,network-lock,"
    "shell-job,skip-in-flight,tcp-close,tcp-established,timeout,verbosity,weak-sysctls";

/* criu's short options, as far as there is any sense in allowing them. */
static const struct {
    char letter;
    bool argument; /* what follows in the same word */
    const char *name;
} letters[] = {
    {'j', false, "shell-job"},
    {'l', false, "file-locks"},
    {'v', true, "verbosity"},
    {'x', true, "ext-unix-sk"},
};

static bool list_has(const char *list, const char *name, size_t length)
{
    for (const char *at = list; length > 0 && at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || !at[length]))
            return true;
    }
    return false;
}

static bool short_allowed(const char *list, const char *word)
{
    for (const char *letter = word + 1; *letter; letter++) {
        size_t i = 0;
        while (i < ARRAY_SIZE(letters) && letters[i].letter != *letter)
            i++;
        if (i == ARRAY_SIZE(letters) || !list_has(list, letters[i].name, strlen(letters[i].name)))
            return false;
        if (letters[i].argument)
            break;
    }
    return word[1] != '\0';
}

/* Beginnings of names, which criu takes for the whole, are not the names that were allowed. */
static bool option_allowed(const char *list, const char *word)
{
    if (strncmp(word, "--", 2) == 0)
        return list_has(list, word + 2, strcspn(word + 2, "="));
    return short_allowed(list, word);
}

int criu_allow_check(const char *list, struct error *err)
{
    if (!list || strcmp(list, ANY) == 0)
        return 0;
    for (const char *at = list, *end; *at; at = end + (*end == ',')) {
        char word[80] = "--", *args[] = {word};
        end = at + strcspn(at, ",");
        size_t length = (size_t)(end - at);
        if (length == 0 || length > sizeof(word) - 3 || strcspn(at, "= ") < length || *at == '-')
            return error_set(err, FAILURE_USAGE,
                             "%.*s: is no name of an option of criu: file-locks,shell-job,...",
                             (int)MIN(length, 40), at);
        memcpy(word + 2, at, length);
        word[2 + length] = '\0';
        if (criu_check_options(args, 1, err) < 0)
            return -1;
    }
    return 0;
}

int criu_allow(const char *list, char *const *args, size_t count, struct error *err)
{
    if (criu_check_options(args, count, err) < 0)
        return -1;
    if (list && strcmp(list, ANY) == 0)
        return 0;
    bool value = false; /* what comes next may be one */
    for (size_t i = 0; i < count; i++) {
        bool option = args[i][0] == '-';
        if (option ? !option_allowed(list ? list : harmless, args[i]) : !value)
            return error_set(err, FAILURE_REFUSED,
                             "%.80s: is not among the options for criu that the image-cache there "
                             "takes from others (--accept-options), or none of criu's",
                             args[i]);
        value = option && !strchr(args[i], '=');
    }
    return 0;
}
