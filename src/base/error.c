/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, enum failure code, const char *format, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, format);
        err->code = code;
        vsnprintf(err->text, sizeof(err->text), format, ap);
        va_end(ap);
    }
    return -1;
}

int error_set_errno(struct error *err, enum failure code, int error_number, const char *format, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, format);
        err->code = code;
        vsnprintf(err->text, sizeof(err->text), format, ap);
        va_end(ap);
        error_append(err, ": %s", strerror(abs(error_number)));
    }
    return -1;
}

int error_prefix(struct error *err, const char *format, ...)
{
    if (err) {
        char old[sizeof(err->text)];
        memcpy(old, err->text, sizeof(old));
        va_list ap;
        va_start(ap, format);
        vsnprintf(err->text, sizeof(err->text), format, ap);
        va_end(ap);
        error_append(err, ": %s", old);
    }
    return -1;
}

int error_append(struct error *err, const char *format, ...)
{
    if (err) {
        size_t used = strlen(err->text);
        va_list ap;
        va_start(ap, format);
        vsnprintf(err->text + used, sizeof(err->text) - used, format, ap);
        va_end(ap);
    }
    return -1;
}

enum failure failure_from_wire(uint32_t code)
{
    return code > FAILURE_NONE && code <= FAILURE_LAST ? (enum failure)code : FAILURE_PEER;
}
