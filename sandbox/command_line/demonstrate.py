"""`python -m sandbox demo`: win opportunities, show what comes of them, stop."""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import click

from sandbox import demo as demonstration
from sandbox.actors import ReceivedEvent
from sandbox.cloud import CloudOptions
from sandbox.command_line.console import log_to_stderr, print_aligned, progress
from sandbox.command_line.ledger import EXTRA_SUBSCRIPTION, LedgerConsumer
from sandbox.command_line.options import INTERRUPTED, common, running, transport, words, workers
from sandbox.command_line.struck import show_struck
from sandbox.faults import FaultPlan, FaultRule
from sandbox.stopping import Stop


@click.command("demo")
@common
@click.option(
    "--count", default=5, show_default=True, type=click.IntRange(1), help="How many opportunities to win."
)
@click.option(
    "--patience",
    default=demonstration.PATIENCE_SECONDS,
    show_default=True,
    type=click.FloatRange(0),
    help="How many seconds to wait for the last events.",
)
@click.option(
    "--events",
    "events_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the events to this file, as they came: one JSON document in each line.",
)
@click.option(
    "--consumer",
    metavar="COMMAND",
    callback=words,
    help="Run this program beside the function, with its settings in the environment, and show what it books in "
    "LEDGER_FILE: the event_id of an SQLite table entry or of JSON lines, or the first column of a CSV file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with all ids, for scripts.")
@click.pass_obj
def demo_command(  # noqa: PLR0913 - one parameter for each option
    stop: Stop,
    *,
    options: CloudOptions,
    mode: str,
    rules: Sequence[FaultRule],
    verbose: bool,
    count: int,
    patience: float,
    events_file: Path | None,
    consumer: Sequence[str],
    as_json: bool,
) -> None:
    """Win opportunities and show the invoices and events that come of them; exit code 1 if any is missing."""
    log_to_stderr(logging.INFO if verbose else logging.ERROR)
    options = replace(
        options,
        opportunities=count,
        faults=FaultPlan(rules) if rules else None,
        extra_subscriptions=[EXTRA_SUBSCRIPTION] if consumer else [],
    )
    with running(options, mode, stop) as cloud, ExitStack() as closing:
        click.echo(
            f"Service Bus over {transport(cloud)}; Dataverse over HTTPS; the function in {workers(cloud)}.",
            err=as_json,
        )
        ledger = closing.enter_context(LedgerConsumer(consumer, cloud)) if consumer else None
        with progress(count) as report:
            outcome = demonstration.run(
                cloud, cloud.demo.opportunities[:count], report, stop.is_wanted, patience
            )
        if ledger is not None and not stop.is_wanted():
            outcome = replace(outcome, booked=ledger.wait_for(outcome.events, patience))
            dead = cloud.broker.counts("/Subscriptions/".join(EXTRA_SUBSCRIPTION)).dead_letter
            if dead:
                click.echo(f"The consumer dead-lettered {dead} of the events.", err=True)
        show_struck(cloud)
    if as_json:
        document = {
            "lines": [asdict(win) for win in outcome.wins],
            "invoices": outcome.invoices,
            "events": outcome.events,
            "retried": outcome.retried,
            "failed": outcome.failed,
            "booked": None if outcome.booked is None else len(outcome.booked),
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _show_wins(outcome)
    if stop.is_wanted():
        click.echo("Interrupted before the end: what is missing might still have come.", err=True)
    else:
        _show_problems(outcome)
    click.echo(str(outcome), err=as_json)
    if events_file is not None:
        _write_events(events_file, outcome.received)
    if stop.is_wanted():
        raise click.exceptions.Exit(INTERRUPTED)
    if not outcome.is_good or len(outcome.wins) != count:
        raise click.exceptions.Exit(1)


# Characters. A name is cut where a line would be longer; --json has everything.
_WIDTH = 80


def _show_wins(outcome: demonstration.Outcome) -> None:
    columns = ["opportunity", "invoice", "total", "ms"]
    rows = [
        [
            win.opportunity,
            win.invoice_number,
            win.total,
            "" if win.milliseconds is None else str(win.milliseconds),
        ]
        for win in outcome.wins
    ]
    if outcome.booked is not None:
        columns.insert(3, "booked")
        for row, win in zip(rows, outcome.wins, strict=True):
            row.insert(3, "yes" if win.event_id in outcome.booked else "no")
    others = sum(2 + max(map(len, column)) for column in list(zip(columns, *rows, strict=True))[1:])
    for row in rows:
        row[0] = _cut(row[0], _WIDTH - others)
    print_aligned([columns, *rows], [name in ("total", "ms") for name in columns])


def _cut(text: str, width: int) -> str:
    # In the middle: the end tells opportunities apart.
    end = width // 3
    return text if len(text) <= width else f"{text[: width - end - 1]}…{text[-end:]}"


def _show_problems(outcome: demonstration.Outcome) -> None:
    for win in outcome.wins:
        if win.retry_reason:
            click.echo(f"{win.opportunity_id}: is being retried: {win.retry_reason}", err=True)
            continue
        for problem in win.problems:
            click.echo(f"{win.opportunity_id}: {problem}", err=True)


def _write_events(file: Path, events: Sequence[ReceivedEvent]) -> None:
    documents = [
        {
            "messageId": event.message_id,
            "contentType": event.content_type,
            "correlationId": event.correlation_id,
            "applicationProperties": event.application_properties,
            # The text, not its content: not a byte of it is changed.
            "body": event.body.decode(),
        }
        for event in events
    ]
    try:
        file.write_text("".join(f"{json.dumps(document)}\n" for document in documents), "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error
