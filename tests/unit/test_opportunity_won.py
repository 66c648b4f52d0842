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
