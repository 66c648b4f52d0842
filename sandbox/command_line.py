"""The commands of `python -m sandbox` and what they print: tables for people, plain lines or JSON for scripts."""

import json
import logging
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from sandbox import demo as demonstration
from sandbox.actors import ReceivedEvent
from sandbox.cloud import Cloud, CloudError, CloudOptions, Mode, NoTlsAddressError, StartInterruptedError
from sandbox.dataverse import Limits
from sandbox.faults import FaultPlan, Rule, Wire
from sandbox.faults.plan import KINDS, OPERATIONS
from sandbox.faults.syntax import WHEN, InvalidRule, parse_rule
from sandbox.functions_host import ConfigurationError, WorkerDiedError
from sandbox.service_bus.configuration import DEFAULT_ENTITIES
from sandbox.stopping import Stop

_INTERRUPTED = 130
_AUTOMATIC = "auto"
# Where Core Tools looks for it.
_LOCAL_SETTINGS = "local.settings.json"
_MARK = "Sandbox"

Command = TypeVar("Command", bound=Callable[..., object])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Azure on this machine: Service Bus, Dataverse, managed identity and a Functions host, on loopback only."""


def _common(command: Command) -> Command:
    for option in (
        click.option(
            "--app",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            default=Path(__file__).parents[1],
            show_default="this project",
            help="The folder of the function app: host.json and the functions' folders.",
        ),
        click.option(
            "--mode",
            type=click.Choice([_AUTOMATIC, *(mode.value for mode in Mode)]),
            default=_AUTOMATIC,
            show_default=True,
            help="How the function reaches Service Bus; auto is identity with TLS where an address is free for it.",
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
            help="Let something go wrong, such as 'dataverse throttled retry_after=7 for=30s'; see faults.",
        ),
        click.option(
            "--entities",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            default=DEFAULT_ENTITIES,
            show_default="as in Azure",
            help="What Service Bus has: a JSON file as the official emulator takes it, with comments.",
        ),
        click.option(
            "--connect-with",
            metavar="COMMAND",
            callback=_words,
            help="Leave setting Dataverse up to this command, run as an administrator; {function} in it becomes the "
            "client id of the function's identity.",
        ),
        click.option("-v", "--verbose", is_flag=True, help="Show what the parts and the function log."),
    ):
        command = option(command)
    return command


def _words(_: click.Context, __: click.Parameter, value: str | None) -> Sequence[str]:
    return shlex.split(value or "")


def _pairs(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
    return pairs


def _rules(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[Rule]:
    try:
        return [parse_rule(value) for value in values]
    except InvalidRule as error:
        raise click.BadParameter(str(error)) from error


@cli.command()
@_common
@click.option(
    "--opportunities",
    default=20,
    show_default=True,
    type=click.IntRange(0),
    help="How many open opportunities Dataverse has.",
)
@click.option("--limits", is_flag=True, help="Switch Dataverse's service-protection limits on.")
@click.option("--functions-host/--no-functions-host", default=True, help="Leave the function to func start.")
@click.option(
    "--local-settings",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where to write the app settings for func start.  [default: {_LOCAL_SETTINGS} in the app's folder]",
)
@click.option("--force", is_flag=True, help="Overwrite local settings that somebody else wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document with everything, for scripts.")
@click.pass_obj
def start(  # noqa: PLR0913 - one parameter for each option
    stop: Stop,
    *,
    app: Path,
    mode: str,
    settings: dict[str, str],
    connect_with: Sequence[str],
    rules: list[Rule],
    entities: Path,
    verbose: bool,
    opportunities: int,
    limits: bool,
    functions_host: bool,
    local_settings: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run everything until Ctrl-C, and write local.settings.json for func start; it is removed at the end."""
    _log_to_stderr(logging.INFO if verbose else logging.WARNING)
    options = CloudOptions(
        app,
        settings=settings,
        connect_with=connect_with,
        opportunities=opportunities,
        limits=Limits() if limits else None,
        functions_host=functions_host,
        standard_ports=True,
        entities=entities,
        faults=_plan(rules),
    )
    file = LocalSettings(local_settings or app / _LOCAL_SETTINGS)
    if local_settings is not None and not force and not file.is_free():
        raise click.ClickException(
            f"{file.path} was not written by a sandbox that is gone: --force overwrites it"
        )
    with _running(options, mode, stop) as cloud:
        try:
            note = file.write(cloud) if force or file.is_free() else None
        except OSError as error:
            raise click.ClickException(
                f"{file.path} cannot be written ({error.strerror}): --local-settings takes another place"
            ) from error
        try:
            _show_cloud(cloud, note, as_json=as_json)
            stop.wait()
        finally:
            file.remove()
            _show_struck(cloud)
        if not as_json:
            click.echo("Stopping …", err=True)


