/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const level_names[] = {"error", "info", "debug"};

void log_line(const struct logger *logger, enum log_level level, const char *format, ...)
{
    if (level > logger->level)
        return;

    struct timespec ts;
    struct tm tm;
    char line[1024];
    clock_gettime(CLOCK_REALTIME, &ts);
    localtime_r(&ts.tv_sec, &tm);
    size_t n = strftime(line, sizeof(line), "%F %T", &tm);
    n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ld %s %s: ", ts.tv_nsec / 1000000,
                          logger->name, level_names[level]);
    va_list ap;
    va_start(ap, format);
    int written = vsnprintf(line + n, sizeof(line) - n - 1, format, ap);
    va_end(ap);
    if (written > 0)
        n = MIN(n + (size_t)written, sizeof(line) - 2);
    line[n++] = '\n';
    /* One write, so that lines of several processes on one log do not mix.  A full disk under the
     * log must not stop a migration, so its result is of no interest. */
    ssize_t ignored = write(STDERR_FILENO, line, n);
    (void)ignored;
}
