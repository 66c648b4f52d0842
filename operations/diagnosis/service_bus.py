"""The checks in Service Bus over AMQP: do the entities exist, may they be used, what has piled up.

Links are opened and closed again, messages are peeked: nothing is sent, received or locked.
"""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

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
    from collections.abc import Callable, Iterator, Sequence

    from azure.servicebus import ServiceBusClient

    from operations.diagnosis.check import Run
    from operations.diagnosis.connections import Context
    from shared.clock import Deadline

Peeked = TypeVar("Peeked")

_calls = BoundedCalls("service bus", 32)
_MAX_MESSAGES = 250
_OLD = timedelta(minutes=30)


class Right(Enum):
    """What can be done with an entity, and the role that allows it."""

    RECEIVE = "receive", "Azure Service Bus Data Receiver"
    SEND = "send", "Azure Service Bus Data Sender"

    def __init__(self, verb: str, role: str) -> None:
        self.verb = verb
        self.role = role

    @property
    def finding(self) -> Finding:
        """What it is when the function lacks it."""
        return Finding.NO_RIGHT_TO_RECEIVE if self is Right.RECEIVE else Finding.NO_RIGHT_TO_SEND


@check("queue", settings, service_bus_token, service_bus_connection)
def queue(run: Run) -> Checked[None]:
    """Check the queue of wins, from which the function receives and to which it sends retries."""
    return _entity(run, run[settings].service_bus.opportunity_won_queue, (Right.RECEIVE, Right.SEND))


@check("failed queue", settings, service_bus_token, service_bus_connection)
def failed_queue(run: Run) -> Checked[None]:
    """Check the failed queue. Operators do not park messages, they read them."""
    return _entity(run, run[settings].service_bus.failed_queue, (Right.SEND,), of_operators=(Right.RECEIVE,))


@check("topic", settings, service_bus_token, service_bus_connection)
def topic(run: Run) -> Checked[None]:
    """Check the topic, to which the function publishes.

    Publishing is a role of its own: operators and the pipeline's login read the subscription for operators instead.
    """
    name = run[settings].service_bus.invoice_created_topic
    checked = _entity(run, name, (Right.SEND,))
    if all(result.state is not State.CANNOT_SEE for result in checked.results):
        return checked
    subscription = f"{name}/Subscriptions/{AUDIT}"
    if _try_link(run[settings], subscription, Right.RECEIVE, run.deadline) is not None:
        return checked
    return ok(
        f"{name} exists, and your login may receive from {AUDIT}; the function's rights are another check"
    )


def _entity(
    run: Run, name: str, rights: tuple[Right, ...], of_operators: tuple[Right, ...] = ()
) -> Checked[None]:
    """Check whether an entity exists and may be used in these ways; operators may try others as well."""
    context, is_function = run[settings], run[service_bus_token].is_function
    tried = rights if is_function else (*rights, *of_operators)
    attempts = [
        in_background("doctor", partial(_try_link, context, name, right, run.deadline)) for right in tried
    ]
    errors = dict(zip(tried, (attempt.result() for attempt in attempts), strict=True))
    closed = [right for right in rights if isinstance(errors[right], MessagingEntityDisabledError)]
    if closed == [Right.RECEIVE]:
        return Checked(None, (found(Finding.QUEUE_PAUSED, f"{name} accepts messages and delivers none"),))
    if closed:
        raise CheckFailed(Finding.ENTITY_DISABLED, f"{name} refuses to {_verbs(closed)}")
    allowed = [right for right in tried if errors[right] is None]
    if is_function:
        missing = [right for right in tried if right not in allowed]
        findings = [found(right.finding, f"the function may not {right.verb} ({name})") for right in missing]
        return judged(findings, f"{name} exists, and the function may {_verbs(allowed)}")
    if allowed:
        return ok(
            f"{name} exists, and your login may {_verbs(allowed)}; the function's rights are another check"
        )
    return Checked(
        None,
        tuple(
            Result(
                State.CANNOT_SEE, f"your login may not {right.verb} ({name})", right=f"{right.role} on {name}"
            )
            for right in rights
        ),
    )


def _try_link(context: Context, name: str, right: Right, deadline: Deadline) -> ServiceBusError | None:
    """Return why a link could not be opened for lack of a right, or because the entity is disabled."""

    def open_link() -> None:
        with ExitStack() as closing:
            client = closing.enter_context(_client(context))
            link = client.get_queue_receiver if right is Right.RECEIVE else client.get_queue_sender
            closing.enter_context(link(name))

    try:
        _in_time(open_link, deadline)
    except _OF_RIGHTS as error:
        if is_entity_missing(error):
            raise CheckFailed(Finding.ENTITY_MISSING, name) from error
        if isinstance(error, ServiceBusAuthenticationError) and context.has_key:
            raise CheckFailed(Finding.SERVICE_BUS_KEY_REFUSED, name) from error
        return error
    except ServiceBusError as error:
        if is_entity_missing(error):
            raise CheckFailed(Finding.ENTITY_MISSING, name) from error
        raise _unavailable(error) from error
    return None


