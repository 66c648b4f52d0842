"""host.json and the app settings, read into frozen values.

The sandbox refuses what its host does not support by name, before anything starts. Names are matched without regard to
case and `__` stands for a level, like .NET's configuration.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import json5

# Flex Consumption's and Premium's default; there it may also be unlimited.
_DEFAULT_FUNCTION_TIMEOUT = "00:30:00"
_OVERRIDE_PREFIX = "azurefunctionsjobhost:"
_SERVICE_BUS = "extensions:servicebus:"
# These concern batches, sessions, transactions or retries of the host's own calls: nothing that happens here.
_WITHOUT_EFFECT = frozenset(
    {
        "clientretryoptions",
        "maxbatchwaittime",
        "maxconcurrentcallspersession",
        "maxconcurrentsessions",
        "maxmessagebatchsize",
        "minmessagebatchsize",
        "prefetchcount",
        "sessionidletimeout",
    }
)
# The only value that each of these may have here, and what an error says of another one.
_FIXED = {
    "autocompletemessages": ("true", "autoCompleteMessages must stay on: Python cannot settle a message"),
    "enablecrossentitytransactions": ("false", "enableCrossEntityTransactions is not supported here"),
    "transporttype": ("amqptcp", "transportType must be amqpTcp; web sockets are not supported here"),
}
_KNOWN = _WITHOUT_EFFECT | _FIXED.keys() | {"maxautolockrenewalduration", "maxconcurrentcalls"}
_MAX_WORKER_PROCESSES = 10


class InvalidAppConfiguration(Exception):
    """The app is configured in a way that Azure would refuse, or that the sandbox's host does not support."""


@dataclass(frozen=True)
class HostConfiguration:
    """The values of host.json that matter here; `function_timeout` None means unlimited."""

    function_timeout: timedelta | None
    max_concurrent_calls: int
    max_auto_lock_renewal: timedelta
    worker_processes: int


@dataclass(frozen=True)
class ConnectionString:
    """A connection by shared access key."""

    value: str = field(repr=False)


@dataclass(frozen=True)
class IdentityConnection:
    """A connection by managed identity: `client_id` None is the system-assigned one."""

    namespace: str
    client_id: str | None
    identity_endpoint: str
    identity_header: str = field(repr=False)


class Settings:
    """App settings by name; upper and lower case are the same."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {_path(name): value for name, value in values.items()}

    def get(self, name: str) -> str | None:
        """Return the setting called `name`, in which `__` and `:` are the same."""
        return self._values.get(_path(name))

    def under(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield what is below `prefix`: the rest of each name (lower case, `:` between levels) and its value."""
        for path, value in self._values.items():
            if path.startswith(prefix):
                yield path.removeprefix(prefix), value

    def resolve(self, text: str) -> str:
        """Replace each %NAME% in `text`; raises InvalidAppConfiguration for a name that is not set."""

        def value_of(match: re.Match[str]) -> str:
            value = self.get(match[1])
            if not value:
                raise InvalidAppConfiguration(
                    f"'%{match[1]}%' does not resolve to a value: set it as an app setting"
                )
            return value

        return re.sub(r"%([^%]+)%", value_of, text)


def read_host(app_root: Path, settings: Settings) -> HostConfiguration:
    """Read host.json and the AzureFunctionsJobHost__… settings that override it."""
    values = dict(_flatten(read_json(app_root / "host.json")))
    values.update(settings.under(_OVERRIDE_PREFIX))
    if values.get("version") != "2.0":
        raise InvalidAppConfiguration('host.json must say "version": "2.0"')
    for name, value in values.items():
        if name.startswith(_SERVICE_BUS):
            _check_known(name.removeprefix(_SERVICE_BUS), value)
    timeout = str(values.get("functiontimeout", _DEFAULT_FUNCTION_TIMEOUT))
    return HostConfiguration(
        function_timeout=None if timeout == "-1" else _duration(timeout, "functionTimeout"),
        max_concurrent_calls=_count(
            values.get(_SERVICE_BUS + "maxconcurrentcalls", 16 * (os.cpu_count() or 1)), "maxConcurrentCalls"
        ),
        max_auto_lock_renewal=_duration(
            str(values.get(_SERVICE_BUS + "maxautolockrenewalduration", "00:05:00")),
            "maxAutoLockRenewalDuration",
        ),
        worker_processes=_count(
            settings.get("FUNCTIONS_WORKER_PROCESS_COUNT") or 1,
            "FUNCTIONS_WORKER_PROCESS_COUNT",
            _MAX_WORKER_PROCESSES,
        ),
    )


def read_connection(name: str, settings: Settings) -> ConnectionString | IdentityConnection:
    """Return the connection that a trigger calls `name`; raises InvalidAppConfiguration."""
    for setting in (f"AzureWebJobs{name}", name):
        value = settings.get(setting)
        if value:
            return ConnectionString(value)
    namespace = settings.get(f"{name}__fullyQualifiedNamespace")
    if not namespace:
        raise InvalidAppConfiguration(
            f"neither {name} (a connection string) nor {name}__fullyQualifiedNamespace (an identity's) is set"
        )
    client_id = settings.get(f"{name}__clientId")
    if client_id and settings.get(f"{name}__credential") != "managedidentity":
        raise InvalidAppConfiguration(
            f"{name}__clientId takes effect only with {name}__credential=managedidentity"
        )
    endpoint, header = settings.get("IDENTITY_ENDPOINT"), settings.get("IDENTITY_HEADER")
    if not endpoint or not header:
        raise InvalidAppConfiguration(
            f"{name} takes a managed identity, but IDENTITY_ENDPOINT or IDENTITY_HEADER is not set"
        )
    return IdentityConnection(namespace, client_id, endpoint, header)


def read_json(path: Path) -> dict[str, object]:
    """Return the object in a JSON file, in which comments are allowed; raises InvalidAppConfiguration."""
    try:
        content = json5.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise InvalidAppConfiguration(f"{path.name} is missing in {path.parent}") from error
    except ValueError as error:
        raise InvalidAppConfiguration(f"{path.name} in {path.parent} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidAppConfiguration(f"{path.name} in {path.parent} must hold a JSON object")
    return content


def _check_known(name: str, value: object) -> None:
    if name.partition(":")[0] not in _KNOWN:
        raise InvalidAppConfiguration(f"host.json: extensions.serviceBus has no setting '{name}'")
    if name in _FIXED and str(value).lower() != _FIXED[name][0]:
        raise InvalidAppConfiguration(f"host.json: {_FIXED[name][1]}")


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        path = f"{prefix}{name.lower()}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}:")
        else:
            yield path, value


def _path(name: str) -> str:
    return name.replace("__", ":").lower()


def _duration(text: str, name: str) -> timedelta:
    match = re.fullmatch(r"(?:(\d+)\.)?(\d\d?):(\d\d):(\d\d(?:\.\d{1,7})?)", text)
    if match is None:
        raise InvalidAppConfiguration(f"{name} must look like hh:mm:ss, not {text!r}")
    days, hours, minutes, seconds = match.groups(default="0")
    return timedelta(days=int(days), hours=int(hours), minutes=int(minutes), seconds=float(seconds))


def _count(value: object, name: str, limit: int | None = None) -> int:
    try:
        number = int(str(value))
    except ValueError as error:
        raise InvalidAppConfiguration(f"{name} must be a whole number, not {value!r}") from error
    if number < 1 or (limit is not None and number > limit):
        raise InvalidAppConfiguration(f"{name} must be between 1 and {limit or 'any'}, not {number}")
    return number
