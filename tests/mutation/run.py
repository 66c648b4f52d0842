"""Find small changes to the deployed code that no test notices: `make mutants`.

    python tests/mutation/run.py                  a sample, drawn with a seed
    python tests/mutation/run.py --all            every mutation; takes long
    python tests/mutation/run.py --module shared/message.py

Each mutation is written into a copy of the repository, and the unit and contract tests that execute its line run there
until one fails. Those that no test notices must stand in equivalent.toml with the reason why the behaviour is the same;
others are printed, and the exit code is 1. Entries that are not needed any more are printed as well.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import click
import coverage
import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parent))
from mutations import Mutation, mutations  # after the path that has it

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
_DEPLOYED = ("shared", "GenerateInvoiceFunction")
_SUITES = ("tests/unit", "tests/contract")
# A mutant that loops for ever is noticed like any other: by the time.
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: the test that failed first, `timeout`, or nothing."""

    mutation: Mutation
    noticed_by: str | None


class Copy:
    """A copy of the repository in which one mutation at a time is tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S603 - our own command
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)

    def test(self, mutation: Mutation, tests: Sequence[str]) -> Outcome:
        """Run the tests against a mutation."""
        path = self.folder / mutation.module
        source = path.read_bytes()
        path.write_bytes(mutation.apply(source))
        try:
            return Outcome(mutation, self.first_failure(tests))
        finally:
            path.write_bytes(source)

    def first_failure(self, tests: Sequence[str]) -> str | None:
        receiving, sending = _PROCESSES.Pipe(duplex=False)
        process = _PROCESSES.Process(target=_run_tests, args=(self.folder, tests, sending))
        process.start()
        sending.close()
        process.join(_TIMEOUT)
        if process.is_alive():
            # Its process group, so that what the tests started ends with them.
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return "timeout"
        try:
            failure: str | None = receiving.recv()
        except EOFError:
            return f"exit code {process.exitcode}"
        return failure


# Processes that begin with what every test needs imported, and with nothing of the code that is mutated.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["azure.servicebus", "azure.identity", "azure.functions"])


class _FirstFailure:
    """A pytest plug-in that remembers the first test or file that failed."""

    def __init__(self) -> None:
        self.name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid or "collection"


def _run_tests(folder: Path, tests: Sequence[str], outcome: Connection) -> None:
    os.setsid()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    first = _FirstFailure()
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[first])
    outcome.send(first.name or (None if code == 0 else f"pytest's exit code {code}"))
    outcome.close()


class Coverage:
    """Which tests execute which lines."""

    def __init__(self, data: Path) -> None:
        recorded = coverage.CoverageData(str(data))
        recorded.read()
        self._tests: dict[str, dict[int, set[str]]] = defaultdict(dict)
        for file in recorded.measured_files():
            module = str(Path(file).relative_to(ROOT))
            for line, contexts in recorded.contexts_by_lineno(file).items():
                self._tests[module][line] = {test for each in contexts if (test := _test_of(each))}

    @classmethod
    def measure(cls, folder: Path) -> Coverage:
        """Run the suites once."""
        data = folder / "coverage"
        config = folder / "coveragerc"
        sources = ",".join(_DEPLOYED)
        config.write_text(f"[run]\nsource = {sources}\ndynamic_context = test_function\ndata_file = {data}\n")
        subprocess.run(  # noqa: S603 - our own command
            [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest", "-q", *_SUITES],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return cls(data)

    def tests(self, mutation: Mutation) -> list[str]:
        """Return the tests to run, the most telling first; everything for what runs at import."""
        lines = range(mutation.line, mutation.last_line + 1)
        executed = set().union(*(self._tests[mutation.module].get(line, set()) for line in lines))
        own = f"tests/unit/test_{Path(mutation.module).stem}"
        if not executed:
            files = sorted(ROOT.glob(f"{own}*.py"))
            return [*(str(file.relative_to(ROOT)) for file in files), *_SUITES]
        return sorted(executed, key=lambda test: (not test.startswith(own), test))


def _test_of(context: str) -> str | None:
    """Return `file::function` of a context such as `tests.unit.test_message.test_it`."""
    module, _, function = context.rpartition(".")
    while module and not (ROOT / f"{module.replace('.', '/')}.py").is_file():
        module = module.rpartition(".")[0]
    return f"{module.replace('.', '/')}.py::{function}" if module and function.startswith("test_") else None


def all_mutations(modules: Iterable[str] = ()) -> list[Mutation]:
    """Return every mutation of the deployed code, or of some modules."""
    wanted = list(modules) or [
        str(path.relative_to(ROOT)) for folder in _DEPLOYED for path in sorted((ROOT / folder).glob("*.py"))
    ]
    return [each for module in wanted for each in mutations(module, (ROOT / module).read_text())]


def run(chosen: Sequence[Mutation], jobs: int, console: Console) -> list[Outcome]:
    """Test each mutation."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as scratch,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("measuring which tests execute which lines", total=len(chosen))
        executed = Coverage.measure(Path(scratch))
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copies.put(Copy(Path(scratch, str(number))))
        _check_that_tests_pass(Copy(Path(scratch, "unchanged")))
        progress.update(task, description="testing mutants")

        def test(mutation: Mutation) -> Outcome:
            copy = copies.get()
            try:
                outcome = copy.test(mutation, executed.tests(mutation))
            finally:
                copies.put(copy)
            progress.advance(task)
            if outcome.noticed_by is None and not console.is_terminal:
                console.print(
                    f"not noticed: line {mutation.line}, {mutation.key}", soft_wrap=True, markup=False
                )
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(test, chosen))


