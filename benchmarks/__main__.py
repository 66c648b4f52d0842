"""`make bench`: the product beside the floor and the usual sample, in turn, in one run.

The contestants run in processes of their own against the same peers (`peers.py`), one after the other, round by round,
so that a machine whose speed drifts affects all of them alike. Compare the ratios of the medians; a single
figure says more about the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import requests
import trustme
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[1]
_TIMEOUT = 600.0
_AMQPS_PORT = 5671
Figures = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One kind of run of one contestant; every round repeats it."""

    contestant: str
    threads: int
    latency_ms: int
    messages: int
    kind: str = "new"

    @property
    def handled(self) -> int:
        """The messages in all: the first one, two a thread before the measurement, and those that are measured."""
        return 1 + 2 * self.threads + self.messages

    @property
    def name(self) -> str:
        """How progress names it."""
        return f"{self.contestant}, {self.threads} threads, {self.latency_ms} ms, {self.kind}"


# The numbers of messages give each run about a second or two.
_COMPARED = (
    *(
        Run(contestant, threads, latency_ms, messages)
        for threads, latency_ms, messages in ((1, 0, 400), (16, 0, 600), (1, 50, 12), (16, 50, 320))
        for contestant in ("floor", "product")
    ),
    Run("usual", 1, 0, 3),
)
_COUNTED = tuple(Run("product", 1, 0, 50, kind) for kind in ("new", "duplicate", "ignored"))
_EXPORTERS = ("off", "azure-monitor", "otlp")
_NEW_AMONG_DUPLICATES = 2


@dataclass
class Peers:
    """The running peers and the environment in which a contestant finds them."""

    url: str
    environment: dict[str, str]
    bundle: str

    def counters(self) -> Figures:
        """Return what the peers have counted since they started."""
        return dict(requests.get(f"{self.url}/counters", timeout=10, verify=self.bundle).json())

    def delay(self, milliseconds: int) -> None:
        """Let Dataverse's peer wait before each response."""
        requests.post(f"{self.url}/latency?ms={milliseconds}", timeout=10, verify=self.bundle)


