"""`python -m sandbox start`: run everything until Ctrl-C."""

import importlib.util
import json
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from sandbox.cloud import Cloud, CloudOptions
from sandbox.command_line.beside import Beside
from sandbox.command_line.console import log_to_stderr
from sandbox.command_line.local_settings import FILE_NAME, LocalSettings, write_operator_settings
from sandbox.command_line.options import common, running, words, workers
from sandbox.command_line.struck import show_struck
from sandbox.control.client import CONTROL_TOKEN, CONTROL_URL, Control
from sandbox.control.panel import ControlPanel
from sandbox.control.server import ControlServer
from sandbox.dataverse import ServiceProtectionLimits
from sandbox.faults import FaultPlan, FaultRule
from sandbox.stopping import Stop

_DEBUG_PORT = 5678


@click.command("start")
@common
@click.option(
    "--opportunities",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="How many open opportunities Dataverse has.",
)
@click.option("--dataverse/--no-dataverse", default=True, help="Leave Dataverse out.")
@click.option("--limits", is_flag=True, help="Switch Dataverse's service-protection limits on.")
@click.option("--functions-host/--no-functions-host", default=True, help="Leave the function to func start.")
@click.option(
    "--debug",
    "debug_port",
    is_flag=False,
    flag_value=_DEBUG_PORT,
    type=click.IntRange(1, 65535),
    metavar="[PORT]",
    help=f"Let the function's worker wait for a debugger (debugpy), on port {_DEBUG_PORT} unless another is given.",
)
@click.option(
    "--traces",
    is_flag=True,
    help="Collect spans of host and function over OTLP/HTTP; see the command traces.",
)
@click.option(
    "--local-settings",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where to write the app settings for func start.  [default: {FILE_NAME} in the app's folder]",
)
@click.option(
    "--beside",
    metavar="COMMAND",
    callback=words,
    help="Run this command as well, with the operator's settings and the control address in its environment.",
)
@click.option("--force", is_flag=True, help="Overwrite local settings that somebody else wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with everything, for scripts.")
@click.pass_obj
def start_command(  # noqa: PLR0913 - one parameter for each option
    stop: Stop,
    *,
    options: CloudOptions,
    mode: str,
    rules: Sequence[FaultRule],
    verbose: bool,
    opportunities: int,
    dataverse: bool,
    limits: bool,
    functions_host: bool,
    debug_port: int | None,
    traces: bool,
    local_settings: Path | None,
    beside: Sequence[str],
    force: bool,
    as_json: bool,
) -> None:
    """Run everything until Ctrl-C, and write local.settings.json for func start; it is removed at the end."""
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    options = replace(
        options,
        opportunities=opportunities,
        dataverse=dataverse,
        limits=ServiceProtectionLimits() if limits else None,
        functions_host=functions_host,
        debug_port=debug_port,
        traces=traces,
        standard_ports=True,
        # Also without a rule: `break` adds some later.
        faults=FaultPlan(rules),
    )
    if debug_port is not None and importlib.util.find_spec("debugpy") is None:
        raise click.ClickException(f"--debug needs debugpy: {sys.executable} -m pip install debugpy")
    file = LocalSettings(local_settings or options.app_root / FILE_NAME)
    if local_settings is not None and not force and not file.is_free():
        raise click.ClickException(
            f"{file.path} was not written by a sandbox that is gone: --force overwrites it"
        )
    with running(options, mode, stop) as cloud, ExitStack() as closing:
        server = closing.enter_context(ControlServer(closing.enter_context(ControlPanel(cloud))))
        control = Control(server.url, server.token, os.getpid())
        control.write(cloud.folder)
        closing.callback(show_struck, cloud)
        closing.callback(file.remove)
        written = _write(file, cloud) if force or file.is_free() else None
        operator = write_operator_settings(cloud)
        if as_json:
            click.echo(json.dumps(_document(cloud, control, written, operator), indent=2))
        else:
            _show(cloud, control, written, operator)
        sys.stdout.flush()
        if beside:
            address = {CONTROL_URL: control.url, CONTROL_TOKEN: control.token}
            closing.enter_context(Beside(beside, cloud.operator_settings | address, name=beside[0]))
        stop.wait()
        if not as_json:
            click.echo("Stopping …", err=True)


def _write(file: LocalSettings, cloud: Cloud) -> Path:
    try:
        return file.write(cloud)
    except OSError as error:
        raise click.ClickException(
            f"{file.path} cannot be written ({error.strerror}): --local-settings takes another place"
        ) from error


def _document(
    cloud: Cloud, control: Control, local_settings: Path | None, operator: Path
) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "mode": cloud.options.mode,
        "endpoints": _endpoints(cloud),
        "control": {"url": control.url, "token": control.token},
        "connectionString": cloud.connection_string,
        "settings": cloud.app_settings,
        "operatorSettings": cloud.operator_settings,
        "operatorSettingsFile": str(operator),
        "clientIds": {
            "function": cloud.function_identity.client_id,
            "operator": cloud.operator.client_id,
        },
        "opportunities": cloud.demo.opportunities if cloud.options.dataverse else [],
        "workers": cloud.host.worker_pids if cloud.host else [],
        "debugPort": cloud.options.debug_port,
        "localSettings": str(local_settings) if local_settings else None,
    }


