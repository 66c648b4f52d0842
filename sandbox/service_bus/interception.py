"""What a client asks for, one call at a time, for an interceptor that decides how each is carried out.

The sandbox's faults are an interceptor; nothing else here knows them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from sandbox.service_bus.client_socket import ClientSocket
from sandbox.service_bus.errors import Refusal


class Operation(StrEnum):
    """What is asked for."""

    ATTACH = "attach"
    SEND = "send"
    SCHEDULE = "schedule"
    DELIVER = "deliver"
    SETTLE = "settle"


class Direction(StrEnum):
    """Whether the client sends messages to the entity or receives them from it."""

    SENDS = "sends"
    RECEIVES = "receives"


@dataclass(slots=True)
class Call:
    """One thing that a client asks for, or that is delivered to it.

    The interceptor calls one of `carry_out` (and confirm), `carry_out_unconfirmed` and `refuse`, or none of them.
    `subject` describes the message or the outcome in a few words; `lock_token` is the message's.
    """

    operation: Operation
    direction: Direction
    entity: str
    subject: str
    client: ClientSocket
    carry_out: Callable[[], None]
    carry_out_unconfirmed: Callable[[], object]
    refuse: Callable[[Refusal], None]
    lock_token: UUID | None = None


class Interceptor(Protocol):
    """Decides how calls are carried out; runs in the server's thread and must not wait."""

    def intercept(self, call: Call) -> None:
        """Carry a call out, or not, or differently."""
        ...


class CarryOut:
    """Carries every call out."""

    def intercept(self, call: Call) -> None:
        """Carry a call out."""
        call.carry_out()
