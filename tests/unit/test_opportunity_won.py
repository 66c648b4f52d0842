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


def test_every_case_says_where_it_comes_from_and_what_is_confirmed(event_case: EventCase) -> None:
    assert event_case.source
    assert event_case.confirmed


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


def test_property_names_and_values_may_be_bytes() -> None:
    """Some AMQP libraries hand texts over as bytes."""
    properties = {b"cloudEvents_specversion": b"1.0", "cloudEvents_id": b"1", "cloudEvents_source": "/x"}
    properties |= {b"cloudEvents_type": b"sales.opportunity.won"}
    body = b'{"opportunityId": "%s"}' % OPPORTUNITY.encode()
    won = parse_event(body, properties, None)  # type: ignore[arg-type]  # not what the types promise: that is the point
    assert isinstance(won, OpportunityWon)
    assert won.shape == "CloudEvent"


def test_a_property_that_is_there_twice_in_different_case_is_refused_where_it_is_read() -> None:
    properties = {"cloudEvents_type": "a", "cloudevents_TYPE": "b", "cloudEvents_id": "1"}
    properties |= {"cloudEvents_specversion": "1.0", "cloudEvents_source": "/x"}
    with pytest.raises(InvalidEvent, match="more than one type"):
        parse_event(b"{}", properties, None)


@pytest.mark.parametrize("name", hostile_messages().keys())
def test_a_message_full_of_one_thing_has_one_of_the_three_results(name: str, judge_event: Judge) -> None:
    """benchmarks/parser.py says how long each takes."""
    body, properties = hostile_messages()[name]
    judge_event(body, properties, "application/json")


def test_deep_nesting_is_described() -> None:
    with pytest.raises(InvalidEvent, match="nested too deeply"):
        parse_event(hostile_messages()["nested lists, closed"][0], {}, None)


def test_long_names_and_many_properties_do_no_harm() -> None:
    properties: dict[str, object] = {f"cloudEvents_{number}": None for number in range(5_000)}
    with pytest.raises(InvalidEvent, match="has no specversion"):
        parse_event(b'{"opportunityId": 1}', properties, "x" * 10_000)


@pytest.mark.parametrize("message", ["opp", "dynamic", "updat", "creat", "multiple", "execute"])
def test_a_part_of_a_messages_name_is_not_the_message(message: str) -> None:
    body = json.dumps({"MessageName": message, "PrimaryEntityName": "opportunity"}).encode()
    assert isinstance(parse_event(body, {}, None), Ignored)


@pytest.mark.parametrize("table", ["opp", "close", "on", "quote"])
@pytest.mark.parametrize("message", ["Win", "Update", "SetState", "Create", "Upsert"])
def test_a_part_of_a_tables_name_is_not_the_table(message: str, table: str) -> None:
    body = json.dumps({"MessageName": message, "PrimaryEntityName": table}).encode()
    assert isinstance(parse_event(body, {}, None), Ignored)


@pytest.mark.parametrize("name", ["PrimaryEntityName", "PrimaryEntityId", "InputParameters"])
def test_any_part_of_a_context_shows_what_the_rest_should_have_been(name: str) -> None:
    with pytest.raises(InvalidEvent, match="not a whole RemoteExecutionContext"):
        parse_event(json.dumps({name: None}).encode(), {}, None)


def test_a_message_name_alone_is_a_context() -> None:
    assert isinstance(parse_event(b'{"MessageName": "Assign"}', {}, None), Ignored)


@pytest.mark.parametrize(
    "properties",
    [
        {"http://x/Claims/RequestName": "TriggerServiceEndpointCheck"},
        {"http://x/Claims/EntityLogicalName": "serviceendpoint"},
    ],
)
def test_one_property_suffices_to_know_the_test_of_an_endpoint(properties: dict[str, object]) -> None:
    result = parse_event(b"", properties, None)
    assert isinstance(result, Ignored)
    assert result.reason == "The test message of a service endpoint."


def test_the_table_of_a_message_with_several_rows_may_be_in_any_case() -> None:
    with pytest.raises(InvalidEvent, match="may carry several rows"):
        parse_event(b'{"MessageName": "UPSERT", "PrimaryEntityName": "Opportunity"}', {}, None)


