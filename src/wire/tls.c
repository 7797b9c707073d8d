/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/tls.h"

#include <gnutls/x509.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/hidden.h"
#include "wire/frame.h"

enum {
    RECORD_BYTES = 16 << 10,        /* of payload; what TLS allows */
    RECORD_AROUND = 512,            /* header, tag and padding, or more */
    HANDSHAKE_BYTES_MAX = 64 << 10, /* one message of it: a chain of certificates */
};

struct tls {
    struct transport transport; /* first: one is cast to the other */
    gnutls_session_t session;
    const struct credentials *credentials;
    char *peer; /* NULL: this side is the server */
    bool up;
    bool greeted;                     /* the peer has said something */
    bool is_plain;                    /* and that was no TLS, but the preamble of a link */
    gnutls_typed_vdata_st demands[2]; /* of a certificate: GnuTLS keeps no copy */
    bool broken;                      /* for the reason that |failure| tells */
    int error_number;                 /* of the socket's last error */
    size_t pending; /* payload of a record that GnuTLS has and the socket has not taken whole */
    struct error failure;
    uint8_t *record;        /* RECORD_BYTES: payload that is put together to one */
    gnutls_packet_t packet; /* a record that has come; NULL: none */
    gnutls_datum_t payload; /* in it */
    size_t payload_used;
};

static struct tls *tls_of(const struct transport *transport)
{
    return (struct tls *)transport;
}

/* ---- what went wrong, for people ---- */

/* One line for each way in which a certificate is none, and the alert that lets the peer say the
 * same. */
static const struct {
    unsigned status; /* gnutls_certificate_status_t */
    gnutls_alert_description_t alert;
    const char *text;
} refusals[] = {
    {GNUTLS_CERT_REVOKED, GNUTLS_A_CERTIFICATE_REVOKED, "it is revoked"},
    {GNUTLS_CERT_EXPIRED, GNUTLS_A_CERTIFICATE_EXPIRED,
     "it has expired (godwit keygen makes another)"},
    {GNUTLS_CERT_NOT_ACTIVATED, GNUTLS_A_CERTIFICATE_EXPIRED,
     "it is not valid yet (look at the clocks)"},
    {GNUTLS_CERT_REVOCATION_DATA_SUPERSEDED, GNUTLS_A_CERTIFICATE_UNKNOWN,
     "the list of what is revoked (cacrl.pem) is out of date"},
    {GNUTLS_CERT_SIGNER_NOT_FOUND, GNUTLS_A_UNKNOWN_CA, "another authority has signed it"},
    {GNUTLS_CERT_SIGNER_NOT_CA, GNUTLS_A_UNKNOWN_CA, "who has signed it is no authority"},
    {GNUTLS_CERT_UNEXPECTED_OWNER, GNUTLS_A_BAD_CERTIFICATE,
     "it is for another name (look at what is in it: godwit keygen DIR HOST,NAME...)"},
    {GNUTLS_CERT_PURPOSE_MISMATCH, GNUTLS_A_UNSUPPORTED_CERTIFICATE, "it is for another purpose"},
    {GNUTLS_CERT_INSECURE_ALGORITHM, GNUTLS_A_BAD_CERTIFICATE, "its algorithm is not secure"},
};

/* What the peer says of us. */
static const struct {
    gnutls_alert_description_t alert;
    const char *text;
} complaints[] = {
    {GNUTLS_A_CERTIFICATE_REVOKED, "it refuses this host's certificate: it is revoked"},
    {GNUTLS_A_CERTIFICATE_EXPIRED,
     "it refuses this host's certificate: it has expired, or is not valid yet"},
    {GNUTLS_A_UNKNOWN_CA,
     "it refuses this host's certificate: another authority has signed it than the one it knows"},
    {GNUTLS_A_BAD_CERTIFICATE, "it refuses this host's certificate: it has another name or is bad"},
    {GNUTLS_A_UNSUPPORTED_CERTIFICATE,
     "it refuses this host's certificate: it is for another purpose"},
    {GNUTLS_A_CERTIFICATE_UNKNOWN,
     "it refuses this host's certificate: its list of what is revoked is out of date"},
    {GNUTLS_A_CERTIFICATE_REQUIRED, "it wants a certificate, and this host has shown none"},
    {GNUTLS_A_PROTOCOL_VERSION, "it does not speak TLS 1.3"},
    {GNUTLS_A_BAD_RECORD_MAC, "what it got from here was changed on the way"},
    {GNUTLS_A_DECRYPT_ERROR, "it has another pre-shared key than this host"},
    {GNUTLS_A_UNKNOWN_PSK_IDENTITY, "it has another pre-shared key than this host"},
    {GNUTLS_A_HANDSHAKE_FAILURE,
     "both need the same kind of credentials: certificates, or one pre-shared key"},
    {GNUTLS_A_MISSING_EXTENSION,
     "both need the same kind of credentials: certificates, or one pre-shared key"},
};

