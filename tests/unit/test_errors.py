from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from shared import errors
from shared.errors import (
    DataverseThrottled,
    InvalidSettings,
    InvoicingFailure,
    OpportunityNotFound,
    ParkNow,
    RetryLater,
    RetryPolicy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def own_subclasses(parent: type[InvoicingFailure]) -> list[type[InvoicingFailure]]:
    return [child for child in parent.__subclasses__() if child.__module__ == errors.__name__]


def leaves(parent: type[InvoicingFailure] = InvoicingFailure) -> Iterator[type[InvoicingFailure]]:
    children = own_subclasses(parent)
    if not children:
        yield parent
    for child in children:
        yield from leaves(child)


LEAVES = list(leaves())


def drawn(parent: type[InvoicingFailure], indent: str = "") -> Iterator[str]:
    children = own_subclasses(parent)
    for child in children:
        last = child is children[-1]
        yield f"{indent}{'└── ' if last else '├── '}{child.__name__}"
        yield from drawn(child, indent + ("    " if last else "│   "))


def test_the_tree_is_as_it_is_drawn() -> None:
    pictured = re.findall(r"^    ([│├└ ─]*\w+)", errors.__doc__ or "", re.MULTILINE)
    assert pictured == ["InvoicingFailure", *drawn(InvoicingFailure)]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_is_one_decision_that_says_why_and_what_to_do(leaf: type[InvoicingFailure]) -> None:
    assert leaf.reason == leaf.__name__, "the DeadLetterReason that alerts and runbooks look for"
    assert leaf.advice.endswith("."), "a whole sentence"
    assert len(leaf.advice) < 300, "it must fit behind a short description"
    assert leaf.__doc__
    decisions = (RetryLater, ParkNow, errors.ServiceBusUnavailable)
    assert [issubclass(leaf, decision) for decision in decisions].count(True) == 1
    if issubclass(leaf, RetryLater):
        assert leaf.policy in RetryPolicy


def test_the_values_of_policies_are_golden() -> None:
    values = {policy.name: policy.value for policy in RetryPolicy}
    assert values == {"OPEN": "open", "RECORD": "short", "OUTAGE": "long"}, "messages in flight carry them"


def test_only_leaves_have_a_reason() -> None:
    """What is no decision cannot be raised by mistake: it would have no reason to be parked with."""
    for branch in (InvoicingFailure, RetryLater, errors.RetryRecord, errors.RetryOutage, ParkNow):
        assert not hasattr(branch, "reason")


def test_an_error_names_its_request() -> None:
    assert str(OpportunityNotFound("There is none.")) == "There is none."
    error = OpportunityNotFound("There is none.", request_id="r-1")
    assert str(error) == "There is none. (request r-1)"
    assert (error.description, error.request_id) == ("There is none.", "r-1")


def test_errors_carry_what_their_decision_needs() -> None:
    throttled = DataverseThrottled("Too many.", retry_after=3.5, request_id="r-1")
    assert (throttled.retry_after, throttled.request_id) == (3.5, "r-1")
    invalid = InvalidSettings(("One is missing.", "Another is wrong."))
    assert invalid.problems == ("One is missing.", "Another is wrong.")
    assert str(invalid) == "One is missing. Another is wrong."
    assert invalid.args == ("One is missing. Another is wrong.",), "what a stack trace of the host shows"
