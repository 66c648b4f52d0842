"""Write the app settings of a deployed function app into a file for `python -m operations --settings FILE`.

So the operator's commands and the pipeline's diagnosis work with the values that the function works with. App settings
can be changed by more people than may run commands on an operator's machine, so only the names below are written: a
setting called PATH or HTTPS_PROXY never leaves Azure. The file is readable by its owner only.

    python -m infrastructure.settings --resource-group GROUP
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from infrastructure.azure_cli import function_app_of, one_line, query

# What the function reads, and what `operations doctor` compares with it.
APP_SETTINGS = frozenset(
    {
        "AZURE_CLIENT_ID",
        "AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls",
        "DATAVERSE_ORGANIZATION_ID",
        "DATAVERSE_URL",
        "INVOCATION_DEADLINE_SECONDS",
        "INVOICE_COLUMNS",
        "INVOICE_CREATED_TOPIC",
        "INVOICE_OWNER",
        "OPPORTUNITY_WON_FAILED_QUEUE",
        "OPPORTUNITY_WON_QUEUE",
        "ORDERED_OPPORTUNITY",
        "PYTHON_THREADPOOL_THREAD_COUNT",
        "RETRY_FIRST_DELAY_SECONDS",
        "RETRY_MAX_DELAY_SECONDS",
        "RETRY_OPEN_SECONDS",
        "RETRY_OUTAGE_SECONDS",
        "RETRY_RECORD_SECONDS",
        "ServiceBusConnection",
        "ServiceBusConnection__clientId",
        "ServiceBusConnection__credential",
        "ServiceBusConnection__fullyQualifiedNamespace",
        "TELEMETRY_EXPORTER",
    }
)


def settings_of(resource_group: str, deployment: str | None = None) -> dict[str, str]:
    """Return all app settings of the function app in a resource group; raises AzureCommandFailed."""
    app = function_app_of(resource_group, deployment)
    listed = query(
        "functionapp", "config", "appsettings", "list", "--resource-group", resource_group, "--name", app
    )
    return {each["name"]: each["value"] for each in listed}


def write(settings: dict[str, str], output: Path) -> list[str]:
    """Write what operations reads, for the owner's eyes only; return the names that are left out."""
    output.parent.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in settings.items() if name in APP_SETTINGS}
    # A file that exists keeps its permissions, so it goes first.
    output.unlink(missing_ok=True)
    with os.fdopen(
        os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        json.dump({"IsEncrypted": False, "Values": values}, file, indent=2)
        file.write("\n")
    return sorted(settings.keys() - values.keys())


@click.command()
@click.option("--resource-group", required=True)
@click.option("--deployment", help="By default the newest one that succeeded.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="By default build/GROUP.settings.json, which git ignores.",
)
def main(resource_group: str, deployment: str | None, output: Path | None) -> None:
    """Write the app settings of the function app in a resource group into a file for operations."""
    output = output or Path("build") / f"{resource_group}.settings.json"
    left_out = write(settings_of(resource_group, deployment), output)
    if left_out:
        names = ", ".join(map(one_line, left_out))
        click.echo(f"Left out, because operations does not read them: {names}", err=True)
    click.echo(f"python -m operations --settings {output} --help")


if __name__ == "__main__":
    main()