static int tls_complaint(const struct tls *tls, struct error *err)
{
    gnutls_alert_description_t alert = gnutls_alert_get(tls->session);
    for (size_t i = 0; i < ARRAY_SIZE(complaints); i++) {
        if (complaints[i].alert == alert)
            return error_set(err, FAILURE_PEER, "TLS: the peer says: %s", complaints[i].text);
    }
    const char *name = gnutls_alert_get_name(alert);
    return error_set(err, FAILURE_PEER, "TLS: the peer says: %s",
                     name ? name : "something is wrong");
}

/* The certificate is none: *ret_alert is what to tell the peer. */
static int tls_refusal(const struct tls *tls, gnutls_alert_description_t *ret_alert,
                       struct error *err)
{
    unsigned status = gnutls_session_get_verify_cert_status(tls->session);
    const char *text = "it is not valid";
    *ret_alert = GNUTLS_A_BAD_CERTIFICATE;
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++) {
        if (status & refusals[i].status) {
            text = refusals[i].text;
            *ret_alert = refusals[i].alert;
            break;
        }
    }
    if (tls->peer)
        return error_set(err, FAILURE_PEER, "TLS: the certificate of %s is refused: %s", tls->peer,
                         text);
    return error_set(err, FAILURE_PEER, "TLS: the peer's certificate is refused: %s", text);
}

static int tls_explain(struct tls *tls, int r, struct error *err)
{
    if (tls->is_plain)
        return error_set(err, FAILURE_PEER,
                         "the peer speaks plain text and this side TLS: give both the same "
                         "credentials (godwit keygen), or both --insecure");
    /* What does not fit to a pre-shared key is told as if it were not well formed. */
    if (tls->credentials->is_psk && r == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER)
        return error_set(err, FAILURE_PEER,
                         "TLS: the peer has another pre-shared key than this host");
    switch (r) {
    case GNUTLS_E_FATAL_ALERT_RECEIVED:
    case GNUTLS_E_WARNING_ALERT_RECEIVED:
        tls->transport.ended = true;
        return tls_complaint(tls, err);
    case GNUTLS_E_PREMATURE_TERMINATION:
        tls->transport.ended = true;
        return error_set(err, FAILURE_PEER, "TLS: the connection was cut");
    case GNUTLS_E_PULL_ERROR:
    case GNUTLS_E_PUSH_ERROR:
        return error_set_errno(err, FAILURE_PEER, tls->error_number, "TLS: the connection");
    case GNUTLS_E_DECRYPTION_FAILED:
        return error_set(err, FAILURE_PEER,
                         "TLS: integrity error: what came was changed on the way");
    case GNUTLS_E_NO_CERTIFICATE_FOUND:
    case GNUTLS_E_CERTIFICATE_REQUIRED:
        return error_set(err, FAILURE_PEER, "TLS: the peer shows no certificate");
    case GNUTLS_E_INSUFFICIENT_CREDENTIALS:
        return error_set(err, FAILURE_PEER,
                         "TLS: both need the same kind of credentials: certificates, or one "
                         "pre-shared key");
    case GNUTLS_E_UNSUPPORTED_VERSION_PACKET:
    case GNUTLS_E_NO_CIPHER_SUITES: /* an older version has others */
        return error_set(err, FAILURE_PEER, "TLS: the peer does not speak TLS 1.3");
    default:
        return error_set(err, FAILURE_PEER, "TLS: %s", gnutls_strerror(r));
    }
}

/* ---- the handshake ---- */

/* That it was TLS 1.3, and by the credentials that this side has, is what was asked for; whether it
 * is what happened is looked at all the same. */
static int tls_check(const struct tls *tls, struct error *err)
{
    gnutls_kx_algorithm_t kx = gnutls_kx_get(tls->session);
    bool by_psk = kx == GNUTLS_KX_ECDHE_PSK || kx == GNUTLS_KX_DHE_PSK;
    bool shown =
        gnutls_certificate_type_get2(tls->session, GNUTLS_CTYPE_PEERS) == GNUTLS_CRT_X509 &&
        gnutls_certificate_get_peers(tls->session, &(unsigned){0});
    if (gnutls_protocol_get_version(tls->session) != GNUTLS_TLS1_3)
        return error_set(err, FAILURE_PEER, "TLS: the peer does not speak TLS 1.3");
    if (tls->credentials->is_psk ? !by_psk : by_psk || !shown)
        return error_set(err, FAILURE_PEER, "TLS: the peer has not shown who it is");
    return 0;
}

