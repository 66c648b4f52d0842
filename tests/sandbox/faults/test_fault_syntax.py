"""How people write rules on the command line."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from sandbox.faults import Dependency, Fault, FaultKind, FaultRule, When
from sandbox.faults.plan import KINDS
from sandbox.faults.syntax import _FIELDS, InvalidRule, parse_rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("dataverse refuse", FaultRule(Dependency.DATAVERSE, Fault(FaultKind.REFUSE))),
        (
            "dataverse/change-set reset after=yes nth=2",
            FaultRule(Dependency.DATAVERSE, Fault(FaultKind.RESET, after=True), When.nth(2), "change-set"),
        ),
        (
            "dataverse throttled retry-after=date+7 part=0 from=1m for=30s",
            FaultRule(
                Dependency.DATAVERSE,
                Fault(FaultKind.THROTTLED, retry_after="date+7", part=0),
                When.during(timedelta(seconds=30), start=timedelta(minutes=1)),
            ),
        ),
        (
            "service-bus-out/send:invoice-created reject code=com.microsoft:server-busy chance=0.2 seed=7",
            FaultRule(
                Dependency.SERVICE_BUS_OUT,
                Fault(FaultKind.REJECT, code="com.microsoft:server-busy"),
                When.at_random(0.2, 7),
                "send:invoice-created",
            ),
        ),
        (
            "service-bus-in/deliver:* lock-lost nth=2-4",
            FaultRule(Dependency.SERVICE_BUS_IN, Fault(FaultKind.LOCK_LOST), When(2, 4), "deliver:*"),
        ),
        (
            "identity/connect cut bytes=100 nth=3-",
            FaultRule(Dependency.IDENTITY, Fault(FaultKind.CUT, bytes=100), When(3), "connect"),
        ),
        (
            "dataverse unavailable status=502",
            FaultRule(Dependency.DATAVERSE, Fault(FaultKind.UNAVAILABLE, status=502)),
        ),
        (
            "dataverse silent seconds=0.5 after=no",
            FaultRule(Dependency.DATAVERSE, Fault(FaultKind.SILENT, seconds=0.5)),
        ),
        (
            'dataverse/change-set error code= status=403 part=0 text="Not so much." source=Plugin/Contoso nth=1',
            FaultRule(
                Dependency.DATAVERSE,
                Fault(
                    FaultKind.ERROR, code="", status=403, part=0, text="Not so much.", source="Plugin/Contoso"
                ),
                When.once(),
                "change-set",
            ),
        ),
        (
            "functions-host kill nth=3",
            FaultRule(Dependency.FUNCTIONS_HOST, Fault(FaultKind.KILL), When.nth(3)),
        ),
    ],
)
def test_a_rule_is_read_as_it_is_written(text: str, rule: FaultRule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no connection called ''; there is identity, dataverse"),
        ("datavers refuse", "no connection called 'datavers'"),
        ("dataverse", "no fault on the connection dataverse called ''"),
        ("identity deadlock", "no fault on the connection identity called 'deadlock'; there is refuse"),
        ("dataverse refuse often", "'often' is not NAME=VALUE"),
        ("dataverse refuse status=502", "refuse has no status; it has nth, from, for, chance, seed"),
        ("dataverse/send:x refuse", "no operation 'send:x'; it has connect, read"),
        ('dataverse error text="open', "a quotation mark is missing"),
        ("dataverse refuse nth=0", "nth=0 cannot be read; it is of the calls that match"),
        ("dataverse refuse nth=4-2", "nth=4-2 cannot be read"),
        ("dataverse refuse for=ever", "for=ever cannot be read; it is how long it lasts"),
        ("dataverse refuse chance=2", "chance=2 cannot be read"),
        ("dataverse reset after=maybe", "after=maybe cannot be read"),
    ],
)
def test_what_is_no_rule_is_refused_with_what_there_is(text: str, says: str) -> None:
    with pytest.raises(InvalidRule) as refused:
        parse_rule(text)
    assert says in str(refused.value)


def test_what_a_rule_says_of_itself_can_be_read_again() -> None:
    rule = FaultRule(
        Dependency.DATAVERSE,
        Fault(FaultKind.THROTTLED, retry_after="9", after=True),
        When(2, 5, timedelta(seconds=3), timedelta(seconds=9), 0.25, 4),
        "change-set",
    )
    assert parse_rule(str(rule)) == rule
    quoted = FaultRule(
        Dependency.DATAVERSE, Fault(FaultKind.ERROR, code="", status=429, text='It isn\'t "there".')
    )
    assert parse_rule(str(quoted)) == quoted


def test_the_page_shows_every_fault_by_an_example() -> None:
    page = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text()
    shown = [
        text
        for text in re.findall(r"`([^`\n]+)`", page)
        if text.partition(" ")[0].partition("/")[0] in list(Dependency)
    ]
    rules = [parse_rule(text) for text in shown if " " in text]
    assert {rule.fault.kind for rule in rules} == set(FaultKind)
    assert {rule.dependency for rule in rules} == set(Dependency)


def test_every_field_can_be_written() -> None:
    assert {name for description in KINDS.values() for name in description.fields} == set(_FIELDS)
