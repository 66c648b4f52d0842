"""Find small changes to the deployed code that no test notices: `make mutants`.

    python tests/mutation/run.py                  a sample, drawn with a seed
    python tests/mutation/run.py --all            every mutation; takes long
    python tests/mutation/run.py --module shared/message.py

Each mutation is written into a copy of the repository, and the unit and contract tests that execute its line run there
until one fails, the module's own and the fast ones first. Which tests execute which lines is measured once and kept in
build/mutation. Mutations that no test notices must stand in equivalent.toml with the reason why the behaviour is the
same; others are printed, and the exit code is 1. Entries that are not needed any more are printed as well.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).parent))
from mutations import Mutation, mutations  # after the path that has it
from selection import DEPLOYED, ROOT, Selection

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

EQUIVALENT = Path(__file__).with_name("equivalent.toml")
_UNCHANGED_TIMEOUT = 300.0


@dataclass(frozen=True)
class Outcome:
    """What became of a mutation: the test that failed first, `timeout`, or nothing."""

    mutation: Mutation
    noticed_by: str | None


class Copy:
    """A copy of the repository in which one mutation at a time is tested."""

    def __init__(self, folder: Path, selection: Selection) -> None:
        self._folder = folder
        self._selection = selection
        self._passing: set[tuple[str, str]] = set()
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout  # noqa: S603 - our own command
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self._workers = {
            "collected": self._start("collected", *selection.files),
            "fresh": self._start("fresh"),
        }
        # A file that is mutated while a worker imports it would stay so there.
        for kind in self._workers:
            self._outcome(kind)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), *arguments]
        with self._log(arguments[0]).open("w") as log:
            return subprocess.Popen(  # noqa: S603 - our own command
                command,
                cwd=self._folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _log(self, kind: str) -> Path:
        return self._folder / f"{kind}.log"

    def test(self, mutation: Mutation) -> Outcome:
        """Run the tests against a mutation, first in the process that has imported them, then in a new one."""
        path = self._folder / mutation.module
        source = path.read_bytes()
        mutated = mutation.apply(source)
        times = path.stat()
        path.write_bytes(mutated)
        sources = {"original": source.decode(), "mutated": mutated.decode(), "module": mutation.module}
        try:
            kind, noticed_by = self._first_to_notice(mutation, sources)
        finally:
            path.write_bytes(source)
            # So that its bytecode counts again.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        if noticed_by is not None:
            self._check_that_it_passes(kind, noticed_by.partition("[")[0])
        return Outcome(mutation, noticed_by)

    def _first_to_notice(self, mutation: Mutation, sources: dict[str, str]) -> tuple[str, str | None]:
        # In a process that has imported the module it has run already.
        kinds = ["fresh"] if self._selection.is_function_of_import(mutation) else list(self._workers)
        for tests in self._selection.steps(mutation):
            request = {**sources, "tests": tests, "timeout": self._selection.timeout(tests)}
            for kind in kinds:
                outcome = self._ask(kind, request)
                if outcome.get("noticed_by") is not None:
                    return kind, outcome["noticed_by"]
                if self._selection.fast and "unpatched" not in outcome:
                    break
        return "", None

    def _check_that_it_passes(self, kind: str, test: str) -> None:
        """Run a test that has noticed a mutation without any, once: one that fails anyway notices nothing."""
        if "::" not in test or (kind, test) in self._passing:
            return
        unchanged = {"original": "", "mutated": "", "module": "", "tests": [test]}
        outcome = self._ask(kind, {**unchanged, "timeout": _UNCHANGED_TIMEOUT})
        if outcome["noticed_by"] is not None:
            raise click.ClickException(f"Without any mutation fails in a {kind} worker: {outcome}, {test}")
        self._passing.add((kind, test))

    def _ask(self, kind: str, request: dict[str, Any]) -> dict[str, Any]:
        requests = self._workers[kind].stdin
        assert requests is not None
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        return self._outcome(kind)

    def _outcome(self, kind: str) -> dict[str, Any]:
        outcomes = self._workers[kind].stdout
        assert outcomes is not None
        line = outcomes.readline()
        if not line:
            raise click.ClickException(f"The {kind} worker ended: {self._log(kind).read_text()[-2000:]}")
        outcome: dict[str, Any] = json.loads(line)
        return outcome

    def stop(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.kill()
            worker.wait()


def all_mutations(modules: Iterable[str] = ()) -> list[Mutation]:
    """Return every mutation of the deployed code, or of some modules."""
    wanted = list(modules) or [
        str(path.relative_to(ROOT)) for folder in DEPLOYED for path in sorted((ROOT / folder).glob("*.py"))
    ]
    return [each for module in wanted for each in mutations(module, (ROOT / module).read_text())]


def run(chosen: Sequence[Mutation], own_of: Iterable[str], jobs: int, console: Console) -> list[Outcome]:
    """Test each mutation."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as scratch,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
        ExitStack() as stack,
    ):
        task = progress.add_task("measuring which tests execute which lines", total=len(chosen))
        selection = Selection.measure(jobs, own_of)
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            copy = Copy(Path(scratch, str(number)), selection)
            stack.callback(copy.stop)
            copies.put(copy)
        progress.update(task, description="testing mutants")

        def test(mutation: Mutation) -> Outcome:
            copy = copies.get()
            try:
                outcome = copy.test(mutation)
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


@click.command(help=(__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
@click.option("--all", "whole", is_flag=True, help="Every mutation instead of a sample.")
@click.option("--sample", default=60, show_default=True, help="How many mutations to draw.")
@click.option("--seed", default=1, show_default=True, help="What the sample is drawn with.")
@click.option("--module", "modules", multiple=True, help="Only these modules, such as shared/message.py.")
@click.option("--own", is_flag=True, help="Only fast tests of the modules' own files.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="How many run at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcomes as JSON.")
def main(
    *, whole: bool, sample: int, seed: int, modules: tuple[str, ...], own: bool, jobs: int, as_json: bool
) -> None:
    """Draw, test and judge."""
    console = Console(stderr=True)
    everything = all_mutations(modules)
    known = tomllib.loads(EQUIVALENT.read_text()).keys()
    open_ones = [each for each in everything if each.key not in known]
    chosen = open_ones if whole else random.Random(seed).sample(open_ones, min(sample, len(open_ones)))  # noqa: S311 - repeatable, not secret
    started = time.monotonic()
    outcomes = run(chosen, modules if own else (), jobs, console)
    survivors = [each.mutation for each in outcomes if each.noticed_by is None]
    gone = [] if modules else sorted(known - {each.key for each in everything})
    if as_json:
        document = [{"key": each.mutation.key, "noticed_by": each.noticed_by} for each in outcomes]
        click.echo(json.dumps(document, indent=1))
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


if __name__ == "__main__":
    main(prog_name="python tests/mutation/run.py")
