"""The inbound event: parses every shape of "this opportunity was won" into one `OpportunityWon`.

For any bytes there are three results: the win, `Ignored` (nothing to do), or an error that parks the message.
docs/events.md describes what senders may write, and what of it is not confirmed. `invoicing.py` reads whether the
opportunity is won: the event may come from a transaction that was rolled back.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from shared.errors import InvalidEvent, OtherOrganization
from shared.message import Ignored

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True)
class OpportunityWon:
    """An opportunity that an event reports as won.

    Ids are GUIDs in lower case with hyphens. `organization_id` is the Dataverse environment, where the event
    names it. `correlation_id` has at most 128 visible ASCII characters. `shape` is for the log line only.
    """

    opportunity_id: str
    organization_id: str | None = None
    correlation_id: str | None = None
    shape: str = field(default="plain JSON", compare=False)


def parse_event(
    body: bytes,
    properties: Mapping[str, object],
    content_type: str | None,
    *,
    organization_id: str | None = None,
) -> OpportunityWon | Ignored:
    """Read a message's body, application properties and content type.

    `organization_id`, a GUID in lower case with hyphens, is the only environment whose events are accepted; None
    accepts all. An event that does not name its environment is accepted too.

    Raises `InvalidEvent` and `OtherOrganization`, and nothing else, for any bytes and properties.
    """
    by_name = _members((_text(name), value) for name, value in properties.items())
    if _is_endpoint_check(by_name):
        return Ignored("The test message of a service endpoint.")
    media_type = _media_type(content_type)
    if media_type.startswith("application/cloudevents") and media_type != _STRUCTURED:
        raise InvalidEvent(
            f"The content type is a CloudEvents format other than {_STRUCTURED}: send one event per message, in the "
            "JSON format."
        )
    document = _document(body, media_type)
    if media_type == _STRUCTURED or "specversion" in document:
        return _structured_cloud_event(document, organization_id)
    if attributes := _binary_attributes(by_name):
        return _cloud_event(attributes, document, organization_id)
    if "opportunityid" in document:
        return _opportunity_won(document, "the body", "plain JSON", organization_id)
    if _CONTEXT_FIELDS & document.keys():
        truncated = _by_last_segment(by_name, "messagemaxsizeexceeded") is not None
        return _remote_execution_context(document, organization_id, truncated=truncated)
    raise InvalidEvent(
        "The body is JSON of no supported shape: it has neither the MessageName of a Dataverse event, nor "
        "the specversion of a CloudEvent, nor an opportunityId."
    )


def compact_event(won: OpportunityWon) -> bytes:
    """Write the event in its plain form, which `parse_event` reads back to an equal value."""
    document = {
        "opportunityId": won.opportunity_id,
        "organizationId": won.organization_id,
        "correlationId": won.correlation_id,
    }
    return json.dumps({name: value for name, value in document.items() if value is not None}).encode()


# --- Dataverse: RemoteExecutionContext ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """How a service endpoint's step on a message and a table says that an opportunity was won, and which one.

    Places are paths below InputParameters, `Name` or `Name.attribute`; `PrimaryEntityId` is outside of them.
    `state` is the place of the state that must be won; None where the message itself says it.
    """

    messages: tuple[str, ...]
    tables: tuple[str, ...]
    state: str | None
    opportunity: tuple[str, ...]


# The first place that has an id counts. Whether PrimaryEntityId is filled for a Win, and
# whether PrimaryEntityName always is, is not confirmed: hence the tables "" and "none", where it is not used.
_STEPS: Final = (
    _Step(
        messages=("win", "winopportunity"),
        tables=("opportunity", "opportunityclose", "none", ""),
        state=None,
        opportunity=("OpportunityClose.opportunityid", "Target", "PrimaryEntityId"),
    ),
    _Step(
        messages=("update",),
        tables=("opportunity",),
        state="Target.statecode",
        opportunity=("Target", "Target.opportunityid", "PrimaryEntityId"),
    ),
    _Step(
        messages=("setstate", "setstatedynamicentity"),
        tables=("opportunity",),
        state="State",
        opportunity=("EntityMoniker", "PrimaryEntityId"),
    ),
    _Step(  # also sent for lost ones: the opportunity's state decides
        messages=("create",),
        tables=("opportunityclose",),
        state=None,
        opportunity=("Target.opportunityid",),
    ),
)
# These may carry a win, in a form that is not known: parked, not ignored.
_UNREAD_MESSAGES: Final = ("createmultiple", "updatemultiple", "upsertmultiple", "upsert", "executemultiple")
_UNREAD_TABLES: Final = ("opportunity", "opportunityclose", "none", "")
_STATECODE_WON: Final = 1  # never statuscode: its values can be customised
_CONTEXT_FIELDS: Final = frozenset({"messagename", "primaryentityname", "primaryentityid", "inputparameters"})


def _is_endpoint_check(by_name: _Object) -> bool:
    """Whether this is the test message of a service endpoint; its body is not confirmed."""
    return (
        _by_last_segment(by_name, "requestname") == "triggerserviceendpointcheck"
        or _by_last_segment(by_name, "entitylogicalname") == "serviceendpoint"
    )


def _remote_execution_context(
    context: _Object, expected_organization: str | None, *, truncated: bool
) -> OpportunityWon | Ignored:
    organization = _organization(context, expected_organization)
    message, table = _name_of(context, "MessageName"), _name_of(context, "PrimaryEntityName")
    if not message:
        raise InvalidEvent("MessageName is missing: this is not a whole RemoteExecutionContext of Dataverse.")
    shape = f"{_quotable(message)} of {_quotable(table) or 'no table'}"
    for step in _STEPS:
        if message.lower() in step.messages and table.lower() in step.tables:
            break
    else:
        if message.lower() in _UNREAD_MESSAGES and table.lower() in _UNREAD_TABLES:
            raise InvalidEvent(
                f"{shape} may carry several rows, which is not supported: register the step on Win of opportunity."
            )
        return Ignored(f"{shape} wins no opportunity.")
    parameters = _attributes(context, "InputParameters", "the body")
    truncated = truncated or not parameters
    if step.state is not None:
        state = _state(_find(parameters, step.state), step.state)
        # What a truncated event set is not known: the opportunity's state decides.
        if state != _STATECODE_WON and not (state is None and truncated):
            return Ignored(f"{shape} does not set the state to won.")
    return OpportunityWon(
        _opportunity_id(context, parameters, step, shape, truncated=truncated),
        organization,
        _correlation_id(context, "correlationid"),
        shape,
    )


def _opportunity_id(
    context: _Object, parameters: _Object, step: _Step, shape: str, *, truncated: bool
) -> str:
    for place in step.opportunity:
        if place != "PrimaryEntityId":
            found = _reference(_find(parameters, place), f"InputParameters.{place}")
        elif _name_of(context, "PrimaryEntityName").lower() == "opportunity":
            found = _guid(_member(context, place, "the body"), place)
        else:
            continue
        if found is not None:
            return found
    because = (
        " Dataverse removes InputParameters from events over 192 KB: register the step on Win of opportunity, with "
        "fewer columns or none in its images."
        if truncated
        else ""
    )
    raise InvalidEvent(f"{shape} names no opportunity: not found in {', '.join(step.opportunity)}.{because}")


def _find(parameters: _Object, place: str) -> object:
    """Return the value at `Name` or, for an attribute of that entity, `Name.attribute`; None if there is none."""
    name, _, attribute = place.partition(".")
    value = _member(parameters, name, "InputParameters")
    if not attribute or value is None:
        return value
    where = f"InputParameters.{name}"
    return _member(_attributes(_object(value, where), "Attributes", where), attribute, where)


def _reference(value: object, where: str) -> str | None:
    """Return the id of an opportunity from an Entity, an EntityReference or a bare GUID; None for another table's."""
    if not isinstance(value, dict):
        return _guid(value, where)
    if _name_of(value, "LogicalName").lower() not in {"opportunity", ""}:
        return None
    return _guid(_member(value, "Id", where), f"{where}.Id")


