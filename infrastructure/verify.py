"""Wait until the package that was deployed is the one that runs, or report why it does not.

The deployment task reports success while a deployment to Flex Consumption is still running or has failed
(microsoft/azure-pipelines-tasks#22315). So this module queries what Azure lists, through the Azure CLI and its login:
the function must exist, be enabled, and have the version that `infrastructure/package.py` wrote into the package.
Whether the function also reaches its dependencies is left to `python -m operations doctor`.

    python -m infrastructure.verify --resource-group GROUP --package build/function.zip
"""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infrastructure import FUNCTION
from infrastructure.azure_cli import AzureCommandFailed, function_app_of, one_line, query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

API_VERSION = "2025-03-01"
PAUSE_SECONDS = 15.0


class NotVerified(click.ClickException):
    """The new version was not listed in time; the text says what was listed last."""


def version_of(package: Path) -> str:
    """Return the version that is stamped into a package; raises NotVerified."""
    try:
        with zipfile.ZipFile(package) as archive:
            listing = json.loads(archive.read(f"{FUNCTION}/function.json"))
        return str(listing["generatedBy"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise NotVerified(f"{package} is not a package of infrastructure/package.py: {error}") from error


def wait_for(
    version: str,
    listed: Callable[[], Mapping[str, Any]],
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = click.echo,
) -> None:
    """Query the function's listing until it shows `version`, for at most `seconds`.

    `listed` returns the function as Azure Resource Manager lists it, or raises AzureCommandFailed. Raises NotVerified.
    """
    deadline = now() + seconds
    last = None
    while True:
        difference = _difference(version, listed)
        if difference is None:
            report(f"{FUNCTION} runs version {version}.")
            return
        if difference != last:
            report(difference)
            last = difference
        if now() + PAUSE_SECONDS > deadline:
            raise NotVerified(f"After {seconds:.0f} s: {difference}")
        sleep(PAUSE_SECONDS)


def _difference(version: str, listed: Callable[[], Mapping[str, Any]]) -> str | None:
    """Return what differs from what was deployed, or None."""
    try:
        properties = listed().get("properties") or {}
    except AzureCommandFailed as error:
        return f"The function is not listed: {error}"
    running = (properties.get("config") or {}).get("generatedBy")
    if running != version:
        return f"Version {one_line(str(running or 'unknown'))[:100]} is listed, not {version}."
    if properties.get("isDisabled"):
        return "The function is disabled."
    return None


def listing(resource_group: str, app: str) -> Mapping[str, Any]:
    """Return the function as Azure Resource Manager lists it; raises AzureCommandFailed."""
    # The Azure CLI replaces {subscriptionId} with the subscription of its login.
    url = (
        f"/subscriptions/{{subscriptionId}}/resourceGroups/{resource_group}/providers/Microsoft.Web"
        f"/sites/{app}/functions/{FUNCTION}?api-version={API_VERSION}"
    )
    response = query("rest", "--method", "get", "--url", url)
    if not isinstance(response, dict):
        raise AzureCommandFailed(f"no object, but {response!r}"[:200])
    return response


@click.command()
@click.option("--resource-group", required=True)
@click.option("--deployment", help="By default the newest one that succeeded.")
@click.option("--package", type=click.Path(path_type=Path), required=True, help="The zip that was deployed.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=900, show_default=True, help="How long to wait."
)
def main(resource_group: str, deployment: str | None, package: Path, seconds: float) -> None:
    """Wait until the deployed package is the one that Azure lists."""
    version, app = version_of(package), function_app_of(resource_group, deployment)
    wait_for(version, lambda: listing(resource_group, app), seconds=seconds)


if __name__ == "__main__":
    main()
