/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/admit.h"

#include <string.h>

#include "criu/allow.h"

enum { NAME_BYTES = 256 };

/* Takes the next name out of a list; false at its end. */
static bool next_name(const char **list, char name[NAME_BYTES])
{
    size_t length = strcspn(*list, ",");
    if (!**list || length >= NAME_BYTES)
        return false;
    memcpy(name, *list, length);
    name[length] = '\0';
    *list += length + ((*list)[length] == ',');
    return true;
}

int admit_check(const struct daemon_options *options, struct error *err)
{
    const char *from = options->accept_from;
    if (!options->accept && (from || options->accept_options))
        return error_set(err, FAILURE_USAGE,
                         "--accept-from and --accept-options narrow --accept: give it too");
    if (options->accept_options && criu_allow_check(options->accept_options, err) < 0)
        return error_prefix(err, "--accept-options");
    char name[NAME_BYTES];
    bool valid = true;
    for (const char *at = from; valid && at && *at;)
        valid = next_name(&at, name) && *name;
    if (from && (!valid || !*from))
        return error_set(err, FAILURE_USAGE,
                         "--accept-from %.80s: names that are in certificates are expected, "
                         "separated by commas",
                         from);
    return 0;
}

static bool is_named(const char *list, const struct transport *transport)
{
    char name[NAME_BYTES];
    while (next_name(&list, name)) {
        if (transport->ops->is_peer(transport, name))
            return true;
    }
    return false;
}

int admit(const struct daemon_options *options, const struct transport *transport, bool handed,
          char *const *args, size_t count, struct error *err)
{
    if (!options->accept)
        return error_set(err, FAILURE_REFUSED,
                         "the image-cache there starts no restores by itself: give it --accept");
    if (options->accept_from && !handed && !is_named(options->accept_from, transport))
        return error_set(err, FAILURE_REFUSED,
                         "the image-cache there starts restores for others only: its --accept-from "
                         "has no name of this host's certificate");
    return criu_allow(options->accept_options, args, count, err);
}