def count_failed(run: Run) -> tuple[int, int]:
    """Return how many messages are in the failed queue and in its dead-letter queue, up to a bound."""
    context, name = run[settings], run[settings].service_bus.failed_queue

    def peek(place: Place) -> int:
        return _peek(
            run, name, lambda namespace: len(list(_some(namespace, place.source(context.service_bus))))
        )

    messages, dead_letters = (
        in_background("doctor", partial(peek, place)) for place in (Place.FAILED, Place.FAILED_DEAD_LETTERS)
    )
    return messages.result(), dead_letters.result()


def judge_failed(messages: int, dead_letters: int) -> Checked[None]:
    """Return what these numbers of messages in the failed queue mean."""
    findings = [
        found(finding, f"{number}{' or more' if number == _MAX_MESSAGES else ''}")
        for finding, number in ((Finding.MESSAGES_FAILED, messages), (Finding.DEAD_LETTERS, dead_letters))
        if number
    ]
    return judged(findings, "the failed queue and its dead-letter queue are empty")


@check("retries", settings, service_bus_token, service_bus_connection, beside=(queue,))
def retries(run: Run) -> Checked[None]:
    """Check for messages that have been retried for long."""
    name = run[settings].service_bus.opportunity_won_queue

    def peek(namespace: NamespaceClient) -> list[tuple[timedelta, str]]:
        return [
            (seen.age, seen.reason)
            for seen in _scheduled(namespace, Source(name), run.deadline)
            if seen.age is not None and seen.age > _OLD
        ]

    try:
        old = _peek(run, name, peek)
    except RightMissing as unseen:
        if not isinstance(unseen.__cause__, MessagingEntityDisabledError):
            raise
        # No right of anybody would help.
        raise Inconclusive(Result(State.NOT_CHECKED, f"because {name} is paused")) from unseen
    if not old:
        return ok("no retry is older than 30 minutes")
    age, reason = max(old)
    hours = age.total_seconds() / 3600
    seen = f"{len(old)}, the oldest for {hours:.1f} h with the reason {reason}"
    return Checked(None, (found(Finding.RETRIES_OLD, seen),))


def _scheduled(namespace: NamespaceClient, source: Source, deadline: Deadline) -> Iterator[MessageInfo]:
    """Yield what is scheduled, for as long as there is time: in a backlog the oldest come first."""
    for message in namespace.peek_all(source):
        if deadline.remaining <= 1.0:
            return
        if message.state == ServiceBusMessageState.SCHEDULED:
            yield MessageInfo.of(message)


def _some(namespace: NamespaceClient, source: Source) -> Iterator[object]:
    for number, message in enumerate(namespace.peek_every(source), start=1):
        yield message
        if number == _MAX_MESSAGES:
            return


def _peek(run: Run, name: str, peek: Callable[[NamespaceClient], Peeked]) -> Peeked:
    """Return what is peeked; raises RightMissing without the right to, and CheckFailed."""
    context = run[settings]
    namespace = NamespaceClient(
        context.service_bus, lambda: _client(context), max(run.deadline.remaining, 1.0)
    )
    try:
        return peek(namespace)
    except _OF_RIGHTS as error:
        if is_entity_missing(error) or isinstance(error, MessagingEntityDisabledError):
            raise RightMissing(f"{name} is missing or disabled", "none: fix that first") from error
        whose = "the function" if run[service_bus_token].is_function else "your login"
        raise RightMissing(f"{whose} may not read {name}", f"{Right.RECEIVE.role} on {name}") from error
    except ServiceBusTimeout as error:
        raise CheckFailed(Finding.SERVICE_BUS_SILENT, "no response over AMQP in time") from error
    except (ServiceBusError, ClientAuthenticationError, OSError) as error:
        if is_entity_missing(error):
            raise RightMissing(f"{name} is missing or disabled", "none: fix that first") from error
        raise _unavailable(error) from error
    finally:
        namespace.close()


def _in_time(do: Callable[[], None], deadline: Deadline) -> None:
    """Do something with the SDK within the deadline: it can block without end."""
    try:
        _calls.run(do, deadline.remaining)
    except CallTimeout as error:
        raise CheckFailed(Finding.SERVICE_BUS_SILENT, "no response over AMQP in time") from error
    except ServiceBusError:
        raise
    except (ClientAuthenticationError, OSError) as error:
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> CheckFailed:
    finding = (
        Finding.TOKEN_UNAVAILABLE
        if isinstance(error, ClientAuthenticationError)
        else Finding.SERVICE_BUS_UNAVAILABLE
    )
    # Only the kind: the text of an AMQP error can hold addresses with signatures.
    return CheckFailed(finding, type(error).__name__)


def _client(context: Context) -> ServiceBusClient:
    return connect(context.service_bus, lambda one: context.identity(one.client_id))


def _verbs(rights: Sequence[Right]) -> str:
    return " and ".join(right.verb for right in rights)


_OF_RIGHTS = (MessagingEntityDisabledError, ServiceBusAuthenticationError, ServiceBusAuthorizationError)
