"""The options of the commands that start a sandbox, and starting one."""

import functools
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sandbox.cloud import CannotStart, Cloud, CloudOptions, Mode, NoTlsAddress, StartInterrupted
from sandbox.command_line.unknown_settings import hints
from sandbox.faults import FaultRule
from sandbox.faults.syntax import InvalidRule, parse_rule
from sandbox.functions_host import InvalidAppConfiguration, WorkerDied
from sandbox.service_bus.configuration import DEFAULT_ENTITIES
from sandbox.stopping import Stop

INTERRUPTED = 130
_REPOSITORY = Path(__file__).parents[2]
# Installed with pip, the sandbox has neither an app nor entities of its own.
_IN_REPOSITORY = DEFAULT_ENTITIES.exists()
_AUTOMATIC = "auto"


# The options that become fields of CloudOptions, under the same names.
_OF_THE_CLOUD = ("app_root", "settings", "defaults", "entities", "published_keys", "connect_with")


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command, which gets `options` (what to run), `mode`, `rules` and `verbose`."""

    @functools.wraps(command)
    def with_common(*arguments: object, **parameters: Any) -> None:  # noqa: ANN401 - what click passes on
        options = CloudOptions(**{name: parameters.pop(name) for name in _OF_THE_CLOUD})
        for hint in hints(options.app_root, options.settings):
            click.echo(hint, err=True)
        command(*arguments, options=options, **parameters)

    for option in reversed(_OPTIONS):
        with_common = option(with_common)
    return with_common


def words(_: click.Context, __: click.Parameter, value: str | None) -> Sequence[str]:
    """Split a command, for an option's callback."""
    return shlex.split(value or "")


def _pairs(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
    return dict(value.partition("=")[::2] for value in values)


def _rules(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[FaultRule]:
    try:
        return [parse_rule(value) for value in values]
    except InvalidRule as error:
        raise click.BadParameter(str(error)) from error


def _values(_: click.Context, __: click.Parameter, path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text("utf-8-sig"))["Values"]
        return {str(name): str(value) for name, value in values.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise click.BadParameter(f"{path} is not a settings file, JSON with an object Values") from error


_OPTIONS = (
    click.option(
        "--app",
        "app_root",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=_REPOSITORY if _IN_REPOSITORY else Path(),
        show_default="this project" if _IN_REPOSITORY else "the current folder",
        help="The folder of the function app: host.json and function_app.py, or the functions' folders.",
    ),
    click.option(
        "--mode",
        type=click.Choice([_AUTOMATIC, *(mode.value for mode in Mode)]),
        default=_AUTOMATIC,
        show_default=True,
        help="How the function connects to Service Bus; auto is identity with TLS where an address is free for it.",
    ),
    click.option(
        "--settings",
        "defaults",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=_values,
        help="App settings of the function, a file like local.settings.json; the sandbox replaces its connections.",
    ),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_pairs,
        help="An app setting of the function; AzureFunctionsJobHost__… override host.json.",
    ),
    click.option(
        "--fault",
        "rules",
        multiple=True,
        metavar="RULE",
        callback=_rules,
        help="Let something fail, such as 'dataverse throttled retry_after=7 for=30s'; see faults.",
    ),
    click.option(
        "--entities",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        default=DEFAULT_ENTITIES if _IN_REPOSITORY else None,
        show_default="this project's" if _IN_REPOSITORY else False,
        required=not _IN_REPOSITORY,
        help="What Service Bus has: a JSON file in the official emulator's format, with comments.",
    ),
    click.option(
        "--published-keys",
        is_flag=True,
        help="Keep keys that everybody knows, such as the official emulator's, instead of random ones.",
    ),
    click.option(
        "--connect-with",
        metavar="COMMAND",
        callback=words,
        help="Leave setting Dataverse up to this command, run as an administrator; {function} in it becomes the "
        "client id of the function's identity.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Show what the parts and the function log."),
)


@contextmanager
def running(options: CloudOptions, mode: str, stop: Stop) -> Iterator[Cloud]:
    """Start a sandbox, and stop it in the end; what keeps it from starting becomes a message."""
    modes = [Mode.IDENTITY, Mode.CONNECTION_STRING] if mode == _AUTOMATIC else [Mode(mode)]
    try:
        cloud = Cloud(replace(options, mode=modes[0]))
        try:
            cloud.start(stop.is_wanted)
        except NoTlsAddress:
            if len(modes) == 1:
                raise
            cloud = Cloud(replace(options, mode=modes[1]))
            cloud.start(stop.is_wanted)
    except StartInterrupted as error:
        raise click.exceptions.Exit(INTERRUPTED) from error
    except (CannotStart, InvalidAppConfiguration, WorkerDied) as error:
        raise click.ClickException(str(error)) from error
    try:
        yield cloud
    finally:
        cloud.stop()


def transport(cloud: Cloud) -> str:
    """Tell how the function reaches Service Bus."""
    if cloud.tls_server is not None:
        return f"TLS on {cloud.namespace}, with a managed identity"
    return f"plain AMQP on port {cloud.plain_server.port}, with a connection string"


def workers(cloud: Cloud) -> str:
    """Tell where the function runs."""
    if cloud.host is None:
        return "no process of the sandbox: start it with func start"
    if cloud.options.debug_port:
        return f"a worker process that waits for a debugger on 127.0.0.1:{cloud.options.debug_port}"
    return "worker process " + ", ".join(map(str, cloud.host.worker_pids))