@cli.command()
@_common
@click.option(
    "--count", default=5, show_default=True, type=click.IntRange(1), help="How many opportunities to win."
)
@click.option(
    "--patience",
    default=demonstration.PATIENCE_SECONDS,
    show_default=True,
    type=click.FloatRange(0),
    help="How many seconds to wait for the last events.",
)
@click.option(
    "--events",
    "events_file",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the events to this file, as they came: one JSON document in each line.",
)
@click.pass_obj
def demo(  # noqa: PLR0913 - one parameter for each option
    stop: Stop,
    *,
    app: Path,
    mode: str,
    settings: dict[str, str],
    connect_with: Sequence[str],
    rules: list[Rule],
    entities: Path,
    verbose: bool,
    count: int,
    patience: float,
    events_file: Path | None,
) -> None:
    """Win opportunities and show the invoices and events that come of them; exit code 1 if any is missing."""
    _log_to_stderr(logging.INFO if verbose else logging.ERROR)
    options = CloudOptions(
        app,
        settings=settings,
        connect_with=connect_with,
        opportunities=count,
        entities=entities,
        faults=_plan(rules),
    )
    with _running(options, mode, stop) as cloud:
        click.echo(
            f"Service Bus over {_transport(cloud)}; Dataverse over HTTPS; the function in {_workers(cloud)}."
        )
        with _progress(count) as report:
            outcome = demonstration.run(
                cloud, cloud.demo.opportunities[:count], report, stop.is_wanted, patience
            )
        _show_struck(cloud)
    _show_lines(outcome)
    if stop.is_wanted():
        click.echo("Interrupted before the end: what is missing might still have come.", err=True)
    else:
        _show_problems(outcome)
    click.echo(str(outcome))
    if events_file is not None:
        _write_events(events_file, outcome.received)
    if stop.is_wanted():
        raise click.exceptions.Exit(_INTERRUPTED)
    if not outcome.is_good or len(outcome.lines) != count:
        raise click.exceptions.Exit(1)


@cli.command()
def faults() -> None:
    """List what can go wrong on which wire, and how to write it after --fault."""
    click.echo(
        "--fault 'WIRE[/OPERATION] FAULT [NAME=VALUE …]', as often as you like; the first that applies strikes."
    )
    click.echo("For example: --fault 'dataverse/change-set reset after=yes nth=1'\n")
    _print_table("Wires", ("wire", "operations"), [(wire, ", ".join(OPERATIONS[wire])) for wire in Wire])
    click.echo("")
    rows = [
        (kind, _wires_of(description.wires), description.text, " ".join(description.fields))
        for kind, description in KINDS.items()
    ]
    _print_table("Faults", ("fault", "wires", "what happens", "names"), rows)
    click.echo("")
    _print_table("When", ("name", "value"), list(WHEN.items()))


def _wires_of(wires: frozenset[Wire]) -> str:
    return "all" if wires == frozenset(Wire) else ", ".join(wire for wire in Wire if wire in wires)


def _plan(rules: Sequence[Rule]) -> FaultPlan | None:
    return FaultPlan(rules) if rules else None


def _show_struck(cloud: Cloud) -> None:
    """Say what went wrong on purpose, on standard error: standard output is the outcome's."""
    plan = cloud.options.faults
    if plan is None:
        return
    struck = Counter(f"{entry.wire}/{entry.operation} {entry.fault}" for entry in plan.log)
    for what, count in struck.items():
        click.echo(f"{what}: struck {count} time{'s' if count > 1 else ''}", err=True)
    if not struck:
        click.echo("No fault has struck.", err=True)


@contextmanager
def _running(options: CloudOptions, mode: str, stop: Stop) -> Iterator[Cloud]:
    modes = [Mode.IDENTITY, Mode.CONNECTION_STRING] if mode == _AUTOMATIC else [Mode(mode)]
    try:
        cloud = Cloud(replace(options, mode=modes[0]))
        try:
            cloud.start(stop.is_wanted)
        except NoTlsAddressError:
            if len(modes) == 1:
                raise
            cloud = Cloud(replace(options, mode=modes[1]))
            cloud.start(stop.is_wanted)
    except StartInterruptedError as error:
        raise click.exceptions.Exit(_INTERRUPTED) from error
    except (CloudError, ConfigurationError, WorkerDiedError) as error:
        raise click.ClickException(str(error)) from error
    try:
        yield cloud
    finally:
        cloud.stop()


