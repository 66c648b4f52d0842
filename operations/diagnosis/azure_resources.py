"""The checks in Azure Resource Manager: the entities' properties, their counters, and the roles of the function.

Only reading. How the entities should be stands in infrastructure/entities.json, from which Bicep deploys them.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from fnmatch import fnmatch
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import isodate

from operations.diagnosis.check import CheckFailed, RightMissing, check, found, judged, ok
from operations.diagnosis.connections import ROOT, service_bus_connection, service_bus_token, settings
from operations.diagnosis.dataverse import application_user
from operations.diagnosis.findings import Finding
from operations.diagnosis.service_bus import (
    MAX_MESSAGES,
    Entity,
    Right,
    count_failed,
    failed_queue,
    queue,
    topic,
)
from operations.namespace import AUDIT
from shared.errors import TokenUnavailable
from shared.http_exchange import HttpExchange, NoResponse, Request
from shared.settings import ConnectionString

if TYPE_CHECKING:
    from operations.diagnosis.check import Check, Checked, Run

Json = dict[str, Any]

_SERVICE_BUS_VERSION = "2024-01-01"
_AUTHORIZATION_VERSION = "2022-04-01"
_READER = "Reader on the namespace"
_ROOT_KEY = "RootManageSharedAccessKey"
# Azure writes "never" as the longest time span there is, over ten million days.
_NEVER = timedelta(days=3_650_000)


def _read(run: Run, path: str, version: str = _SERVICE_BUS_VERSION, query: str = "") -> Json | None:
    """Return a resource, None where there is none; raises RightMissing where it may not be read."""
    context, endpoint = run[settings], run.inputs.arm_endpoint.rstrip("/")
    tokens = context.identity(context.dataverse.client_id).tokens(f"{endpoint}/.default")
    try:
        headers = {"Authorization": f"Bearer {tokens.token(run.deadline)}"}
        request = Request("GET", f"{path}?api-version={version}{query}", headers)
        response = HttpExchange(endpoint).send(request, max(run.deadline.remaining, 0.1))
        document = json.loads(response.body or b"null")
    except (NoResponse, TokenUnavailable, ValueError) as error:
        raise RightMissing(f"Azure Resource Manager: {type(error).__name__}", _READER) from error
    if response.status == HTTPStatus.NOT_FOUND:
        return None
    if response.status != HTTPStatus.OK or not isinstance(document, dict):
        raise RightMissing(f"Azure Resource Manager responded {response.status}", _READER)
    return document


@check("namespace", settings)
def namespace(run: Run) -> Checked[str]:
    """Check that the resource is the namespace of the settings, and return its id."""
    if run.inputs.namespace_id is None:
        raise RightMissing("no resource id of the namespace was given", f"--namespace-id, and {_READER}")
    connection = run[settings].service_bus.connection
    namespace_id = "/" + run.inputs.namespace_id.strip("/")
    resource = _read(run, namespace_id)
    if resource is None:
        raise CheckFailed(Finding.NAMESPACE_ID_WRONG, "there is no such resource")
    host = urlsplit(str(resource["properties"].get("serviceBusEndpoint"))).hostname
    if not isinstance(connection, ConnectionString) and host != connection.fully_qualified.lower():
        raise CheckFailed(Finding.NAMESPACE_ID_WRONG, f"{host}; settings: {connection.fully_qualified}")
    return ok(str(host), namespace_id)


@check("keys of the namespace", settings, namespace)
def namespace_keys(run: Run) -> Checked[None]:
    """Check that the key which every namespace is created with is gone: it may do everything."""
    if _read(run, f"{run[namespace]}/authorizationRules/{_ROOT_KEY}") is None:
        return ok(f"there is no {_ROOT_KEY}")
    return found(Finding.ROOT_KEY_EXISTS, _ROOT_KEY)


@check(
    "roles of the function",
    settings,
    service_bus_token,
    application_user,
    namespace,
    queue,
    failed_queue,
    topic,
)
def roles(run: Run) -> Checked[None]:
    """Check that the roles of the function's identity allow what it does with each entity."""
    if run[service_bus_token].is_function:
        return ok("what they allow was tried")
    object_id = run[application_user].object_id
    run[namespace]  # a login that may not read it ends here
    if object_id is None:
        raise RightMissing("Dataverse does not say the identity's object id", "the portal: its roles there")
    findings = []
    for entity in Entity:
        permissions = _permissions(run, _path(run, entity), object_id)
        findings += [
            (right.finding, f"no role of {object_id} allows to {right.verb} ({entity.name_in(run)})")
            for right in entity.rights
            if not any(_permits(permission, right) for permission in permissions)
        ]
    return judged(findings, f"the roles of {object_id} allow what it does")


def _permissions(run: Run, entity: str, object_id: str) -> list[Json]:
    """Return what an identity's roles permit, also those of its groups, and of the scopes above the entity."""
    path = f"{entity}/providers/Microsoft.Authorization/roleAssignments"
    assignments = _read(run, path, _AUTHORIZATION_VERSION, f"&$filter=assignedTo('{object_id}')")
    if assignments is None:
        raise CheckFailed(Finding.ENTITY_MISSING, entity.rpartition("/")[2])
    ids = {str(each["properties"]["roleDefinitionId"]) for each in assignments.get("value", [])}
    definitions = [_read(run, each, _AUTHORIZATION_VERSION) for each in ids]
    return [
        permission
        for definition in definitions
        if definition is not None
        for permission in definition["properties"].get("permissions", [])
    ]


