"""Wait until the package that was deployed is the one that runs, or say why not.

The deployment task reports success while a deployment to Flex Consumption is still going on or has failed
(microsoft/azure-pipelines-tasks#22315). So this asks Azure, through the Azure CLI and its login, what it lists: the
function must be there, enabled, and carry the version that `infrastructure/package.py` wrote into the package.
Whether the function also reaches everything that it needs is left to `python -m operations doctor`.

    python -m infrastructure.verify --resource-group GROUP --package build/function.zip
"""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infrastructure.azure_cli import NoAnswerError, ask, function_app_of
from infrastructure.package import FUNCTION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

API_VERSION = "2025-03-01"
PAUSE_SECONDS = 15.0


class NotVerifiedError(Exception):
    """The new version was not seen in time; the text says what was seen last."""


def version_of(package: Path) -> str:
    """Return the version that is stamped into a package; raises NotVerifiedError."""
    try:
        with zipfile.ZipFile(package) as archive:
            listing = json.loads(archive.read(f"{FUNCTION}/function.json"))
        return str(listing["generatedBy"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise NotVerifiedError(f"{package} is no package of infrastructure/package.py: {error}") from error


def wait_for(
    version: str,
    look: Callable[[], Mapping[str, Any]],
    *,
    seconds: float,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = click.echo,
) -> None:
    """Ask for the function's listing until it shows `version`, for at most `seconds`.

    `look` returns the function as Azure Resource Manager lists it, or raises NoAnswerError. Raises NotVerifiedError.
    """
    deadline = now() + seconds
    last = None
    while True:
        seen = _seen(version, look)
        if seen is None:
            tell(f"{FUNCTION} runs version {version}.")
            return
        if seen != last:
            tell(seen)
            last = seen
        if now() + PAUSE_SECONDS > deadline:
            raise NotVerifiedError(f"After {seconds:.0f} s: {seen}")
        sleep(PAUSE_SECONDS)


def _seen(version: str, look: Callable[[], Mapping[str, Any]]) -> str | None:
    """Return what is not yet as it should be, or None."""
    try:
        properties = look().get("properties", {})
    except NoAnswerError as error:
        return f"The function is not listed: {error}"
    running = (properties.get("config") or {}).get("generatedBy")
    if running != version:
        return f"Version {running or 'unknown'} is listed, not {version}."
    if properties.get("isDisabled"):
        return "The function is disabled."
    return None


def listing(resource_group: str) -> Mapping[str, Any]:
    """Return the function as Azure Resource Manager lists it; raises NoAnswerError."""
    # The Azure CLI puts the subscription that is logged in to into {subscriptionId}.
    url = (
        f"/subscriptions/{{subscriptionId}}/resourceGroups/{resource_group}/providers/Microsoft.Web"
        f"/sites/{function_app_of(resource_group)}/functions/{FUNCTION}?api-version={API_VERSION}"
    )
    answer = ask("rest", "--method", "get", "--url", url)
    if not isinstance(answer, dict):
        raise NoAnswerError(f"no object, but {answer!r}"[:200])
    return answer


@click.command()
@click.option("--resource-group", required=True)
@click.option("--package", type=click.Path(path_type=Path), required=True, help="The zip that was deployed.")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=900, show_default=True, help="How long to wait."
)
def main(resource_group: str, package: Path, seconds: float) -> None:
    """Wait until the deployed package is the one that Azure lists."""
    try:
        wait_for(version_of(package), lambda: listing(resource_group), seconds=seconds)
    except NotVerifiedError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
