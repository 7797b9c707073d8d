/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Descriptors: whole reads and writes, sockets in a directory, what a number or a size spells. */
#include <sys/types.h>

#include "base/error.h"

/* Writes all of it to a blocking descriptor.  0, or a negative errno. */
int write_all(int fd, const void *buf, size_t len);

/* Reads exactly len bytes from a blocking descriptor.  0, -ENODATA at an early end, or a negative
 * errno. */
int read_all(int fd, void *buf, size_t len);

/* Calls each() for every name in an open directory but "." and "..", until one is not 0.  What that
 * was, or a negative errno. */
int directory_for_each(int dirfd, int (*each)(int dirfd, const char *name, void *user), void *user);

/* Whether an open directory holds nothing: 1, 0, or a negative errno. */
int directory_is_empty(int dirfd);

int set_nonblocking(int fd, bool on);

/* Closes all descriptors of the process but these, in any order, which are sorted; negative ones
 * stand for none. */
void close_all_but(int *keep, size_t count);

/*
 * A name inside an open directory as an address for a UNIX socket; what is there already and is no
 * socket is left alone (-EEXIST).  sun_path holds 108 bytes and a
 * work-dir may be longer, so the address goes through /proc/self/fd.  0, or a negative errno.
 */
int unix_listen_at(int dirfd, const char *name, int type);
int unix_connect_at(int dirfd, const char *name, int type);

/* The same for a path of any length.  A socket that is there already is replaced. */
int unix_listen_path(const char *path, int type);
int unix_connect_path(const char *path, int type);

/* Opens a directory below an open one, on the same mount and with no symbolic link on the way.  fd,
 * or a negative errno. */
int directory_open_beneath(int dirfd, const char *path);

/* Opens a directory, making it and what is above it (mode 0700) if asked to; it must belong to this
 * user, be writable by nobody else and be no symbolic link.  fd, or a negative errno with *err set.
 */
int directory_open(const char *path, bool create, struct error *err);

/*
 * The same of a directory that is gone to by its path too: all directories above it must be root's
 * or this user's, and what others may write to sticky.  what: in front of the path in errors.
 * *ret_path (may be NULL): the same without links, to be freed.
 */
int safe_directory_open(const char *what, const char *path, bool create, char **ret_path,
                        struct error *err);
int workdir_open(const char *path, bool create, char **ret_path, struct error *err);

/*
 * Raises RLIMIT_NOFILE to its hard limit: a dump may hold thousands of pipes open at once.
 */
void raise_nofile_limit(void);

/* Parses "10", "64K", "5M", "2G" (powers of 1024).  0, or -EINVAL. */
int parse_size(const char *text, uint64_t *ret_bytes);

/* Parses a decimal number of at most |max|, with nothing before or after it.  0, or -EINVAL. */
int parse_number(const char *text, uint64_t max, uint64_t *ret_value);

/* Parses seconds, at most a million, with an optional fraction ("0.5") into microseconds.  0, or
 * -EINVAL. */
int parse_seconds(const char *text, uint64_t *ret_usec);

/* Puts "?" for all that is not printable ASCII: it may be of somebody else's choice, and goes to
 * terminals and other hosts. */
void make_plain(char *text);

/* "512.0 MiB"; buf must hold 24 bytes.  Returns buf. */
const char *format_bytes(uint64_t bytes, char buf[24]);
