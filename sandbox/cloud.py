"""The whole sandbox as one thing: Service Bus, Dataverse, managed identity, Functions host, wired up.

`Cloud` composes the parts for the command line and for tests; what each part does is its own affair. Everything
listens on loopback addresses only and is gone after `stop`.
"""

import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from sandbox.certificates import CertificateAuthority
from sandbox.clock import MovableClock, SystemClock
from sandbox.dataverse import DataverseApp, DataverseServer, Limits, ServiceProtection, seed
from sandbox.faults.dataverse import faulty_dataverse
from sandbox.faults.identity import faulty_identity
from sandbox.faults.plan import FaultPlan, Kind, Wire
from sandbox.faults.proxy import TcpProxy
from sandbox.faults.service_bus import PlannedFaults
from sandbox.functions_host import FunctionsHost
from sandbox.functions_host.configuration import Settings, read_host
from sandbox.functions_host.worker_process import WorkerProcess
from sandbox.identity import Identity, IdentityServer, TokenAuthority
from sandbox.posting import ServiceEndpointPoster
from sandbox.service_bus import Authenticator, Broker, Configuration, Role, RoleAssignment, ServiceBusServer
from sandbox.service_bus.configuration import ALL_RIGHTS, DEFAULT_ENTITIES, Right, SasRule

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

WON_QUEUE = "opportunity-won"
FAILED_QUEUE = "opportunity-won-failed"
CREATED_TOPIC = "invoice-created"
AUDIT_SUBSCRIPTION = "audit"
CONNECTION = "ServiceBusConnection"
# With a token, the clients use this port and no other.
TLS_PORT = 5671
PLAIN_PORT = 5672
_CONNECT_SECONDS = 120


class CloudError(Exception):
    """The sandbox cannot run like this here; the text says what to do."""


class NoTlsAddressError(CloudError):
    """There is no address left on which a client with a token would find Service Bus."""


class StartInterruptedError(Exception):
    """The start was called off by whoever asked for it; nothing is left behind."""


class Mode(StrEnum):
    """How the function and Dataverse reach Service Bus."""

    # Plain AMQP with a key, as the official emulator has it.
    CONNECTION_STRING = "connection-string"
    # TLS throughout; the function with its managed identity, Dataverse with a key that may only send.
    IDENTITY = "identity"


@dataclass(frozen=True)
class CloudOptions:
    """What to run.

    `settings` are added to the function's app settings and win over the sandbox's own; AzureFunctionsJobHost__…
    among them override host.json. `limits` switches Dataverse's service protection on. `connected` False leaves
    Dataverse without application user, role, service endpoint and step, as it is before anybody set it up;
    `connect_with` is a command that sets them up instead, as an administrator would: it finds the function's app
    settings in its environment, with OPERATIONS_CLIENT_ID for the identity to log in as and OPPORTUNITY_WON_SAS_KEY for
    the key that Dataverse posts with; {function} in it becomes the client id of the function's identity.
    `functions_host` False leaves the function to somebody else, such as Core Tools. `standard_ports` prefers the
    ports that the official emulator uses; others are taken where they are not free. `entities` is a file that
    describes Service Bus, in the official emulator's format.

    `faults`: what goes wrong, on every wire of the function; the sales person and the consumer have wires of their own.
    `token_lifetime`: below five minutes, clients fetch a token for every call.
    `dataverse_middleware` wraps Dataverse, `reroute` has the last word on the app settings, once the ports are known,
    and may put something else between the function and its peers.
    """

    app_root: Path
    mode: Mode = Mode.CONNECTION_STRING
    settings: Mapping[str, str] = field(default_factory=dict)
    opportunities: int = 20
    seed: int = 1
    limits: Limits | None = None
    connected: bool = True
    connect_with: Sequence[str] = ()
    functions_host: bool = True
    standard_ports: bool = False
    entities: Path = DEFAULT_ENTITIES
    faults: FaultPlan | None = None
    token_lifetime: timedelta = timedelta(days=1)
    dataverse_middleware: "Callable[[WSGIApplication], WSGIApplication]" = lambda application: application
    reroute: Callable[[dict[str, str]], dict[str, str]] = dict