/* What to tell the peer where GnuTLS would tell it something else. */
static void tls_send_alert(struct tls *tls, int r)
{
    if (tls->transport.ended)
        return;
    if (tls->credentials->is_psk && r == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER)
        gnutls_alert_send(tls->session, GNUTLS_AL_FATAL, GNUTLS_A_DECRYPT_ERROR);
    else if (r == GNUTLS_E_NO_CIPHER_SUITES)
        gnutls_alert_send(tls->session, GNUTLS_AL_FATAL, GNUTLS_A_PROTOCOL_VERSION);
    else
        gnutls_alert_send_appropriate(tls->session, r);
}

static int tls_fail_handshake(struct tls *tls, int r, struct error *err)
{
    gnutls_alert_description_t alert;
    if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR) {
        tls_refusal(tls, &alert, err);
        gnutls_alert_send(tls->session, GNUTLS_AL_FATAL, alert);
        return -1;
    }
    tls_explain(tls, r, err);
    tls_send_alert(tls, r);
    return -1;
}

static int tls_start(struct transport *transport, struct error *err)
{
    struct tls *tls = tls_of(transport);
    int r;
    do {
        r = gnutls_handshake(tls->session);
    } while (r == GNUTLS_E_INTERRUPTED);
    if (r == GNUTLS_E_AGAIN)
        return 0;
    if (r < 0)
        return tls_fail_handshake(tls, r, err);
    if (tls_check(tls, err) < 0)
        return -1;
    tls->up = true;
    return 1;
}

/* The handshake has told. */
static int tls_check_peer(struct transport *transport, struct error *err)
{
    (void)transport;
    (void)err;
    return 1;
}

/* Names with an asterisk in them would be names of others too. */
static bool tls_is_peer(const struct transport *transport, const char *name)
{
    const struct tls *tls = tls_of(transport);
    const gnutls_datum_t *chain = NULL;
    gnutls_x509_crt_t certificate;
    unsigned count = 0;
    if (tls->up && !tls->credentials->is_psk)
        chain = gnutls_certificate_get_peers(tls->session, &count);
    if (!chain || count == 0 || gnutls_x509_crt_init(&certificate) < 0)
        return false;
    bool is =
        gnutls_x509_crt_import(certificate, &chain[0], GNUTLS_X509_FMT_DER) == 0 &&
        gnutls_x509_crt_check_hostname2(certificate, name, GNUTLS_VERIFY_DO_NOT_ALLOW_WILDCARDS);
    gnutls_x509_crt_deinit(certificate);
    return is;
}

/* ---- bytes ---- */

static void tls_note_errno(struct tls *tls)
{
    tls->error_number = errno;
    gnutls_transport_set_errno(tls->session, errno);
}

static ssize_t on_pull(gnutls_transport_ptr_t user, void *bytes, size_t length)
{
    struct tls *tls = user;
    ssize_t n = transport_socket_read(&tls->transport, &(struct iovec){bytes, length}, 1);
    if (n < 0)
        tls_note_errno(tls);
    if (n > 0 && !tls->greeted) {
        tls->greeted = true;
        tls->is_plain = *(const uint8_t *)bytes == WIRE_PREAMBLE_FIRST;
    }
    return n;
}

static ssize_t on_push(gnutls_transport_ptr_t user, const giovec_t *iov, int count)
{
    struct tls *tls = user;
    ssize_t n = transport_socket_write(&tls->transport, iov, (size_t)count);
    if (n < 0)
        tls_note_errno(tls);
    return n;
}

/* What GnuTLS says of an error is lost by the next call, so it is put down here. */
static void tls_break(struct tls *tls, int r)
{
    tls->broken = true;
    if (r == 0) {
        tls->transport.ended = true;
        error_set(&tls->failure, FAILURE_PEER, "the peer closed the connection");
        return;
    }
    tls_explain(tls, r, &tls->failure);
    tls_send_alert(tls, r);
}

/* What a record held is cleared: GnuTLS frees it as it is. */
static void tls_drop_packet(struct tls *tls)
{
    if (!tls->packet)
        return;
    if (tls->payload.size > 0)
        explicit_bzero(tls->payload.data, tls->payload.size);
    gnutls_packet_deinit(tls->packet);
    tls->packet = NULL;
}

