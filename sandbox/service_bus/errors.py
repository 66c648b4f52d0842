"""What Service Bus answers when it refuses something: a tree whose leaves carry their AMQP condition.

BrokerError
├── EntityNotFound        amqp:not-found
├── EntityDisabled        com.microsoft:entity-disabled
├── MessageNotFound       com.microsoft:message-not-found
├── MessageLockLost       com.microsoft:message-lock-lost
├── MessageTooLarge       amqp:link:message-size-exceeded
├── InvalidArgument       com.microsoft:argument-error
├── NotAllowed            amqp:not-allowed
├── NotOffered            amqp:not-implemented
├── Unauthorized          amqp:unauthorized-access
└── ServerBusy            com.microsoft:server-busy
"""

from typing import ClassVar


class BrokerError(Exception):
    """A refusal, with the AMQP condition that stands on the wire and the status of a management answer."""

    condition: ClassVar[str]
    status: ClassVar[int]


class EntityNotFound(BrokerError):
    """There is no queue, topic or subscription of that name."""

    condition = "amqp:not-found"
    status = 404


class EntityDisabled(BrokerError):
    """The entity is there but its Status forbids this."""

    condition = "com.microsoft:entity-disabled"
    status = 403


class MessageNotFound(BrokerError):
    """No message with that sequence number in that state."""

    condition = "com.microsoft:message-not-found"
    status = 404


class MessageLockLost(BrokerError):
    """The lock expired, was given up, or never existed; the message may be with somebody else."""

    condition = "com.microsoft:message-lock-lost"
    status = 410


class MessageTooLarge(BrokerError):
    """The message, or the batch as a whole, is larger than the entity takes."""

    condition = "amqp:link:message-size-exceeded"
    status = 400


class InvalidArgument(BrokerError):
    """A value that the service does not take, a message id of 129 characters for example."""

    condition = "com.microsoft:argument-error"
    status = 400


class NotAllowed(BrokerError):
    """Something that the entity's kind forbids, as sending to a dead-letter queue."""

    condition = "amqp:not-allowed"
    status = 400


class NotOffered(BrokerError):
    """Azure does this; the stand-in does not, and says so."""

    condition = "amqp:not-implemented"
    status = 501


class Unauthorized(BrokerError):
    """No valid token gives this right on this entity."""

    condition = "amqp:unauthorized-access"
    status = 401


class ServerBusy(BrokerError):
    """The service throttles: come back later."""

    condition = "com.microsoft:server-busy"
    status = 503
