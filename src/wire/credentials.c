/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/credentials.h"

#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"

enum { FILE_BYTES_MAX = 1 << 20 };

/* TLS 1.3 and nothing else, with a fresh (EC)DH secret in each handshake. */
#define PRIORITY_X509                                                                              \
    "SECURE128:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define PRIORITY_PSK PRIORITY_X509 ":-KX-ALL:+ECDHE-PSK:+DHE-PSK"

/* ---- files ---- */

struct content {
    char *bytes; /* a zero byte is behind them */
    size_t length;
};

static void content_free(struct content *content)
{
    if (content->bytes)
        explicit_bzero(content->bytes, content->length);
    free(content->bytes);
    *content = (struct content){0};
}

#define _cleanup_content_ _cleanup_(content_free)

static int file_invalid(const char *path, int error_number, struct error *err)
{
    error_set_errno(err, FAILURE_USAGE, error_number, "%s", path);
    return error_number == ENOENT ? error_append(err, ": " CREDENTIALS_ADVICE) : -1;
}

/* Nobody else may change it nor, if it is secret, read it. */
static int content_read(const char *path, bool secret, struct content *ret, struct error *err)
{
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return file_invalid(path, errno, err);
    if (!S_ISREG(st.st_mode) || st.st_size > FILE_BYTES_MAX)
        return error_set(err, FAILURE_USAGE, "%s: a file of at most 1 MiB is expected", path);
    if (secret && (st.st_mode & (S_IRWXG | S_IRWXO) || (st.st_uid != geteuid() && st.st_uid != 0)))
        return error_set(err, FAILURE_USAGE,
                         "%s: it is secret, and others may read it: chmod 600, and let it belong "
                         "to root",
                         path);
    if (st.st_mode & (S_IWGRP | S_IWOTH) || (st.st_uid != geteuid() && st.st_uid != 0))
        return error_set(err, FAILURE_USAGE,
                         "%s: it says who is trusted, and others may change it: chmod go-w, and "
                         "let it belong to root",
                         path);
    struct content content = {.length = (size_t)st.st_size};
    content.bytes = calloc(1, content.length + 1);
    int r = content.bytes ? read_all(fd, content.bytes, content.length) : -ENOMEM;
    if (r < 0) {
        content_free(&content);
        return file_invalid(path, r, err);
    }
    *ret = content;
    return 0;
}

static int gnutls_fails(const char *what, int r, struct error *err)
{
    return error_set(err, FAILURE_USAGE, "%s: %s", what, gnutls_strerror(r));
}

/* ---- a key that both know ---- */

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdef";
    const char *at = c ? strchr(digits, tolower((unsigned char)c)) : NULL;
    return at ? (int)(at - digits) : -1;
}

static int psk_decode(const char *path, const struct content *content, gnutls_datum_t *ret,
                      struct error *err)
{
    size_t digits = content->length;
    while (digits > 0 && isspace((unsigned char)content->bytes[digits - 1]))
        digits--;
    bool valid = digits % 2 == 0 && digits / 2 <= PSK_BYTES_MAX;
    for (size_t i = 0; valid && i < digits; i++)
        valid = hex_digit(content->bytes[i]) >= 0;
    if (!valid)
        return error_set(err, FAILURE_USAGE,
                         "%s: is no pre-shared key: one line of hex digits, as `godwit keygen "
                         "--psk FILE` writes",
                         path);
    if (digits / 2 < PSK_BYTES_MIN)
        return error_set(err, FAILURE_USAGE,
                         "%s: the pre-shared key has %zu bytes and needs at least %d: `godwit "
                         "keygen --psk FILE` makes one",
                         path, digits / 2, PSK_BYTES_MIN);
    ret->size = (unsigned)(digits / 2);
    ret->data = malloc(ret->size);
    if (!ret->data)
        return file_invalid(path, ENOMEM, err);
    for (size_t i = 0; i < ret->size; i++)
        ret->data[i] = (unsigned char)(hex_digit(content->bytes[2 * i]) << 4 |
                                       hex_digit(content->bytes[2 * i + 1]));
    return 0;
}

/* GnuTLS asks for the key of whoever says that he is |name|, and frees what it gets. */
static int on_psk(gnutls_session_t session, const char *name, gnutls_datum_t *key)
{
    const struct credentials *credentials = gnutls_session_get_ptr(session);
    if (strcmp(name, PSK_IDENTITY) != 0)
        return -1;
    key->data = gnutls_malloc(credentials->psk.size);
    if (!key->data)
        return -1;
    memcpy(key->data, credentials->psk.data, credentials->psk.size);
    key->size = credentials->psk.size;
    return 0;
}

static int load_psk(struct credentials *credentials, const char *path, struct error *err)
{
    _cleanup_content_ struct content content = {0};
    if (content_read(path, true, &content, err) < 0 ||
        psk_decode(path, &content, &credentials->psk, err) < 0)
        return -1;
    credentials->is_psk = true;
    int r = gnutls_psk_allocate_client_credentials(&credentials->psk_client);
    if (r == 0)
        r = gnutls_psk_allocate_server_credentials(&credentials->psk_server);
    if (r == 0)
        r = gnutls_psk_set_client_credentials(credentials->psk_client, PSK_IDENTITY,
                                              &credentials->psk, GNUTLS_PSK_KEY_RAW);
    if (r < 0)
        return gnutls_fails(path, r, err);
    gnutls_psk_set_server_credentials_function(credentials->psk_server, on_psk);
    return 0;
}

/* ---- certificates ---- */

static gnutls_datum_t datum(const struct content *content)
{
    return (gnutls_datum_t){(unsigned char *)content->bytes, (unsigned)content->length};
}

