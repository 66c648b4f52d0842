"""Starts and stops the parts of the sandbox in order, and says where they are.

What the parts do is left to them. Everything listens on loopback addresses only and is gone after `stop`.
"""

import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from sandbox.certificates import CertificateAuthority
from sandbox.clock import MovableClock, SystemClock
from sandbox.cloud.entities import (
    entity_names,
    function_roles,
    load_entities,
    namespace_rule,
    posting_rule,
    with_subscriptions,
)
from sandbox.cloud.namespace import NamespaceServer
from sandbox.cloud.options import (
    CONNECTION,
    WON_QUEUE,
    CannotStart,
    CloudOptions,
    Mode,
    NotInThisSandbox,
    StartInterrupted,
)
from sandbox.cloud.posting import ServiceEndpointPoster
from sandbox.cloud.proxies import start_proxies
from sandbox.cloud.sales import Sales, connect, connect_with
from sandbox.cloud.settings import Connections, belongs_to_connection, entity_settings
from sandbox.control.run_folder import NotPrivate, RunFolder
from sandbox.dataverse import DataverseApp, DataverseServer, Post, ServiceEndpoint, ServiceProtection, seed
from sandbox.dataverse.seed import DemoOrganization
from sandbox.faults.dataverse import faulty_dataverse
from sandbox.faults.identity import faulty_identity
from sandbox.faults.plan import Dependency, FaultKind
from sandbox.faults.service_bus import PlannedFaults
from sandbox.functions_host import FunctionsHost
from sandbox.functions_host.configuration import Settings, read_host
from sandbox.functions_host.functions import Declaration, connection_names
from sandbox.functions_host.worker_process import App, WorkerProcess, declarations
from sandbox.identity import Identity, IdentityServer, TokenAuthority
from sandbox.service_bus import Authenticator, Broker, Role, RoleAssignment, ServiceBusServer
from sandbox.start_stop import StartStop
from sandbox.tracing import OtlpReceiver, SpanStore

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from sandbox.faults.proxy import TcpProxy