@contextmanager
def peers() -> Iterator[Peers]:
    """Start the peers in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        address = _free_address()
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1", address)
        bundle = Path(folder, "ca.pem")
        bundle.write_bytes(authority.cert_pem.bytes())
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        Path(folder, "server.pem").write_bytes(chain)
        Path(folder, "server.key").write_bytes(certificate.private_key_pem.bytes())
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers", folder, address],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            ports = json.loads(process.stdout.readline() if process.stdout else b"")
            url = f"https://127.0.0.1:{ports['dataverse']}"
            yield Peers(url, _environment(url, ports["identity"], address, str(bundle)), str(bundle))
        finally:
            process.kill()
            process.wait(10)


def _free_address() -> str:
    for number in count(1):
        address = f"127.0.9.{number}"
        with socket.socket() as probe:
            try:
                probe.bind((address, _AMQPS_PORT))
            except OSError:
                continue
            return address
    raise AssertionError("count() has no end")


def _environment(url: str, identity_port: int, namespace: str, bundle: str) -> dict[str, str]:
    return {
        **os.environ,
        "SSL_CERT_FILE": bundle,
        "REQUESTS_CA_BUNDLE": bundle,
        "IDENTITY_ENDPOINT": f"http://127.0.0.1:{identity_port}/msi/token",
        "IDENTITY_HEADER": "none",
        "AZURE_CLIENT_ID": "0a6f4b0e-51c5-4f0c-8d53-6c1f7e0b9a11",
        "DATAVERSE_URL": url,
        "ServiceBusConnection__fullyQualifiedNamespace": namespace,
        "OPPORTUNITY_WON_QUEUE": "opportunity-won",
        "OPPORTUNITY_WON_FAILED_QUEUE": "opportunity-won-failed",
        "INVOICE_CREATED_TOPIC": "invoice-created",
    }


def execute(
    run: Run, at: Peers, *, folder: Path = ROOT, environment: dict[str, str] | None = None
) -> Figures:
    """Run a contestant and return its figures; raises click.ClickException with what it printed if it failed."""
    at.delay(run.latency_ms)
    command = ["-B", "-m", "benchmarks.contestants", run.contestant]
    command += ["--threads", str(run.threads), "--messages", str(run.messages), "--kind", run.kind]
    return _figures(run.name, command, folder, {**at.environment, **(environment or {})})


def _figures(name: str, command: list[str], folder: Path, environment: dict[str, str]) -> Figures:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"{name} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


@dataclass
class Results:
    """All figures of all rounds."""

    rounds: dict[Run, list[Figures]] = field(default_factory=dict)
    counted: dict[str, Figures] = field(default_factory=dict)
    endurance: Figures = field(default_factory=dict)
    cold_start: dict[str, list[Figures]] = field(default_factory=dict)
    telemetry: dict[str, list[Figures]] = field(default_factory=dict)

    def median(self, run: Run, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(each[figure] for each in self.rounds[run])

    def find(self, contestant: str, threads: int, latency_ms: int) -> Run:
        """Return the run of these circumstances."""
        return next(
            run
            for run in self.rounds
            if (run.contestant, run.threads, run.latency_ms) == (contestant, threads, latency_ms)
        )


def benchmark(rounds: int, endurance: int, package: Path | None, progress: Progress) -> Results:
    """Run everything once, and the comparisons `rounds` times."""
    results = Results({run: [] for run in _COMPARED})
    total = rounds * (1 + len(_COMPARED) + 2 * bool(package)) + len(_COUNTED) + bool(endurance)
    task = progress.add_task("starting the peers", total=total)
    for telemetry in _telemetry(rounds):
        progress.update(task, description="telemetry")
        for exporter, figures in telemetry.items():
            results.telemetry.setdefault(exporter, []).append(figures)
        progress.advance(task)
    with peers() as at:
        # The floor repeats what the peers record of the product's first invoice.
        execute(Run("product", 1, 0, 1), at)
        for _ in range(rounds):
            for run in _COMPARED:
                progress.update(task, description=run.name)
                before = at.counters()["cpu"]
                figures = execute(run, at)
                figures["peers_cpu"] = (at.counters()["cpu"] - before) / run.handled
                results.rounds[run].append(figures)
                progress.advance(task)
        for run in _COUNTED:
            progress.update(task, description=f"requests of a {run.kind} event")
            results.counted[run.kind] = _per_message(run, at)
            progress.advance(task)
        if package:
            with _unpacked(package) as folders:
                for _ in range(rounds):
                    for name, folder in folders.items():
                        progress.update(task, description=f"cold start, {name}")
                        results.cold_start.setdefault(name, []).append(_cold_start(folder, at))
                        progress.advance(task)
        if endurance:
            progress.update(task, description=f"{endurance:,} events")
            results.endurance = execute(Run("product", 16, 0, endurance), at)
            progress.advance(task)
    return results


def _per_message(run: Run, at: Peers) -> Figures:
    before = at.counters()
    execute(run, at)
    after = at.counters()
    rise = {name: after.get(name, 0) - before.get(name, 0) for name in ("requests", "tokens", "messages")}
    # The first message and the first of the warm-up find no invoice yet: one request more for each.
    if run.kind == "duplicate":
        rise["requests"] -= _NEW_AMONG_DUPLICATES
    return {
        "requests": round(rise["requests"] / run.handled, 1),
        "messages": round(rise["messages"] / run.handled, 1),
        "tokens in all": rise["tokens"],
    }


@contextmanager
def _unpacked(package: Path) -> Iterator[dict[str, Path]]:
    """Unpack the package twice, once without its bytecode, with the contestants beside it."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        folders = {}
        for name in ("with bytecode", "without"):
            folder = folders[name] = Path(scratch, name.replace(" ", "-"))
            with zipfile.ZipFile(package) as archive:
                archive.extractall(folder)
            shutil.copytree(
                ROOT / "benchmarks", folder / "benchmarks", ignore=shutil.ignore_patterns("*.pyc")
            )
        for compiled in folders["without"].rglob("*.pyc"):
            compiled.unlink()
        yield folders


def _telemetry(rounds: int) -> Iterator[dict[str, Figures]]:
    """Yield the figures of each exporter, round by round. The modules are compiled before, as in the package."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        for number in range(rounds + 1):
            figures = {
                exporter: _figures(exporter, ["-m", "benchmarks.telemetry", exporter], ROOT, environment)
                for exporter in _EXPORTERS
            }
            if number:
                yield figures


def _cold_start(folder: Path, at: Peers) -> Figures:
    packages = folder / ".python_packages" / "lib" / "site-packages"
    figures = execute(Run("product", 1, 0, 1), at, folder=folder, environment={"PYTHONPATH": str(packages)})
    return {
        "wall": figures["import_wall"] + figures["first_wall"],
        "cpu": figures["import_cpu"] + figures["first_cpu"],
    }


# --- What is shown -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the report: a figure of the product beside what it is compared with."""

    what: str
    reference: str
    product: str
    ratio: float | None
    goal: str