/* Of the record that is here, as much as there is room for. */
static size_t tls_take(struct tls *tls, uint8_t *place, size_t room)
{
    size_t length = MIN(room, tls->payload.size - tls->payload_used);
    if (length > 0)
        memcpy(place, tls->payload.data + tls->payload_used, length);
    tls->payload_used += length;
    if (tls->payload_used == tls->payload.size)
        tls_drop_packet(tls);
    return length;
}

/* Into one piece.  Bytes, fewer than there is room for when no more came. */
static size_t tls_read_piece(struct tls *tls, const struct iovec *iov)
{
    size_t done = 0;
    while (done < iov->iov_len) {
        if (tls->packet) {
            done += tls_take(tls, (uint8_t *)iov->iov_base + done, iov->iov_len - done);
            continue;
        }
        ssize_t n = gnutls_record_recv_packet(tls->session, &tls->packet);
        if (tls->packet) {
            gnutls_packet_get(tls->packet, &tls->payload, NULL);
            tls->payload_used = 0;
            continue;
        }
        if (n == GNUTLS_E_INTERRUPTED)
            continue;
        if (n != GNUTLS_E_AGAIN)
            tls_break(tls, (int)n);
        break;
    }
    return done;
}

static ssize_t tls_read(struct transport *transport, const struct iovec *iov, size_t count,
                        struct error *err)
{
    struct tls *tls = tls_of(transport);
    size_t done = 0;
    for (size_t i = 0; i < count && !tls->broken; i++) {
        size_t n = tls_read_piece(tls, &iov[i]);
        done += n;
        if (n < iov[i].iov_len)
            break;
    }
    if (done == 0 && tls->broken) {
        *err = tls->failure;
        return -1;
    }
    return (ssize_t)done;
}

/* Gives one record to GnuTLS.  1: it has left, 0: some of it waits there; -1: *err. */
static int tls_send_record(struct tls *tls, const void *bytes, size_t length, struct error *err)
{
    ssize_t n;
    do {
        n = gnutls_record_send(tls->session, bytes, length);
    } while (n == GNUTLS_E_INTERRUPTED);
    if (n == GNUTLS_E_AGAIN) {
        tls->pending = length ? length : tls->pending;
        return 0;
    }
    tls->pending = 0;
    return n < 0 ? tls_explain(tls, (int)n, err) : 1;
}

/* Where the next record's payload is: in the piece itself when that is enough for one, else in
 * tls->record, together with what follows it. */
struct gather {
    const struct iovec *iov;
    size_t count, skip; /* pieces left, and bytes of the first that are used */
};

static size_t gather_next(struct tls *tls, struct gather *gather, const void **ret_bytes)
{
    size_t gathered = 0;
    while (gather->count > 0 && gathered < RECORD_BYTES) {
        const uint8_t *bytes = (const uint8_t *)gather->iov->iov_base + gather->skip;
        size_t length = gather->iov->iov_len - gather->skip;
        size_t take = MIN(length, RECORD_BYTES - gathered);
        gather->skip += take;
        if (take == length) {
            gather->iov++;
            gather->count--;
            gather->skip = 0;
        }
        if (take == RECORD_BYTES) {
            *ret_bytes = bytes;
            return take;
        }
        if (take > 0)
            memcpy(tls->record + gathered, bytes, take);
        gathered += take;
    }
    *ret_bytes = tls->record;
    return gathered;
}

static ssize_t tls_write(struct transport *transport, const struct iovec *iov, size_t count,
                         struct error *err)
{
    struct tls *tls = tls_of(transport);
    struct gather gather = {.iov = iov, .count = count};
    ssize_t taken = 0;
    if (tls->pending > 0) {
        int r = tls_send_record(tls, NULL, 0, err);
        if (r <= 0)
            return r;
    }
    for (;;) {
        const void *bytes;
        size_t length = gather_next(tls, &gather, &bytes);
        if (length == 0)
            return taken;
        int r = tls_send_record(tls, bytes, length, err);
        if (r < 0)
            return -1;
        taken += (ssize_t)length; /* GnuTLS has it, encrypted, whether the socket took it or not */
        if (r == 0)
            return taken;
    }
}

static uint32_t tls_wants(const struct transport *transport)
{
    const struct tls *tls = tls_of(transport);
    if (!tls->up)
        return gnutls_record_get_direction(tls->session) ? EPOLLOUT : EPOLLIN;
    return tls->pending > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN;
}

