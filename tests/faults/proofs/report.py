"""What the commands show: progress and tables on a terminal, plain lines everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Item = TypeVar("Item")

# So many lines tell of the progress where there is no terminal.
_LINES = 20


def follow(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Hand the items on, and show on standard error how many of them there were."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, title, total=total, console=console)
        return
    for number, item in enumerate(items, start=1):
        if number * _LINES // total > (number - 1) * _LINES // total:
            click.echo(f"{title}: {number:,} of {total:,}", err=True)
        yield item


def show(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names with their values, below a title."""
    console = Console()
    if console.is_terminal:
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    click.echo(title)
    widest = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(f"  {name:{widest}}  {value}")
