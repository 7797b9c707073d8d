/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * TLS 1.3 under a link, by GnuTLS.  Both sides show who they are: see wire/credentials.h.  Nothing
 * is resumed, so there are no tickets and no early data.
 *
 * Payload is decrypted into the place that the link names; what leaves is put together to records
 * of 16 KiB first, so that small frames cost no record each.
 */
#include "wire/credentials.h"
#include "wire/transport.h"

/*
 * Takes over fd, a connected stream socket.  peer: the name or address that the certificate of a
 * server must have, copied; NULL: this side is the server.  The credentials outlive the transport.
 * NULL: no memory, and fd is closed.
 */
struct transport *transport_tls(int fd, const struct credentials *credentials, const char *peer);
