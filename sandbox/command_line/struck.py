"""The report about faults that struck, at the end of a command."""

from collections import Counter

import click

from sandbox.cloud import Cloud


def show_struck(cloud: Cloud) -> None:
    """Report on standard error what failed on purpose: standard output is the outcome's."""
    plan = cloud.options.faults
    if plan is None:
        return
    struck = Counter(f"{entry.dependency}/{entry.operation} {entry.fault}" for entry in plan.log)
    for what, count in struck.items():
        click.echo(f"{what}: struck {count} time{'s' if count > 1 else ''}", err=True)
    if plan.rules and not struck:
        click.echo("No fault has struck.", err=True)
