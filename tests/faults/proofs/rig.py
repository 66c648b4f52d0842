"""The deployed code as it is, in one process: Dataverse by a requests adapter, Service Bus by the broker's rules.

A `World` has the sandbox's Dataverse and broker, a simulated Functions host with worker processes, and the function as
its own composition root builds it; time and turns are the simulation's. Every call asks the sandbox's fault plan first.
What happens in a world is left to `situations` and `outage`, whether it was right to `checker`.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import requests
from adapter_exchange import AdapterExchange
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from published_event import validate_event

from proofs.checker import FAILED_QUEUE, QUEUE, TOPIC, Request, Violation, Watch, body_of
from proofs.simulation import Killed, Simulation
from sandbox.clock import MovableClock
from sandbox.dataverse import DataverseApp, Depth, ServiceProtection, seed
from sandbox.dataverse.schema import TABLES
from sandbox.faults import Dependency, Fault, FaultKind, FaultPlan, FaultRule, When
from sandbox.faults.dataverse import faulty_dataverse
from sandbox.faults.http import FaultyAdapter
from sandbox.identity import Claims
from sandbox.service_bus import Broker, Configuration
from sandbox.service_bus import Message as BrokerMessage
from sandbox.service_bus.errors import MessageLockLost
from shared.bootstrap import build
from shared.credential import Identity
from shared.dataverse import Dataverse
from shared.errors import ServiceBusUnavailable, TokenUnavailable
from shared.message import Message
from shared.service_bus import NotSent, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from proofs.simulation import Actor
    from sandbox.dataverse import ServiceEndpoint
    from sandbox.service_bus import BrokeredMessage
    from shared.clock import Deadline
    from shared.handler import Handler

START = datetime(2026, 3, 2, 8, tzinfo=UTC)
URL = "https://sandbox.crm.dynamics.com"
_CLIENT = "0a6f4b0e-51c5-4f0c-8d53-6c1f7e0b9a11"
# The steps that say in one way or another that an opportunity was won: message, table.
STEPS = (
    ("Win", "opportunity"),
    ("Update", "opportunity"),
    ("SetState", "opportunity"),
    ("SetStateDynamicEntity", "opportunity"),
    ("Create", "opportunityclose"),
)
SETTINGS = {
    "ServiceBusConnection": "Endpoint=sb://sandbox/;SharedAccessKeyName=none;SharedAccessKey=none",
    "OPPORTUNITY_WON_QUEUE": QUEUE,
    "OPPORTUNITY_WON_FAILED_QUEUE": FAILED_QUEUE,
    "INVOICE_CREATED_TOPIC": TOPIC,
    "DATAVERSE_URL": URL,
    "AZURE_CLIENT_ID": _CLIENT,
    "DATAVERSE_ORGANIZATION_ID": seed.ORGANIZATION_ID,
}
# As in host.json, and the queue's lock renewed before it ends.
_FUNCTION_TIMEOUT = 300.0
_RENEW_EVERY = 40.0
# The sender's own bound of one try, and that of fetching a token.
_TRY = 15.0
_FETCH = 20.0
_SCOPE = f"{URL}/.default"
# Real seconds for what takes microseconds.
_JOIN = 10.0
_MAX_THROTTLE = timedelta(minutes=15)


@dataclass(frozen=True)
class Organization:
    """A Dataverse to start from: its rows as an image, the function's user, and what and to whom it sells."""

    image: bytes
    function_user: str
    demo: seed.DemoOrganization
    steps: Mapping[str, str]


# What a role of lesser depth cannot see: invoices of others.
LESSER_DEPTH = dict.fromkeys(seed.INVOICING_PRIVILEGES, Depth.GLOBAL) | {"prvReadInvoice": Depth.BASIC}


