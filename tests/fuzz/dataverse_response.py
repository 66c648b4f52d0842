"""Fuzzes the reading of Dataverse's responses, guided by coverage (atheris); `make fuzz` runs it.

    python tests/fuzz/dataverse_response.py fuzz --inputs 1000000 --found build/fuzz/dataverse-response
    coverage run --branch --source=shared tests/fuzz/dataverse_response.py replay build/fuzz/dataverse-response

An input is an HTTP response like those in tests/responses. It is read as the response to a batch and by itself, each
row as everything that a row can be. For any bytes, the outcome is a value or one of our own failures.
"""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fuzzing import ROOT, Target, run

if TYPE_CHECKING:
    from collections.abc import Iterator

CORPUS = ROOT / "tests" / "responses"
MODULES = ("shared.dataverse", "shared.invoicing", "shared.invoice_created", "shared.columns")
_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def judge(data: bytes) -> str:
    """Read a response in every way; raise for an outcome that is neither a value nor one of our own failures."""
    whole = response_of(data)
    kinds = [_kind(whole)]
    dataverse, errors = importlib.import_module("shared.dataverse"), importlib.import_module("shared.errors")
    try:
        parts = dataverse._parts(whole)
    except errors.InvoicingFailure as error:
        _check_failure(error)
    else:
        kinds += [_kind(part) for part in parts]
    return " ".join(sorted(set(kinds)))


def response_of(data: bytes) -> Any:  # noqa: ANN401 - the module is imported late, so that it is instrumented
    """Return the response that an input stands for; what is no HTTP gets the status 200 and no headers."""
    response = importlib.import_module("shared.response").Response
    head, _, body = data.replace(b"\r\n", b"\n").partition(b"\n\n")
    status_line, *lines = head.decode("latin-1").split("\n")
    status = status_line.partition(" ")[2][:3]
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    # Multipart needs its line ends, JSON does not mind.
    body = body.replace(b"\n", b"\r\n")
    return response(int(status) if status.isdecimal() else 200, headers, body, "r-1", _NOON)


def _kind(response: Any) -> str:  # noqa: ANN401 - see above
    errors = importlib.import_module("shared.errors")
    assert isinstance(response.exceeds_limits, bool)
    try:
        response.raise_for_status()
        record = response.record()
        rows = [record]
        with suppress(errors.InvoicingFailure):
            rows += response.records()
    except errors.InvoicingFailure as error:
        _check_failure(error)
        return type(error).__name__
    for row in rows:
        _read(row, rows)
    return "value"


def _read(row: Any, lines: list[Any]) -> None:  # noqa: ANN401 - see above
    errors = importlib.import_module("shared.errors")
    invoice = importlib.import_module("shared.invoice")
    invoice_created = importlib.import_module("shared.invoice_created").invoice_created
    for read in _getters(row):
        with suppress(errors.DataverseUnavailable):
            read()
    found: Any = None
    further = _further_columns(row, lines)
    with suppress(errors.DataverseUnavailable):
        found = invoice.Invoice.of(row)
        found = invoice.Invoice.of(row, lines, further)
        assert isinstance(found.totals_agree, bool)
        json.loads(invoice_created(found, dataverse_url="https://contoso.crm4.dynamics.com").body)
    with suppress(errors.DataverseUnavailable):
        opportunity = invoice.Opportunity.of(row)
        if found is not None:
            assert all(text.isprintable() for text in opportunity.differences(found))


def _further_columns(row: Any, attributes: list[Any]) -> Any:  # noqa: ANN401 - see above
    """Read each column of a row as every type: no value stops anything."""
    columns, errors = importlib.import_module("shared.columns"), importlib.import_module("shared.errors")
    found: dict[str, Any] = {}
    for column_type in columns._READERS:
        types = dict.fromkeys(row.columns, column_type)
        found |= columns.Columns(types, {}).values(row)
    with suppress(errors.DataverseUnavailable):
        described = columns.Columns.of([*row.columns, "new_a"], attributes)
        found |= described.values(row)
    return found


def _getters(row: Any) -> Iterator[Any]:  # noqa: ANN401 - see above
    for column in row.columns:
        getters = (row.integer, row.amount, row.text, row.guid, row.time, row.date, row.label, row.expanded)
        for getter in (*getters, row.lookup_table):
            yield lambda getter=getter, column=column: getter(column)


def _check_failure(error: Any) -> None:  # noqa: ANN401 - see above
    assert error.description.isprintable(), "a description is one line of plain text"
    assert error.description.encode()
    assert len(error.description) < 1_500
    wait = getattr(error, "retry_after", None)
    assert wait is None or 1 <= wait <= 900


if __name__ == "__main__":
    run(
        Target(
            "Fuzz the reading of Dataverse's responses.",
            MODULES,
            judge,
            CORPUS,
            ROOT / "tests/fuzz/responses.dict",
        ),
        sys.argv[1:],
    )
