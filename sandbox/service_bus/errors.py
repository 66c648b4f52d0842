"""Why Service Bus refuses something: a tree whose leaves have the AMQP condition.

Refusal
├── EntityNotFound        amqp:not-found
├── EntityExists          com.microsoft:entity-already-exists
├── EntityDisabled        com.microsoft:entity-disabled
├── MessageNotFound       com.microsoft:message-not-found
├── MessageLockLost       com.microsoft:message-lock-lost
├── MessageTooLarge       amqp:link:message-size-exceeded
├── InvalidArgument       com.microsoft:argument-error
├── NotAllowed            amqp:not-allowed
├── NotSupported          amqp:not-implemented
└── Unauthorized          amqp:unauthorized-access
"""

from typing import ClassVar


class Refusal(Exception):
    """A refusal, with its AMQP condition and the status of a management response."""

    condition: ClassVar[str]
    status: ClassVar[int]


class EntityNotFound(Refusal):
    """There is no queue, topic or subscription of that name."""

    condition = "amqp:not-found"
    status = 404


class EntityExists(Refusal):
    """There is one of that name already."""

    condition = "com.microsoft:entity-already-exists"
    status = 409


class EntityDisabled(Refusal):
    """The entity is there but its Status forbids this."""

    condition = "com.microsoft:entity-disabled"
    status = 403


class MessageNotFound(Refusal):
    """No message with that sequence number in that state."""

    condition = "com.microsoft:message-not-found"
    status = 404


class MessageLockLost(Refusal):
    """The lock expired, was given up, or never existed; another receiver may have the message."""

    condition = "com.microsoft:message-lock-lost"
    status = 410


class MessageTooLarge(Refusal):
    """The message, or the batch as a whole, is larger than the entity takes."""

    condition = "amqp:link:message-size-exceeded"
    status = 400


class InvalidArgument(Refusal):
    """A value that the service does not take, a message id of 129 characters for example."""

    condition = "com.microsoft:argument-error"
    status = 400


class NotAllowed(Refusal):
    """Something that the entity's kind forbids, as sending to a dead-letter queue."""

    condition = "amqp:not-allowed"
    status = 400


class NotSupported(Refusal):
    """Azure supports this; the emulator does not, and the text names it."""

    condition = "amqp:not-implemented"
    status = 501


class Unauthorized(Refusal):
    """No valid token gives this right on this entity."""

    condition = "amqp:unauthorized-access"
    status = 401
