/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/keygen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <gnutls/x509.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/io.h"
#include "wire/credentials.h"

enum {
    SECONDS_PER_DAY = 86400,
    SLACK_SECONDS = 3600, /* clocks that differ */
    SERIAL_BYTES = 16,
    NAME_BYTES_MAX = 253,
    FILE_BYTES_MAX = 64 << 10,
};

/* ---- files ---- */

/* Writes a file that is not there yet. */
static int file_write(int dirfd, const char *name, const void *bytes, size_t length)
{
    _cleanup_close_ int fd =
        openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    int r = write_all(fd, bytes, length);
    if (r < 0)
        unlinkat(dirfd, name, 0);
    return r;
}

static int file_read(int dirfd, const char *name, gnutls_datum_t *ret)
{
    _cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || st.st_size > FILE_BYTES_MAX)
        return -EINVAL;
    gnutls_datum_t content = {.data = gnutls_malloc((size_t)st.st_size + 1),
                              .size = (unsigned)st.st_size};
    int r = content.data ? read_all(fd, content.data, content.size) : -ENOMEM;
    if (r < 0)
        gnutls_free(content.data);
    else
        *ret = content;
    return r;
}

static void datum_free(gnutls_datum_t *datum)
{
    if (datum->data)
        gnutls_memset(datum->data, 0, datum->size);
    gnutls_free(datum->data);
}

#define _cleanup_datum_ _cleanup_(datum_free)

/* ---- pairs of a certificate and its key ---- */

struct pair {
    gnutls_x509_crt_t crt;
    gnutls_x509_privkey_t key;
};

static void pair_free(struct pair *pair)
{
    if (pair->crt)
        gnutls_x509_crt_deinit(pair->crt);
    if (pair->key)
        gnutls_x509_privkey_deinit(pair->key);
    *pair = (struct pair){0};
}

#define _cleanup_pair_ _cleanup_(pair_free)

static int gnutls_fails(int r, const char *what, struct error *err)
{
    return error_set(err, FAILURE_SYSTEM, "%s: %s", what, gnutls_strerror(r));
}

/* What every certificate has; name: the subject's. */
static int pair_make(struct pair *pair, const char *name, unsigned days)
{
    uint8_t serial[SERIAL_BYTES], id[20];
    size_t id_bytes = sizeof(id);
    time_t now = time(NULL);
    int r = gnutls_x509_crt_init(&pair->crt);
    if (r >= 0)
        r = gnutls_x509_privkey_init(&pair->key);
    if (r >= 0)
        r = gnutls_x509_privkey_generate(pair->key, GNUTLS_PK_ECDSA,
                                         GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0);
    if (r >= 0)
        r = gnutls_rnd(GNUTLS_RND_NONCE, serial, sizeof(serial));
    if (r < 0)
        return r;
    serial[0] = (serial[0] & 0x7f) | 1; /* positive, and no zero in front */
    if ((r = gnutls_x509_crt_set_version(pair->crt, 3)) < 0 ||
        (r = gnutls_x509_crt_set_serial(pair->crt, serial, sizeof(serial))) < 0 ||
        (r = gnutls_x509_crt_set_activation_time(pair->crt, now - SLACK_SECONDS)) < 0 ||
        (r = gnutls_x509_crt_set_expiration_time(pair->crt, now + (time_t)days * SECONDS_PER_DAY)) <
            0 ||
        (r = gnutls_x509_crt_set_key(pair->crt, pair->key)) < 0 ||
        (r = gnutls_x509_crt_set_dn_by_oid(pair->crt, GNUTLS_OID_X520_COMMON_NAME, 0, name,
                                           (unsigned)MIN(strlen(name), 64u))) < 0 ||
        (r = gnutls_x509_crt_get_key_id(pair->crt, GNUTLS_KEYID_USE_SHA1, id, &id_bytes)) < 0)
        return r;
    return gnutls_x509_crt_set_subject_key_id(pair->crt, id, id_bytes);
}

static int pair_sign(struct pair *pair, const struct pair *ca)
{
    uint8_t id[64];
    size_t id_bytes = sizeof(id);
    int r = gnutls_x509_crt_get_subject_key_id(ca->crt, id, &id_bytes, NULL);
    if (r >= 0)
        r = gnutls_x509_crt_set_authority_key_id(pair->crt, id, id_bytes);
    return r < 0 ? r : gnutls_x509_crt_sign2(pair->crt, ca->crt, ca->key, GNUTLS_DIG_SHA256, 0);
}

static int pair_export(const struct pair *pair, gnutls_datum_t *crt, gnutls_datum_t *key)
{
    int r = gnutls_x509_crt_export2(pair->crt, GNUTLS_X509_FMT_PEM, crt);
    return r < 0 ? r
                 : gnutls_x509_privkey_export2_pkcs8(pair->key, GNUTLS_X509_FMT_PEM, NULL,
                                                     GNUTLS_PKCS_PLAIN, key);
}