def _state(value: object, where: str) -> object:
    """Return the number of an OptionSetValue, with or without its wrapping; None if there is none."""
    if isinstance(value, dict):
        value = _member(value, "Value", where)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise InvalidEvent(f"InputParameters.{where} is {_kind(value)}, not an OptionSetValue.")


def _attributes(parent: _Object, name: str, where: str) -> _Object:
    """Return a list of `{"key": …, "value": …}`, as Dataverse writes a dictionary, as one; empty if missing."""
    listed = _member(parent, name, where)
    if listed is None:
        return {}
    if not isinstance(listed, list):
        raise InvalidEvent(f"{name} of {where} is {_kind(listed)}, not a list of keys and values.")
    return _members(
        (_text(_member(item, "key", name)), _member(item, "value", name))
        for item in listed
        if isinstance(item, dict)
    )


# --- CloudEvents 1.0 and plain JSON ------------------------------------------------------------------------------

_STRUCTURED: Final = "application/cloudevents+json"
_PREFIXES: Final = ("cloudevents_", "cloudevents:")
_EVENT_TYPE: Final = re.compile(
    r"(?:.*\.)?sales\.opportunity\.(?P<what>[a-z]+)(?:[.:/_-]v?[0-9][0-9a-z._-]*)?", re.ASCII | re.IGNORECASE
)


