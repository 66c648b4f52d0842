"""Azure Resource Manager: the entities' properties as designed, their counters, and the roles of the function.

Only reading. Whoever may not read, or does not say which resource it is, is told the right that is missing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from operations.diagnosis.findings import CannotSee, Finding, Found, Result, found, ok
from operations.diagnosis.service_bus import Right, judge_failed
from shared.errors import TokenUnavailable
from shared.http_exchange import HttpExchange, NoResponse, Request
from shared.settings import ConnectionString

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shared.clock import Deadline
    from shared.credential import Tokens
    from shared.http_exchange import HttpResponse
    from shared.settings import ServiceBusSettings

Json = dict[str, Any]

PUBLIC = "https://management.azure.com"
_SERVICE_BUS_VERSION = "2024-01-01"
_AUTHORIZATION_VERSION = "2022-04-01"
_READER = "Reader on the namespace"
# The design, as infrastructure/modules/service-bus.bicep deploys it.
_LOCK_DURATION = timedelta(minutes=1)
_MAX_DELIVERY_COUNT = 10
_FAILED_MAX_DELIVERY_COUNT = 2000
_QUEUE_WINDOW = timedelta(minutes=10)
_TOPIC_WINDOW = timedelta(days=7)
# Azure writes "never" as the longest time span there is, over ten million days.
_NEVER = timedelta(days=3_650_000)
_AUDIT = "audit"
# ISO 8601, as Resource Manager writes it: P14D, PT1M, P10675199DT2H48M5.4775807S.
_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?")
_DATA_ACTIONS = {
    Right.RECEIVE: "microsoft.servicebus/namespaces/messages/receive/action",
    Right.SEND: "microsoft.servicebus/namespaces/messages/send/action",
}


class NotThere(Exception):
    """There is no such resource."""


class ResourceManager:
    """GET requests to Azure Resource Manager, each with a deadline that holds."""

    def __init__(self, endpoint: str, tokens: Tokens) -> None:
        self._tokens = tokens
        self._exchange = HttpExchange(endpoint.rstrip("/"))

    def get(self, path: str, version: str, deadline: Deadline, query: str = "") -> Json:
        """Return a resource; raises NotThere, and CannotSee where it may not be read or does not answer."""
        try:
            token = self._tokens.token(deadline)
            response = self._send(f"{path}?api-version={version}{query}", token, deadline)
        except (NoResponse, TokenUnavailable) as error:
            raise CannotSee(f"Azure Resource Manager: {type(error).__name__}", _READER) from error
        if response.status == requests.codes.not_found:
            raise NotThere(path)
        try:
            document = json.loads(response.body)
        except ValueError:
            document = None
        if response.status != requests.codes.ok or not isinstance(document, dict):
            raise CannotSee(f"Azure Resource Manager answered {response.status}", _READER)
        return document

    def _send(self, path: str, token: str, deadline: Deadline) -> HttpResponse:
        request = Request("GET", path, {"Authorization": f"Bearer {token}"})
        return self._exchange.send(request, max(deadline.remaining, 0.1))


@dataclass(frozen=True)
class Design:
    """How entities should be: names from the settings, and for how long a message may be tried again."""

    settings: ServiceBusSettings
    longest_retry: timedelta


class ResourceLinks:
    """Looks at the namespace as a resource. `namespace_id` None: nobody said which it is."""

    def __init__(self, manager: ResourceManager, namespace_id: str | None, design: Design) -> None:
        self._manager = manager
        self._namespace_id = namespace_id and "/" + namespace_id.strip("/")
        self._design = design
        self._is_seen = False

    def namespace(self, deadline: Deadline) -> list[Result]:
        """Look whether the resource is the namespace of the settings."""
        connection = self._design.settings.connection
        if self._namespace_id is None:
            raise CannotSee("which resource the namespace is was not said", f"--namespace-id, and {_READER}")
        try:
            properties = self._manager.get(self._namespace_id, _SERVICE_BUS_VERSION, deadline)["properties"]
        except NotThere as error:
            raise Found(Finding.NAMESPACE_ID_WRONG, "there is no such resource") from error
        host = urlsplit(str(properties.get("serviceBusEndpoint"))).hostname
        if not isinstance(connection, ConnectionString) and host != connection.fully_qualified.lower():
            raise Found(Finding.NAMESPACE_ID_WRONG, f"{host}; settings: {connection.fully_qualified}")
        self._is_seen = True
        return ok(str(host))

    def queue(self, deadline: Deadline) -> list[Result]:
        """Look at the properties of the queue of wins."""
        settings = self._design.settings
        is_as = self._properties("queues", settings.opportunity_won_queue, deadline)
        return _differences(
            (Finding.LOCK_DURATION_DIFFERS, is_as.time("lockDuration", _LOCK_DURATION)),
            (Finding.MAX_DELIVERY_COUNT_DIFFERS, is_as.equal("maxDeliveryCount", _MAX_DELIVERY_COUNT)),
            (Finding.DUPLICATE_DETECTION_DIFFERS, is_as.detecting_duplicates(_QUEUE_WINDOW)),
            (
                Finding.DEAD_LETTER_FORWARDING_DIFFERS,
                is_as.equal("forwardDeadLetteredMessagesTo", settings.failed_queue),
            ),
            (
                Finding.DEAD_LETTERING_ON_EXPIRATION_OFF,
                is_as.equal("deadLetteringOnMessageExpiration", wanted=True),
            ),
            (
                Finding.TIME_TO_LIVE_TOO_SHORT,
                is_as.longer("defaultMessageTimeToLive", self._design.longest_retry),
            ),
        )

    def failed_queue(self, deadline: Deadline) -> list[Result]:
        """Look at the properties of the failed queue."""
        is_as = self._properties("queues", self._design.settings.failed_queue, deadline)
        return _differences(
            (Finding.MAX_DELIVERY_COUNT_DIFFERS, is_as.equal("maxDeliveryCount", _FAILED_MAX_DELIVERY_COUNT)),
            (Finding.DUPLICATE_DETECTION_DIFFERS, is_as.equal("requiresDuplicateDetection", wanted=False)),
            (Finding.TIME_TO_LIVE_TOO_SHORT, is_as.longer("defaultMessageTimeToLive", _NEVER)),
        )

    def topic(self, deadline: Deadline) -> list[Result]:
        """Look at the properties of the topic."""
        is_as = self._properties("topics", self._design.settings.invoice_created_topic, deadline)
        return _differences((Finding.DUPLICATE_DETECTION_DIFFERS, is_as.detecting_duplicates(_TOPIC_WINDOW)))

    def audit(self, deadline: Deadline) -> list[Result]:
        """Look whether somebody keeps the events."""
        topic = self._design.settings.invoice_created_topic
        try:
            self._get(f"/topics/{topic}/subscriptions/{_AUDIT}", deadline)
        except NotThere as error:
            raise Found(
                Finding.AUDIT_SUBSCRIPTION_MISSING, f"{topic} has no subscription {_AUDIT}"
            ) from error
        return ok(f"{topic} has the subscription {_AUDIT}")

    def failed_messages(
        self, otherwise: Callable[[Deadline], list[Result]], deadline: Deadline
    ) -> list[Result]:
        """Look at the counters of the failed queue, or `otherwise` where they cannot be seen."""
        try:
            properties = self._get(f"/queues/{self._design.settings.failed_queue}", deadline)["properties"]
        except (CannotSee, NotThere):
            return otherwise(deadline)
        counts = properties.get("countDetails") or {}
        return judge_failed(
            sum(int(counts.get(f"{state}MessageCount", 0)) for state in ("active", "scheduled")),
            int(counts.get("deadLetterMessageCount", 0)),
        )

    def roles(self, object_id: str, deadline: Deadline) -> list[Result]:
        """Look whether the roles of the function's identity allow what it does with each entity."""
        settings = self._design.settings
        needed = (
            ("queues", settings.opportunity_won_queue, Right.RECEIVE),
            ("queues", settings.opportunity_won_queue, Right.SEND),
            ("queues", settings.failed_queue, Right.SEND),
            ("topics", settings.invoice_created_topic, Right.SEND),
        )
        return [
            found(right.finding, f"no role of {object_id} allows to {right.verb} ({name})")
            for kind, name, right in needed
            if not self._allows(f"/{kind}/{name}", object_id, right, deadline)
        ] or ok(f"the roles of {object_id} allow what it does")

    def _allows(self, entity: str, object_id: str, right: Right, deadline: Deadline) -> bool:
        # Those of the groups that it is in and of the scopes above are among them.
        path = f"{self._known_id}{entity}/providers/Microsoft.Authorization/roleAssignments"
        query = f"&$filter=assignedTo('{object_id}')"
        try:
            assignments = self._manager.get(path, _AUTHORIZATION_VERSION, deadline, query).get("value", [])
        except NotThere as error:
            raise Found(Finding.ENTITY_MISSING, entity.rpartition("/")[2]) from error
        return any(
            self._permits(str(assignment["properties"]["roleDefinitionId"]), _DATA_ACTIONS[right], deadline)
            for assignment in assignments
        )

    def _permits(self, definition: str, action: str, deadline: Deadline) -> bool:
        try:
            properties = self._manager.get(definition, _AUTHORIZATION_VERSION, deadline)["properties"]
        except NotThere:
            return False
        return any(
            _matches(permission.get("dataActions"), action)
            and not _matches(permission.get("notDataActions"), action)
            for permission in properties.get("permissions", [])
        )

    @property
    def _known_id(self) -> str:
        if self._namespace_id is None or not self._is_seen:
            raise CannotSee("the namespace as a resource was not seen", f"--namespace-id, and {_READER}")
        return self._namespace_id

    def _get(self, entity: str, deadline: Deadline) -> Json:
        return self._manager.get(f"{self._known_id}{entity}", _SERVICE_BUS_VERSION, deadline)

    def _properties(self, kind: str, name: str, deadline: Deadline) -> _Properties:
        try:
            return _Properties(self._get(f"/{kind}/{name}", deadline)["properties"])
        except NotThere as error:
            raise Found(Finding.ENTITY_MISSING, name) from error


