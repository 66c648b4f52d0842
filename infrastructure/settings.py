"""Write the app settings of a deployed function app into a file for `python -m operations --settings FILE`.

So the operator's commands and the pipeline's diagnosis work with exactly what the function works with. There is no
secret among them: identities need none.

    python -m infrastructure.settings --resource-group GROUP
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from infrastructure.azure_cli import NoAnswerError, ask, function_app_of


def settings_of(resource_group: str) -> dict[str, str]:
    """Return the app settings of the function app in a resource group; raises NoAnswerError."""
    app = function_app_of(resource_group)
    answer = ask(
        "functionapp", "config", "appsettings", "list", "--resource-group", resource_group, "--name", app
    )
    return {each["name"]: each["value"] for each in answer}


@click.command()
@click.option("--resource-group", required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="By default build/GROUP.settings.json, which git ignores.",
)
def main(resource_group: str, output: Path | None) -> None:
    """Write the app settings of the function app in a resource group into a file for operations."""
    output = output or Path("build") / f"{resource_group}.settings.json"
    try:
        settings = settings_of(resource_group)
    except NoAnswerError as error:
        raise click.ClickException(str(error)) from error
    output.parent.mkdir(parents=True, exist_ok=True)
    document = {"IsEncrypted": False, "Values": settings}
    output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    click.echo(f"python -m operations --settings {output} --help")


if __name__ == "__main__":
    main()