def _binary_attributes(by_name: _Object) -> _Object:
    """Return the attributes of a CloudEvent in binary mode; empty if it is none."""
    prefixed = {prefix: [name for name in by_name if name.startswith(prefix)] for prefix in _PREFIXES}
    if all(prefixed.values()):
        raise InvalidEvent(
            "The application properties mix cloudEvents_ and cloudEvents: as prefixes of attributes."
        )
    return {name[len(prefix) :]: by_name[name] for prefix, names in prefixed.items() for name in names}


def _structured_cloud_event(event: _Object, expected_organization: str | None) -> OpportunityWon | Ignored:
    data = _member(event, "data", "the CloudEvent")
    encoded = _member(event, "data_base64", "the CloudEvent")
    if isinstance(encoded, str) and data is None:
        try:
            data = _document(base64.b64decode(encoded, validate=True), "", "data_base64")
        except ValueError as error:
            raise InvalidEvent("data_base64 of the CloudEvent is not base64.") from error
    return _cloud_event(event, data, expected_organization)


def _cloud_event(
    attributes: _Object, data: object, expected_organization: str | None
) -> OpportunityWon | Ignored:
    required = {}
    for name in ("specversion", "id", "source", "type"):
        required[name] = _text(_member(attributes, name, "the CloudEvent"))
        if not required[name]:
            raise InvalidEvent(f"The CloudEvent has no {name}: it is required, as a text that is not empty.")
    if required["specversion"] != "1.0":
        raise InvalidEvent("The specversion of the CloudEvent is not 1.0.")
    event_type = _EVENT_TYPE.fullmatch(required["type"])
    if event_type is None:
        raise InvalidEvent(
            f"The type of the CloudEvent, {_quotable(required['type'])}, does not end in sales.opportunity.won or "
            "sales.opportunity.won.v1."
        )
    if event_type["what"].lower() != "won":
        return Ignored(f"A CloudEvent of type {_quotable(required['type'])} wins no opportunity.")
    won = _opportunity_won(
        _object(data, "data of the CloudEvent"), "data of the CloudEvent", "CloudEvent", expected_organization
    )
    if won.correlation_id is not None:
        return won
    correlation_id = _correlation_id(attributes, "correlationid")
    return OpportunityWon(won.opportunity_id, won.organization_id, correlation_id, won.shape)


def _opportunity_won(
    document: _Object, where: str, shape: str, expected_organization: str | None
) -> OpportunityWon:
    organization = _organization(document, expected_organization)
    opportunity = _guid(_member(document, "opportunityId", where), f"opportunityId of {where}")
    if opportunity is None:
        raise InvalidEvent(f"opportunityId of {where} is missing, null or the empty GUID.")
    return OpportunityWon(opportunity, organization, _correlation_id(document, "correlationid"), shape)


# --- What all shapes share ---------------------------------------------------------------------------------------


def _organization(document: _Object, expected: str | None) -> str | None:
    organization = _guid(_member(document, "OrganizationId", "the event"), "OrganizationId")
    if None not in {organization, expected} and organization != expected:
        raise OtherOrganization(
            f"The event comes from the Dataverse organization {organization}, and DATAVERSE_ORGANIZATION_ID is "
            f"{expected}."
        )
    return organization


def _correlation_id(document: _Object, name: str) -> str | None:
    """Return the correlation id if Service Bus can carry it; another one is dropped and stops no invoice."""
    value = document.get(name)
    return value if isinstance(value, str) and _CORRELATION_ID.fullmatch(value) else None


_CORRELATION_ID: Final = re.compile(r"[!-~]{1,128}")
_GUID: Final = re.compile(
    r"\{?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})\}?",
    re.ASCII | re.IGNORECASE,
)
_EMPTY_GUID: Final = "00000000-0000-0000-0000-000000000000"


def _guid(value: object, where: str) -> str | None:
    """Return a GUID in lower case with hyphens; None for null and for the empty GUID, which means none in .NET."""
    if value is None:
        return None
    # Not uuid.UUID: it accepts underscores, digits of other scripts and hyphens anywhere.
    match = _GUID.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidEvent(f"{where} is {_kind(value)}, not a GUID.")
    guid = "-".join(match.groups()).lower()
    return None if guid == _EMPTY_GUID else guid


# --- JSON whose objects are read without regard to case ----------------------------------------------------------

_Object = dict[str, object]  # names in lower case


class _Repeated:
    """Replaces a member that an object has twice with different values: reading it fails, its presence does not."""


_REPEATED: Final = _Repeated()
_MAX_DIGITS: Final = 18
_XML_ADVICE: Final = (
    "Set the message format of the service endpoint to JSON (Plug-in Registration Tool: Message Format; table "
    "serviceendpoint: messageformat 2)."
)


