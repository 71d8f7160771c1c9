# ruff: noqa: INP001  it becomes a module of the bundled standard library
"""What the bundled interpreter has to know about the host before it loads OpenSSL.

The bundled OpenSSL was built for one distribution and looks in its folders. Certificates are the host's, wherever it
keeps them. The host's openssl.cnf belongs to the host's OpenSSL: engines and providers that it names cannot be
loaded into ours, so it is not read. Whoever sets one of the variables himself is obeyed.
"""

import os

CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat, Fedora, Amazon
    "/etc/ssl/ca-bundle.pem",  # SUSE
)

if "SSL_CERT_FILE" not in os.environ:
    for _path in CERTIFICATES:
        if os.access(_path, os.R_OK):
            os.environ["SSL_CERT_FILE"] = _path
            break
os.environ.setdefault("OPENSSL_CONF", "/dev/null")