/* ---- the authority ---- */

static int ca_make(struct pair *ca)
{
    uint8_t random[4];
    char name[40];
    int r = gnutls_rnd(GNUTLS_RND_NONCE, random, sizeof(random));
    snprintf(name, sizeof(name), "godwit authority %08x", get_le32(random));
    if (r < 0 || (r = pair_make(ca, name, KEYGEN_CA_DAYS)) < 0 ||
        (r = gnutls_x509_crt_set_basic_constraints(ca->crt, 1, 0)) < 0 ||
        (r = gnutls_x509_crt_set_key_usage(ca->crt,
                                           GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN)) < 0)
        return r;
    return pair_sign(ca, ca);
}

static int ca_load(struct pair *ca, int dirfd, const char *directory, struct error *err)
{
    _cleanup_datum_ gnutls_datum_t crt = {0}, key = {0};
    int r = file_read(dirfd, "cacert.pem", &crt);
    if (r == 0)
        r = file_read(dirfd, "cakey.pem", &key);
    if (r < 0)
        return error_set_errno(err, FAILURE_SYSTEM, r, "%s/cacert.pem and cakey.pem", directory);
    if ((r = gnutls_x509_crt_init(&ca->crt)) >= 0 &&
        (r = gnutls_x509_privkey_init(&ca->key)) >= 0 &&
        (r = gnutls_x509_crt_import(ca->crt, &crt, GNUTLS_X509_FMT_PEM)) >= 0)
        r = gnutls_x509_privkey_import2(ca->key, &key, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (r >= 0 && gnutls_x509_crt_get_expiration_time(ca->crt) < time(NULL))
        return error_set(err, FAILURE_SYSTEM,
                         "%s/cacert.pem has expired: begin anew in another directory", directory);
    return r < 0 ? error_set(err, FAILURE_SYSTEM, "%s/cacert.pem and cakey.pem: %s", directory,
                             gnutls_strerror(r))
                 : 0;
}

/* The authority that is in the directory, or a new one. */
static int ca_open(struct pair *ca, int dirfd, const char *directory, struct error *err)
{
    if (faccessat(dirfd, "cacert.pem", F_OK, 0) == 0 || faccessat(dirfd, "cakey.pem", F_OK, 0) == 0)
        return ca_load(ca, dirfd, directory, err);
    _cleanup_datum_ gnutls_datum_t crt = {0}, key = {0};
    int r = ca_make(ca);
    if (r >= 0)
        r = pair_export(ca, &crt, &key);
    if (r < 0)
        return gnutls_fails(r, "an authority", err);
    r = file_write(dirfd, "cakey.pem", key.data, key.size);
    if (r == 0)
        r = file_write(dirfd, "cacert.pem", crt.data, crt.size);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "%s", directory) : 0;
}

/* ---- hosts ---- */

static bool name_valid(const char *name, size_t length)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "-._:";
    return length > 0 && length <= NAME_BYTES_MAX && *name != '.' && *name != '-' &&
           strspn(name, allowed) >= length;
}

static size_t name_length(const char *host)
{
    return strcspn(host, ",");
}

