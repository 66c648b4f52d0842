"""Azure Service Bus on this machine: queues, topics and subscriptions over real AMQP 1.0.

    configuration = Configuration.load()                      # or Configuration.load(path), .parse(text)
    broker = Broker(configuration, clock)                     # the rules, usable without any socket
    with ServiceBusServer(broker, authenticator=Authenticator(configuration)) as server:
        connection_string = (
            f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        )

A second `ServiceBusServer` over the same broker, with `ssl_context=` and `port=5671` on a loopback address of its
own, takes clients with tokens: the SDKs use TLS and that port for them. It is an emulator for tests and
demonstrations: messages live in memory, sessions, transactions and management over HTTP are refused.
"""

from sandbox.service_bus.authorization import Authenticator
from sandbox.service_bus.broker import Broker
from sandbox.service_bus.configuration import Configuration, InvalidConfiguration, Role, RoleAssignment
from sandbox.service_bus.messages import (
    BrokeredMessage,
    EventKind,
    Message,
    MessageState,
    Observation,
    ReceiveMode,
)
from sandbox.service_bus.server import ServiceBusServer

__all__ = [
    "Authenticator",
    "Broker",
    "BrokeredMessage",
    "Configuration",
    "EventKind",
    "InvalidConfiguration",
    "Message",
    "MessageState",
    "Observation",
    "ReceiveMode",
    "Role",
    "RoleAssignment",
    "ServiceBusServer",
]