static int load_authority(struct credentials *credentials, const char *cacert, const char *cacrl,
                          struct error *err)
{
    _cleanup_content_ struct content ca = {0}, crl = {0};
    if (content_read(cacert, false, &ca, err) < 0)
        return -1;
    gnutls_datum_t bytes = datum(&ca);
    int r = gnutls_certificate_set_x509_trust_mem(credentials->x509, &bytes, GNUTLS_X509_FMT_PEM);
    if (r <= 0)
        return gnutls_fails(cacert, r ? r : GNUTLS_E_NO_CERTIFICATE_FOUND, err);
    if (!cacrl)
        return 0;
    if (content_read(cacrl, false, &crl, err) < 0)
        return -1;
    bytes = datum(&crl);
    r = gnutls_certificate_set_x509_crl_mem(credentials->x509, &bytes, GNUTLS_X509_FMT_PEM);
    return r > 0 ? 0 : gnutls_fails(cacrl, r ? r : GNUTLS_E_ASN1_DER_ERROR, err);
}

static int load_own(struct credentials *credentials, const char *cert, const char *key,
                    struct error *err)
{
    _cleanup_content_ struct content certificate = {0}, secret = {0};
    if (content_read(cert, false, &certificate, err) < 0 ||
        content_read(key, true, &secret, err) < 0)
        return -1;
    gnutls_datum_t chain = datum(&certificate), bytes = datum(&secret);
    int r = gnutls_certificate_set_x509_key_mem2(credentials->x509, &chain, &bytes,
                                                 GNUTLS_X509_FMT_PEM, NULL, 0);
    if (r == GNUTLS_E_CERTIFICATE_KEY_MISMATCH)
        return error_set(err, FAILURE_USAGE, "%s: is not the key of %s", key, cert);
    return r < 0 ? error_set(err, FAILURE_USAGE, "%s and %s: %s", cert, key, gnutls_strerror(r))
                 : 0;
}

static int load_x509(struct credentials *credentials, const struct credential_files *files,
                     struct error *err)
{
    int r = gnutls_certificate_allocate_credentials(&credentials->x509);
    if (r < 0)
        return gnutls_fails("certificates", r, err);
    static const char default_crl[] = CREDENTIALS_DIRECTORY "/cacrl.pem";
    const char *cacrl = files->cacrl;
    if (!cacrl && access(default_crl, F_OK) == 0)
        cacrl = default_crl;
    if (load_authority(credentials,
                       files->cacert ? files->cacert : CREDENTIALS_DIRECTORY "/cacert.pem", cacrl,
                       err) < 0)
        return -1;
    return load_own(credentials, files->cert ? files->cert : CREDENTIALS_DIRECTORY "/cert.pem",
                    files->key ? files->key : CREDENTIALS_DIRECTORY "/key.pem", err);
}

/* ---- both ---- */

bool credential_files_named(const struct credential_files *files)
{
    return files->cacert || files->cacrl || files->cert || files->key || files->psk;
}

static int load(struct credentials *credentials, const struct credential_files *files,
                const char *psk, struct error *err)
{
    if ((psk ? load_psk(credentials, psk, err) : load_x509(credentials, files, err)) < 0)
        return -1;
    int r = gnutls_priority_init(&credentials->priority, psk ? PRIORITY_PSK : PRIORITY_X509, NULL);
    return r < 0 ? gnutls_fails("TLS 1.3", r, err) : 0;
}

int credentials_load(const struct credential_files *files, struct credentials **ret,
                     struct error *err)
{
    const char *psk = files->psk;
    bool x509 = files->cacert || files->cacrl || files->cert || files->key;
    if (psk && x509)
        return error_set(err, FAILURE_USAGE,
                         "--psk-file and --tls-*: certificates or a pre-shared key, not both");
    if (!psk && !x509) {
        static const char default_psk[] = CREDENTIALS_DIRECTORY "/psk";
        x509 = access(CREDENTIALS_DIRECTORY "/cert.pem", F_OK) == 0;
        if (!x509 && access(default_psk, F_OK) == 0)
            psk = default_psk;
    }
    *ret = NULL;
    if (!psk && !x509)
        return 0;
    struct credentials *credentials = calloc(1, sizeof(*credentials));
    if (!credentials)
        return error_set_errno(err, FAILURE_SYSTEM, ENOMEM, "credentials");
    if (load(credentials, files, psk, err) < 0) {
        credentials_free(credentials);
        return -1;
    }
    *ret = credentials;
    return 0;
}

struct credentials *credentials_free(struct credentials *credentials)
{
    if (!credentials)
        return NULL;
    if (credentials->priority)
        gnutls_priority_deinit(credentials->priority);
    if (credentials->x509)
        gnutls_certificate_free_credentials(credentials->x509);
    if (credentials->psk_client)
        gnutls_psk_free_client_credentials(credentials->psk_client);
    if (credentials->psk_server)
        gnutls_psk_free_server_credentials(credentials->psk_server);
    if (credentials->psk.data)
        explicit_bzero(credentials->psk.data, credentials->psk.size);
    free(credentials->psk.data);
    free(credentials);
    return NULL;
}

int protection_open(struct protection *protection, const struct credential_files *files,
                    bool insecure, struct error *err)
{
    *protection =
        (struct protection){.insecure = insecure, .everywhere = credential_files_named(files)};
    if (insecure && protection->everywhere)
        return error_set(err, FAILURE_USAGE,
                         "--insecure is plain text: leave it out, or --tls-* and --psk-file");
    if (insecure || credentials_load(files, &protection->credentials, &protection->problem) == 0)
        return 0;
    *err = protection->problem;
    return protection->everywhere ? -1 : 0;
}

void protection_close(struct protection *protection)
{
    protection->credentials = credentials_free(protection->credentials);
}
