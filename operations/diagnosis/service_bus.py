"""The links at Service Bus over AMQP: are the entities there, may they be used, what has piled up.

Links are opened and closed again, messages are peeked: nothing is sent, received or locked.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import ServiceBusMessageState, ServiceBusSubQueue
from azure.servicebus.exceptions import (
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
)

from operations.diagnosis.findings import CannotSee, Finding, Found, Result, State, found, ok
from operations.messages import text_properties
from operations.namespace import sequence_number
from shared.bounded_call import BoundedCalls
from shared.credential import build_credential
from shared.deadline_socket import CallTimeout
from shared.message import FIRST_SEEN, REASON
from shared.service_bus import connect
from shared.settings import ConnectionString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from azure.servicebus import ServiceBusClient, ServiceBusReceivedMessage, ServiceBusReceiver

    from operations.diagnosis.identity import Identity
    from shared.clock import Deadline
    from shared.settings import ServiceBusSettings

Answer = TypeVar("Answer")

_calls = BoundedCalls("service bus", 32)
_PAGE = 250
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


class ServiceBusLinks:
    """Looks at the entities, each look with a connection of its own."""

    def __init__(
        self, environment: Mapping[str, str], settings: ServiceBusSettings, identity: Identity
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._identity = identity

    def entity(
        self, name: str, rights: tuple[Right, ...], deadline: Deadline, *, beside: tuple[Right, ...] = ()
    ) -> list[Result]:
        """Look whether an entity is there and may be used in these ways.

        `beside`: in which ways somebody else than the function may try whether it is there.
        """
        is_function = self._identity.is_function_at("Service Bus")
        tried = rights if is_function else (*rights, *beside)
        errors = self._attempts(name, tried, deadline)
        closed = [right for right in rights if isinstance(errors[right], MessagingEntityDisabledError)]
        if closed == [Right.RECEIVE]:
            return [found(Finding.QUEUE_PAUSED, f"{name} takes messages and hands none out")]
        if closed:
            raise Found(Finding.ENTITY_DISABLED, f"{name} refuses to {_verbs(closed, ' and to ')}")
        allowed = [right for right in tried if errors[right] is None]
        if is_function and len(allowed) < len(tried):
            return [
                found(right.finding, f"the function may not {right.verb} ({name})")
                for right in tried
                if right not in allowed
            ]
        if not allowed:
            return [
                Result(
                    State.CANNOT_SEE,
                    f"your login may not {right.verb} ({name})",
                    right=f"{right.role} on {name}",
                )
                for right in rights
            ]
        whether = "" if is_function else "; what the function may is another link"
        return ok(f"{name} is there, and {self._whose} may {_verbs(allowed)}{whether}")

    def _attempts(
        self, name: str, rights: tuple[Right, ...], deadline: Deadline
    ) -> dict[Right, ServiceBusError | None]:
        with ThreadPoolExecutor(len(rights)) as pool:
            attempts = [pool.submit(self._attempt, name, right, deadline) for right in rights]
            return dict(zip(rights, (attempt.result() for attempt in attempts), strict=True))

    @property
    def _whose(self) -> str:
        return "the function" if self._identity.is_function_at("Service Bus") else "your login"

    def _attempt(self, name: str, right: Right, deadline: Deadline) -> ServiceBusError | None:
        """Return why a link could not be opened for want of a right or because it is closed; raises Found."""

        def open_link(client: _Client) -> None:
            link = client.sdk.get_queue_receiver if right is Right.RECEIVE else client.sdk.get_queue_sender
            client.closing.enter_context(link(name))

        try:
            self._with_client(open_link, deadline)
        except (
            MessagingEntityDisabledError,
            ServiceBusAuthorizationError,
            ServiceBusAuthenticationError,
        ) as error:
            if isinstance(error, ServiceBusAuthenticationError) and self._has_key:
                raise Found(Finding.SERVICE_BUS_KEY_REFUSED, name) from error
            return error
        except MessagingEntityNotFoundError as error:
            raise Found(Finding.ENTITY_MISSING, name) from error
        return None

    @property
    def _has_key(self) -> bool:
        return isinstance(self._settings.connection, ConnectionString)

    def failed_messages(self, deadline: Deadline) -> list[Result]:
        """Look into the failed queue and its dead letters."""
        queue = self._settings.failed_queue
        with ThreadPoolExecutor(2) as pool:
            messages = pool.submit(self._peeked, queue, None, deadline)
            dead_letters = pool.submit(self._peeked, queue, ServiceBusSubQueue.DEAD_LETTER, deadline)
        return judge_failed(messages.result(), dead_letters.result())

    def _peeked(self, queue: str, sub_queue: ServiceBusSubQueue | None, deadline: Deadline) -> int:
        """Return how many messages there are, up to a page."""

        def peek(client: _Client) -> int:
            receiver = client.receiver(queue, sub_queue)
            return len(receiver.peek_messages(_PAGE, timeout=max(deadline.remaining, 1.0)))

        return self._peek(queue, peek, deadline)

    def old_retries(self, deadline: Deadline) -> list[Result]:
        """Look for messages that have been tried again for long."""
        queue = self._settings.opportunity_won_queue

        def peek(client: _Client) -> list[tuple[timedelta, str]]:
            return [
                (age, str(text_properties(message).get(REASON, "unknown")))
                for message in _scheduled(client.receiver(queue), deadline)
                if (age := _age(message)) > _OLD
            ]

        try:
            old = self._peek(queue, peek, deadline)
        except CannotSee as unseen:
            if not isinstance(unseen.__cause__, MessagingEntityDisabledError):
                raise
            # No right of anybody would help.
            return [Result(State.NOT_LOOKED_AT, f"because {queue} is paused")]
        if not old:
            return ok("no retry is older than 30 minutes")
        age, reason = max(old)
        return [
            found(
                Finding.RETRIES_OLD,
                f"{len(old)}, the oldest for {age.total_seconds() / 3600:.1f} h with the reason {reason}",
            )
        ]

    def _peek(self, queue: str, peek: Callable[[_Client], Answer], deadline: Deadline) -> Answer:
        try:
            return self._with_client(peek, deadline)
        except (ServiceBusAuthorizationError, ServiceBusAuthenticationError) as error:
            raise CannotSee(
                f"{self._whose} may not look into {queue}", f"{Right.RECEIVE.role} on {queue}"
            ) from error
        except (MessagingEntityNotFoundError, MessagingEntityDisabledError) as error:
            raise CannotSee(f"{queue} is missing or disabled", "none: mend that first") from error

    def _with_client(self, do: Callable[[_Client], Answer], deadline: Deadline) -> Answer:
        """Have something done with a client in a thread of its own: the SDK may block for ever."""
        try:
            return _calls.run(partial(self._do, do), deadline.remaining)
        except CallTimeout as error:
            raise Found(Finding.SERVICE_BUS_SILENT, "no answer over AMQP in time") from error
        except ClientAuthenticationError as error:
            raise Found(Finding.TOKEN_UNAVAILABLE, type(error).__name__) from error
        except _SETTLED:
            raise
        except (ServiceBusError, OSError) as error:
            # Only the kind: the text of an AMQP error can hold addresses with signatures.
            raise Found(Finding.SERVICE_BUS_UNAVAILABLE, type(error).__name__) from error

    def _do(self, do: Callable[[_Client], Answer]) -> Answer:
        client = self._client()
        try:
            return do(client)
        finally:
            client.close()

    def _client(self) -> _Client:
        return _Client(
            connect(
                self._settings,
                lambda namespace: build_credential(
                    self._environment, self._identity.client_id(namespace.client_id)
                ),
            )
        )


class _Client:
    """A client with what was opened with it."""

    def __init__(self, sdk: ServiceBusClient) -> None:
        self.closing = ExitStack()
        self.sdk = self.closing.enter_context(sdk)

    def receiver(self, queue: str, sub_queue: ServiceBusSubQueue | None = None) -> ServiceBusReceiver:
        """Return a receiver to peek with: its link is not opened, so no message can come."""
        receiver = self.sdk.get_queue_receiver(queue, sub_queue=sub_queue)
        self.closing.callback(receiver.close)
        return receiver

    def close(self) -> None:
        self.closing.close()


def _verbs(rights: list[Right], between: str = " and ") -> str:
    return between.join(right.verb for right in rights)


# What a look knows to judge itself.
_SETTLED = (
    MessagingEntityDisabledError,
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
)


def judge_failed(messages: int, dead_letters: int) -> list[Result]:
    """Return what numbers of messages in the failed queue mean."""
    return [
        found(finding, f"{number}{' or more' if number == _PAGE else ''}")
        for finding, number in ((Finding.MESSAGES_FAILED, messages), (Finding.DEAD_LETTERS, dead_letters))
        if number
    ] or ok("the failed queue and its dead-letter queue are empty")


def _scheduled(receiver: ServiceBusReceiver, deadline: Deadline) -> Iterator[ServiceBusReceivedMessage]:
    """Yield what is scheduled, for as long as there is time: in a backlog the oldest come first."""
    following = 1
    while deadline.remaining > 1.0:
        page = receiver.peek_messages(_PAGE, sequence_number=following, timeout=max(deadline.remaining, 1.0))
        if not page:
            return
        yield from (message for message in page if message.state == ServiceBusMessageState.SCHEDULED)
        following = sequence_number(page[-1]) + 1


def _age(message: ServiceBusReceivedMessage) -> timedelta:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(str(text_properties(message).get(FIRST_SEEN)))
    except (ValueError, TypeError):
        # Scheduled by somebody else: nothing tells since when.
        return timedelta(0)