class _Properties:
    """An entity's properties, compared with what they should be: what is told is how they differ, or nothing."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    def equal(self, name: str, wanted: object) -> str:
        value = self._values.get(name)
        return "" if value == wanted else f"{name} is {value}, should be {wanted}"

    def time(self, name: str, wanted: timedelta) -> str:
        return "" if self._time(name) == wanted else f"{name} is {self._values.get(name)}, should be {wanted}"

    def longer(self, name: str, bound: timedelta) -> str:
        time = self._time(name)
        # Without one it is the longest there is.
        if time is None or time > bound:
            return ""
        wanted = "none" if bound == _NEVER else f"more than {bound}"
        return f"{name} is {self._values.get(name)}, should be {wanted}"

    def detecting_duplicates(self, window: timedelta) -> str:
        return self.equal("requiresDuplicateDetection", wanted=True) or self.time(
            "duplicateDetectionHistoryTimeWindow", window
        )

    def _time(self, name: str) -> timedelta | None:
        value = self._values.get(name)
        match = _DURATION.fullmatch(str(value))
        if match is None:
            return None
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return timedelta(days, seconds, hours=hours, minutes=minutes)


def _differences(*compared: tuple[Finding, str]) -> list[Result]:
    return [found(finding, difference) for finding, difference in compared if difference] or ok("as designed")


def _matches(patterns: object, action: str) -> bool:
    return isinstance(patterns, list) and any(fnmatch(action, str(pattern).lower()) for pattern in patterns)
