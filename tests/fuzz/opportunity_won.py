"""Fuzzes the reading of incoming events, guided by coverage (atheris); `make fuzz` runs it.

    python tests/fuzz/opportunity_won.py fuzz --inputs 1000000 --found build/fuzz
    coverage run --branch --source=shared tests/fuzz/opportunity_won.py replay build/fuzz

An input is a message in the format of tests/events/README.md, so that the corpus is what the fuzzer begins with and
every finding can be read, and added to the corpus. `replay` reads inputs again without atheris, to measure
branches or to look at a crash.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuzzing import ROOT, Target, run

if TYPE_CHECKING:
    from collections.abc import Mapping

CORPUS = ROOT / "tests" / "events"
ORGANIZATION = "5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DESCRIPTION = re.compile(r"[ -~]{1,1000}")


def judge(body: bytes, properties: Mapping[str, object], content_type: str | None) -> str:
    """Read a message and return the kind of result; raise AssertionError for one that is none of the three."""
    free = _result(body, properties, content_type, None)
    bound = _result(body, properties, content_type, ORGANIZATION)
    if bound[0] != "OtherOrganization":
        assert bound == free, "the setting changes nothing else"
        assert bound[0] != "OpportunityWon" or bound[1].organization_id in {None, ORGANIZATION}
    return bound[0]


def _result(
    body: bytes, properties: Mapping[str, object], content_type: str | None, setting: str | None
) -> tuple[str, Any]:
    # Imported late: the fuzzer instruments the modules while they are imported.
    errors = importlib.import_module("shared.errors")
    module = importlib.import_module("shared.opportunity_won")
    try:
        result = module.parse_event(body, properties, content_type, organization_id=setting)
    except (errors.InvalidEvent, errors.OtherOrganization) as error:
        result = error
    if isinstance(result, errors.ParkNow):
        assert DESCRIPTION.fullmatch(result.description), "a description is one line of plain text"
        return type(result).__name__, result.description
    if isinstance(result, module.Ignored):
        assert DESCRIPTION.fullmatch(result.reason), "a log line is one line of plain text"
        return "Ignored", result.reason
    assert isinstance(result, module.OpportunityWon), "three results and no other"
    assert GUID.fullmatch(result.opportunity_id), "an id is a GUID in lower case with hyphens"
    assert DESCRIPTION.fullmatch(result.shape), "a shape is one line of plain text"
    copy = module.parse_event(module.compact_event(result), {}, "application/json", organization_id=setting)
    assert copy == result, "the compact form is read back to the same win"
    return "OpportunityWon", result


def message_of(data: bytes) -> tuple[bytes, dict[str, object], str | None]:
    """Return body, properties and content type of any bytes, in the corpus's format as far as they keep to it."""
    head, _, body = data.partition(b"\n\n")
    properties: dict[str, object] = {}
    content_type = None
    for line in head.decode(errors="surrogateescape").split("\n"):
        header, _, value = line.partition(": ")
        name, _, text = value.partition(" = ")
        if header == "Property":
            properties[name] = text
        elif header == "Property-Bytes":
            properties[name] = text.encode(errors="surrogateescape")
        elif header == "Content-Type":
            content_type = value
    return body, properties, content_type


if __name__ == "__main__":
    run(
        Target(
            "Fuzz the reading of incoming events.",
            ("shared.opportunity_won",),
            lambda data: judge(*message_of(data)),
            CORPUS,
            Path(__file__).with_suffix(".dict"),
        ),
        sys.argv[1:],
    )
