"""What commands print: tables and progress bars on a terminal, plain lines in files and pipes."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from sandbox.demo import Progress


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows: drawn and folded on a terminal; aligned, whole and without colour elsewhere."""
    console = Console()
    if console.is_terminal:
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    click.echo(f"{title}:")
    print_aligned([columns, *rows], [False for _ in columns])


def print_aligned(lines: Sequence[Sequence[str]], to_the_right: Sequence[bool]) -> None:
    """Print lines in columns, each on one line however long it is, so that ids can be copied."""
    widths = [max(len(line[index]) for line in lines) for index in range(len(to_the_right))]
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, to_the_right, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


@contextmanager
def progress(total: int) -> Iterator[Callable[[Progress], None]]:
    """Show on standard error how far a demonstration is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console) as bar:
        won, events = bar.add_task("won", total=total), bar.add_task("events", total=total)

        def report(progress: Progress) -> None:
            bar.update(won, completed=progress.won)
            bar.update(events, completed=progress.events)

        yield report


class _PlainProgress:
    """Reports now and then: ten lines at most."""

    def __init__(self) -> None:
        self._tenths = 0

    def __call__(self, progress: Progress) -> None:
        tenths = 10 * progress.events // progress.total
        if tenths > self._tenths:
            self._tenths = tenths
            click.echo(f"won {progress.won} of {progress.total}, events {progress.events}", err=True)


def log_to_stderr(level: int) -> None:
    """Show log records of this level and above."""
    console = Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The client libraries log every link and retry; the parts log what matters of it.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
