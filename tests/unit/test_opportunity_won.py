from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks.parser import hostile_messages
from shared.errors import InvalidEvent, OtherOrganization
from shared.message import Ignored
from shared.opportunity_won import OpportunityWon, compact_event, parse_event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.events.corpus import EventCase

    Judge = Callable[[bytes, Mapping[str, object], str | None], str]


OPPORTUNITY = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"


def read(case: EventCase) -> OpportunityWon | Ignored | InvalidEvent | OtherOrganization:
    try:
        return parse_event(
            case.body, case.properties, case.content_type, organization_id=case.organization_setting
        )
    except (InvalidEvent, OtherOrganization) as error:
        return error


def test_every_event_of_the_corpus_is_read_as_its_file_says(event_case: EventCase) -> None:
    assert event_case.source
    assert event_case.confirmed
    result = read(event_case)
    if isinstance(result, OpportunityWon):
        assert event_case.expect == f"won {result.opportunity_id}"
        assert (result.organization_id, result.correlation_id) == (
            event_case.organization,
            event_case.correlation,
        )
    else:
        name = "not a win" if isinstance(result, Ignored) else type(result).__name__
        assert name == event_case.expect, text_of(result)
        for part in event_case.says:
            assert part in text_of(result)


def text_of(result: OpportunityWon | Ignored | InvalidEvent | OtherOrganization) -> str:
    if isinstance(result, OpportunityWon):
        return result.shape
    return result.reason if isinstance(result, Ignored) else result.description


def with_each_text_replaced(document: object, text: str) -> Iterator[object]:
    """Yield copies of a JSON document, each with another of its names or texts replaced."""
    if isinstance(document, str):
        yield text
    elif isinstance(document, list):
        for place, item in enumerate(document):
            for changed in with_each_text_replaced(item, text):
                yield [*document[:place], changed, *document[place + 1 :]]
    elif isinstance(document, dict):
        for name, value in document.items():
            yield {(text if other == name else other): its for other, its in document.items()}
            for changed in with_each_text_replaced(value, text):
                yield {**document, name: changed}


def test_personal_data_is_never_quoted_wherever_it_stands(event_case: EventCase) -> None:
    """Log lines and dead-letter descriptions are read by people who may not see the customer's data."""
    marker = "Jane Doe <jane@contoso.com>\n"
    try:
        document = json.loads(event_case.body)
    except (ValueError, RecursionError):
        document = None  # there is no text in it that could be replaced
    bodies = [json.dumps(changed).encode() for changed in with_each_text_replaced(document, marker)]
    for body in [event_case.body, *bodies]:
        marked: dict[str, object] = dict.fromkeys(event_case.properties, marker)
        for properties in (event_case.properties, marked):
            text = text_of(read(replace(event_case, body=body, properties=properties)))
            assert text.isascii()
            assert "\n" not in text
            assert "Jane" not in text
            assert "jane" not in text


@pytest.mark.parametrize(
    "won",
    [
        OpportunityWon(OPPORTUNITY),
        OpportunityWon(OPPORTUNITY, organization_id="3c1fa2d4-7b6e-4a4f-8f0d-2b9a6c5d4e3f"),
        OpportunityWon(OPPORTUNITY, correlation_id='~!"\\{}'),
    ],
)
def test_the_compact_form_is_read_back_to_the_same_win(won: OpportunityWon) -> None:
    assert parse_event(compact_event(won), {}, "application/json") == won


def test_the_compact_form_of_an_event_of_another_organization_stays_one() -> None:
    """A copy that is tried again is still parked if the setting names another environment by then."""
    event = compact_event(OpportunityWon(OPPORTUNITY, organization_id=OPPORTUNITY))
    with pytest.raises(OtherOrganization):
        parse_event(event, {}, None, organization_id="3c1fa2d4-7b6e-4a4f-8f0d-2b9a6c5d4e3f")


@pytest.mark.parametrize("name", hostile_messages().keys())
def test_a_message_full_of_one_thing_has_one_of_the_three_results(name: str, judge_event: Judge) -> None:
    """benchmarks/parser.py says how long each takes."""
    body, properties = hostile_messages()[name]
    judge_event(body, properties, "application/json")


# ---------------------------------------------------------------------------------------------- beside the corpus

CLOUD_EVENT: dict[str, object] = {
    "cloudEvents_specversion": "1.0",
    "cloudEvents_id": "1",
    "cloudEvents_source": "/x",
    "cloudEvents_type": "sales.opportunity.won",
}
DOTNET_STRING = b"@\x06string\x08\x33http://schemas.microsoft.com/2003/10/Serialization/"


def context(**members: object) -> bytes:
    return json.dumps({"MessageName": "Update", "PrimaryEntityName": "opportunity", **members}).encode()


def update(state: int) -> bytes:
    attributes = [{"key": "statecode", "value": state}]
    target = {"LogicalName": "opportunity", "Id": OPPORTUNITY, "Attributes": attributes}
    return context(InputParameters=[{"key": "Target", "value": target}])


def test_property_names_and_values_may_be_bytes() -> None:
    """Some AMQP libraries hand texts over as bytes."""
    properties = {name.encode(): str(value).encode() for name, value in CLOUD_EVENT.items()}
    body = b'{"opportunityId": "%s"}' % OPPORTUNITY.encode()
    won = parse_event(body, properties, None)  # type: ignore[arg-type]  # not what the types promise: that is the point
    assert isinstance(won, OpportunityWon)
    assert won.shape == "CloudEvent"


