/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Makes credentials (wire/credentials.h).  Nothing that is there is written over.
 *
 *   DIR/cakey.pem     the authority's private key: stays where it is
 *   DIR/cacert.pem    its certificate
 *   DIR/HOST/         what belongs into CREDENTIALS_DIRECTORY of that host:
 *                     cacert.pem, cert.pem, key.pem
 *
 * Directories get mode 0700 and files 0600.
 */
#include "base/error.h"

enum { KEYGEN_CA_DAYS = 3650, KEYGEN_HOST_DAYS = 825 };

/*
 * Makes DIR with an authority, or takes the one that is in DIR, and what each host needs.  A host
 * is written NAME[,NAME...]: all names and addresses that others call it by; the first names its
 * directory.  hosts ends with NULL.  0, or -1 with *err set; hosts that were made before stay.
 */
int keygen_hosts(const char *directory, char *const *hosts, struct error *err);

/* Writes a new pre-shared key, and makes its directory if there is none.  0, or -1 with *err. */
int keygen_psk(const char *path, struct error *err);
