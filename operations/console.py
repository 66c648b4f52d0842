"""What the commands print: aligned columns for people, JSON for scripts, progress where it takes long.

Results go to standard output, everything else to standard error. Message bodies, properties and reasons come from
everybody who holds the Send key, so all output except JSON passes through `printable`, which keeps a terminal from
interpreting it: no escape sequence is executed, and no tab or line break forges a row. A column with such texts has an
`Overflow`, so that the terminal does not break a long one and begin a line with its end.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

Item = TypeVar("Item")

# Also where the output is no terminal: a log or a chat has about this much room.
_MIN_WIDTH = 80
_GAP = "  "
# More characters than a sentence has.
_WHOLE = 1_000
# Control and format characters (which can change direction), line and paragraph separators, half surrogates.
_NOT_PRINTABLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


class Overflow(Enum):
    """What a column does with a value that does not fit the terminal."""

    SHOW = "show it whole all the same"
    CUT = "leave out its end"
    # For values that both of their ends distinguish.
    CUT_INSIDE = "leave out its middle"
    WRAP = "continue in further lines"


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and the key of the rows' values that it shows."""

    heading: str
    key: str
    number: bool = False
    overflow: Overflow = Overflow.SHOW


class Commands(click.Group):
    """A group of commands."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence of each command whole; click's own list cuts it."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=_WHOLE)) for name, command in commands if command]
            )


def printable(value: object) -> str:
    """Return a value as text in one line, with every character that a terminal might interpret written as an escape."""
    return "".join(
        character if unicodedata.category(character) not in _NOT_PRINTABLE else _escape(character)
        for character in _text(value)
    )


def printable_lines(text: str) -> str:
    """Return a text whose lines are each printable; the line breaks stay."""
    return "\n".join(map(printable, text.splitlines()))


def say(text: object = "") -> None:
    """Print a line of a result; line breaks in it are escaped."""
    click.echo(printable(text))


def note(text: object) -> None:
    """Print a line about the work to standard error; line breaks in it are escaped."""
    # Not err=True, with which click bypasses the progress bar and writes into its line.
    click.echo(printable(text), file=sys.stderr)


def say_indented(text: str) -> None:
    """Print a text of several lines, each indented so that it cannot pose as a line of ours."""
    for line in text.splitlines() or [""]:
        say(f"  | {line}")


def say_json(document: object) -> None:
    """Print a document for scripts."""
    # Times in ISO 8601, as everywhere else.
    click.echo(json.dumps(document, indent=2, default=_json_value))


def say_table(columns: Sequence[Column], rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as aligned columns that fit the terminal, or 80 columns where there is none."""
    if not rows:
        return
    texts = [[printable(row.get(column.key)) for column in columns] for row in rows]
    widths = _widths(columns, texts)
    say(_line(columns, widths, [column.heading for column in columns]))
    for row in texts:
        cells = [
            [line.plain.rstrip() for line in Text(text).wrap(Console(), width)]
            if column.overflow is Overflow.WRAP
            else [text]
            for column, width, text in zip(columns, widths, row, strict=True)
        ]
        for line in zip_longest(*cells, fillvalue=""):
            say(_line(columns, widths, line))


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
    """Ask before something that cannot be undone; raises Abort on no, UsageError where there is no terminal.

    Only `--yes` confirms in advance; the format of the output does not.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            "This command asks for confirmation, and there is no terminal: repeat it with --yes."
        )
    click.confirm(printable(question), abort=True, err=True)


def count(number: int, one: str, many: str = "") -> str:
    """Return "1 message", "2 messages"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def age_text(age: timedelta | None) -> str:
    """Return an age in its largest unit: 45 s, 12 min, 3 h, 2 d."""
    if age is None:
        return ""
    seconds = max(int(age.total_seconds()), 0)
    for unit, size in (("d", 24 * 60 * 60), ("h", 60 * 60), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]]) -> list[int]:
    widths = [
        max(len(column.heading), *(cell_len(row[index]) for row in texts))
        for index, column in enumerate(columns)
    ]
    room = max(shutil.get_terminal_size((_MIN_WIDTH, 24)).columns, _MIN_WIDTH) - len(_GAP) * (
        len(columns) - 1
    )
    flexible = [index for index, column in enumerate(columns) if column.overflow is not Overflow.SHOW]
    # The widest becomes narrower first.
    while flexible and sum(widths) > room:
        widest = max(flexible, key=lambda index: widths[index])
        if widths[widest] <= len(columns[widest].heading):
            break
        widths[widest] -= 1
    return widths


def _line(columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str]) -> str:
    cells = []
    for column, width, text in zip(columns, widths, texts, strict=True):
        cut = text if cell_len(text) <= width else _cut(text, width, column.overflow)
        # Characters of some scripts take two columns of a terminal.
        blank = " " * (width - cell_len(cut))
        cells.append(blank + cut if column.number else cut + blank)
    return _GAP.join(cells).rstrip()


def _cut(text: str, width: int, overflow: Overflow) -> str:
    end = (width - 1) // 2 if overflow is Overflow.CUT_INSIDE else 0
    return f"{set_cell_size(text, width - 1 - end)}…{_last_cells(text, end)}"


def _last_cells(text: str, width: int) -> str:
    end = text[len(text) - width :] if width else ""
    while cell_len(end) > width:
        end = end[1:]
    return end


def _escape(character: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character) or (
        f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"  # noqa: PLR2004
    )


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat(timespec="seconds")
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _json_value(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value)