class Cloud(StartStop):
    """Azure on this machine, from `start` to `stop`; a context manager.

    Its parts are attributes, to be read and changed: `broker`, `broker_clock` (move it with `move_broker_clock`),
    `dataverse` (the application with its database), `demo` (what was seeded), `authority`, `function_identity`,
    `operator` (may do everything on both sides), `host`; with faults, `proxies`; with traces, `spans`.
    """

    def __init__(self, options: CloudOptions) -> None:
        """Read the entities file; raises CannotStart."""
        self.options = options
        self.authority = TokenAuthority()
        self.function_identity = Identity.named("function")
        self.operator = Identity.named("operator", self.function_identity.tenant_id)
        self.broker_clock = MovableClock()
        entities = load_entities(options.entities, published_keys=options.published_keys)
        self.configuration = with_subscriptions(entities, options.extra_subscriptions)
        if options.dataverse and WON_QUEUE not in entity_names(self.configuration):
            raise CannotStart(
                f"{options.entities} lacks the queue {WON_QUEUE}, to which Dataverse posts: add it, or leave Dataverse "
                "out (--no-dataverse)"
            )
        self.broker = Broker(self.configuration, self.broker_clock)
        self.proxies: Mapping[Dependency, TcpProxy] = {}
        self.host: FunctionsHost | None = None
        self.spans = SpanStore() if options.traces else None
        self._trace_settings: Mapping[str, str] = {}
        self._sales: Sales | None = None
        self._declared: tuple[Declaration, ...] = ()
        self._closing = ExitStack()

    def start(self, is_called_off: Callable[[], bool] = lambda: False) -> None:
        """Start every part; if anything fails, what was started is stopped again before it is raised.

        Raises CannotStart, InvalidAppConfiguration or WorkerDied for an app that cannot run, StartInterrupted
        as soon as `is_called_off` returns true between two steps.
        """
        steps = [
            self._start_tracing,
            self._start_identity,
            self._start_service_bus,
            self._start_dataverse,
            self._start_faults,
            self._set_up_dataverse,
            self._read_declarations,
            self._start_functions_host,
        ]
        with ExitStack() as starting:
            try:
                folder = RunFolder.create()
            except NotPrivate as error:
                raise CannotStart(str(error)) from error
            starting.callback(folder.close)
            self.folder = folder.path
            self.certificates = CertificateAuthority(self.folder)
            for step in steps:
                if is_called_off():
                    raise StartInterrupted
                step(starting)
            self._closing = starting.pop_all()

    def stop(self) -> None:
        """Stop every part, the function first; takes seconds at most and may be called twice."""
        self._closing.close()

    # Where everything is

    @property
    def dataverse(self) -> DataverseApp:
        """Dataverse; raises NotInThisSandbox."""
        return self._dataverse_part.app

    @property
    def dataverse_server(self) -> DataverseServer:
        """Dataverse's server; raises NotInThisSandbox."""
        return self._dataverse_part.server

    @property
    def demo(self) -> DemoOrganization:
        """The ids of what was seeded; raises NotInThisSandbox."""
        return self._dataverse_part.demo

    @property
    def _dataverse_part(self) -> Sales:
        if self._sales is None:
            raise NotInThisSandbox("this sandbox runs without Dataverse")
        return self._sales

    @property
    def plain_server(self) -> ServiceBusServer:
        """Service Bus without TLS."""
        return self._namespace.plain

    @property
    def tls_server(self) -> ServiceBusServer | None:
        """Service Bus over TLS, in the identity mode."""
        return self._namespace.tls

    @property
    def namespace(self) -> str:
        """The fully qualified namespace over TLS: an address, on which port 5671 responds."""
        if self.tls_server is None:
            raise NotInThisSandbox("there is no namespace over TLS in this mode")
        return self.tls_server.host

    @property
    def _public_address(self) -> str:
        """The name by which the function, and so a service endpoint, knows the namespace."""
        proxy = self.proxies.get(Dependency.SERVICE_BUS_OUT)
        if proxy is None:
            return self._namespace.address
        return proxy.host if self.tls_server else proxy.address

    @property
    def connection_string(self) -> str:
        """A connection string with all rights, for plain AMQP."""
        rule = namespace_rule(self.configuration)
        return (
            f"Endpoint=sb://{self.plain_server.host}:{self.plain_server.port};SharedAccessKeyName={rule.name};"
            f"SharedAccessKey={rule.keys[0]};UseDevelopmentEmulator=true;"
        )

    @property
    def app_settings(self) -> dict[str, str]:
        """All app settings of the function, as its processes get them."""
        connections = Connections(
            connection_names(self._declared),
            self._namespace,
            self.connection_string,
            self.function_identity,
            self.identity_server,
            self.proxies,
        )
        settings = {
            **self.options.defaults,
            **entity_settings(self.configuration),
            **self._dataverse_settings,
            "AZURE_CLIENT_ID": self.function_identity.client_id,
            **connections.settings,
            **self.certificates.settings,
            **self._trace_settings,
            **self.options.settings,
        }
        host = read_host(self.options.app_root, Settings(settings))
        # One thread for each message that the host dispatches at once, like the deployment.
        settings.setdefault("PYTHON_THREADPOOL_THREAD_COUNT", str(host.max_concurrent_calls))
        return settings

    @property
    def _dataverse_settings(self) -> dict[str, str]:
        if self._sales is None:
            return {}
        organization = self._sales.app.organization
        return {"DATAVERSE_URL": organization.url, "DATAVERSE_ORGANIZATION_ID": organization.id}

    @property
    def operator_settings(self) -> dict[str, str]:
        """The environment of somebody who administers both sides: the function's settings, another identity."""
        return {
            **self.app_settings,
            "OPERATIONS_CLIENT_ID": self.operator.client_id,
            "OPPORTUNITY_WON_SAS_KEY": posting_rule(self.configuration).keys[0],
        }

    @property
    def operator_connection(self) -> dict[str, str]:
        """The settings by which another program, such as a consumer, connects to Service Bus as the operator.

        Its connection is its own: the function's faults do not concern it.
        """
        connections = Connections(
            (), self._namespace, self.connection_string, self.operator, self.identity_server, {}
        )
        return {**connections.settings, "AZURE_CLIENT_ID": self.operator.client_id}

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
        }
        connections = {CONNECTION, *connection_names(self._declared)}
        values |= {
            name: value
            for name, value in self.app_settings.items()
            if not belongs_to_connection(name, connections)
        }
        values |= dict.fromkeys(connections, self.connection_string)
        return {"IsEncrypted": False, "Values": values}

    def move_broker_clock(self, by: timedelta) -> None:
        """Let time pass for Service Bus alone: locks, ages, windows and schedules."""
        self.broker_clock.advance(by)
        self._namespace.wake()

    def restart_service_bus(self) -> None:
        """Stop Service Bus's servers and start them where they were; messages and locks stay as they are."""
        self._namespace.restart()

    def kill_workers(self) -> None:
        """End the function's worker processes at once; the host replaces them."""
        if self.host is not None:
            self.host.kill_workers()

    # Starting, in this order; stopping is the reverse

    def _start_tracing(self, closing: ExitStack) -> None:
        if self.spans is not None:
            receiver = OtlpReceiver(self.spans)
            receiver.start()
            closing.callback(receiver.stop)
            self._trace_settings = receiver.settings

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
        self._authenticator = Authenticator(
            self.configuration,
            verify_token=self.authority.verify,
            role_assignments=[RoleAssignment(self.operator.client_id, Role.OWNER)],
        )
        plan = self.options.faults
        faults = PlannedFaults(self.broker, plan, self._comes_by_proxy) if plan else None
        self._namespace = NamespaceServer(self.broker, self._authenticator, self.certificates, faults)
        self._namespace.start_plain(closing, standard_port=self.options.standard_ports)
        if self.options.mode is Mode.IDENTITY:
            self._namespace.start_tls(closing)

    def _comes_by_proxy(self, peer: tuple[str, int]) -> bool:
        """Return whether a client is the function or its host: they connect through the proxies."""
        return any(proxy.carries(peer) for proxy in self.proxies.values())

    def _start_dataverse(self, closing: ExitStack) -> None:
        if not self.options.dataverse:
            return
        poster = ServiceEndpointPoster(self.trust)
        closing.callback(poster.close)
        clock, limits = SystemClock(), self.options.limits
        app = DataverseApp(
            self.authority.verify,
            clock=clock,
            # Readers see what is committed while somebody writes, like in Dataverse.
            directory=self.folder,
            post=self._posting(poster),
            protection=ServiceProtection(clock, limits) if limits else None,
        )
        closing.callback(app.close)
        server = DataverseServer(
            app,
            self.certificates.server_context("127.0.0.1", "localhost"),
            middleware=lambda app: self.options.dataverse_middleware(self._faulty_dataverse(app)),
        )
        server.start()
        closing.callback(server.stop)
        demo = seed.demo_organization(app, self.options.opportunities, seed=self.options.seed)
        self._sales = Sales(app, server, demo)

    def _posting(self, post: Post) -> Post:
        """Let Dataverse post past the proxy in front of Service Bus: the faults there are the function's."""

        def post_directly(
            endpoint: ServiceEndpoint, body: bytes, properties: Mapping[str, str], content_type: str
        ) -> None:
            address = endpoint.namespace_address.replace(self._public_address, self._namespace.address)
            post(replace(endpoint, namespace_address=address), body, properties, content_type)

        return post_directly

    def _set_up_dataverse(self, _: ExitStack) -> None:
        """Give the operator and the function access, before any fault strikes."""
        if self._sales is None:
            return
        app, plan = self._sales.app, self.options.faults
        with plan.suspended() if plan else nullcontext():
            seed.add_administrator(app, self.operator.client_id, self.operator.object_id)
            if self.options.connect_with:
                connect_with(self.options.connect_with, self.function_identity, self.operator_settings)
            elif self.options.connected:
                rule = posting_rule(self.configuration)
                connect(app, self.function_identity, f"sb://{self._public_address}/", rule)

    def _faulty_dataverse(self, application: "WSGIApplication") -> "WSGIApplication":
        plan = self.options.faults
        if plan is None:
            return application

        def is_the_function(environ: "WSGIEnvironment") -> bool:
            # Nobody else uses the proxy.
            proxy = self.proxies.get(Dependency.DATAVERSE)
            return proxy is not None and environ.get("HTTP_HOST") == proxy.address

        return faulty_dataverse(application, plan, concerns=is_the_function)

    def _start_faults(self, closing: ExitStack) -> None:
        """Put a proxy in front of each server, and give the plan what no connection can do by itself."""
        plan = self.options.faults
        if plan is None:
            return
        closing.callback(plan.clear)
        plan.provide(FaultKind.KILL, self.kill_workers)
        plan.provide(FaultKind.RESTART, self.restart_service_bus)
        urls = {Dependency.IDENTITY: self.identity_server.endpoint}
        if self._sales is not None:
            urls[Dependency.DATAVERSE] = self._sales.server.url
        self.proxies = start_proxies(plan, urls, self._namespace, closing)
        if self._sales is not None:
            # Tokens for it, and its events, name the address under which the function knows it.
            self._sales.app.organization.url = f"https://{self.proxies[Dependency.DATAVERSE].address}"

    def _read_declarations(self, _: ExitStack) -> None:
        """Find out what the app declares: it decides about connections and roles."""
        self._declared = declarations(App(self.options.app_root.resolve(), self.app_settings))
        self._authenticator.assign(
            *function_roles(
                self.configuration, self._declared, self.app_settings, self.function_identity.client_id
            )
        )

    def _start_functions_host(self, closing: ExitStack) -> None:
        if not self.options.functions_host:
            return
        self.host = FunctionsHost(
            self.options.app_root,
            self.app_settings,
            self.broker_clock,
            self._invoked,
            declared=self._declared,
            export_span=self.spans.add if self.spans is not None else None,
            debug_port=self.options.debug_port,
        )
        closing.callback(self.host.stop)
        self.host.start()

    def _invoked(self, worker: WorkerProcess) -> None:
        plan = self.options.faults
        # There is no other fault on this connection than a kill.
        if plan is not None and plan.strike(Dependency.FUNCTIONS_HOST, "invoke", f"worker {worker.pid}"):
            worker.kill()