def test_a_reference_without_a_table_is_one_to_an_opportunity() -> None:
    reference = {"key": "Target", "value": {"Id": OPPORTUNITY}}
    body = json.dumps({"MessageName": "Win", "InputParameters": [reference]}).encode()
    assert parse_event(body, {}, None) == OpportunityWon(OPPORTUNITY)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(InvalidEvent, match=r"^OrganizationId is a text of 1 characters, not a GUID"):
        parse_event(json.dumps({"opportunityId": OPPORTUNITY, "organizationId": "x"}).encode(), {}, None)
    with pytest.raises(InvalidEvent, match=r"^data_base64 is XML"):
        parse_event(b'{"specversion": "1.0", "data_base64": "PHg+"}', {}, None)


def test_a_format_is_known_by_the_first_64_bytes() -> None:
    with pytest.raises(InvalidEvent, match="is XML, not JSON"):
        parse_event(b" " * 63 + b"<a/>", {}, None)
    with pytest.raises(InvalidEvent, match=r"is not JSON: "):
        parse_event(b" " * 64 + b"<a/>", {}, None)


@pytest.mark.parametrize("digits", [18, 19])
def test_a_whole_number_of_more_than_eighteen_digits_is_no_number_of_dataverse(digits: int) -> None:
    target = {"LogicalName": "opportunity", "Id": OPPORTUNITY}
    target |= {"Attributes": [{"key": "statecode", "value": int("1" * digits)}]}  # type: ignore[dict-item]
    parameters = [{"key": "Target", "value": target}]
    body = json.dumps(
        {"MessageName": "Update", "PrimaryEntityName": "opportunity", "InputParameters": parameters}
    ).encode()
    if digits == 18:
        assert isinstance(parse_event(body, {}, None), Ignored)
    else:
        with pytest.raises(InvalidEvent, match="is a number, not an OptionSetValue"):
            parse_event(body, {}, None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xff\xfe" + "\u6f22\u5b57".encode("utf-16-le"), "is UTF-16 or UTF-32"),
        (b"\xfe\xff" + "\u6f22\u5b57".encode("utf-16-be"), "is UTF-16 or UTF-32"),
        (b'{"a\0', "is UTF-16 or UTF-32"),
        (b'{"ab\0', "is not JSON"),
        (b"V\x01", "is binary XML, not JSON"),
        (b"@\x01", "is binary XML, not JSON"),
    ],
)
def test_other_formats_are_named(body: bytes, says: str) -> None:
    with pytest.raises(InvalidEvent, match=says):
        parse_event(body, {}, None)


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
    element = b"@\x06string\x08\x33http://schemas.microsoft.com/2003/10/Serialization/"
    kind = bytes([record if end else record + 1])
    body = element + b"\xa8" + kind + len(content).to_bytes(size, "little") + content + end
    assert parse_event(body, {}, None) == OpportunityWon(OPPORTUNITY)


def test_a_state_may_be_negative() -> None:
    target = {
        "LogicalName": "opportunity",
        "Id": OPPORTUNITY,
        "Attributes": [{"key": "statecode", "value": -1}],
    }
    parameters = [{"key": "Target", "value": target}]
    document = {"MessageName": "Update", "PrimaryEntityName": "opportunity", "InputParameters": parameters}
    assert isinstance(parse_event(json.dumps(document).encode(), {}, None), Ignored)


def test_a_dotnet_string_that_is_no_utf_16_is_not_json() -> None:
    element = b"@\x06string\x08\x33http://schemas.microsoft.com/2003/10/Serialization/"
    with pytest.raises(InvalidEvent, match="is not JSON"):
        parse_event(element + b"\xb7\x03{\x00\xd8", {}, None)


@pytest.mark.parametrize(
    "content_type", ["Application/CloudEvents+JSON", " application/cloudevents+json ; charset=utf-8"]
)
def test_a_media_type_has_any_case_and_white_space(content_type: str) -> None:
    with pytest.raises(InvalidEvent, match="has no specversion"):
        parse_event(b"{}", {}, content_type)


def test_bytes_that_are_no_utf_8_are_no_reason_to_fail_otherwise() -> None:
    properties = {"cloudEvents_specversion": b"\xff", "cloudEvents_id": "1", "cloudEvents_source": "/x"}
    with pytest.raises(InvalidEvent, match=r"specversion of the CloudEvent is not 1\.0"):
        parse_event(b"{}", {**properties, "cloudEvents_type": "x"}, None)


def test_data_that_is_null_is_named_so() -> None:
    body = b'{"specversion": "1.0", "id": "1", "source": "/x", "type": "sales.opportunity.won", "data": null}'
    with pytest.raises(InvalidEvent, match="data of the CloudEvent is null, not a JSON object"):
        parse_event(body, {}, None)
