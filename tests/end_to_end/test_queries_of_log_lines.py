"""The patterns of every KQL query, on lines that the deployed function logs in the sandbox.

A renamed line or field would blind an alert without any other sign. tests/contract/test_queries.py checks the queries
themselves.
"""

from __future__ import annotations

import logging
import re
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest

from sandbox.actors import Salesperson
from sandbox.cloud import WON_QUEUE, Cloud, CloudOptions
from sandbox.service_bus import Message
from tests.end_to_end.conftest import wait_until

APP = Path(__file__).parents[2]
QUERIES = sorted((APP / "infrastructure" / "queries").rglob("*.kql"))
PAGES = [APP / "docs" / "operate.md", APP / "docs" / "deploy.md"]

LITERAL = r'"((?:[^"\\]|\\.)*)"'
COLUMN = {"string": r".*?", "int": r"-?\d+"}
EVENT = b'{"opportunityId": "%s"}'


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Let the function publish, retry, park and ignore, and return what it logs, as the host receives it."""
    logged = BufferingHandler(100_000)
    logger = logging.getLogger("Function.User")
    logger.addHandler(logged)
    level = logger.level
    logger.setLevel(logging.INFO)

    def logs_all_kinds() -> bool:
        kinds = {record.getMessage().partition(": ")[0] for record in logged.buffer}
        return {"published", "retry", "parked", "ignored", "dataverse"} <= kinds

    try:
        with Cloud(CloudOptions(APP, opportunities=3)) as cloud:
            published, still_open, lost = cloud.demo.opportunities
            with Salesperson(cloud) as salesperson:
                salesperson.win(published)
                salesperson.lose(lost)
            for body in (EVENT % still_open.encode(), EVENT % lost.encode(), b"not an event"):
                cloud.broker.send(WON_QUEUE, Message(body, content_type="application/json"))
            wait_until(logs_all_kinds, lambda: [record.getMessage() for record in logged.buffer])
    finally:
        logger.removeHandler(logged)
        logger.setLevel(level)
    return [record.getMessage() for record in logged.buffer]


def queries() -> dict[str, str]:
    """Return all queries that read log lines."""
    found = {f"{path.parent.name}/{path.name}": path.read_text(encoding="utf-8") for path in QUERIES}
    for page in PAGES:
        blocks = re.findall(r"```kusto\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for number, query in enumerate(query for block in blocks for query in block.strip().split("\n\n")):
            found[f"{page.name} {number}"] = query
    return {name: query for name, query in found.items() if "AppTraces" in query}


def patterns() -> list[tuple[str, str]]:
    """Return every pattern of `parse`, with the name of its query."""
    return [
        (name, pattern)
        for name, query in queries().items()
        for pattern in re.findall(r"\| parse \w+ with (.+)", query)
    ]


def as_regular_expression(pattern: str) -> str:
    """Translate a pattern of `parse`: literals in quotes, columns with a type between them, * for anything.

    The last column takes the rest. A pattern that ends with a literal ignores what follows.
    """
    parts = re.findall(rf"{LITERAL}|(\w+):(\w+)|(\*)", pattern)
    translated = "".join(
        ".*?" if anything else f"(?P<{column}>{COLUMN[kind]})" if column else re.escape(literal)
        for literal, column, kind, anything in parts
    )
    return translated + ("$" if parts[-1][1] else "")


def test_every_pattern_understands_the_lines_that_it_is_for(lines: list[str]) -> None:
    """Also of lines that no test provokes: retries because of throttling have the form of all retries."""
    for name, pattern in patterns():
        first = re.match(LITERAL, pattern)
        prefix = first.group(1).split(":")[0] + ": " if first else "published: "
        meant = [line for line in lines if line.startswith(prefix)]
        if prefix == "dataverse: ":
            # The others say that a request failed without a response; the query leaves them out by this condition too.
            meant = [line for line in meant if " ms (" in line]

        assert meant, (name, prefix)
        for line in meant:
            found = re.match(as_regular_expression(pattern), line, re.DOTALL)
            assert found, (name, line)
            assert all(value != "" for value in found.groupdict().values()), (name, found.groupdict())


def test_every_line_that_a_query_selects_is_logged(lines: list[str]) -> None:
    for name, query in queries().items():
        prefixes = [
            # The reason of a retry is another test's matter.
            re.sub(r"reason=\w+ $", "reason=", literal)
            for literal in re.findall(rf"startswith {LITERAL}", query)
        ]
        words = [
            literal
            for group in re.findall(r"\bhas(?:_any)? (\([^)]*\)|\"[^\"]*\")", query)
            for literal in re.findall(LITERAL, group)
            if "<" not in literal
        ]

        assert prefixes or words or "<" in query, name
        for prefix in prefixes:
            assert any(line.startswith(prefix) for line in lines), (name, prefix)
        for word in words:
            assert any(word in line for line in lines), (name, word)


def test_every_request_of_a_win_is_found_by_its_opportunity_and_its_root(lines: list[str]) -> None:
    """The runbook's queries are `has "root=<root>"` and `has "<opportunity id>"`."""
    published = next(line for line in lines if line.startswith("published: "))
    opportunity, root = re.findall(r"opportunity=(\S+) .* root=(.+)$", published)[0]
    requests = [line for line in lines if line.startswith("dataverse: ")]

    assert all(re.search(r" opportunity=[0-9a-f-]{36} root=\d+@\S+$", line) for line in requests), requests
    assert len([line for line in requests if line.endswith(f" opportunity={opportunity} root={root}")]) >= 2


def test_the_root_of_a_win_is_found_in_every_kind_of_line(lines: list[str]) -> None:
    """The tile with the oldest wins groups lines by root, so that a published win no longer waits."""
    query = (APP / "infrastructure/queries/workbook/oldest-waiting.kql").read_text(encoding="utf-8")
    (expression,) = re.findall(r'extract\(@"([^"]+)", 1, Message\)', query)

    for prefix in ("published: ", "retry: ", "parked: ", "ignored: "):
        begin_so = [line for line in lines if line.startswith(prefix)]
        assert begin_so, prefix
        for line in begin_so:
            found = re.search(expression, line)
            assert found, line
            assert re.fullmatch(r"\d+@[\dT.:+-]+", found.group(1)), (line, found.group(1))
