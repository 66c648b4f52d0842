"""What the commands show: progress and tables on a terminal, plain lines everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from proofs import histories, socket_histories

    Outcome = histories.Outcome | socket_histories.Outcome

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


def show_history(outcome: Outcome, command: str, *, err: bool = False, limit: int | None = None) -> None:
    """Print whether a history kept the promise, how to repeat it, and what happened in it: so many lines at most."""
    verdict = "broke the promise" if outcome.violations else "kept the promise"
    click.echo(
        f"seed {outcome.seed} {verdict}; to repeat it alone: {command} --replay {outcome.seed}", err=err
    )
    for line in (*outcome.violations, *outcome.log[:limit]):
        click.echo(f"  {line}", err=err)


def show_counts(title: str, counts: Mapping[str, int]) -> None:
    """Print what happened, and how often."""
    show(title, [(name, f"{counts[name]:,}") for name in sorted(counts)])


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