@lru_cache(maxsize=8)
def organization(opportunities: int, *, lesser_depth: bool = False, won: bool = False) -> Organization:
    """Make it once per process, the same in every one: each world begins with a copy."""
    chance = Random(opportunities)  # noqa: S311 - to be repeatable, not secret
    app = DataverseApp(_verify, url=URL, clock=MovableClock(START), new_id=lambda: _guid(chance))
    demo = seed.demo_organization(app, opportunities, accounts=2, contacts=1)
    role = seed.add_role(app, LESSER_DEPTH if lesser_depth else seed.INVOICING_PRIVILEGES)
    user = seed.add_application_user(app, _CLIENT, roles=[role])
    endpoint = seed.add_service_endpoint(app, namespace_address="sb://sandbox/", path=QUEUE)
    steps = {f"{message}/{table}": seed.add_step(app, endpoint, message, table) for message, table in STEPS}
    with app.session() as session:
        for step in steps.values():
            session.transaction.update(TABLES["sdkmessageprocessingstep"], step, {"statecode": 1})
        for opportunity in demo.opportunities if won else ():
            session.transaction.update(TABLES["opportunity"], opportunity, {"statecode": 1, "statuscode": 3})
    image = app.database.image()
    app.close()
    return Organization(image, user, demo, steps)