def test_a_reference_without_a_table_is_one_to_an_opportunity() -> None:
    reference = {"key": "Target", "value": {"Id": OPPORTUNITY}}
    body = json.dumps({"MessageName": "Win", "InputParameters": [reference]}).encode()
    assert parse_event(body, {}, None) == OpportunityWon(OPPORTUNITY)


@pytest.mark.parametrize(
    ("record", "size", "encoding"),
    [
        (0x98, 1, "utf-8"),
        (0x9A, 2, "utf-8"),
        (0x9C, 4, "utf-8"),
        (0x9E, 1, "utf-8"),
        (0xA0, 2, "utf-8"),
        (0xA2, 4, "utf-8"),
        (0xB6, 1, "utf-16-le"),
        (0xB8, 2, "utf-16-le"),
        (0xBA, 4, "utf-16-le"),
    ],
)
@pytest.mark.parametrize("end", [b"", b"\x01"], ids=["in the record", "of its own"])
def test_a_dotnet_string_has_content_of_many_kinds(record: int, size: int, encoding: str, end: bytes) -> None:
    """The kinds of MC-NBFX; one that also ends the element is an odd number."""
    content = json.dumps({"opportunityId": OPPORTUNITY}).encode(encoding)
    kind = bytes([record if end else record + 1])
    body = DOTNET_STRING + b"\xa8" + kind + len(content).to_bytes(size, "little") + content + end
    assert parse_event(body, {}, None) == OpportunityWon(OPPORTUNITY)


@pytest.mark.parametrize(
    "body",
    [
        # A part of the name of a message or of a table is another name.
        *(context(MessageName=name) for name in ("opp", "dynamic", "updat", "creat", "multiple", "execute")),
        *(
            context(MessageName=name, PrimaryEntityName=table)
            for name in ("Win", "Update", "SetState", "Create", "Upsert")
            for table in ("opp", "close", "on", "quote")
        ),
        b'{"MessageName": "Assign"}',
        update(-1),
        update(int("1" * 18)),
    ],
)
def test_what_wins_nothing_is_ignored(body: bytes) -> None:
    assert isinstance(parse_event(body, {}, None), Ignored)


@pytest.mark.parametrize(
    "properties",
    [
        {"http://x/Claims/RequestName": "TriggerServiceEndpointCheck"},
        {"http://x/Claims/EntityLogicalName": "serviceendpoint"},
    ],
)
def test_one_property_suffices_to_know_the_test_of_an_endpoint(properties: dict[str, object]) -> None:
    assert parse_event(b"", properties, None) == Ignored("The test message of a service endpoint.")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(hostile_messages()["nested lists, closed"][0], "nested too deeply", id="nested"),
        *(
            (json.dumps({name: None}).encode(), "not a whole RemoteExecutionContext")
            for name in ("PrimaryEntityName", "PrimaryEntityId", "InputParameters")
        ),
        (context(MessageName="UPSERT", PrimaryEntityName="Opportunity"), "may carry several rows"),
        # Dataverse's numbers have fewer digits.
        (update(int("1" * 19)), "is a number, not an OptionSetValue"),
        (
            json.dumps({"opportunityId": OPPORTUNITY, "organizationId": "x"}).encode(),
            r"^OrganizationId is a text of 1 characters, not a GUID",
        ),
        (b'{"specversion": "1.0", "data_base64": "PHg+"}', "^data_base64 is XML"),
        (
            b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "sales.opportunity.won", "data": null}',
            "data of the CloudEvent is null, not a JSON object",
        ),
        # A format is known by the first 64 bytes.
        (b" " * 63 + b"<a/>", "is XML, not JSON"),
        (b" " * 64 + b"<a/>", "is not JSON: "),
        (b"\xff\xfe" + "\u6f22\u5b57".encode("utf-16-le"), "is UTF-16 or UTF-32"),
        (b"\xfe\xff" + "\u6f22\u5b57".encode("utf-16-be"), "is UTF-16 or UTF-32"),
        (b'{"a\0', "is UTF-16 or UTF-32"),
        (b'{"ab\0', "is not JSON"),
        (b"V\x01", "is binary XML, not JSON"),
        (b"@\x01", "is binary XML, not JSON"),
        # UTF-16 that ends within a character.
        (DOTNET_STRING + b"\xb7\x03{\x00\xd8", "is not JSON"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(body: bytes, says: str) -> None:
    with pytest.raises(InvalidEvent, match=says):
        parse_event(body, {}, None)


@pytest.mark.parametrize(
    ("properties", "content_type", "says"),
    [
        ({**CLOUD_EVENT, "cloudevents_TYPE": "b"}, None, "more than one type"),
        # Bytes that are no UTF-8.
        (
            {**CLOUD_EVENT, "cloudEvents_specversion": b"\xff"},
            None,
            r"specversion of the CloudEvent is not 1\.0",
        ),
        ({f"cloudEvents_{number}": None for number in range(5_000)}, "x" * 10_000, "has no specversion"),
        ({}, "Application/CloudEvents+JSON", "has no specversion"),
        ({}, " application/cloudevents+json ; charset=utf-8", "has no specversion"),
    ],
    ids=["twice in different case", "bytes", "many", "type in another case", "type with white space"],
)
def test_what_is_wrong_with_the_properties_is_named(
    properties: dict[str, object], content_type: str | None, says: str
) -> None:
    with pytest.raises(InvalidEvent, match=says):
        parse_event(b'{"opportunityId": 1}', properties, content_type)
