# SPDX-License-Identifier: Apache-2.0
"""Options for links by TCP between hosts, with what `godwit keygen` has made for them in a directory that all see."""

from bed import SHARED

TARGET = "10.77.0.2"
TLS = f"{SHARED}/tls"
A, B = "a,10.77.0.1,fd77::1", "b,10.77.0.2,fd77::2,127.0.0.1"


def x509(host, ca=TLS):
    here = f"{ca}/{host}"
    return ["--tls-cacert", f"{here}/cacert.pem", "--tls-cert", f"{here}/cert.pem", "--tls-key", f"{here}/key.pem"]


def psk(name="psk"):
    return ["--psk-file", f"{TLS}/{name}"]


def options(kind, host):
    return x509(host) if kind == "certificates" else psk()
