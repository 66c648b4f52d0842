"""Questions to Azure through the Azure CLI, with its login.

That is `az login` on a desk and the service connection in the pipeline, so nothing here ever sees a credential.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

SECONDS = 60
# What the deployments of main.bicep are called, here, in the pipeline and in docs/deploy.md.
DEPLOYMENT = "invoicing"


class NoAnswerError(Exception):
    """Azure did not answer this question this time; the text is the CLI's own."""


def ask(*arguments: str) -> Any:  # noqa: ANN401 - JSON's values
    """Return the answer to an `az` command; raises NoAnswerError."""
    try:
        done = subprocess.run(  # noqa: S603 - our own commands, no shell
            ["az", *arguments, "--output", "json"],  # noqa: S607 - wherever the CLI is installed
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswerError(str(error)) from error
    if done.returncode != 0:
        raise NoAnswerError(done.stderr.strip()[-500:])
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise NoAnswerError(f"no JSON, but {done.stdout[:100]!r}") from error


def function_app_of(resource_group: str) -> str:
    """Return the name of the function app that was deployed into a resource group; raises NoAnswerError."""
    query = "properties.outputs.functionAppName.value"
    name = ask(
        "deployment",
        "group",
        "show",
        "--name",
        DEPLOYMENT,
        "--resource-group",
        resource_group,
        "--query",
        query,
    )
    if not isinstance(name, str):
        raise NoAnswerError(f"the deployment {DEPLOYMENT} in {resource_group} has no output functionAppName")
    return name
