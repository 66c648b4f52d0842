"""The whole sandbox as one thing: Service Bus, Dataverse, managed identity, Functions host.

    with Cloud(CloudOptions(app_root)) as cloud:
        ...                                             # cloud.broker, cloud.dataverse, cloud.app_settings

`composition` starts and stops the parts in order; `options` says what to run, `entities` reads what Service Bus has,
`namespace` serves it, `sales` sets Dataverse up, `posting` sends its events to Service Bus, `proxies` are
where faults strike, and `settings` the function's app settings.
"""

from sandbox.cloud.composition import Cloud
from sandbox.cloud.options import (
    AUDIT_SUBSCRIPTION,
    CONNECTION,
    CREATED_TOPIC,
    FAILED_QUEUE,
    WON_QUEUE,
    CannotStart,
    CloudOptions,
    Mode,
    NotInThisSandbox,
    NoTlsAddress,
    StartInterrupted,
)

__all__ = [
    "AUDIT_SUBSCRIPTION",
    "CONNECTION",
    "CREATED_TOPIC",
    "FAILED_QUEUE",
    "WON_QUEUE",
    "CannotStart",
    "Cloud",
    "CloudOptions",
    "Mode",
    "NoTlsAddress",
    "NotInThisSandbox",
    "StartInterrupted",
]
