"""Every KQL query of the repository, parsed and type-checked by Microsoft's language service for KQL.

tests/end_to_end/test_queries_of_log_lines.py runs their patterns on lines that the function logs.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from repository import ROOT, text

from shared import errors

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = sorted((ROOT / "infrastructure" / "queries").rglob("*.kql"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def queries() -> dict[str, str]:
    """Return all queries by file; a page's block has several, with empty lines between them."""
    found = {f"{path.parent.name}/{path.name}": text(path) for path in FILES}
    for page in PAGES:
        blocks = re.findall(r"```kusto\n(.*?)```", text(page), re.DOTALL)
        for number, query in enumerate(query for block in blocks for query in block.strip().split("\n\n")):
            found[f"{page.name} {number}"] = query
    return found


@pytest.fixture
def check(node: Callable[..., str]) -> Callable[[dict[str, str]], str]:
    """Return a function that returns the diagnostics of queries, a line each."""
    tables = json.loads(text("tests/contract/kusto/tables.json"))
    return lambda found: node("kusto", "check.cjs", given=json.dumps({"tables": tables, "queries": found}))


def test_all_queries_are_valid(check: Callable[[dict[str, str]], str]) -> None:
    found = queries()

    assert len([name for name in found if name.endswith(".kql")]) == len(FILES) == 10
    assert "operate.md 0" in found
    assert "deploy.md 0" in found
    assert check(found) == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("AppTracs | take 1", "'AppTracs' does not refer to any known table"),
        ("AppTraces | where Mesage == ''", "'Mesage' does not refer to any known column"),
        ("AppTraces | where Message > 1", "operator '>' is not defined"),
        ("AppTraces | summarise count()", "Query operator expected"),
        ("AppTraces | summarize median(SeverityLevel)", "'median'"),
    ],
)
def test_the_language_service_finds_slips(
    check: Callable[[dict[str, str]], str], wrong: str, says: str
) -> None:
    assert says in check({"wrong": wrong})


def test_reasons_in_queries_exist() -> None:
    named = {
        reason
        for query in queries().values()
        for reason in re.findall(r'"(?:retry|parked): reason=(\w+)', query)
    }

    assert named == {errors.DataverseThrottled.reason}
