"""Service Bus's servers: plain, and over TLS where there are identities."""

from contextlib import ExitStack

from sandbox.certificates import CertificateAuthority
from sandbox.cloud.options import CannotStart, Mode, NoTlsAddress
from sandbox.faults.service_bus import PlannedFaults
from sandbox.service_bus import Authenticator, Broker, ServiceBusServer

# With a token, the clients use this port and no other.
TLS_PORT = 5671
PLAIN_PORT = 5672


class NamespaceServer:
    """Serves a broker; `faults` lets the calls of its clients fail."""

    def __init__(
        self,
        broker: Broker,
        authenticator: Authenticator,
        certificates: CertificateAuthority,
        faults: PlannedFaults | None = None,
    ) -> None:
        self._broker = broker
        self._authenticator = authenticator
        self._certificates = certificates
        self._faults = faults
        self.plain: ServiceBusServer
        self.tls: ServiceBusServer | None = None

    @property
    def servers(self) -> list[ServiceBusServer]:
        """All servers."""
        return [self.plain, *([self.tls] if self.tls else [])]

    @property
    def address(self) -> str:
        """Where a client connects that is not the function: host, and port unless it is the standard one of TLS."""
        return self.tls.host if self.tls else f"{self.plain.host}:{self.plain.port}"

    def start_plain(self, closing: ExitStack, *, standard_port: bool) -> None:
        """Listen without TLS. Raises CannotStart."""
        for port in (PLAIN_PORT, 0) if standard_port else (0,):
            server = ServiceBusServer(
                self._broker,
                port=port,
                authenticator=self._authenticator,
                interceptor=self._faults,
                https_context=self._certificates.server_context("127.0.0.1"),
            )
            try:
                server.start()
            except OSError:
                continue
            self.plain = server
            closing.callback(server.stop)
            return
        raise CannotStart("no port is free on 127.0.0.1")

    def start_tls(self, closing: ExitStack) -> None:
        """Listen with TLS, on a loopback address of its own. Raises NoTlsAddress."""
        for last in range(1, 255):
            address = f"127.0.0.{last}"
            server = ServiceBusServer(
                self._broker,
                host=address,
                port=TLS_PORT,
                # In front of it there may be a proxy, on an address of its own.
                ssl_context=self._certificates.server_context(address, proxy_address(address)),
                authenticator=self._authenticator,
                interceptor=self._faults,
            )
            try:
                server.start()
            except OSError:
                # Another sandbox uses it, or this system has no such address unless one is set up.
                continue
            self.tls = server
            closing.callback(server.stop)
            return
        raise NoTlsAddress(
            f"port {TLS_PORT}, the only one for clients with tokens, is taken on every loopback address of this "
            f"machine: use the mode {Mode.CONNECTION_STRING}"
        )

    def wake(self) -> None:
        """Let the servers notice that the broker's clock has moved."""
        for server in self.servers:
            server.wake()

    def restart(self) -> None:
        """Stop the servers and start them where they were; messages and locks stay as they are."""
        for server in self.servers:
            server.stop()
            server.start()


def proxy_address(address: str) -> str:
    """Return the address of the proxy in front of a server with TLS, which uses the same port."""
    return address.replace("127.0.0.", "127.0.1.")
