"""`python -m sandbox faults`: what can fail, and how to write it."""

import click

from sandbox.command_line.console import print_table
from sandbox.faults import Dependency
from sandbox.faults.plan import KINDS, OPERATIONS
from sandbox.faults.syntax import WHEN


@click.command("faults")
def faults_command() -> None:
    """List what can fail on which connection, and how to write it after --fault or break."""
    click.echo(
        "--fault 'CONNECTION[/OPERATION] FAULT [NAME=VALUE …]', as often as you like; the first that applies strikes."
    )
    click.echo("For example: --fault 'dataverse/change-set reset after=yes nth=1'\n")
    print_table(
        "Connections",
        ("connection", "operations"),
        [(dependency, ", ".join(operations)) for dependency, operations in OPERATIONS.items()],
    )
    click.echo("")
    rows = [
        (kind, _names_of(description.dependencies), description.text, " ".join(description.fields))
        for kind, description in KINDS.items()
    ]
    print_table("Faults", ("fault", "connections", "what happens", "names"), rows)
    click.echo("")
    print_table("When", ("name", "value"), list(WHEN.items()))


def _names_of(dependencies: frozenset[Dependency]) -> str:
    if dependencies == frozenset(Dependency):
        return "all"
    return ", ".join(each for each in Dependency if each in dependencies)
