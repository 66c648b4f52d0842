"""Print the outputs of a deployment, for commands that need a name or an id that Azure chose.

python -m infrastructure.outputs --resource-group GROUP functionAppName
"""

from __future__ import annotations

import click

from infrastructure.azure_cli import outputs_of


@click.command()
@click.option("--resource-group", required=True)
@click.option("--deployment", help="By default the newest one that succeeded.")
@click.argument("name", required=False)
def main(resource_group: str, deployment: str | None, name: str | None) -> None:
    """Print the outputs of a deployment of main.bicep, or one of them."""
    outputs = outputs_of(resource_group, deployment)
    if name is None:
        for each, value in outputs.items():
            click.echo(f"{each}={value}")
    elif name in outputs:
        click.echo(outputs[name])
    else:
        raise click.ClickException(f"There is no output {name}; there are {', '.join(outputs)}.")


if __name__ == "__main__":
    main()
