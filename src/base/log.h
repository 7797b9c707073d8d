/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a daemon tells its operator: one line per event, with date and level, on standard error
 * (which daemonize() points at the log file).  The logger travels with the daemon; the library
 * below the daemons returns errors and logs nothing.
 */
#include "base/util.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

struct logger {
    const char *name;     /* of the program, in front of every line; borrowed */
    enum log_level level; /* what is less urgent than this is dropped */
};

void log_line(const struct logger *logger, enum log_level level, const char *format, ...)
    _printf_(3, 4);

#define log_error(logger, ...) log_line(logger, LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_info(logger, ...) log_line(logger, LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(logger, ...) log_line(logger, LOG_LEVEL_DEBUG, __VA_ARGS__)