@dataclass
class LocalSettings:
    """The file for Core Tools. It holds ports and keys of one run, so whoever writes it removes it."""

    path: Path
    _written: str | None = None

    def is_free(self) -> bool:
        """Tell whether it may be written: it is not there, or a sandbox left it that runs no more."""
        try:
            mark = json.loads(self.path.read_text("utf-8-sig")).get(_MARK)
        except FileNotFoundError:
            return True
        except (OSError, ValueError, AttributeError):
            return False
        return isinstance(mark, dict) and isinstance(mark.get("pid"), int) and not _is_running(mark["pid"])

    def write(self, cloud: Cloud) -> Path:
        """Write it, for this user's eyes only; returns where it is."""
        mark = {"writtenBy": "python -m sandbox start, which removes it when it stops", "pid": os.getpid()}
        self._written = json.dumps({_MARK: mark, **cloud.local_settings()}, indent=2) + "\n"
        self.path.unlink(missing_ok=True)
        self.path.touch(mode=0o600)
        self.path.write_text(self._written, "utf-8")
        return self.path

    def remove(self) -> None:
        """Remove it, unless somebody has changed it or nothing was written."""
        with suppress(FileNotFoundError):
            if self._written is not None and self.path.read_text("utf-8") == self._written:
                self.path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _show_cloud(cloud: Cloud, local_settings: Path | None, *, as_json: bool) -> None:
    endpoints = {
        "Dataverse": cloud.dataverse_server.url,
        "Service Bus, plain": f"amqp://{cloud.plain_server.host}:{cloud.plain_server.port}",
        **({"Service Bus, TLS": f"amqps://{cloud.namespace}:5671"} if cloud.tls_server else {}),
        "Managed identity": cloud.identity_server.endpoint,
    }
    if as_json:
        document = {
            "pid": os.getpid(),
            "mode": cloud.options.mode,
            "endpoints": endpoints,
            "connectionString": cloud.connection_string,
            "settings": cloud.app_settings,
            "clientIds": {
                "function": cloud.function_identity.client_id,
                "operator": cloud.operator.client_id,
            },
            "opportunities": cloud.demo.opportunities,
            "workers": cloud.host.worker_pids if cloud.host else [],
            "localSettings": str(local_settings) if local_settings else None,
        }
        click.echo(json.dumps(document, indent=2))
        sys.stdout.flush()
        return
    rows = [*endpoints.items(), ("Connection string", cloud.connection_string)]
    rows += [("Operator's client id", cloud.operator.client_id)]
    _print_table("Endpoints", ("what", "where"), rows)
    _print_table("App settings", ("setting", "value"), sorted(cloud.app_settings.items()))
    if local_settings:
        click.echo(f"{local_settings} is written for func start, and removed at the end.")
    else:
        click.echo("No local.settings.json was written: there is one already that is somebody else's.")
    click.echo(f"The function runs in {_workers(cloud)}. Ctrl-C stops everything.")
    sys.stdout.flush()


def _show_lines(outcome: demonstration.Outcome) -> None:
    rows = [
        (
            line.opportunity,
            line.invoice_number,
            line.customer,
            line.total,
            line.event_id,
            "" if line.milliseconds is None else str(line.milliseconds),
        )
        for line in outcome.lines
    ]
    _print_table(
        "", ("opportunity", "invoice", "customer", "total", "event", "ms"), rows, right=("total", "ms")
    )


def _show_problems(outcome: demonstration.Outcome) -> None:
    for line in outcome.lines:
        for problem in line.problems:
            click.echo(f"{line.opportunity_id}: {problem}", err=True)


def _write_events(file: Path, events: Sequence[ReceivedEvent]) -> None:
    documents = [
        {
            "messageId": event.message_id,
            "contentType": event.content_type,
            "correlationId": event.correlation_id,
            "applicationProperties": event.application_properties,
            # The text, not what it says: not a byte of it is changed.
            "body": event.body.decode(),
        }
        for event in events
    ]
    try:
        file.write_text("".join(f"{json.dumps(document)}\n" for document in documents), "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from error


def _print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()
) -> None:
    console = Console()
    if console.is_terminal:
        table = Table(title=title or None, title_justify="left")
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    # For files and pipes: nothing is cut, coloured or drawn.
    if title:
        click.echo(f"{title}:")
    lines = [tuple(columns), *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


@contextmanager
def _progress(total: int) -> Iterator[Callable[[demonstration.Progress], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console) as bar:
        won, events = bar.add_task("won", total=total), bar.add_task("events", total=total)

        def report(progress: demonstration.Progress) -> None:
            bar.update(won, completed=progress.won)
            bar.update(events, completed=progress.events)

        yield report


class _PlainProgress:
    """Says now and then how far it is: ten lines at most."""

    def __init__(self) -> None:
        self._tenths = 0

    def __call__(self, progress: demonstration.Progress) -> None:
        tenths = 10 * progress.events // progress.total
        if tenths > self._tenths:
            self._tenths = tenths
            click.echo(f"won {progress.won} of {progress.total}, events {progress.events}", err=True)


def _transport(cloud: Cloud) -> str:
    if cloud.tls_server is not None:
        return f"TLS on {cloud.namespace}, with a managed identity"
    return f"plain AMQP on port {cloud.plain_server.port}, with a connection string"


def _workers(cloud: Cloud) -> str:
    if cloud.host is None:
        return "no process of the sandbox's: func start is to run it"
    return "worker process " + ", ".join(map(str, cloud.host.worker_pids))


def _log_to_stderr(level: int) -> None:
    console = Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The client libraries tell of every link and retry; the parts say in their own words what matters of it.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
