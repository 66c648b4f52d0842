import socket
import ssl
import threading
from pathlib import Path

import pytest
import requests.utils

from sandbox.certificates import CertificateAuthority


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """Shake hands as `client`, which expects `name`, with `server`; raises what the client raises."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name):
            pass
    finally:
        ours.close()
        thread.join(5)


@pytest.mark.parametrize("name", ["127.0.0.9", "localhost"])
def test_a_process_trusts_the_servers_through_the_bundle(tmp_path: Path, name: str) -> None:
    authority = CertificateAuthority(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.settings["SSL_CERT_FILE"])
    handshake(authority.server_context("127.0.0.9", "localhost"), trusting, name)


def test_a_certificate_is_for_its_names_only(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    trusting = ssl.create_default_context(cafile=authority.bundle)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server_context("127.0.0.9"), trusting, "127.0.0.10")


def test_who_was_not_given_the_bundle_does_not_trust_it(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.server_context("localhost"), ssl.create_default_context(), "localhost")


def test_the_bundle_keeps_the_public_roots(tmp_path: Path) -> None:
    """The variables replace the default trust, and other connections of the process still need the public roots."""
    trusting = ssl.create_default_context(cafile=CertificateAuthority(tmp_path).bundle)
    public = ssl.create_default_context(cafile=requests.utils.DEFAULT_CA_BUNDLE_PATH)
    assert trusting.cert_store_stats()["x509"] == public.cert_store_stats()["x509"] + 1