static int host_check(const char *host, int dirfd, const char *directory, struct error *err)
{
    struct stat st;
    char first[NAME_BYTES_MAX + 1];
    for (const char *name = host;;) {
        size_t length = name_length(name);
        if (!name_valid(name, length))
            return error_set(err, FAILURE_USAGE,
                             "%s: NAME[,NAME...] is expected: names and addresses of a host", host);
        if (!name[length])
            break;
        name += length + 1;
    }
    snprintf(first, sizeof(first), "%.*s", (int)name_length(host), host);
    if (fstatat(dirfd, first, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return error_set(err, FAILURE_BUSY, "%s/%s is there already, and stays as it is", directory,
                         first);
    return 0;
}

static int host_add_name(gnutls_x509_crt_t crt, const char *name)
{
    uint8_t address[16];
    unsigned bytes = inet_pton(AF_INET, name, address) == 1    ? 4
                     : inet_pton(AF_INET6, name, address) == 1 ? 16
                                                               : 0;
    return gnutls_x509_crt_set_subject_alt_name(
        crt, bytes ? GNUTLS_SAN_IPADDRESS : GNUTLS_SAN_DNSNAME, bytes ? (void *)address : name,
        bytes ? bytes : (unsigned)strlen(name), GNUTLS_FSAN_APPEND);
}

static int host_make(struct pair *pair, const struct pair *ca, char *names)
{
    char *save = NULL, *name = strtok_r(names, ",", &save);
    int r = pair_make(pair, name, KEYGEN_HOST_DAYS);
    for (; r >= 0 && name; name = strtok_r(NULL, ",", &save))
        r = host_add_name(pair->crt, name);
    if (r < 0 || (r = gnutls_x509_crt_set_basic_constraints(pair->crt, 0, -1)) < 0 ||
        (r = gnutls_x509_crt_set_key_usage(pair->crt, GNUTLS_KEY_DIGITAL_SIGNATURE)) < 0 ||
        /* Today's source is tomorrow's destination. */
        (r = gnutls_x509_crt_set_key_purpose_oid(pair->crt, GNUTLS_KP_TLS_WWW_SERVER, 0)) < 0 ||
        (r = gnutls_x509_crt_set_key_purpose_oid(pair->crt, GNUTLS_KP_TLS_WWW_CLIENT, 0)) < 0)
        return r;
    return pair_sign(pair, ca);
}

/* All of it, or nothing. */
static int host_write(int dirfd, const char *name, const struct pair *pair, const struct pair *ca)
{
    static const char *const files[] = {"cacert.pem", "cert.pem", "key.pem"};
    _cleanup_datum_ gnutls_datum_t cacert = {0}, cert = {0}, key = {0};
    if (gnutls_x509_crt_export2(ca->crt, GNUTLS_X509_FMT_PEM, &cacert) < 0 ||
        pair_export(pair, &cert, &key) < 0)
        return -ENOMEM;
    const gnutls_datum_t contents[] = {cacert, cert, key};
    if (mkdirat(dirfd, name, 0700) < 0)
        return -errno;
    _cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int r = fd < 0 ? -errno : 0;
    size_t written = 0;
    while (r == 0 && written < ARRAY_SIZE(files)) {
        r = file_write(fd, files[written], contents[written].data, contents[written].size);
        written += r == 0;
    }
    if (r == 0)
        return 0;
    while (written > 0)
        unlinkat(fd, files[--written], 0);
    unlinkat(dirfd, name, AT_REMOVEDIR);
    return r;
}

static int host_issue(const char *host, const struct pair *ca, int dirfd, const char *directory,
                      struct error *err)
{
    _cleanup_pair_ struct pair pair = {0};
    _cleanup_free_ char *names = strdup(host);
    int r = names ? host_make(&pair, ca, names) : GNUTLS_E_MEMORY_ERROR;
    if (r < 0)
        return gnutls_fails(r, host, err);
    r = host_write(dirfd, names, &pair, ca); /* cut behind the first by now */
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "%s/%s", directory, names) : 0;
}

int keygen_hosts(const char *directory, char *const *hosts, struct error *err)
{
    _cleanup_close_ int dirfd = directory_open(directory, true, err);
    if (dirfd < 0)
        return -1;
    for (char *const *host = hosts; *host; host++) {
        if (host_check(*host, dirfd, directory, err) < 0)
            return -1;
    }
    _cleanup_pair_ struct pair ca = {0};
    if (ca_open(&ca, dirfd, directory, err) < 0)
        return -1;
    for (char *const *host = hosts; *host; host++) {
        if (host_issue(*host, &ca, dirfd, directory, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- a key that both know ---- */

/* Opens the directory that a file is in, made if it is not there. */
static int open_directory_of(const char *path, struct error *err)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t length = slash == path ? 1 : slash ? (size_t)(slash - path) : 0;
    if (length >= sizeof(directory))
        return error_set_errno(err, FAILURE_SYSTEM, ENAMETOOLONG, "%s", path);
    snprintf(directory, sizeof(directory), "%.*s", (int)length, path);
    if (length > 0 && access(directory, F_OK) < 0)
        return directory_open(directory, true, err);
    int fd = open(length ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? error_set_errno(err, FAILURE_SYSTEM, errno, "%s", path) : fd;
}

int keygen_psk(const char *path, struct error *err)
{
    uint8_t key[PSK_BYTES_MIN];
    char line[2 * sizeof(key) + 2];
    int r = gnutls_rnd(GNUTLS_RND_KEY, key, sizeof(key));
    if (r < 0)
        return gnutls_fails(r, "a pre-shared key", err);
    for (size_t i = 0; i < sizeof(key); i++)
        snprintf(line + 2 * i, 3, "%02x", key[i]);
    line[sizeof(line) - 2] = '\n';
    _cleanup_close_ int dirfd = open_directory_of(path, err);
    const char *slash = strrchr(path, '/');
    r = dirfd < 0 ? 0 : file_write(dirfd, slash ? slash + 1 : path, line, sizeof(line) - 1);
    gnutls_memset(key, 0, sizeof(key));
    gnutls_memset(line, 0, sizeof(line));
    if (dirfd < 0)
        return -1;
    if (r == -EEXIST)
        return error_set(err, FAILURE_BUSY, "%s is there already, and stays as it is", path);
    return r < 0 ? error_set_errno(err, FAILURE_SYSTEM, r, "%s", path) : 0;
}
