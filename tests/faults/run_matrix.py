"""The matrix of faults on the command line: `python tests/faults/run_matrix.py`.

Runs every cell over real sockets, prints a table, and with `--write` keeps it in docs/faults-matrix.md. The exit code
is 1 if the promise was broken in any of them.
"""

from __future__ import annotations

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from proofs import ROOT
from proofs.matrix import Boundary, Matrix, cells, in_order, short
from proofs.parallel import spread
from proofs.report import follow
from proofs.sockets import Stage
from rich.console import Console
from rich.table import Table

from sandbox.cloud import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proofs.matrix import Cell, Result

_DOCUMENT = ROOT / "docs" / "faults-matrix.md"
_COMMAND = "python tests/faults/run_matrix.py"

_HEAD = """\
# The matrix of faults

Every boundary in the life of a message with every fault that makes sense there. Each cell is one message on real
sockets through the sandbox's Functions host and a worker process, brought to rest and judged from outside by
[the checker](../tests/faults/proofs/checker.py): exactly one invoice, one event with one id, nothing waiting, and
nothing parked but what fails for good. [The guarantee](guarantee.md) says what is promised, and on what assumptions.

    {command}            # runs the matrix and prints this table
    {command} --write    # and keeps it here

{count} cells, the promise kept in each. *Processed* says how the message of this run was processed: "in place" is
within its first delivery, a retry is a scheduled one, a redelivery is the broker's own. How many of them there are may
differ from run to run. The faults are those of `python -m sandbox faults`.
"""


@click.command()
@click.option("--only", default="", help="Only the cells whose name holds this text.")
@click.option("--short", "is_short", is_flag=True, help="A few cells of each boundary, as in make test.")
@click.option(
    "--mode",
    type=click.Choice([each.value for each in Mode]),
    default=Mode.CONNECTION_STRING.value,
    show_default=True,
    help="How the function reaches Service Bus.",
)
@click.option("--list", "is_list", is_flag=True, help="List the cells and run none.")
@click.option("--processes", default=2, show_default=True, help="How many sandboxes at once.")
@click.option("--write", is_flag=True, help=f"Keep the table in docs/{_DOCUMENT.name}.")
def main(*, only: str, is_short: bool, mode: str, is_list: bool, processes: int, write: bool) -> None:
    """Run the matrix of boundaries and faults, and judge each cell."""
    if write and (only or is_short):
        raise click.UsageError("only the whole matrix can be kept")
    chosen = [cell for cell in (short() if is_short else cells()) if only.lower() in str(cell).lower()]
    if is_list:
        for cell in chosen:
            click.echo(str(cell))
        return
    started = time.monotonic()
    results = _run(chosen, processes, Mode(mode))
    seconds = time.monotonic() - started
    broken = [result for result in results if result.problems]
    _show(results, f"{len(results)} cells in {seconds:.0f} s, {len(broken)} broke the promise")
    for result in broken:
        click.echo(f'\n{result.cell}\n  to repeat it alone: {_COMMAND} --only "{result.cell}"')
        for problem in result.problems:
            click.echo(f"  {problem}")
    if write and not broken:
        _DOCUMENT.write_text(document(results), encoding="utf-8")
        click.echo(f"Kept in {_DOCUMENT.relative_to(Path.cwd())}.")
    sys.exit(bool(broken))


def _run(chosen: Sequence[Cell], processes: int, mode: Mode) -> list[Result]:
    """Share the cells out to so many sandboxes, in turn, so that each has those of its kind at its end."""
    shares = [chosen[number::processes] for number in range(min(processes, len(chosen)))]
    results = list(follow(spread(partial(_share, mode), shares, len(shares)), "Matrix", len(chosen)))
    order = {cell: number for number, cell in enumerate(chosen)}
    return sorted(results, key=lambda result: order[result.cell])


def _share(mode: Mode, cells_: Sequence[Cell]) -> Iterator[Result]:
    logging.disable(logging.CRITICAL)
    with Stage(len(cells_), mode) as stage:
        matrix = Matrix(stage)
        for cell in cells_:
            yield matrix.run(cell)


def _show(results: Sequence[Result], title: str) -> None:
    console = Console()
    if not console.is_terminal:
        for each in in_order(results):
            line = f"{each.cell.boundary:22}  {each.cell.what:44}  {each.path:28}  {each.verdict:6}"
            click.echo(f"{line}  {each.seconds:5.1f} s")
        click.echo(title)
        return
    table = Table("boundary", "fault", "processed", "promise", title=title, title_justify="left")
    table.add_column("seconds", justify="right")
    last = None
    for each in in_order(results):
        boundary = "" if each.cell.boundary is last else each.cell.boundary
        style = "bold red" if each.problems else None
        table.add_row(boundary, each.cell.what, each.path, each.verdict, f"{each.seconds:.1f}", style=style)
        last = each.cell.boundary
    console.print(table)


def document(results: Sequence[Result]) -> str:
    """Return the page: what was tried and what came of it, without what varies from run to run."""
    lines = _HEAD.format(command=_COMMAND, count=len(results)).splitlines()
    for boundary in Boundary:
        title = boundary.value.removeprefix("… ").capitalize()
        lines += ["", f"## {title}", "", "| fault | processed |", "|---|---|"]
        lines += [f"| {each.cell.what} | {each.path} |" for each in results if each.cell.boundary is boundary]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
