"""Certificates for the sandbox's TLS servers, from an authority that exists as long as one sandbox.

The deployed code trusts it like a company's own authority: through SSL_CERT_FILE and REQUESTS_CA_BUNDLE, which name a
bundle that this module writes.
"""

import ssl
from pathlib import Path

import requests.utils
import trustme


class CertificateAuthority:
    """Issues certificates for loopback names and addresses.

    `bundle` is written into `folder`, which should be private and temporary. The two variables *replace* what is
    trusted by default, so the bundle holds the public roots as well: the process can still talk to the internet.
    The key stays in memory: nobody can issue with it once the sandbox is gone.
    """

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA(organization_name="Sandbox", organization_unit_name="for tests only")
        self.bundle = folder / "ca-bundle.pem"
        public_roots = Path(requests.utils.DEFAULT_CA_BUNDLE_PATH).read_bytes()
        self.bundle.write_bytes(public_roots + b"\n" + self._authority.cert_pem.bytes())

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables by which a process trusts this authority."""
        return {"SSL_CERT_FILE": str(self.bundle), "REQUESTS_CA_BUNDLE": str(self.bundle)}

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return the context of a server with `names` (host names or IP addresses)."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert(*names).configure_cert(context)
        return context