def _guid(chance: Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


def _verify(token: str, audiences: object) -> Claims:  # noqa: ARG001 - the protocol
    return Claims(_CLIENT, _CLIENT, _CLIENT, URL, datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True)
class Shape:
    """What a world is made of.

    `latency` (seconds) is what each call takes; `concurrency` is a worker's. The workers' clocks are slow by
    `clock_behind`, tokens are valid for `token_lifetime`.
    """

    organization: Organization
    workers: int = 1
    concurrency: int = 16
    latency: float = 0.0
    tick: float = 1.0
    clock_behind: timedelta = timedelta()
    token_lifetime: timedelta = timedelta(hours=24)
    settings: Mapping[str, str] = field(default_factory=dict)


class World:
    """Everything of one history. `protect` gives Dataverse limits. Close it in the end."""

    def __init__(
        self,
        random: Random,
        shape: Shape,
        protect: Callable[[Simulation], ServiceProtection] | None = None,
    ) -> None:
        self.random = random
        self.shape = shape
        self.simulation = Simulation(random, START, shape.tick)
        self.plan = FaultPlan(clock=self.simulation)
        self.plan.provide(FaultKind.KILL, self._kill_current)
        self.broker = Broker(_configuration(), self.simulation, new_lock_token=lambda: UUID(self.new_id()))
        self.watch = Watch(self.broker, validate_event)
        self.app = DataverseApp(
            _verify,
            url=URL,
            clock=self.simulation,
            image=shape.organization.image,
            post=self.post,
            new_id=self.new_id,
            protection=protect(self.simulation) if protect else None,
        )
        self.requests: list[Request] = []
        self.checks = _Checks()
        self.counts: Counter[str] = Counter()
        self.plug_ins: list[FaultPlan] = []
        # What the world itself sees broken.
        self.violations: list[Violation] = []
        # By which the messages of a win are recognised, to count how many are handled at once.
        self.marks: Sequence[bytes] = ()
        # Whether Dataverse sets a message id is not confirmed: it does or does not, history by history. Others who send
        # may have ids of their own.
        self.message_id: Callable[[], str | None] = self.new_id
        # Ids of opportunities and invoices of whose requests an assignment, or what decides about it, failed.
        self.disturbed: set[str] = set()
        self.lost_posts = 0
        self.host = _Host(self)
        self._dataverse = faulty_dataverse(self.app, self.plan, self._wait)
        # Numbers of requests and responses, in their order.
        self.calls = itertools.count(1)
        self._closing: list[Dataverse] = []

    def run(self, between: Callable[[], None] = lambda: None, **bounds: Any) -> bool:  # noqa: ANN401 - see Simulation.run
        """Let things happen until rest, or until a bound of `Simulation.run`; return whether it is at rest."""

        def all_others() -> None:
            between()
            self.broker.catch_up()
            self.host.pump()

        return self.simulation.run(all_others, self.broker.next_event, **bounds)

    def dataverse(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Be Dataverse's Web API, with the faults of the plan and of plug-ins."""
        return self._dataverse(environ, start_response)

    @property
    def idle(self) -> bool:
        """Whether no message is being handled, and none is to come."""
        return self.simulation.idle and self.broker.next_event() is None

    def close(self) -> None:
        """Close the connections and the database."""
        for dataverse in self._closing:
            dataverse.close()
        self.app.close()

    def post(
        self, endpoint: ServiceEndpoint, body: bytes, properties: Mapping[str, str], content_type: str
    ) -> None:
        """Send an event of Dataverse to the queue, at least once."""
        message_id = self.message_id()
        self.broker.send(
            endpoint.path,
            BrokerMessage(
                body=body,
                message_id=message_id,
                content_type=content_type,
                application_properties=dict(properties),
            ),
        )
        self.counts["messages posted"] += 1
        if self.lost_posts:
            self.lost_posts -= 1
            self.counts["posts repeated"] += 1
            self.simulation.at(3, self.deliver_posts)
            raise ConnectionResetError("the response to a post was lost")

    def add_plug_in(self, opportunity_id: str, fault: Fault, when: When) -> FaultPlan:
        """Let a plug-in fail when the invoice of this opportunity is generated; before the first worker starts."""
        marks = (b"GenerateInvoiceFromOpportunity", opportunity_id.encode())
        return self._add_plug_in(marks, FaultRule(Dependency.DATAVERSE, fault, when))

    def add_assign_plug_in(self, fault: Fault) -> None:
        """Let a plug-in fail when an invoice is assigned; before the first worker starts."""
        self._add_plug_in((_ASSIGNMENT,), FaultRule(Dependency.DATAVERSE, fault))

    def _add_plug_in(self, marks: Sequence[bytes], rule: FaultRule) -> FaultPlan:
        plan = FaultPlan([rule], clock=self.simulation)

        def concerns(environ: WSGIEnvironment) -> bool:
            body: bytes = environ["wsgi.input"].getvalue()
            return all(mark in body for mark in marks)

        self._dataverse = faulty_dataverse(self._dataverse, plan, self._wait, concerns)
        self.plug_ins.append(plan)
        return plan

    def deliver_posts(self) -> None:
        """Let Dataverse post what is due."""
        self.app.run_due_jobs()

    # --- what surrounds the deployed code ---

    def worker(self, name: str) -> Handler:
        """Build the deployed code like a new worker process."""
        chance = self.random.random
        exchange = AdapterExchange(URL, _Adapter(self, name))
        clock = _WorkerClock(self.simulation, self.shape.clock_behind)
        dataverse = Dataverse(URL, tokens=_Tokens(self, name), clock=clock, random=chance, exchange=exchange)
        self._closing.append(dataverse)
        return build(
            {**SETTINGS, **self.shape.settings},
            clock=clock,
            random=chance,
            sender=_Sender(self),
            dataverse=dataverse,
        )

    def _wait(self, seconds: float) -> None:
        actor = self.simulation.current
        self.simulation.sleep(min(seconds, actor.timeout if actor else seconds))

    def _kill_current(self) -> None:
        actor = self.simulation.current
        if actor is not None:
            self.host.kill_worker_of(actor)
        raise Killed

    def new_id(self) -> str:
        """Return a GUID, the same one for the same history."""
        return _guid(self.random)


@lru_cache(maxsize=1)
def _configuration() -> Configuration:
    return Configuration.load()


@dataclass(frozen=True)
class _WorkerClock:
    """A worker's clock, which may be slow; that of durations is right."""

    simulation: Simulation
    behind: timedelta

    def monotonic(self) -> float:
        return self.simulation.monotonic()

    def now(self) -> datetime:
        return self.simulation.now() - self.behind

    def sleep(self, seconds: float) -> None:
        self.simulation.sleep(seconds)


class _IdentityEndpoint:
    """Issues the tokens of one worker process, each of them asked of the fault plan."""

    def __init__(self, world: World, process: str) -> None:
        self._world = world
        self._process = process
        self.silent = 0.0
        self.valid_until = 0.0
        self._issued = 0

    def get_token(self, *_: object, **__: object) -> AccessToken:
        world = self._world
        fault = world.plan.strike(Dependency.IDENTITY, "token")
        if fault is not None:
            self.silent = fault.seconds if fault.kind is FaultKind.SILENT else 0.0
            raise ClientAuthenticationError("The sandbox's identity endpoint issues no token.")
        self._issued += 1
        expires = world.simulation.now() + world.shape.token_lifetime
        self.valid_until = expires.timestamp()
        world.counts["tokens issued"] += 1
        # No header can hold a token with a space.
        token = f"token-{self._issued}-of-{self._process}".replace(" ", "-")
        return AccessToken(token, int(self.valid_until))


class _Tokens:
    """The identity of one worker process, on a simulated endpoint: fetching in the background takes no turn."""

    def __init__(self, world: World, process: str) -> None:
        self._world = world
        self._endpoint = _IdentityEndpoint(world, process)
        self._identity = Identity(lambda _: self._endpoint, now=lambda: world.simulation.now().timestamp())

    def token(self, deadline: Deadline) -> str:
        world, endpoint = self._world, self._endpoint
        endpoint.silent = 0.0
        try:
            token = self._identity.token(_SCOPE, _FETCH)
        except TokenUnavailable:
            if endpoint.valid_until > world.simulation.now().timestamp() + _FETCH * 4:
                left = endpoint.valid_until - world.simulation.now().timestamp()
                world.violations.append(Violation("a valid token is used", f"one had {left:.0f} s left."))
            if endpoint.silent:
                world.simulation.sleep(min(endpoint.silent, deadline.remaining, _FETCH))
            raise
        finally:
            self._join()
        if endpoint.silent:
            world.counts["tokens kept while the endpoint is silent"] += 1
        return token

    def renewed(self, refused: str, deadline: Deadline) -> str | None:  # noqa: ARG002 - the protocol
        try:
            return self._identity.renewed(_SCOPE, refused, _FETCH)
        finally:
            self._join()

    def _join(self) -> None:
        """Wait until nothing is fetched in the background, so that a history is the same each time."""
        end = time.monotonic() + _JOIN
        while self._identity._fetches and time.monotonic() < end:
            time.sleep(0.0002)


class _Adapter(FaultyAdapter):
    """Dataverse for one worker: other actors may have a turn before the request and before the response."""

    def __init__(self, world: World, process: str) -> None:
        super().__init__(world.dataverse)
        self._world = world
        self._process = process

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - requests' own
        world = self._world
        sent, at = next(world.calls), world.simulation.now()
        actor = world.simulation.current
        if actor is not None:
            actor.timeout = kwargs["timeout"][1]
        world.simulation.sleep(world.shape.latency) if world.shape.latency else world.simulation.pause()
        world.counts["requests"] += 1
        for change in world.checks.asked(actor, request):
            world.counts[f"user: {change}, between check and call"] += 1
        try:
            response = super().send(request, *args, **kwargs)
            if response.status_code != HTTPStatus.UNAUTHORIZED:
                # After that one the same request is sent again at once, with a new token.
                world.checks.responded(actor)
        except requests.RequestException:
            if _ASSIGNMENT in _bytes(request.body):
                world.disturbed.update(_ids_in(request))
            raise
        finally:
            world.simulation.pause()
        if not response.ok or _FAILED_PART.search(response.content):
            world.disturbed.update(_ids_in(request))
        until = _throttled_until(response, world.simulation.now())
        world.requests.append(Request(self._process, sent, at, next(world.calls), until))
        return response


_ASSIGNMENT = b"ownerid@odata.bind"
_FAILED_PART = re.compile(rb"^HTTP/1.1 [45]", re.MULTILINE)
_IDS = re.compile(rb"(?:invoices|opportunities)\(([0-9a-f-]{36})\)")


def _ids_in(request: requests.PreparedRequest) -> set[str]:
    return {found.decode() for found in _IDS.findall(_bytes(request.body))}


def _bytes(body: object) -> bytes:
    return body if isinstance(body, bytes) else b""


class _Checks:
    """Which invocations have checked an opportunity and may still call, and what users did to it in between."""

    def __init__(self) -> None:
        self._open: dict[Actor, _Check] = {}

    def asked(self, actor: Actor | None, request: requests.PreparedRequest) -> Sequence[str]:
        """Note a request that is sent; return what users did since the check, if it is the call."""
        if actor is None:
            return ()
        body = request.body if isinstance(request.body, bytes) else b""
        if b"GenerateInvoiceFromOpportunity" not in body:
            self._open.pop(actor, None)
            if b"opportunities(" in body:
                self._open[actor] = _Check(body)
            return ()
        check = self._open.get(actor)
        if check is None:
            return ()
        done, check.done = check.done, []
        check.called = True
        return done

    def responded(self, actor: Actor | None) -> None:
        """Note that the last request of an actor was carried out, and that its response has arrived."""
        check = self._open.get(actor) if actor is not None else None
        if check is None or actor is None:
            return
        check.responded = True
        if check.called:
            del self._open[actor]

    def changed_by_user(self, mark: str, what: str) -> None:
        """Note what a user did to an opportunity."""
        for check in self._of(mark):
            if check.responded and not check.called:
                check.done.append(what)

    def checked(self, mark: str) -> bool:
        """Whether an invocation has checked an opportunity, and has not called yet."""
        return any(check.responded and not check.called for check in self._of(mark))

    def may_call(self, mark: str) -> bool:
        """Whether an invocation that is checking or has checked may still call, or its call may have failed."""
        return any(self._of(mark))

    def _of(self, mark: str) -> Iterator[_Check]:
        return (check for actor, check in self._open.items() if actor.alive and mark.encode() in check.about)


@dataclass
class _Check:
    """A check of an opportunity, which `about` names. `called`: the call was sent, with or without a response."""

    about: bytes
    responded: bool = False
    called: bool = False
    done: list[str] = field(default_factory=list)


def _throttled_until(response: requests.Response, now: datetime) -> datetime | None:
    """Return what a 429 asks for: that of the whole response or of a part of it."""
    if response.status_code == 429:
        values = [response.headers.get("Retry-After", "")]
    elif not response.content.rstrip().endswith(b"--"):
        # Not a whole batch: its parts may be incomplete.
        values = []
    else:
        # Only exceeded limits concern the process; any other 429 comes from a plug-in and concerns one record.
        throttled = [part.split(b"\r\n--")[0] for part in response.content.split(b"HTTP/1.1 429")[1:]]
        parts = [part for part in throttled if b'"0x8007232' in part]
        found = [re.search(rb"Retry-After: ([^\r\n]*)", part.split(b"\r\n\r\n")[0]) for part in parts]
        values = [match[1].decode() for match in found if match]
    times = [_moment(value, now) for value in values]
    return max((time for time in times if time is not None), default=None)


def _moment(value: str, now: datetime) -> datetime | None:
    """Read a Retry-After; what is beyond a quarter of an hour may be cut there."""
    try:
        moment = now + timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
    return min(moment, now + _MAX_THROTTLE)


class _Sender:
    """Outbound Service Bus, by the broker's own rules."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._scheduled: set[str] = set()

    def warm_up(self, entity: str) -> None:
        """Do nothing: there are no links."""

    def send(self, entity: str, outgoing: Outgoing, deadline: Deadline) -> None:
        world = self._world
        if outgoing.due is not None and outgoing.message_id not in self._scheduled:
            # A send that fails is repeated, and may then come later than the retry is due.
            self._scheduled.add(outgoing.message_id)
            self._check_due(outgoing.due)
        world.simulation.pause()
        operation = f"{'schedule' if outgoing.due else 'send'}:{entity}"
        fault = world.plan.strike(Dependency.SERVICE_BUS_OUT, operation)
        if fault is None:
            self._accept(entity, outgoing)
        else:
            self._strike(fault, entity, outgoing, min(deadline.remaining, _TRY))
        world.simulation.pause()

    def _strike(self, fault: Fault, entity: str, outgoing: Outgoing, patience: float) -> None:
        world = self._world
        if fault.after or fault.kind is FaultKind.DELAY:
            self._accept(entity, outgoing)
        if fault.kind is FaultKind.KILL:
            world.plan.carry_out(FaultKind.KILL)
        if fault.kind in (FaultKind.SILENT, FaultKind.SWALLOW, FaultKind.DELAY):
            world.simulation.sleep(min(fault.seconds, patience))
        if fault.kind is not FaultKind.DELAY or fault.seconds > patience:
            raise NotSent(f"the sandbox's fault: {fault}")

    def _accept(self, entity: str, outgoing: Outgoing) -> None:
        self._world.broker.send(
            entity,
            BrokerMessage(
                body=outgoing.body,
                message_id=outgoing.message_id,
                correlation_id=outgoing.correlation_id,
                subject=outgoing.subject,
                content_type=outgoing.content_type,
                scheduled_enqueue_time=outgoing.due,
                application_properties=dict(outgoing.properties),
            ),
        )

    def _check_due(self, due: datetime) -> None:
        """Note a retry that is due before the time that its message shows of the broker."""
        world = self._world
        late = timedelta()
        for invocation in world.host.invocations:
            if invocation.actor is world.simulation.current:
                late = invocation.begun - invocation.message.enqueued_at
        if due < world.simulation.now() - late:
            early = (world.simulation.now() - due).total_seconds()
            world.violations.append(Violation("no retry is due in the past", f"one was by {early:.0f} s."))


@dataclass(eq=False)
class _Invocation:
    """A message that a worker handles since `begun`; `settling`: the worker has returned, the rest is the host's."""

    actor: Actor
    worker: int
    message: BrokeredMessage
    begun: datetime
    settling: bool = False


class _Host:
    """The Functions host: receives, invokes, completes or abandons; renews locks; ends what takes too long."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._handlers: list[Handler] = []
        self._names = (f"worker {number}" for number in itertools.count(1))
        self.invocations: list[_Invocation] = []
        self.timeouts = 0
        self.closed = False

    def pump(self) -> None:
        """Receive what is available, up to the concurrency of the workers."""
        world = self._world
        while not self.closed and len(self.invocations) < world.shape.concurrency * world.shape.workers:
            received = world.broker.receive(QUEUE)
            if not received:
                return
            self._invoke(received[0])

    def kill_worker_of(self, actor: Actor) -> None:
        """End the worker process in which an actor runs; the host abandons its messages."""
        self._kill(next(each.worker for each in self.invocations if each.actor is actor))

    def crash(self) -> None:
        """End the host with all its workers: nobody settles anything, the locks expire."""
        self._world.counts["host crashes"] += 1
        doomed = list(self.invocations)
        self.invocations.clear()
        self._handlers.clear()
        self._world.simulation.kill(each.actor for each in doomed)

    def _invoke(self, message: BrokeredMessage) -> None:
        world = self._world
        while len(self._handlers) < world.shape.workers:
            self._handlers.append(world.worker(next(self._names)))
        worker = world.random.randrange(len(self._handlers))
        world.counts["deliveries"] += 1
        bodies = [body_of(invocation.message) for invocation in self.invocations]
        if any(mark in body_of(message) and mark in body for mark in world.marks for body in bodies):
            world.counts["deliveries of a win while another is handled"] += 1
        fault = world.plan.strike(Dependency.SERVICE_BUS_IN, f"deliver:{QUEUE}")
        invocation: _Invocation
        actor = world.simulation.spawn(
            f"delivery {world.counts['deliveries']}", lambda: self._work(invocation, self._handlers[worker])
        )
        invocation = _Invocation(actor, worker, message, world.simulation.now())
        self.invocations.append(invocation)
        if fault is not None and fault.kind is FaultKind.LOCK_LOST:
            world.broker.abandon(QUEUE, _token(message))
        elif fault is not None and fault.kind is FaultKind.DUPLICATE:
            world.broker.send(QUEUE, replace(message.message, message_id=None, scheduled_enqueue_time=None))
        world.simulation.at(
            _RENEW_EVERY, lambda: self._renew(invocation), lambda: invocation in self.invocations
        )
        world.simulation.at(
            _FUNCTION_TIMEOUT,
            lambda: self._time_out(invocation),
            lambda: invocation in self.invocations and not invocation.settling,
        )

    def _work(self, invocation: _Invocation, handler: Handler) -> None:
        world = self._world
        message = invocation.message
        invocation.begun = world.simulation.now()
        settle = world.broker.complete
        try:
            handler.handle(as_delivered(message))
        except ServiceBusUnavailable:
            world.counts["invocations that raised"] += 1
            settle = world.broker.abandon
        except Exception as error:  # noqa: BLE001 - any is a bug: noted, and abandoned like by the host
            what = f"{type(error).__name__}: {error}"
            world.violations.append(Violation("nothing unforeseen is raised", what))
            settle = world.broker.abandon
        invocation.settling = True
        world.simulation.pause()
        self._settle(message, settle)
        if invocation in self.invocations:
            self.invocations.remove(invocation)

    def _settle(self, message: BrokeredMessage, settle: Callable[..., None]) -> None:
        world = self._world
        fault = world.plan.strike(Dependency.SERVICE_BUS_IN, f"settle:{QUEUE}")
        if fault is not None and not fault.after:
            return
        try:
            settle(QUEUE, _token(message))
        except MessageLockLost:
            world.counts["locks lost"] += 1

    def _kill(self, worker: int) -> None:
        world = self._world
        world.counts["workers killed"] += 1
        doomed = [each for each in self.invocations if each.worker == worker and not each.settling]
        self.invocations = [each for each in self.invocations if each not in doomed]
        self._handlers[worker] = world.worker(next(self._names))
        world.simulation.kill(each.actor for each in doomed)
        for each in doomed:
            self._settle(each.message, world.broker.abandon)

    def _renew(self, invocation: _Invocation) -> None:
        world = self._world
        try:
            world.broker.renew_lock(QUEUE, _token(invocation.message))
        except MessageLockLost:
            return
        world.simulation.at(
            _RENEW_EVERY, lambda: self._renew(invocation), lambda: invocation in self.invocations
        )

    def _time_out(self, invocation: _Invocation) -> None:
        self.timeouts += 1
        self._kill(invocation.worker)


def as_delivered(message: BrokeredMessage) -> Message:
    """Return a message of the broker as the Functions host shows it."""
    inner = message.message
    return Message(
        body=body_of(message),
        message_id=inner.message_id,
        sequence_number=message.sequence_number,
        enqueued_at=message.enqueued_at,
        content_type=inner.content_type,
        correlation_id=inner.correlation_id,
        subject=inner.subject,
        properties=dict(inner.application_properties),
    )


def _token(message: BrokeredMessage) -> UUID:
    token = message.lock_token
    if token is None:
        raise AssertionError("A message was handed out without a lock.")
    return token


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the log lines, of which there are thousands."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
