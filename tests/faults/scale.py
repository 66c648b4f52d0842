"""How many wins an hour, and what limits first? A backlog against Dataverse's limits, in virtual time.

    python tests/faults/scale.py [--wins 10000] [--processes 1,2,4,8,12] [--json]

The deployed code handles a backlog against one web server with Microsoft's documented limits (6,000 requests and
1,200 s of execution in 300 s, 52 at once), with 1 to 12 worker processes. The table shows how much of the permitted
rate is used, how many requests are refused with 429, and what an invoice costs in requests and deliveries. The exit
code is 1 if less than 95 % is used, more than 5 % of the requests are refused, or a win is left behind.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

import click
from proofs.outage import CONCURRENCY, Backlog, shortest
from proofs.parallel import stay_on
from proofs.report import follow
from proofs.rig import START, quiet
from rich.console import Console
from rich.table import Table

from sandbox.dataverse import ServiceProtection, ServiceProtectionLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proofs.rig import World
    from proofs.simulation import Simulation

MIN_USED = 0.95
MAX_REFUSED = 0.05


@dataclass(frozen=True)
class Load:
    """A backlog of wins. `execution`: seconds that Dataverse takes for each request, beside those of the network."""

    wins: int
    processes: int
    execution: float = 0.1
    network: float = 0.05


@dataclass(frozen=True)
class Result:
    """How a backlog was handled. `used`: the share of the permitted rate."""

    wins: int
    processes: int
    seconds: float
    permitted_seconds: float
    used: float
    refused: float
    requests_per_invoice: float
    deliveries_per_invoice: float
    wins_per_hour: float
    limited_by: str
    left_behind: int

    @property
    def is_good(self) -> bool:
        """Whether the goals are met."""
        return self.used >= MIN_USED and self.refused <= MAX_REFUSED and not self.left_behind


class _Executing(ServiceProtection):
    """Service protection where a request takes (virtual) time on the server, and counts as executing meanwhile."""

    def __init__(self, simulation: Simulation, limits: ServiceProtectionLimits, execution: float) -> None:
        super().__init__(simulation, limits, timer=simulation.monotonic)
        self._simulation = simulation
        self._execution = execution

    @contextmanager
    def admitted(self, user_id: str, server: int) -> Iterator[dict[str, str]]:
        with super().admitted(user_id, server) as headers:
            self._simulation.sleep(self._execution)
            yield headers


def run(load: Load, limits: ServiceProtectionLimits | None = None, seed: int = 1) -> Result:
    """Handle a backlog and return how it went."""
    limits = limits or ServiceProtectionLimits()
    with quiet():
        backlog = Backlog(
            load.wins,
            seed,
            lambda simulation: _Executing(simulation, limits, load.execution),
            workers=load.processes,
            latency=load.network,
        )
        try:
            backlog.run()
            return _result(load, limits, backlog.world)
        finally:
            backlog.world.close()


def _result(load: Load, limits: ServiceProtectionLimits, world: World) -> Result:
    requests = world.app.requests
    accepted = [each for each in requests if each.status != HTTPStatus.TOO_MANY_REQUESTS]
    published = {event.message_id: event.at for event in world.watch.published}
    seconds = max((at - START).total_seconds() for at in published.values())
    permitted, limit = _shortest(len(accepted), load, limits)
    return Result(
        load.wins,
        load.processes,
        seconds,
        permitted,
        used=permitted / seconds,
        refused=1 - len(accepted) / len(requests),
        requests_per_invoice=len(accepted) / load.wins,
        deliveries_per_invoice=world.counts["deliveries"] / load.wins,
        wins_per_hour=load.wins / seconds * 3600,
        limited_by=limit,
        left_behind=load.wins - len(published),
    )


def _shortest(requests: int, load: Load, limits: ServiceProtectionLimits) -> tuple[float, str]:
    """Return the seconds that so many requests take at least, and what limits them for most of the time."""
    by_execution = limits.execution.total_seconds() / load.execution
    running = load.processes * CONCURRENCY
    at_once, took = min(running, limits.concurrent), load.execution + load.network
    last, held_up = shortest(
        requests, min(limits.requests, int(by_execution)), window=limits.window, at_once=at_once, took=took
    )
    if held_up > last - held_up:
        limit = "requests in 300 s" if limits.requests <= by_execution else "execution time in 300 s"
    else:
        limit = "requests at once" if at_once < running else "processes"
    return last + took, limit


def show(results: Sequence[Result], console: Console) -> None:
    """Print the results as a table."""
    table = Table(box=None, header_style="bold")
    for heading in ("processes", "backlog", "wins/h", "of permitted", "429", "requests", "deliveries"):
        table.add_column(heading, justify="right")
    table.add_column("limited by")
    for each in results:
        table.add_row(
            str(each.processes),
            f"{each.wins:,} in {each.seconds / 60:.0f} min",
            f"{each.wins_per_hour:,.0f}",
            f"{each.used:.1%}",
            f"{each.refused:.1%}",
            f"{each.requests_per_invoice:.2f}",
            f"{each.deliveries_per_invoice:.2f}",
            each.limited_by,
        )
    console.print(table)


@click.command(help=(__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
@click.option("--wins", default=10_000, show_default=True, help="How many wins wait.")
@click.option("--processes", default="1,2,4,8,12", show_default=True, help="Worker processes, with commas.")
@click.option("--execution", default=0.1, show_default=True, help="Seconds of execution for each request.")
@click.option(
    "--smaller", default=1, show_default=True, help="Divides wins and limits: as many windows, less work."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(*, wins: int, processes: str, execution: float, smaller: int, as_json: bool) -> None:
    """Run every number of processes and judge."""
    stay_on(0)
    loads = [Load(wins // smaller, int(number), execution) for number in processes.split(",")]
    whole = ServiceProtectionLimits()
    limits = replace(whole, requests=whole.requests // smaller, execution=whole.execution / smaller)
    started = time.monotonic()
    results = [run(load, limits) for load in follow(loads, "Backlogs", len(loads))]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in results], indent=1))
    else:
        show(results, Console(width=110))
        click.echo(f"in {time.monotonic() - started:.0f} s of real time")
    sys.exit(0 if all(each.is_good for each in results) else 1)


if __name__ == "__main__":
    main()