def _endpoints(cloud: Cloud) -> dict[str, str]:
    return {
        **({"Dataverse": cloud.dataverse_server.url} if cloud.options.dataverse else {}),
        "Service Bus, plain": f"amqp://{cloud.plain_server.host}:{cloud.plain_server.port}",
        **({"Service Bus, TLS": f"amqps://{cloud.namespace}:5671"} if cloud.tls_server else {}),
        "Managed identity": cloud.identity_server.endpoint,
    }


def _show(cloud: Cloud, control: Control, local_settings: Path | None, operator: Path) -> None:
    endpoints = {
        **_endpoints(cloud),
        "Control": control.url,
        "Connection string": cloud.connection_string,
        "Operator's client id": cloud.operator.client_id,
        "Operator's settings": str(operator),
    }
    width = max(map(len, endpoints))
    # One line each, also where the terminal is narrow: an id that is folded cannot be copied.
    click.echo("Endpoints")
    for name, value in endpoints.items():
        click.echo(f"  {name.ljust(width)}  {value}")
    click.echo("\nApp settings")
    for name, value in sorted(cloud.app_settings.items()):
        click.echo(f"  {name}={value}")
    if local_settings:
        click.echo(f"\n{local_settings} is written for func start, and removed at the end.")
    else:
        click.echo(f"\nNo {FILE_NAME} was written: there is one already that somebody else wrote.")
    click.echo(f"The function runs in {workers(cloud)}.\n")
    click.echo("Try this in another terminal")
    suggestions = _suggestions(cloud.options)
    longest = max(len(command) for command, _ in suggestions)
    for command, effect in suggestions:
        click.echo(f"  {_program()} {command.ljust(longest)}  {effect}")
    click.echo("\nCtrl-C stops everything.")


def _suggestions(options: CloudOptions) -> list[tuple[str, str]]:
    shared = [
        ("events --follow", "watch what is published"),
        ("break 'service-bus-out reset' --for 30s", "break a connection"),
        ("repair", "end every fault"),
        ("kill", "kill the function's worker"),
        ("pass-time 1h", "let an hour pass for Service Bus"),
        ("status", "see what waits where"),
        *([("traces", "see what called what")] if options.traces else []),
    ]
    if not options.dataverse:
        return [("send ENTITY BODY", "send a message"), ("messages ENTITY", "see what waits"), *shared]
    return [
        ("win", "win the next open opportunity"),
        ("win 10", "win ten"),
        ("invoices", "see the invoices"),
        ("requests --follow", "watch Dataverse's requests"),
        *shared,
    ]


def _program() -> str:
    """Return how this program can be called from here."""
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        executable = executable.relative_to(Path.cwd())
    return f"{shlex.quote(str(executable))} -m sandbox"