def _document(body: bytes, media_type: str, where: str = "The body") -> _Object:
    if wrapped := _DOTNET_STRING.match(body):
        body, media_type = _dotnet_text(body[wrapped.end() :], where), ""
        where = f"The .NET string in {where[0].lower()}{where[1:]}"
    start = body[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start and not body.strip():
        raise InvalidEvent(f"{where} is empty.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:4]:
        raise InvalidEvent(f"{where} is UTF-16 or UTF-32: send UTF-8.")
    if start.startswith(b"<string"):
        raise InvalidEvent(f"{where} is a .NET string in XML: send the JSON text itself as the body.")
    if start.startswith(b"<"):
        raise InvalidEvent(f"{where} is XML, not JSON. {_XML_ADVICE}")
    if start.startswith((b"@", b"V")) or (media_type == "application/msbin1" and not start.startswith(b"{")):
        raise InvalidEvent(f"{where} is binary XML, not JSON. {_XML_ADVICE}")
    try:
        document = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_members,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise InvalidEvent(f"{where} is not UTF-8: the byte at {error.start} is not.") from error
    except json.JSONDecodeError as error:
        raise InvalidEvent(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise InvalidEvent(f"{where} is JSON that is nested too deeply.") from error
    return _object(document, where)


# A string or a byte array that a .NET sender serialized, as Service Bus Explorer does by default: binary XML (MC-NBFX)
# of one element with one namespace, then its content.
_DOTNET_STRING: Final = re.compile(
    rb"@(\x06string|\x0cbase64Binary)\x08\x33http://schemas\.microsoft\.com/2003/10/Serialization/"
)
# The records of content: the bytes of their length, and the encoding. The record after each (an odd number) is the same
# and also ends the element.
_CONTENT: Final = {
    0x98: (1, "utf-8"),
    0x9A: (2, "utf-8"),
    0x9C: (4, "utf-8"),
    0x9E: (1, ""),
    0xA0: (2, ""),
    0xA2: (4, ""),
    0xA8: (0, ""),
    0xB6: (1, "utf-16-le"),
    0xB8: (2, "utf-16-le"),
    0xBA: (4, "utf-16-le"),
}
_END_ELEMENT: Final = 0x01


def _dotnet_text(records: bytes, where: str) -> bytes:
    """Return the content of a serialized .NET string as UTF-8."""
    content = b""
    while records and records[0] != _END_ELEMENT:
        size, encoding = _CONTENT.get(records[0] & 0xFE, (0, None))
        length = int.from_bytes(records[1 : 1 + size], "little")
        end = 1 + size + length
        if encoding is None or end > len(records):
            break
        text = records[1 + size : end]
        content += text.decode(encoding, "replace").encode() if encoding == "utf-16-le" else text
        if records[0] & 1:
            return content
        records = records[end:]
    else:
        if records:
            return content
    raise InvalidEvent(
        f"{where} is a .NET string in binary XML, and incomplete: send the JSON text itself as the body."
    )


def _members(pairs: Iterable[tuple[str, object]]) -> _Object:
    members: _Object = {}
    for name, value in pairs:
        key = name.lower()
        # The same value twice is not ambiguous.
        same = isinstance(value, str) and members.get(key) == value
        members[key] = _REPEATED if key in members and not same else value
    return members


def _number(digits: str) -> float:
    """Return a whole number as int; nothing reads others, and Python refuses ints of over 4,300 digits."""
    return int(digits) if len(digits) <= _MAX_DIGITS and digits.lstrip("-").isdigit() else float("nan")


def _no_number(name: str) -> NoReturn:
    raise InvalidEvent(f"The body is not JSON: it has no {name}.")


def _object(value: object, where: str) -> _Object:
    if not isinstance(value, dict):
        raise InvalidEvent(f"{where} is {_kind(value)}, not a JSON object.")
    return value


def _member(members: _Object, name: str, where: str) -> object:
    value = members.get(name.lower())
    if value is _REPEATED:
        raise InvalidEvent(f"{where} has more than one {name}: which of them counts cannot be known.")
    return value


def _name_of(members: _Object, name: str) -> str:
    return _text(_member(members, name, "the event"))


def _kind(value: object) -> str:
    """Say what a value is without quoting it: it may be personal."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return "null" if value is None else "true or false" if isinstance(value, bool) else "a number"


# --- Names and media types ---------------------------------------------------------------------------------------


def _text(value: object) -> str:
    """Return a text, also from the bytes as which some AMQP libraries hand over texts; empty for all else."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _by_last_segment(by_name: _Object, last: str) -> str | None:
    """Return a property in lower case by the last segment of its name, which may be a whole URI."""
    for name, value in by_name.items():
        if name.rpartition("/")[2] == last:
            return _text(value).lower()
    return None


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


_QUOTABLE: Final = re.compile(r"[0-9a-z_.:/-]{1,100}", re.ASCII | re.IGNORECASE)


def _quotable(name: str) -> str:
    """Return a name of a message, table or type if it looks like one: only such names are quoted."""
    return name if not name or _QUOTABLE.fullmatch(name) else "(an odd name)"