static bool tls_holds(const struct transport *transport)
{
    const struct tls *tls = tls_of(transport);
    return tls->packet || gnutls_record_check_pending(tls->session) > 0;
}

static uint64_t tls_unsent(const struct transport *transport)
{
    return transport_socket_unsent(transport) + tls_of(transport)->pending;
}

static void tls_end(struct transport *transport)
{
    const struct tls *tls = tls_of(transport);
    if (tls->up && !transport->ended)
        gnutls_bye(tls->session, GNUTLS_SHUT_WR);
    transport_socket_end(transport);
}

/* ---- its life ---- */

static void tls_free(struct transport *transport)
{
    struct tls *tls = tls_of(transport);
    tls_drop_packet(tls);
    if (tls->session)
        gnutls_deinit(tls->session);
    close_fd(transport->fd);
    hidden_free(tls->record, RECORD_BYTES);
    free(tls->peer);
    free(tls);
}

static const struct transport_ops tls_ops = {
    .start = tls_start,
    .check = tls_check_peer,
    .is_peer = tls_is_peer,
    .read = tls_read,
    .write = tls_write,
    .wants = tls_wants,
    .holds = tls_holds,
    .unsent = tls_unsent,
    .end = tls_end,
    .free = tls_free,
};

/* Who the peer has to be: the server what the user has named, and each of them allowed by its
 * certificate to be what it is. */
static void tls_demand_x509(struct tls *tls)
{
    static const char server[] = GNUTLS_KP_TLS_WWW_SERVER, client[] = GNUTLS_KP_TLS_WWW_CLIENT;
    tls->demands[0] = (gnutls_typed_vdata_st){
        .type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(tls->peer ? server : client)};
    tls->demands[1] =
        (gnutls_typed_vdata_st){.type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)tls->peer};
    gnutls_session_set_verify_cert2(tls->session, tls->demands, tls->peer ? 2 : 1, 0);
    if (!tls->peer)
        gnutls_certificate_server_set_request(tls->session, GNUTLS_CERT_REQUIRE);
}

static int tls_open(struct tls *tls)
{
    const struct credentials *credentials = tls->credentials;
    unsigned flags = GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS | GNUTLS_NO_AUTO_SEND_TICKET |
                     GNUTLS_FORCE_CLIENT_CERT; /* a foreign one is shown, and refused as that */
    int r = gnutls_init(&tls->session, flags | (tls->peer ? GNUTLS_CLIENT : GNUTLS_SERVER));
    if (r == 0)
        r = gnutls_priority_set(tls->session, credentials->priority);
    if (r == 0 && !credentials->is_psk)
        r = gnutls_credentials_set(tls->session, GNUTLS_CRD_CERTIFICATE, credentials->x509);
    else if (r == 0)
        r = gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK,
                                   tls->peer ? (void *)credentials->psk_client
                                             : (void *)credentials->psk_server);
    if (r < 0)
        return -ENOMEM;
    if (!credentials->is_psk)
        tls_demand_x509(tls);
    gnutls_session_set_ptr(tls->session, (void *)credentials);
    gnutls_handshake_set_max_packet_length(tls->session, HANDSHAKE_BYTES_MAX);
    gnutls_handshake_set_timeout(tls->session, GNUTLS_INDEFINITE_TIMEOUT); /* the link's silence */
    gnutls_transport_set_ptr(tls->session, tls);
    gnutls_transport_set_pull_function(tls->session, on_pull);
    gnutls_transport_set_vec_push_function(tls->session, on_push);
    return 0;
}

struct transport *transport_tls(int fd, const struct credentials *credentials, const char *peer)
{
    struct tls *tls = calloc(1, sizeof(*tls));
    if (!tls) {
        close_fd(fd);
        return NULL;
    }
    uint64_t now = now_usec();
    tls->transport = (struct transport){.ops = &tls_ops,
                                        .fd = fd,
                                        .kind = credentials->is_psk ? "TLS 1.3, pre-shared key"
                                                                    : "TLS 1.3, certificates",
                                        .heard_usec = now,
                                        .taken_usec = now,
                                        .ahead = RECORD_BYTES + RECORD_AROUND};
    tls->credentials = credentials;
    tls->peer = peer ? strdup(peer) : NULL;
    tls->record = hidden_alloc(RECORD_BYTES);
    if ((peer && !tls->peer) || !tls->record || tls_open(tls) < 0) {
        tls_free(&tls->transport);
        return NULL;
    }
    return &tls->transport;
}
