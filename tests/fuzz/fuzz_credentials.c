/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Input: one byte, which file, then its content: the pre-shared key, the authority's certificate,
 * the list of what is revoked, the host's certificate or its key.  The other files are good ones.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "unit/peer.h"
#include "wire/credentials.h"
#include "wire/keygen.h"

enum { PATH_BYTES = 256 };

/* GnuTLS 3.7 loses 300 bytes of a certificate that is none; whoever asked for it ends then. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libgnutls\nleak:libtasn1\n";
}

static char *directory;
static struct credential_files good;
static char good_path[3][PATH_BYTES], bad_path[PATH_BYTES];

static void remove_directory(void)
{
    directory_remove(directory);
}

static void make_good(void)
{
    static char host[] = "host";
    char *hosts[] = {host, NULL};
    struct error err;
    char ca[PATH_BYTES / 2];
    directory = directory_make();
    atexit(remove_directory);
    must(snprintf(ca, sizeof(ca), "%s/ca", directory) < (int)sizeof(ca));
    must(keygen_hosts(ca, hosts, &err) == 0);
    static const char *const names[] = {"cacert.pem", "cert.pem", "key.pem"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        snprintf(good_path[i], PATH_BYTES, "%s/host/%s", ca, names[i]);
    snprintf(bad_path, PATH_BYTES, "%s/bad", directory);
    good = (struct credential_files){
        .cacert = good_path[0], .cert = good_path[1], .key = good_path[2]};
}

static void write_bad(const uint8_t *data, size_t size)
{
    int fd = open(bad_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    close(fd);
}

static void check_psk(const struct credentials *credentials)
{
    must(credentials->is_psk && credentials->psk.data);
    must(credentials->psk.size >= PSK_BYTES_MIN && credentials->psk.size <= PSK_BYTES_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!directory)
        make_good();
    if (size == 0)
        return 0;
    struct credential_files files = good;
    const char **fields[] = {&files.psk, &files.cacert, &files.cacrl, &files.cert, &files.key};
    size_t which = data[0] % ARRAY_SIZE(fields);
    if (which == 0)
        files = (struct credential_files){0};
    *fields[which] = bad_path;
    write_bad(data + 1, size - 1);
    struct error err = {0};
    struct credentials *credentials = NULL;
    if (credentials_load(&files, &credentials, &err) < 0) {
        must(!credentials && err.code == FAILURE_USAGE && strstr(err.text, bad_path));
        return 0;
    }
    must(credentials && credentials->priority);
    if (which == 0)
        check_psk(credentials);
    credentials_free(credentials);
    return 0;
}
