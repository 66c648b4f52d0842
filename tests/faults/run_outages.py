"""Outages on the command line: `python tests/faults/run_outages.py`, in virtual time, with a table of how each went.

The exit code is 1 if one of them broke the promise or took too long.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click
from proofs import outage
from proofs.parallel import stay_on
from proofs.report import follow, show

if TYPE_CHECKING:
    from collections.abc import Callable

    from proofs.outage import Report

_PLAYS: dict[str, Callable[..., Report]] = {
    "dataverse-away": outage.dataverse_away,
    "dataverse-silent": outage.dataverse_silent,
    "service-bus-away": outage.service_bus_away,
    "sends-refused": outage.sends_refused,
    "throttled": outage.throttled,
    "silent-send": outage.a_send_that_never_returns,
}


@click.command()
@click.option("--wins", default=1_000, show_default=True, help="How many wins wait.")
@click.option(
    "--throttled-wins", default=6_000, show_default=True, help="How many in the one with the limits."
)
@click.option(
    "--limit", default=6_000, show_default=True, help="Requests per five minutes that Dataverse permits."
)
@click.option("--only", type=click.Choice(list(_PLAYS)), help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(*, wins: int, throttled_wins: int, limit: int, only: str | None, as_json: bool) -> None:
    """Let a dependency be away or throttled while wins wait, and see how they are processed afterwards."""
    stay_on(0)
    arguments = {"throttled": (throttled_wins, limit), "silent-send": ()}
    chosen = [only] if only else list(_PLAYS)
    reports = []
    for name in follow(chosen, "Outages", len(chosen)):
        started = time.monotonic()
        report = _PLAYS[name](*arguments.get(name, (wins,)))
        reports.append(report)
        if not as_json:
            broken_rules = [("BROKEN", str(violation)) for violation in report.violations]
            title = f"{report.title} ({time.monotonic() - started:.0f} s)"
            show(title, [*report.figures.items(), *broken_rules])
    broken = {
        report.title: [str(each) for each in report.violations] for report in reports if report.violations
    }
    if as_json:
        click.echo(json.dumps({"histories": len(reports), "broken": broken}))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