def _check_that_tests_pass(copy: Copy) -> None:
    # Otherwise every mutant would count as noticed.
    failure = copy.first_failure(_SUITES)
    if failure is not None:
        raise click.ClickException(f"The tests fail without any mutation: {failure}")


@click.command(help=(__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
@click.option("--all", "whole", is_flag=True, help="Every mutation instead of a sample.")
@click.option("--sample", default=60, show_default=True, help="How many mutations to draw.")
@click.option("--seed", default=1, show_default=True, help="What the sample is drawn with.")
@click.option("--module", "modules", multiple=True, help="Only these modules, such as shared/message.py.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="How many run at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
def main(*, whole: bool, sample: int, seed: int, modules: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Draw, test and judge."""
    console = Console(stderr=True)
    everything = all_mutations(modules)
    known = {each["mutation"]: each["reason"] for each in _equivalent()}
    open_ones = [each for each in everything if each.key not in known]
    chosen = open_ones if whole else random.Random(seed).sample(open_ones, min(sample, len(open_ones)))  # noqa: S311 - repeatable, not secret
    started = time.monotonic()
    outcomes = run(chosen, jobs, console)
    survivors = [each.mutation for each in outcomes if each.noticed_by is None]
    gone = [] if modules else sorted(known.keys() - {each.key for each in everything})
    if as_json:
        click.echo(
            json.dumps(
                [{"key": each.mutation.key, "noticed_by": each.noticed_by} for each in outcomes], indent=1
            )
        )
    for mutation in survivors:
        click.echo(f"not noticed by any test: line {mutation.line}, {mutation.key}", err=as_json)
    for key in gone:
        click.echo(f"not in the code any more, remove it from equivalent.toml: {key}", err=as_json)
    click.echo(
        f"{len(everything):,} mutations, {len(known):,} listed as equivalent, {len(chosen):,} tested in "
        f"{time.monotonic() - started:.0f} s: {len(chosen) - len(survivors):,} noticed, {len(survivors):,} not",
        err=as_json,
    )
    raise SystemExit(1 if survivors or gone else 0)


def _equivalent() -> list[dict[str, str]]:
    return list(tomllib.loads(EQUIVALENT.read_text()).get("equivalent", []))


if __name__ == "__main__":
    main(prog_name="python tests/mutation/run.py")
