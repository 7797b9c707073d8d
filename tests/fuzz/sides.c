/* SPDX-License-Identifier: Apache-2.0 */
#include "sides.h"

#include <stdio.h>

#include "fuzz.h"
#include "unit/peer.h"
#include "wire/keygen.h"

enum { PATH_BYTES = 256 };

static char *directory;
static struct credentials *psk, *x509;

static void remove_directory(void)
{
    credentials_free(psk);
    credentials_free(x509);
    directory_remove(directory);
}

static struct credentials *load(const struct credential_files *files)
{
    struct error err;
    struct credentials *credentials = NULL;
    must(credentials_load(files, &credentials, &err) == 0 && credentials);
    return credentials;
}

static void make_credentials(void)
{
    static char host[] = "host";
    char *hosts[] = {host, NULL}, path[5][PATH_BYTES];
    static const char *const names[] = {"ca", "ca/host/cacert.pem", "ca/host/cert.pem",
                                        "ca/host/key.pem", "psk"};
    struct error err;
    directory = directory_make();
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        snprintf(path[i], PATH_BYTES, "%s/%s", directory, names[i]);
    must(keygen_hosts(path[0], hosts, &err) == 0 && keygen_psk(path[4], &err) == 0);
    x509 = load(&(struct credential_files){.cacert = path[1], .cert = path[2], .key = path[3]});
    psk = load(&(struct credential_files){.psk = path[4]});
    atexit(remove_directory);
}

const struct credentials *side_credentials(unsigned mode)
{
    if (!directory)
        make_credentials();
    return mode & SIDE_X509 ? x509 : psk;
}

struct side side_open(const struct credentials *credentials, bool client)
{
    int fds[2];
    socket_pair(fds);
    struct side side = {.transport = transport_tls(fds[0], credentials, client ? "host" : NULL),
                        .wire = fds[1]};
    must(side.transport);
    return side;
}

void side_go_on(struct side *side)
{
    struct error err = {0};
    if (side->state != 0)
        return;
    side->state = side->transport->ops->start(side->transport, &err);
    must(side->state >= 0 || (err.code == FAILURE_PEER && err.text[0]));
}

void side_close(struct side *side)
{
    side->transport->ops->end(side->transport);
    transport_free(side->transport);
    close_fd(side->wire);
}
