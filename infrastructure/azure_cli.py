"""Queries to Azure through the Azure CLI, with its login. What others wrote there is printed through `one_line`.

That is `az login` on a workstation and the read connection in the pipeline, so no credential is handled here.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import click

SECONDS = 60
# A person names the deployment of main.bicep "invoicing"; the pipeline adds a hyphen and the id of its run.
DEPLOYMENT = "invoicing"


class AzureCommandFailed(click.ClickException):
    """The Azure CLI did not give a usable response; the text is its own message, with which a command ends."""


def one_line(text: str) -> str:
    """Return text of others in one line, without characters that a terminal interprets."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in " ".join(text.split())
    )


def query(*arguments: str) -> Any:  # noqa: ANN401 - JSON's values
    """Return the output of an `az` command; raises AzureCommandFailed."""
    try:
        done = subprocess.run(  # noqa: S603 - our own commands, no shell
            ["az", *arguments, "--output", "json"],  # noqa: S607 - wherever the CLI is installed
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AzureCommandFailed(str(error)) from error
    if done.returncode != 0:
        raise AzureCommandFailed(one_line(done.stderr)[-500:])
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise AzureCommandFailed(f"no JSON, but {done.stdout[:100]!r}") from error


def outputs_of(resource_group: str, deployment: str | None = None) -> dict[str, str]:
    """Return the outputs of a deployment of main.bicep, by default of the newest that succeeded.

    Raises AzureCommandFailed.
    """
    names = (
        f"name=='{DEPLOYMENT}' || starts_with(name, '{DEPLOYMENT}-')"
        if deployment is None
        else f"name=='{deployment}'"
    )
    succeeded = f"[?({names}) && properties.provisioningState=='Succeeded']"
    found = query(
        *("deployment", "group", "list", "--resource-group", resource_group),
        *("--query", f"{succeeded} | sort_by(@, &properties.timestamp) | [-1].properties.outputs"),
    )
    if not isinstance(found, dict):
        raise AzureCommandFailed(
            f"{resource_group} has no deployment {deployment or DEPLOYMENT} that succeeded"
        )
    return {one_line(name): one_line(str(output["value"])) for name, output in found.items()}


def function_app_of(resource_group: str, deployment: str | None = None) -> str:
    """Return the name of the function app in a resource group; raises AzureCommandFailed."""
    try:
        return outputs_of(resource_group, deployment)["functionAppName"]
    except KeyError as error:
        raise AzureCommandFailed(f"the deployment in {resource_group} has no output {error}") from error
