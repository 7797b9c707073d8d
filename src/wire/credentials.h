/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a host shows to others and believes of them: a certificate and the authority that both have
 * theirs from, or a key that both know.
 *
 *   cacert.pem   who may sign          cert.pem   this host's      psk   the key, in hex: used
 * where cacrl.pem    what is revoked       key.pem    its key                there is no cert.pem
 *
 * Files are named one by one, as criu's options --tls-* do; what is not named is looked for in
 * CREDENTIALS_DIRECTORY.  Everything is read at once, and nothing is read again.
 */
#include <gnutls/gnutls.h>

#include "base/error.h"

#define CREDENTIALS_DIRECTORY "/etc/godwit/tls"
#define CREDENTIALS_ADVICE "`godwit keygen` makes credentials, see godwit-keygen(1)"

enum { PSK_BYTES_MIN = 32, PSK_BYTES_MAX = 512 };

/* The identity that goes with every pre-shared key. */
#define PSK_IDENTITY "godwit"

/* Paths, borrowed; NULL: the default one. */
struct credential_files {
    const char *cacert, *cacrl, *cert, *key, *psk;
};

struct credentials {
    gnutls_priority_t priority;
    bool is_psk;
    gnutls_certificate_credentials_t x509;
    gnutls_psk_client_credentials_t psk_client;
    gnutls_psk_server_credentials_t psk_server;
    gnutls_datum_t psk;
};

/*
 * Reads them.  0, and *ret is NULL when none are named and there are none by default; or -1 with
 * *err set: FAILURE_USAGE, what is wrong with which file.
 */
int credentials_load(const struct credential_files *files, struct credentials **ret,
                     struct error *err);

/* Takes NULL, returns NULL. */
struct credentials *credentials_free(struct credentials *credentials);

/* How links by TCP are protected.  All zero: loopback only, as it is. */
struct protection {
    bool insecure;                   /* plain text beyond this host too: the user said so */
    bool everywhere;                 /* credentials were named: TLS on loopback too */
    struct credentials *credentials; /* owned; NULL: none */
    struct error problem;            /* why the default ones cannot be used, if there are any */
};

/* From options.  0, or -1 with *err set.  Default ones that cannot be read are a problem for those
 * only who need them.  protection_close() is due either way. */
int protection_open(struct protection *protection, const struct credential_files *files,
                    bool insecure, struct error *err);
void protection_close(struct protection *protection);

/* Whether any of them is named. */
bool credential_files_named(const struct credential_files *files);
