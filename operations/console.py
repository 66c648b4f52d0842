"""What the commands print: tables for people, JSON for scripts, progress where it takes long.

Tables and documents go to standard output, everything else to standard error. Without a terminal the output is plain;
rich respects NO_COLOR.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Item = TypeVar("Item")


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and the key of the rows' values that it shows."""

    heading: str
    key: str
    number: bool = False


def show_rows(
    title: str, columns: Sequence[Column], rows: Sequence[Mapping[str, object]], *, as_json: bool
) -> None:
    """Print rows as a table, as tab-separated lines without a terminal, or as JSON with all of their keys."""
    if as_json:
        click.echo(as_json_text(rows))
        return
    if not sys.stdout.isatty():
        click.echo("\t".join(column.heading for column in columns))
        for row in rows:
            click.echo("\t".join(_text(row.get(column.key)) for column in columns))
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_text(row.get(column.key))) for column in columns))
    Console().print(table)


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar on a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        yield from bar.track(items, total=total, description=description)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be taken back; raises Abort on no, UsageError where nobody can answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody can be asked here: repeat the command with --yes.")
    click.confirm(question, abort=True, err=True)


def as_json_text(document: object) -> str:
    """Write a document for scripts; times in ISO 8601, as everywhere else."""
    return json.dumps(document, indent=2, default=_text)


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else str(value)