def report(results: Results) -> list[Row]:
    """Return the lines of the report."""
    usual, own = (results.median(results.find(name, 1, 0), "wall") for name in ("usual", "product"))
    rows = [
        _compared(results, "CPU", "cpu", 1, 0, "≤ 0.90"),
        _compared(results, "CPU", "cpu", 16, 0, "≤ 0.80"),
        *(_compared(results, "CPU", "cpu", threads, 50) for threads in (1, 16)),
        _compared(results, "the peers' CPU", "peers_cpu", 16, 50),
        *(_compared(results, "wall", "wall", threads, latency) for latency in (0, 50) for threads in (1, 16)),
        _share_of_possible(results),
        Row("wall, usual sample / product", _ms(usual), _ms(own), usual / own, "≥ 100"),
        # The product opens its link to Service Bus while it asks Dataverse: what that saves are Dataverse's responses.
        _first(results, 0, ""),
        _first(results, 50, "≤ 0.75"),
        *_cold_rows(results),
        *_telemetry_rows(results),
        *(
            Row(f"requests, {kind} event", "", f"{each['requests']:g}", None, goal)
            for (kind, each), goal in zip(results.counted.items(), ("3", "2", "1"), strict=True)
        ),
    ]
    if results.endurance:
        memory, threads = f"{results.endurance['memory_mb']:.0f} MB", f"{results.endurance['threads'] - 1:g}"
        rows.append(Row("memory after the long run", "", memory, None, "≤ 65 MB"))
        rows.append(Row("threads of our own after it", "", threads, None, "≤ 2"))
    return rows


def _compared(results: Results, what: str, figure: str, threads: int, latency: int, goal: str = "") -> Row:
    floor, product = (
        results.median(results.find(name, threads, latency), figure) for name in ("floor", "product")
    )
    circumstances = f"{threads} thread{'s' * (threads > 1)}, {latency} ms"
    return Row(f"{what}, {circumstances}", _ms(floor), _ms(product), product / floor, goal)


def _share_of_possible(results: Results) -> Row:
    run = results.find("product", 16, 50)
    possible = 3 * run.latency_ms / 1000 / run.threads
    own = results.median(run, "wall")
    return Row("possible rate, 16 threads, 50 ms", _ms(possible), _ms(own), possible / own, "≥ 0.95")


def _first(results: Results, latency: int, goal: str) -> Row:
    floor, product = (
        statistics.median(
            each["first_wall"]
            for run, figures in results.rounds.items()
            if (run.contestant, run.latency_ms) == (name, latency)
            for each in figures
        )
        for name in ("floor", "product")
    )
    return Row(f"first invocation, {latency} ms", _ms(floor), _ms(product), product / floor, goal)


def _cold_rows(results: Results) -> list[Row]:
    if not results.cold_start:
        return []
    rows = []
    for figure, what in (("wall", "cold start"), ("cpu", "CPU, cold start")):
        with_bytecode, without = (
            statistics.median(each[figure] for each in results.cold_start[name])
            for name in ("with bytecode", "without")
        )
        ratio = with_bytecode / without
        rows.append(Row(f"{what}, without / with .pyc", _ms(without), _ms(with_bytecode), ratio, "≤ 0.50"))
    return rows


def _telemetry_rows(results: Results) -> list[Row]:
    def median(exporter: str, figure: str) -> float:
        return statistics.median(each[figure] for each in results.telemetry[exporter])

    return [
        *(
            Row(f"CPU, import for {exporter}", "", _ms(median(exporter, "import")), None, "≤ 120 ms")
            for exporter in ("azure-monitor", "otlp")
        ),
        Row("CPU, span, telemetry off", "", f"{median('off', 'span') * 1e6:.1f} µs", None, "≤ 2 µs"),
        Row("CPU, span, recorded", "", f"{median('otlp', 'span') * 1e6:.1f} µs", None, ""),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"  # noqa: PLR2004


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the report as a table."""
    table = Table("per invoice", "reference", "product", "ratio", "goal", box=None, header_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.what, row.reference, row.product, ratio, row.goal)
    console.print(table)


@click.command(help=(__doc__ or "").partition("\n\n")[2])
@click.option("--rounds", default=5, show_default=True, help="How often each comparison is repeated.")
@click.option(
    "--endurance", default=20_000, show_default=True, help="Events of the long run; 0 leaves it out."
)
@click.option(
    "--package",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The deployment package, for the cold start with and without its bytecode.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything measured as JSON.")
def main(rounds: int, endurance: int, package: Path | None, *, as_json: bool) -> None:
    """Measure and print."""
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        results = benchmark(rounds, endurance, package, progress)
    if as_json:
        document: dict[str, Any] = {
            "rounds": [{**vars(run), "figures": figures} for run, figures in results.rounds.items()],
            "counted": results.counted,
            "endurance": results.endurance,
            "cold_start": results.cold_start,
            "telemetry": results.telemetry,
            "report": [vars(row) for row in report(results)],
        }
        click.echo(json.dumps(document, indent=1))
    else:
        show(report(results), Console())


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
