"""The way to a peer: name, connection, TLS, each with a finding of its own. What the peer says is left to others."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy

from operations.diagnosis.findings import Finding, Found, ok
from shared.bounded_call import BoundedCalls
from shared.deadline_socket import CallTimeout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from operations.diagnosis.findings import Result
    from shared.clock import Deadline


_resolving = BoundedCalls("name resolution", 8)


@dataclass(frozen=True)
class Way:
    """What can be wrong on the way to a peer."""

    name_unknown: Finding
    refused: Finding
    silent: Finding
    not_trusted: Finding


DATAVERSE = Way(
    Finding.DATAVERSE_NAME_UNKNOWN,
    Finding.DATAVERSE_REFUSED,
    Finding.DATAVERSE_SILENT,
    Finding.DATAVERSE_CERTIFICATE_NOT_TRUSTED,
)
SERVICE_BUS = Way(
    Finding.SERVICE_BUS_NAME_UNKNOWN,
    Finding.SERVICE_BUS_REFUSED,
    Finding.SERVICE_BUS_SILENT,
    Finding.SERVICE_BUS_CERTIFICATE_NOT_TRUSTED,
)


def proxy_for(url: str) -> str | None:
    """Return the proxy through which `requests` reaches an address, if the environment names one."""
    return select_proxy(url, get_environ_proxies(url))


def trust_of_requests(environment: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that trusts what `requests` trusts. Raises OSError for a bundle that cannot be read."""
    context = ssl.create_default_context()
    bundle = environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
    path = Path(bundle or DEFAULT_CA_BUNDLE_PATH)
    if path.is_dir():
        context.load_verify_locations(capath=path)
    else:
        context.load_verify_locations(cafile=path)
    return context


def look(way: Way, host: str, port: int, trust: ssl.SSLContext | None, deadline: Deadline) -> list[Result]:
    """Connect and shake hands (`trust` None: no TLS), then hang up. Raises Found."""
    at = f"{host}:{port}"
    address = _resolve(way, host, port, deadline)
    try:
        with socket.create_connection(address, timeout=max(deadline.remaining, 0.1)) as connection:
            if trust is None:
                return ok(f"{at} takes connections, without TLS")
            connection.settimeout(max(deadline.remaining, 0.1))
            with trust.wrap_socket(connection, server_hostname=host) as secured:
                return ok(f"{at} takes connections, {secured.version()}")
    except TimeoutError as error:
        raise Found(way.silent, f"{at} ({address[0]}) does not answer") from error
    except ssl.SSLCertVerificationError as error:
        raise Found(way.not_trusted, f"{at}: {error.verify_message}") from error
    except OSError as error:
        raise Found(way.refused, f"{at} ({address[0]}): {error.strerror or type(error).__name__}") from error


def _resolve(way: Way, host: str, port: int, deadline: Deadline) -> tuple[str, int]:
    """Return the first address of a name; the system's resolver takes no time-out, so it gets a thread."""
    try:
        found = _resolving.run(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline.remaining
        )
    except CallTimeout as error:
        raise Found(way.name_unknown, f"{host}: the name server does not answer") from error
    except OSError as error:
        raise Found(way.name_unknown, f"{host}: {error.strerror}") from error
    address = found[0][4]
    return str(address[0]), port
