"""`operations doctor`: checks everything that the function depends on, and says what is wrong and what to do.

The list of the checks, in the order of the flow, is here; the checks themselves are in `diagnosis`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from operations.console import Column, Overflow, confirm, note, progress, say, say_json, say_table
from operations.diagnosis import azure_resources, connections, dataverse, service_bus
from operations.diagnosis.check import PUBLIC_ARM_ENDPOINT, Inputs, State, run_checks
from operations.diagnosis.claim import WARNING, change_sets
from operations.diagnosis.findings import Finding

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from operations.diagnosis.check import Check, Result

PROBLEM = 1

# In the order of the flow.
CHECKS: tuple[Check[Any], ...] = (
    connections.settings,
    connections.threads,
    connections.service_bus_token,
    connections.dataverse_token,
    connections.dataverse_connection,
    connections.service_bus_connection,
    dataverse.dataverse,
    dataverse.environment,
    dataverse.sales,
    dataverse.columns,
    dataverse.application_user,
    dataverse.privileges,
    dataverse.service_endpoint,
    dataverse.step,
    dataverse.system_jobs,
    service_bus.queue,
    service_bus.failed_queue,
    service_bus.topic,
    azure_resources.namespace,
    azure_resources.namespace_keys,
    azure_resources.roles,
    azure_resources.queue_design,
    azure_resources.failed_queue_design,
    azure_resources.topic_design,
    azure_resources.audit_subscription,
    azure_resources.failed_messages,
    service_bus.retries,
)


@click.command()
@click.option(
    "--try-claim",
    "opportunity",
    type=click.UUID,
    metavar="OPPORTUNITY",
    help="Prove on this won opportunity (its id) that a change set is one transaction.",
)
@click.option(
    "--namespace-id", help="The namespace's resource id, for what Azure Resource Manager knows about it."
)
@click.option(
    "--arm-endpoint", default=PUBLIC_ARM_ENDPOINT, show_default=True, help="Azure Resource Manager."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="How long each check may take.",
)
@click.option(
    "--fail-on",
    "fatal",
    type=click.Choice(["attention", "cannot-see"]),
    multiple=True,
    help="Exit with 1 also for this; may be repeated.",
)
@click.option("--yes", is_flag=True, help="Do not ask before --try-claim.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    opportunity: uuid.UUID | None,
    namespace_id: str | None,
    arm_endpoint: str,
    seconds: float,
    fatal: tuple[str, ...],
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Check everything from the settings to the failed queue, and say what is wrong.

    Only reads, except with --try-claim. What depends on a broken check is not checked. Works as the function itself,
    which sees little, and with an operator's login. Exit code: 1 for any problem, which is something that is broken
    now; 0 otherwise, also where messages that failed wait for attention, or where something cannot be seen, unless
    --fail-on.
    """
    if opportunity is not None:
        note(WARNING.format(opportunity=opportunity))
        confirm("Try it?", yes=yes)
    checks = CHECKS if opportunity is None else (*CHECKS, change_sets)
    inputs = Inputs(context.obj, namespace_id, arm_endpoint, opportunity)
    outcomes = list(progress(run_checks(checks, inputs, seconds), "Checking", total=len(checks)))
    rows = [_row(check.name, result) for check, results in outcomes for result in results]
    if as_json:
        say_json(rows)
    else:
        _say(rows)
    if {row["state"] for row in rows} & {State.PROBLEM.value, *(name.replace("-", " ") for name in fatal)}:
        context.exit(PROBLEM)


def findings_page() -> str:
    """Return the reference page of all findings, docs/doctor.md."""
    lines = [
        "# What `operations doctor` finds",
        "",
        "<!-- Written by `python -m operations.doctor`; do not edit. -->",
        "",
        "| finding | state | what it means | what to do |",
        "|---|---|---|---|",
        *(f"| `{each.code}` | {each.state.value} | {each.meaning} | {each.advice} |" for each in Finding),
    ]
    return "\n".join(lines) + "\n"


_COLUMNS = [
    Column("Check", "check"),
    Column("State", "state"),
    Column("Seen", "seen", overflow=Overflow.WRAP),
]


def _say(rows: Sequence[dict[str, object]]) -> None:
    say_table(_COLUMNS, rows)
    for row in rows:
        if row["finding"]:
            say()
            say(f"{row['finding']} ({row['check']})")
            say(f"  seen:   {row['seen']}")
            say(f"  means:  {row['meaning']}")
            say(f"  to do:  {row['advice']}")
    counts = Counter(row["state"] for row in rows)
    say()
    say(", ".join(f"{counts[state.value]} {state.value}" for state in State if counts[state.value]))


def _row(name: str, result: Result) -> dict[str, object]:
    finding = result.finding
    return {
        "check": name,
        "state": result.state.value,
        "finding": finding and finding.code,
        "seen": result.seen + (f" (needed: {result.right})" if result.right else ""),
        "meaning": finding and finding.meaning,
        "advice": finding and finding.advice,
        "right": result.right or None,
    }


if __name__ == "__main__":
    click.echo(findings_page(), nl=False)