class Cloud:
    """Azure on this machine, from `start` to `stop`; a context manager.

    Its parts are attributes, for looking inside and for moving things about: `broker`, `broker_clock` (move it with
    `move_broker_clock`), `dataverse` (the application with its store), `demo` (what was seeded), `authority`,
    `function_identity`, `operator` (may do everything on both sides), `host`; with faults, `proxies`.
    """

    def __init__(self, options: CloudOptions) -> None:
        self.options = options
        self.authority = TokenAuthority()
        self.function_identity = Identity.named("function")
        self.operator = Identity.named("operator", self.function_identity.tenant_id)
        self.broker_clock = MovableClock()
        self.configuration = _entities(options.entities)
        self.broker = Broker(self.configuration, self.broker_clock)
        self.proxies: dict[Wire, TcpProxy] = {}
        self._closing = ExitStack()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.options.mode} {self.options.app_root}>"

    def start(self, is_called_off: Callable[[], bool] = lambda: False) -> None:
        """Start every part; whatever goes wrong, what was started is stopped again before it is raised.

        Raises CloudError, ConfigurationError or WorkerDiedError for an app that cannot run, StartInterruptedError
        as soon as `is_called_off` returns true between two steps.
        """
        steps = [
            self._start_identity,
            self._start_service_bus,
            self._start_dataverse,
            self._set_up_dataverse,
            self._start_faults,
            self._start_functions_host,
        ]
        with ExitStack() as starting:
            self.folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
            starting.callback(shutil.rmtree, self.folder)
            self.certificates = CertificateAuthority(self.folder)
            for step in steps:
                if is_called_off():
                    raise StartInterruptedError
                step(starting)
            self._closing = starting.pop_all()

    def stop(self) -> None:
        """Stop every part, the function first; takes seconds at most and may be called twice."""
        self._closing.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Where everything is

    @property
    def namespace(self) -> str:
        """The fully qualified namespace over TLS: an address, on which port 5671 answers."""
        if self.tls_server is None:
            raise CloudError("there is no namespace over TLS in this mode")
        return self.tls_server.host

    @property
    def connection_string(self) -> str:
        """A connection string with all rights, for plain AMQP."""
        rule = next(filter(_may_do_all, self.configuration.sas_rules))
        return (
            f"Endpoint=sb://{self.plain_server.host}:{self.plain_server.port};SharedAccessKeyName={rule.name};"
            f"SharedAccessKey={rule.keys[0]};UseDevelopmentEmulator=true;"
        )

    @property
    def app_settings(self) -> dict[str, str]:
        """All app settings of the function, as its processes get them."""
        settings = {
            **self._connection_settings,
            "OPPORTUNITY_WON_QUEUE": WON_QUEUE,
            "OPPORTUNITY_WON_FAILED_QUEUE": FAILED_QUEUE,
            "INVOICE_CREATED_TOPIC": CREATED_TOPIC,
            "DATAVERSE_URL": self.dataverse.organization.url,
            "DATAVERSE_ORGANIZATION_ID": self.dataverse.organization.id,
            "AZURE_CLIENT_ID": self.function_identity.client_id,
            **self.identity_server.settings,
            **self._proxied_settings,
            **self.certificates.settings,
            **self.options.settings,
        }
        host = read_host(self.options.app_root, Settings(settings))
        # One thread for each message that the host hands over at once, as the deployment has it.
        settings.setdefault("PYTHON_THREADPOOL_THREAD_COUNT", str(host.max_concurrent_calls))
        return settings

    @property
    def _connection_settings(self) -> dict[str, str]:
        if self.options.mode is Mode.CONNECTION_STRING:
            return {CONNECTION: self.connection_string}
        return {
            f"{CONNECTION}__fullyQualifiedNamespace": self.namespace,
            f"{CONNECTION}__credential": "managedidentity",
            f"{CONNECTION}__clientId": self.function_identity.client_id,
        }

    @property
    def _proxied_settings(self) -> dict[str, str]:
        """What the function is told of its surroundings where a proxy stands before each."""
        if not self.proxies:
            return {}
        identity = self.proxies[Wire.IDENTITY]
        endpoint = urlsplit(self.identity_server.endpoint)._replace(netloc=identity.address)
        settings = {"IDENTITY_ENDPOINT": endpoint.geturl()}
        if self.tls_server is not None:
            # The host and the function find the namespace in one setting.
            return settings | {
                f"{CONNECTION}__fullyQualifiedNamespace": self.proxies[Wire.SERVICE_BUS_OUT].host
            }
        plain = f"{self.plain_server.host}:{self.plain_server.port}"
        # The host prefers the first name, which the function does not know.
        names = {f"AzureWebJobs{CONNECTION}": Wire.SERVICE_BUS_IN, CONNECTION: Wire.SERVICE_BUS_OUT}
        return settings | {
            name: self.connection_string.replace(plain, self.proxies[wire].address)
            for name, wire in names.items()
        }

    @property
    def operator_settings(self) -> dict[str, str]:
        """The environment of somebody who administers both sides: the function's settings, another identity."""
        return {
            **self.app_settings,
            "OPERATIONS_CLIENT_ID": self.operator.client_id,
            "OPPORTUNITY_WON_SAS_KEY": self._posting_rule.keys[0],
        }

    @property
    def trust(self) -> ssl.SSLContext:
        """A client's TLS context that trusts the sandbox's servers."""
        return ssl.create_default_context(cafile=self.certificates.bundle)

    def local_settings(self) -> dict[str, object]:
        """Return local.settings.json for `func start` of Core Tools, with the plain connection string."""
        values = {
            "FUNCTIONS_WORKER_RUNTIME": "python",
            # Core Tools asks for it with every trigger but HTTP; this function itself stores nothing.
            "AzureWebJobsStorage": "UseDevelopmentStorage=true",
            CONNECTION: self.connection_string,
        }
        values |= {
            name: value for name, value in self.app_settings.items() if not name.startswith(CONNECTION)
        }
        return {"IsEncrypted": False, "Values": values}

    def move_broker_clock(self, by: timedelta) -> None:
        """Let time pass for Service Bus alone: locks, ages, windows and schedules."""
        self.broker_clock.advance(by)
        for server in (self.plain_server, self.tls_server):
            if server is not None:
                server.wake()

    # Starting, in this order; stopping is the reverse

    def _start_identity(self, closing: ExitStack) -> None:
        plan = self.options.faults
        self.identity_server = IdentityServer(
            self.authority,
            [self.function_identity, self.operator],
            middleware=(lambda application: faulty_identity(application, plan)) if plan else None,
            lifetime=self.options.token_lifetime,
        )
        self.identity_server.start()
        closing.callback(self.identity_server.stop)

    def _start_service_bus(self, closing: ExitStack) -> None:
        function, operator = self.function_identity.client_id, self.operator.client_id
        authenticator = Authenticator(
            self.configuration,
            verify_token=self.authority.verify,
            # As the Bicep assigns them: each right on the one entity that needs it.
            role_assignments=[
                RoleAssignment(function, Role.RECEIVER, WON_QUEUE),
                RoleAssignment(function, Role.SENDER, WON_QUEUE),
                RoleAssignment(function, Role.SENDER, FAILED_QUEUE),
                RoleAssignment(function, Role.SENDER, CREATED_TOPIC),
                RoleAssignment(operator, Role.OWNER),
            ],
        )
        self.plain_server = self._plain_server(authenticator)
        closing.callback(self.plain_server.stop)
        self.tls_server = None
        if self.options.mode is Mode.IDENTITY:
            self.tls_server = self._tls_server(authenticator)
            closing.callback(self.tls_server.stop)

    def _plain_server(self, authenticator: Authenticator) -> ServiceBusServer:
        for port in (PLAIN_PORT, 0) if self.options.standard_ports else (0,):
            server = ServiceBusServer(
                self.broker,
                port=port,
                authenticator=authenticator,
                interceptor=self._planned_faults(),
                https_context=self.certificates.server_context("127.0.0.1"),
            )
            try:
                server.start()
            except OSError:
                continue
            return server
        raise CloudError("no port is free on 127.0.0.1")

    def _tls_server(self, authenticator: Authenticator) -> ServiceBusServer:
        for last in range(1, 255):
            address = f"127.0.0.{last}"
            server = ServiceBusServer(
                self.broker,
                host=address,
                port=TLS_PORT,
                # Before it there may be a proxy, on an address of its own.
                ssl_context=self.certificates.server_context(address, f"127.0.1.{last}"),
                authenticator=authenticator,
                interceptor=self._planned_faults(),
            )
            try:
                server.start()
            except OSError:
                # Taken by another sandbox, or an address that this system does not have without being told.
                continue
            return server
        raise NoTlsAddressError(
            f"port {TLS_PORT}, the only one for clients with tokens, is taken on every loopback address of this "
            f"machine: use the mode {Mode.CONNECTION_STRING}"
        )

    def _planned_faults(self) -> PlannedFaults | None:
        plan = self.options.faults
        return PlannedFaults(self.broker, plan, self._comes_by_proxy) if plan else None

    def _comes_by_proxy(self, peer: tuple[str, int]) -> bool:
        """Tell the function and its host from everybody else."""
        return any(proxy.carries(peer) for proxy in self.proxies.values())

    def _start_dataverse(self, closing: ExitStack) -> None:
        poster = ServiceEndpointPoster(self.trust)
        closing.callback(poster.close)
        limits = self.options.limits
        clock = SystemClock()
        self.dataverse = DataverseApp(
            self.authority.verify,
            clock=clock,
            # Readers see what is committed while somebody writes, as in Dataverse.
            directory=self.folder,
            post=poster,
            protection=ServiceProtection(clock, limits) if limits else None,
        )
        closing.callback(self.dataverse.close)
        self.dataverse_server = DataverseServer(
            self.dataverse,
            self.certificates.server_context("127.0.0.1", "localhost"),
            middleware=lambda application: self.options.dataverse_middleware(
                self._faulty_dataverse(application)
            ),
        )
        self.dataverse_server.start()
        closing.callback(self.dataverse_server.stop)

    def _faulty_dataverse(self, application: "WSGIApplication") -> "WSGIApplication":
        plan = self.options.faults
        if plan is None:
            return application

        def is_the_function(environ: "WSGIEnvironment") -> bool:
            # Nobody else comes by way of the proxy.
            return bool(self.proxies) and environ.get("HTTP_HOST") == self.proxies[Wire.DATAVERSE].address

        return faulty_dataverse(application, plan, concerns=is_the_function)

    def _set_up_dataverse(self, _: ExitStack) -> None:
        app, function = self.dataverse, self.function_identity
        self.demo = seed.demo_organization(app, self.options.opportunities, seed=self.options.seed)
        seed.add_administrator(app, self.operator.client_id, self.operator.object_id)
        if self.options.connect_with:
            self._connect_as_administrator()
            return
        if not self.options.connected:
            return
        role = seed.add_role(app)
        seed.add_application_user(app, function.client_id, function.object_id, roles=[role])
        rule = self._posting_rule
        endpoint = seed.add_service_endpoint(
            app,
            namespace_address=self.namespace_address,
            path=WON_QUEUE,
            sas_key_name=rule.name,
            sas_key=rule.keys[0],
        )
        seed.add_step(app, endpoint)

    def _connect_as_administrator(self) -> None:
        command = [
            word.replace("{function}", self.function_identity.client_id) for word in self.options.connect_with
        ]
        try:
            done = subprocess.run(  # noqa: S603 - the caller's own command
                command,
                env={**os.environ, **self.operator_settings},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CONNECT_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CloudError(f"the command that connects Dataverse did not run: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise CloudError(
                f"the command that connects Dataverse ended with {done.returncode}: {said[-1000:] or 'not a word'}"
            )

    @property
    def _posting_rule(self) -> SasRule:
        """What Dataverse posts with: a key of the queue's own, or of the namespace where the queue has none."""
        rules = (rule for rule in self.configuration.sas_rules if rule.scope == WON_QUEUE)
        return next(
            (rule for rule in rules if rule.rights & Right.SEND),
            next(filter(_may_do_all, self.configuration.sas_rules)),
        )

    @property
    def namespace_address(self) -> str:
        """What a service endpoint has as its namespace address."""
        if self.tls_server is not None:
            return f"sb://{self.tls_server.host}/"
        return f"sb://{self.plain_server.host}:{self.plain_server.port}/"

    def _start_faults(self, closing: ExitStack) -> None:
        """Put a proxy before each server, and tell the plan how to bring about what no wire can."""
        plan = self.options.faults
        if plan is None:
            return
        closing.callback(plan.clear)
        plan.provide(Kind.KILL, self._kill_workers)
        plan.provide(Kind.RESTART, self.restart_service_bus)
        identity, dataverse = urlsplit(self.identity_server.endpoint), urlsplit(self.dataverse_server.url)
        proxies = {
            Wire.IDENTITY: TcpProxy(("127.0.0.1", identity.port or 0), plan, Wire.IDENTITY),
            Wire.DATAVERSE: TcpProxy(("127.0.0.1", dataverse.port or 0), plan, Wire.DATAVERSE),
        }
        if self.tls_server is not None:
            target = (self.tls_server.host, TLS_PORT)
            host = self.tls_server.host.replace("127.0.0.", "127.0.1.")
            wires = (Wire.SERVICE_BUS_IN, Wire.SERVICE_BUS_OUT)
            proxies[Wire.SERVICE_BUS_OUT] = TcpProxy(target, plan, *wires, host=host, port=TLS_PORT)
        else:
            target = (self.plain_server.host, self.plain_server.port)
            for wire in (Wire.SERVICE_BUS_IN, Wire.SERVICE_BUS_OUT):
                proxies[wire] = TcpProxy(target, plan, wire)
        for proxy in proxies.values():
            proxy.start()
            closing.callback(proxy.stop)
        self.proxies = proxies
        # Tokens for it, and events of it, name the address under which it is known.
        self.dataverse.organization.url = f"https://{proxies[Wire.DATAVERSE].address}"

    def restart_service_bus(self) -> None:
        """Stop Service Bus's servers and start them where they were; messages and locks stay as they are."""
        for server in (self.plain_server, self.tls_server):
            if server is not None:
                server.stop()
                server.start()

    def _kill_workers(self) -> None:
        if self.host is not None:
            self.host.kill_workers()

    def _invoked(self, worker: WorkerProcess) -> None:
        plan = self.options.faults
        if (
            plan is not None
            and plan.strike(Wire.FUNCTIONS_HOST, "invoke", f"worker {worker.pid}") is not None
        ):
            # There is no other fault on this wire.
            worker.kill()

    def _start_functions_host(self, closing: ExitStack) -> None:
        self.host: FunctionsHost | None = None
        if self.options.functions_host:
            settings = self.options.reroute(self.app_settings)
            self.host = FunctionsHost(self.options.app_root, settings, self.broker_clock, self._invoked)
            closing.callback(self.host.stop)
            self.host.start()


def _entities(path: Path) -> Configuration:
    """Read what Service Bus has; raise CloudError where that is not what is needed here."""
    try:
        configuration = Configuration.load(path)
    except (OSError, ValueError) as error:
        raise CloudError(f"{path}: {error}") from error
    queues = {queue.path for queue in configuration.queues}
    subscriptions = {
        f"{topic.path}/{subscription.name}"
        for topic in configuration.topics
        for subscription in topic.subscriptions
    }
    missing = [f"the queue {name}" for name in (WON_QUEUE, FAILED_QUEUE) if name not in queues]
    if f"{CREATED_TOPIC}/{AUDIT_SUBSCRIPTION}" not in subscriptions:
        missing.append(f"the topic {CREATED_TOPIC} with the subscription {AUDIT_SUBSCRIPTION}")
    if not any(map(_may_do_all, configuration.sas_rules)):
        missing.append("a key of the namespace with the right Manage")
    if missing:
        raise CloudError(f"{path} lacks what is needed here: {', '.join(missing)}")
    return configuration


def _may_do_all(rule: SasRule) -> bool:
    return not rule.scope and rule.rights == ALL_RIGHTS
