"""The checks in Service Bus over AMQP: do the entities exist, may they be used, what has piled up.

Links are opened and closed again, messages are peeked: nothing is sent, received or locked.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from datetime import timedelta
from enum import Enum
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import ServiceBusMessageState
from azure.servicebus.exceptions import (
    MessagingEntityDisabledError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
)

from operations.background import in_background
from operations.diagnosis.check import (
    Checked,
    CheckFailed,
    Inconclusive,
    Result,
    RightMissing,
    State,
    check,
    found,
    judged,
    ok,
)
from operations.diagnosis.connections import service_bus_connection, service_bus_token, settings
from operations.diagnosis.findings import Finding
from operations.messages import MessageInfo
from operations.namespace import AUDIT, NamespaceClient, Place, ServiceBusTimeout, Source
from operations.trouble import is_entity_missing
from shared.bounded_call import BoundedCalls
from shared.deadline_socket import CallTimeout
from shared.service_bus import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from azure.servicebus import ServiceBusClient

    from operations.diagnosis.check import Run
    from operations.diagnosis.connections import Context
    from shared.clock import Deadline

_calls = BoundedCalls("service bus", 32)
# Messages that are counted at most.
MAX_MESSAGES = 250
_OLD = timedelta(minutes=30)
_REFUSALS = (MessagingEntityDisabledError, ServiceBusAuthenticationError, ServiceBusAuthorizationError)


class Right(Enum):
    """What can be done with an entity, the role that allows it, and what it is when the function lacks it."""

    RECEIVE = "receive", "Azure Service Bus Data Receiver", Finding.NO_RIGHT_TO_RECEIVE
    SEND = "send", "Azure Service Bus Data Sender", Finding.NO_RIGHT_TO_SEND

    def __init__(self, verb: str, role: str, finding: Finding) -> None:
        self.verb = verb
        self.role = role
        self.finding = finding


class Entity(Enum):
    """A queue or topic: its kind and place in infrastructure/entities.json, and the rights that the function needs."""

    # The function receives from it and sends retries to it.
    QUEUE = "queues", 0, (Right.RECEIVE, Right.SEND)
    FAILED_QUEUE = "queues", 1, (Right.SEND,)
    TOPIC = "topics", 0, (Right.SEND,)

    def __init__(self, kind: str, place: int, rights: tuple[Right, ...]) -> None:
        self.kind = kind
        self.place = place
        self.rights = rights

    def name_in(self, run: Run) -> str:
        """Return its name in the settings."""
        names = run[settings].service_bus
        if self is Entity.TOPIC:
            return names.invoice_created_topic
        return names.opportunity_won_queue if self is Entity.QUEUE else names.failed_queue


@check("queue", settings, service_bus_token, service_bus_connection)
def queue(run: Run) -> Checked[None]:
    """Check the queue of wins."""
    return _check_entity(run, Entity.QUEUE)


@check("failed queue", settings, service_bus_token, service_bus_connection)
def failed_queue(run: Run) -> Checked[None]:
    """Check the failed queue. Operators do not park messages, they read them."""
    return _check_entity(run, Entity.FAILED_QUEUE, of_operators=(Right.RECEIVE,))


@check("topic", settings, service_bus_token, service_bus_connection)
def topic(run: Run) -> Checked[None]:
    """Check the topic, to which the function publishes.

    Publishing is a role of its own: operators and the pipeline's login read the subscription for operators instead.
    """
    name = Entity.TOPIC.name_in(run)
    checked = _check_entity(run, Entity.TOPIC)
    if all(result.state is not State.CANNOT_SEE for result in checked.results):
        return checked
    if _refusal(run, f"{name}/Subscriptions/{AUDIT}", Right.RECEIVE) is not None:
        return checked
    return ok(_seen(name, f"receive from {AUDIT}"))


def _check_entity(run: Run, entity: Entity, of_operators: tuple[Right, ...] = ()) -> Checked[None]:
    """Check whether an entity exists and may be used as the function does; operators may try other ways as well."""
    is_function, name, rights = run[service_bus_token].is_function, entity.name_in(run), entity.rights
    tried = rights if is_function else rights + of_operators
    # At the same time: each may take as long as the check.
    attempts = {right: in_background("doctor", partial(_refusal, run, name, right)) for right in tried}
    refusals = {right: attempt.result() for right, attempt in attempts.items()}
    closed = [right for right in rights if isinstance(refusals[right], MessagingEntityDisabledError)]
    if closed == [Right.RECEIVE]:
        return found(Finding.QUEUE_PAUSED, f"{name} accepts messages and delivers none")
    if closed:
        raise CheckFailed(Finding.ENTITY_DISABLED, f"{name} refuses to {_verbs(closed)}")
    allowed = [right for right in tried if refusals[right] is None]
    if is_function:
        lacks = [right for right in tried if right not in allowed]
        findings = [(right.finding, f"the function may not {right.verb} ({name})") for right in lacks]
        return judged(findings, f"{name} exists, and the function may {_verbs(allowed)}")
    if allowed:
        return ok(_seen(name, _verbs(allowed)))
    unseen = (
        Result(State.CANNOT_SEE, f"your login may not {right.verb} ({name})", right=f"{right.role} on {name}")
        for right in rights
    )
    return Checked(None, tuple(unseen))


def _verbs(rights: Iterable[Right]) -> str:
    return " and ".join(right.verb for right in rights)


def _seen(name: str, allowed: str) -> str:
    return f"{name} exists, and your login may {allowed}; the function's rights are another check"


def _refusal(run: Run, name: str, right: Right) -> ServiceBusError | None:
    """Return why a link could not be opened for lack of a right, or because the entity is disabled."""
    context = run[settings]

    def open_link() -> None:
        with ExitStack() as closing:
            client = closing.enter_context(_client(context))
            link = client.get_queue_receiver if right is Right.RECEIVE else client.get_queue_sender
            closing.enter_context(link(name))

    try:
        with _errors_as_findings(name):
            # The SDK can block without end.
            _calls.run(open_link, run.deadline.remaining)
    except _REFUSALS as error:
        if isinstance(error, ServiceBusAuthenticationError) and context.has_key:
            raise CheckFailed(Finding.SERVICE_BUS_KEY_REFUSED, name) from error
        return error
    return None


def count_failed(run: Run) -> tuple[int, int]:
    """Return how many messages are in the failed queue and in its dead-letter queue, up to a bound."""
    names = run[settings].service_bus
    try:
        with _peeking(run, names.failed_queue) as namespace:
            messages, dead_letters = (
                sum(1 for _ in islice(namespace.peek_every(place.source(names)), MAX_MESSAGES))
                for place in (Place.FAILED, Place.FAILED_DEAD_LETTERS)
            )
    except MessagingEntityDisabledError as error:
        raise RightMissing(f"{names.failed_queue} is missing or disabled", "none: fix that first") from error
    return messages, dead_letters


@check("retries", settings, service_bus_token, service_bus_connection, beside=(queue,))
def retries(run: Run) -> Checked[None]:
    """Check for messages that have been retried for long."""
    name = run[settings].service_bus.opportunity_won_queue
    try:
        with _peeking(run, name) as namespace:
            old = list(_old_retries(namespace, name, run.deadline))
    except MessagingEntityDisabledError as error:
        # No right of anybody would help.
        raise Inconclusive(Result(State.NOT_CHECKED, f"because {name} is paused")) from error
    if not old:
        return ok("no retry is older than 30 minutes")
    age, reason = max(old)
    hours = age.total_seconds() / 3600
    return found(Finding.RETRIES_OLD, f"{len(old)}, the oldest for {hours:.1f} h with the reason {reason}")


def _old_retries(
    namespace: NamespaceClient, queue_name: str, deadline: Deadline
) -> Iterator[tuple[timedelta, str]]:
    """Yield age and reason of old retries, for as long as there is time: in a backlog the oldest come first."""
    for message in namespace.peek_all(Source(queue_name)):
        if deadline.remaining <= 1.0:
            return
        if message.state == ServiceBusMessageState.SCHEDULED:
            seen = MessageInfo.of(message)
            if seen.age is not None and seen.age > _OLD:
                yield seen.age, seen.reason


@contextmanager
def _peeking(run: Run, name: str) -> Iterator[NamespaceClient]:
    """Peek messages of an entity; raises RightMissing, and MessagingEntityDisabledError."""
    context = run[settings]
    seconds = max(run.deadline.remaining, 1.0)
    namespace = NamespaceClient(context.service_bus, lambda: _client(context), seconds)
    try:
        with _errors_as_findings(name):
            yield namespace
    except (ServiceBusAuthenticationError, ServiceBusAuthorizationError) as error:
        whose = "the function" if run[service_bus_token].is_function else "your login"
        raise RightMissing(f"{whose} may not read {name}", f"{Right.RECEIVE.role} on {name}") from error
    finally:
        namespace.close()


@contextmanager
def _errors_as_findings(name: str) -> Iterator[None]:
    """Raise the finding that an error of the SDK is; a refusal, which can also mean less, is raised as it is."""
    try:
        yield
    except (CallTimeout, ServiceBusTimeout) as error:
        raise CheckFailed(Finding.SERVICE_BUS_SILENT, "no response over AMQP in time") from error
    except ClientAuthenticationError as error:
        raise CheckFailed(Finding.TOKEN_UNAVAILABLE, type(error).__name__) from error
    except (ServiceBusError, OSError) as error:
        if is_entity_missing(error):
            raise CheckFailed(Finding.ENTITY_MISSING, name) from error
        if isinstance(error, _REFUSALS):
            raise
        # Only the kind: the text of an AMQP error can hold addresses with signatures.
        raise CheckFailed(Finding.SERVICE_BUS_UNAVAILABLE, type(error).__name__) from error


def _client(context: Context) -> ServiceBusClient:
    return connect(context.service_bus, lambda one: context.identity(one.client_id))