def _permits(permission: Json, right: Right) -> bool:
    action = f"microsoft.servicebus/namespaces/messages/{right.verb}/action"

    def names_it(actions: str) -> bool:
        return any(fnmatch(action, str(pattern).lower()) for pattern in permission.get(actions) or ())

    return names_it("dataActions") and not names_it("notDataActions")


# ---------------------------------------------------------------------------------------------- the design

# What a difference of a property means.
_FINDINGS = {
    "lockDuration": Finding.LOCK_DURATION_DIFFERS,
    "maxDeliveryCount": Finding.MAX_DELIVERY_COUNT_DIFFERS,
    "requiresDuplicateDetection": Finding.DUPLICATE_DETECTION_DIFFERS,
    "duplicateDetectionHistoryTimeWindow": Finding.DUPLICATE_DETECTION_DIFFERS,
    "forwardDeadLetteredMessagesTo": Finding.DEAD_LETTER_FORWARDING_DIFFERS,
    "deadLetteringOnMessageExpiration": Finding.DEAD_LETTERING_ON_EXPIRATION_OFF,
    "defaultMessageTimeToLive": Finding.TIME_TO_LIVE_TOO_SHORT,
}


def _design_check(name: str, entity: Entity, exists: Check[None]) -> Check[None]:
    """Return a check that compares an entity, once it exists, with infrastructure/entities.json."""

    @check(name, settings, namespace, exists)
    def compare(run: Run) -> Checked[None]:
        resource = _read(run, _path(run, entity))
        if resource is None:
            raise CheckFailed(Finding.ENTITY_MISSING, entity.name_in(run))
        wanted = _design(entity)
        if "forwardDeadLetteredMessagesTo" in wanted:
            wanted["forwardDeadLetteredMessagesTo"] = run[settings].service_bus.failed_queue
        actual = resource["properties"]
        findings = {
            finding: difference
            for name, finding in _FINDINGS.items()
            if name in wanted and (difference := _difference(name, wanted[name], actual.get(name), run))
        }
        return judged(findings.items(), "as designed")

    return compare


queue_design = _design_check("queue as designed", Entity.QUEUE, queue)
failed_queue_design = _design_check("failed queue as designed", Entity.FAILED_QUEUE, failed_queue)
topic_design = _design_check("topic as designed", Entity.TOPIC, topic)


@check("audit subscription", settings, namespace, topic)
def audit_subscription(run: Run) -> Checked[None]:
    """Check that a subscription keeps the events."""
    name = Entity.TOPIC.name_in(run)
    if _read(run, f"{_path(run, Entity.TOPIC)}/subscriptions/{AUDIT}") is None:
        raise CheckFailed(Finding.AUDIT_SUBSCRIPTION_MISSING, f"{name} has no subscription {AUDIT}")
    return ok(f"{name} has the subscription {AUDIT}")


@check(
    "failed messages", settings, namespace, service_bus_token, service_bus_connection, beside=(failed_queue,)
)
def failed_messages(run: Run) -> Checked[None]:
    """Count the messages that failed: by the counters of the queue, or by peeking where those cannot be seen."""
    try:
        resource = _read(run, _path(run, Entity.FAILED_QUEUE))
    except RightMissing:
        resource = None
    if resource is None:
        messages, dead_letters = count_failed(run)
    else:
        counts = resource["properties"].get("countDetails") or {}
        messages = sum(int(counts.get(f"{state}MessageCount", 0)) for state in ("active", "scheduled"))
        dead_letters = int(counts.get("deadLetterMessageCount", 0))
    findings = [
        (finding, f"{number}{' or more' if number == MAX_MESSAGES else ''}")
        for finding, number in ((Finding.MESSAGES_FAILED, messages), (Finding.DEAD_LETTERS, dead_letters))
        if number
    ]
    return judged(findings, "the failed queue and its dead-letter queue are empty")


def _path(run: Run, entity: Entity) -> str:
    return f"{run[namespace]}/{entity.kind}/{entity.name_in(run)}"


def _design(entity: Entity) -> Json:
    """Return the properties of an entity in infrastructure/entities.json, by the names that Azure returns."""
    file = ROOT / "infrastructure" / "entities.json"
    try:
        text = re.sub(r"^\s*//.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (deployed,) = json.loads(text)["UserConfig"]["Namespaces"]
        properties = deployed[entity.kind.capitalize()][entity.place]["Properties"]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise RightMissing(
            f"the design is not in {file.name} next to this command", "the project's folder"
        ) from error
    return {name[:1].lower() + name[1:]: value for name, value in properties.items()}


def _difference(name: str, wanted: object, actual: object, run: Run) -> str:
    """Say how a property differs from its design; empty where it does not."""
    time, designed = _duration(actual), _duration(wanted)
    if name == "defaultMessageTimeToLive":
        # Without one it is the longest there is. Longer than needed does no harm.
        needed = run[settings].longest_retry if designed and designed < _NEVER else _NEVER
        return "" if time is None or time > needed else f"{name} is {actual}, should be more than {needed}"
    is_same = actual == wanted if designed is None else time == designed
    return "" if is_same else f"{name} is {actual}, should be {wanted}"


def _duration(value: object) -> timedelta | None:
    """Read a time span of ISO 8601, as Resource Manager writes it; None for anything else."""
    try:
        duration = isodate.parse_duration(str(value))
    except (ValueError, OverflowError, ArithmeticError):
        return None
    return duration if isinstance(duration, timedelta) else None
