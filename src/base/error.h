/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Errors as values.  Inside a module functions return a negative errno; where a person has to
 * understand what happened they fill a struct error: one line that says what, where and, if there
 * is one, what to do.  Callers add the path it came by with error_prefix().
 */
#include "base/util.h"

/*
 * What kind of failure: doubles as the commands' exit status, as the code field of the failure
 * messages of the link and of the local sockets.  Numbers are never reused.
 */
enum failure {
    FAILURE_NONE = 0,
    FAILURE_SYSTEM = 1,    /* this host: a system call, a file, a signal */
    FAILURE_USAGE = 2,     /* the command line */
    FAILURE_CRIU = 3,      /* criu ended with an error */
    FAILURE_PEER = 4,      /* the daemon, the other host or the way to it */
    FAILURE_NOT_FOUND = 5, /* no such snapshot, image or process */
    FAILURE_LIMIT = 6,     /* over the memory limit of the cache */
    FAILURE_DOUBT = 7,     /* two hosts may hold the process: an operator's word is needed */
    FAILURE_BUSY = 8,      /* somebody else is at it, or the request is ambiguous */
    FAILURE_REFUSED = 9,   /* pre-flight, or the other host: nothing was touched */
    FAILURE_ABORTED = 10,  /* it was tried, and the process runs on where it was */
    FAILURE_LAST = FAILURE_ABORTED,
};

struct error {
    enum failure code;
    char text[480];
};

/* Sets *err (which may be NULL) and returns -1, so that a caller can `return error_set(...)`. */
int error_set(struct error *err, enum failure code, const char *format, ...) _printf_(3, 4);

/* The same with ": strerror(|error_number|)" appended. */
int error_set_errno(struct error *err, enum failure code, int error_number, const char *format, ...)
    _printf_(4, 5);

/* Puts "prefix: " in front of the text, cutting the end if it does not fit.  Returns -1. */
int error_prefix(struct error *err, const char *format, ...) _printf_(2, 3);

/* Puts more behind the text, cutting the end if it does not fit.  Returns -1. */
int error_append(struct error *err, const char *format, ...) _printf_(2, 3);

/* A number that came from a peer as a failure code; unknown ones are the peer's failure. */
enum failure failure_from_wire(uint32_t code);
