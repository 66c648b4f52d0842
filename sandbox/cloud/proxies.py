"""A proxy in front of each server that the function talks to: where faults strike."""

from collections.abc import Mapping
from contextlib import ExitStack
from urllib.parse import urlsplit

from sandbox.cloud.namespace import TLS_PORT, NamespaceServer, proxy_address
from sandbox.cloud.options import Mode, NoTlsAddress
from sandbox.faults.plan import Dependency, FaultPlan
from sandbox.faults.proxy import TcpProxy


def start_proxies(
    plan: FaultPlan, urls: Mapping[Dependency, str], namespace: NamespaceServer, closing: ExitStack
) -> Mapping[Dependency, TcpProxy]:
    """Start a proxy for each URL, and those of Service Bus.

    Raises NoTlsAddress where this system has no second loopback address.
    """
    proxies = {dependency: TcpProxy(_address(url), plan, dependency) for dependency, url in urls.items()}
    inbound, outbound = Dependency.SERVICE_BUS_IN, Dependency.SERVICE_BUS_OUT
    plain, tls = namespace.plain, namespace.tls
    if tls is not None:
        # The host and the function find the namespace in one setting, so they share a proxy.
        proxies[outbound] = TcpProxy(
            (tls.host, TLS_PORT), plan, inbound, outbound, host=proxy_address(tls.host), port=TLS_PORT
        )
    else:
        for dependency in (inbound, outbound):
            proxies[dependency] = TcpProxy((plain.host, plain.port), plan, dependency)
    for proxy in proxies.values():
        try:
            proxy.start()
        except OSError as error:
            raise NoTlsAddress(
                f"{proxy.host}:{proxy.port}, where faults strike, is no address of this machine: use the mode "
                f"{Mode.CONNECTION_STRING}"
            ) from error
        closing.callback(proxy.stop)
    return proxies


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 0
