"""What commands print, on a terminal of 80 columns."""

from __future__ import annotations

import io
import sys

import pytest
from click.testing import CliRunner
from rich.cells import cell_len
from rich.console import Console
from rich.file_proxy import FileProxy

from operations.__main__ import operations
from operations.console import Column, Overflow, note, say_table
from sandbox.command_line import cli

LONG = "The plug-in Contoso.CreditCheck says that the credit limit is exceeded, and by how much"


@pytest.mark.parametrize("group", [(), ("failed",), ("waiting",), ("events",)])
def test_the_help_cuts_no_sentence(group: tuple[str, ...]) -> None:
    result = CliRunner().invoke(operations, [*group, "--help"])
    assert (result.exit_code, "..." in result.output.replace("ARGS]...", "")) == (0, False)


def test_the_help_of_the_sandbox_cuts_no_sentence() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert (result.exit_code, "..." in result.output.replace("ARGS]...", "")) == (0, False)


def test_a_column_that_wraps_shows_its_values_whole_under_its_heading(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = [Column("Time", "time"), Column("Detail", "detail", overflow=Overflow.WRAP)]
    say_table(columns, [{"time": "12:00:01", "detail": LONG}, {"time": "12:00:02", "detail": ""}])
    heading, *lines, last = capsys.readouterr().out.splitlines()
    start = heading.index("Detail")
    assert len(lines) > 1
    assert [line[:start].strip() for line in lines] == ["12:00:01", *[""] * (len(lines) - 1)]
    assert " ".join(line[start:] for line in lines) == LONG
    assert all(len(line) <= 80 for line in lines)
    assert last == "12:00:02"


@pytest.mark.parametrize("name", ["Filter set, twelve pieces for Alder 1 (Alder Optics)", "漢字" * 40])
def test_a_column_may_be_cut_inside(capsys: pytest.CaptureFixture[str], name: str) -> None:
    columns = [Column("Opportunity", "about", overflow=Overflow.CUT_INSIDE), Column("Text", "text")]
    say_table(columns, [{"about": name, "text": "x" * 50}])
    _, row = capsys.readouterr().out.splitlines()
    shown, _, _ = row.partition("  xx")
    beginning, _, end = shown.rstrip().partition("…")
    assert beginning
    assert end
    assert name.startswith(beginning)
    assert name.endswith(end)
    assert cell_len(row) <= 80


def test_a_note_does_not_pass_by_the_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a bar is shown, rich replaces standard error and prints above the bar what is written there."""
    terminal, shown = io.BytesIO(), io.StringIO()
    below = io.TextIOWrapper(terminal, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=shown), below))
    note("Exported.")
    below.flush()
    assert terminal.getvalue() == b""
    assert shown.getvalue() == "Exported.\n"
