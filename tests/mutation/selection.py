"""Which tests can notice a mutation: those that execute its lines, measured once per test file and kept in build/.

The measurement also shows that the tests pass without any mutation: otherwise every mutant would count as noticed.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import coverage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from mutations import Mutation

ROOT = Path(__file__).parents[2]
DEPLOYED = ("shared", "GenerateInvoiceFunction")
_SUITES = ("tests/unit", "tests/contract")
_KEPT = ROOT / "build" / "mutation"
_CONFIG = _KEPT / "coveragerc"
# A mutant that loops for ever is noticed by the time: this long, and so many times what the tests take otherwise.
_TIMEOUT = 20.0
_SLOWER = 10.0
_FAST = 30.0
# Modules whose tests have other names.
_OWN_TESTS = {
    "bootstrap": ("bootstrap", "tracing"),
    "dataverse": ("dataverse", "tracing"),
    "handler": ("handler", "tracing"),
    "http_exchange": ("http_exchange", "credential"),
    "invoice": ("invoice", "invoicing"),
    "open_telemetry": ("tracing",),
    "sales": ("invoicing",),
    "tracing": ("tracing", "settings"),
    "service_bus": ("service_bus", "amqp_deadlines", "handler", "tracing"),
    "__init__": ("generate_invoice_function",),
}


class Selection:
    """The tests that execute each line, and how long each takes."""

    def __init__(self, files: Sequence[str], *, fast: bool) -> None:
        self.files = files
        self.fast = fast
        self._tests: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._seconds: dict[str, float] = defaultdict(float)

    @classmethod
    def measure(cls, jobs: int, modules: Iterable[str] = ()) -> Selection:
        """Run each test file that was not run yet with these sources; with modules, only their own test files."""
        files = [
            str(path.relative_to(ROOT))
            for suite in _SUITES
            for path in sorted((ROOT / suite).glob("test_*.py"))
            if any(folder in path.read_text() for folder in DEPLOYED)
        ]
        if modules:
            files = sorted({file for module in modules for file in _own(module, files)})
        common = _digest(*_sources())
        _KEPT.mkdir(parents=True, exist_ok=True)
        _CONFIG.write_text(f"[run]\nsource = {','.join(DEPLOYED)}\ndynamic_context = test_function\n")
        with ThreadPoolExecutor(jobs) as pool:
            measured = list(pool.map(lambda file: _measured(file, common), files))
        if failed := [file for file, data in zip(files, measured, strict=True) if data is None]:
            raise click.ClickException(f"Tests fail without any mutation: {', '.join(failed)}")
        selection = cls(files, fast=bool(modules))
        for data in filter(None, measured):
            selection._add(data)
        return selection

    def _add(self, data: Path) -> None:
        recorded = coverage.CoverageData(str(data))
        # A file that executes nothing deployed leaves no data.
        if data.exists():
            recorded.read()
        for file in recorded.measured_files():
            module = str(Path(file).relative_to(ROOT))
            for line, contexts in recorded.contexts_by_lineno(file).items():
                self._tests[module][line] |= {test for each in contexts if (test := _test_of(each))}
        for case in ET.parse(data.with_suffix(".xml")).getroot().iter("testcase"):  # noqa: S314 - pytest wrote it
            test = _test_of(f"{case.get('classname')}.{(case.get('name') or '').partition('[')[0]}")
            self._seconds[test or ""] += float(case.get("time") or 0)

    def steps(self, mutation: Mutation) -> Iterator[list[str]]:
        """Yield tests, until one notices: those that execute the mutation, then the module's others."""
        lines = self._tests[mutation.module]
        executed = self._executing(mutation)
        own = _own(mutation.module, self.files)
        all_of_own = {test for test in self._seconds if test.partition("::")[0] in own}
        tests = executed or all_of_own.union(*lines.values())
        if self.fast:
            tests = {test for test in tests if self._seconds[test] < _FAST}
        ordered = self._ordered(tests, own)
        mine = [test for test in ordered if test.partition("::")[0] in own]
        # Without a test, pytest would run all.
        # The measurement does not see which test a fixture, Hypothesis or a cache executes a line for.
        rest = self._ordered({test for test in all_of_own - tests if self._seconds[test] < _FAST}, own)
        yield from filter(None, (mine, ordered[len(mine) :], rest))

    def is_function_of_import(self, mutation: Mutation) -> bool:
        """Whether the mutation is in a function that runs only while modules are imported."""
        return mutation.scope != "module" and not self._executing(mutation)

    def _executing(self, mutation: Mutation) -> set[str]:
        lines = self._tests[mutation.module]
        return set().union(*(lines.get(line, set()) for line in range(mutation.line, mutation.last_line + 1)))

    def _ordered(self, tests: set[str], own: Sequence[str]) -> list[str]:
        return sorted(tests, key=lambda test: (test.partition("::")[0] not in own, self._seconds[test], test))

    def timeout(self, tests: Sequence[str]) -> float:
        """Return the seconds after which a mutant counts as one that never ends."""
        return _TIMEOUT + _SLOWER * sum(self._seconds[test] for test in tests)


def _own(module: str, files: Iterable[str]) -> list[str]:
    stem = Path(module).stem
    names = tuple(f"test_{name}" for name in _OWN_TESTS.get(stem, (stem,)))
    return [file for file in files if Path(file).stem.startswith(names)]


def _sources() -> Iterator[Path]:
    for folder in DEPLOYED:
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from sorted((ROOT / "tests").glob("*.py"))
    for suite in _SUITES:
        yield from sorted(path for path in (ROOT / suite).glob("*.py") if not path.name.startswith("test_"))


def _corpus(file: str) -> list[Path]:
    text = (ROOT / file).read_text()
    return (
        sorted((ROOT / "tests" / "events").glob("*.*"))
        if "event_case" in text or "fuzz_seeds" in text
        else []
    )


def _digest(*files: Path) -> bytes:
    return b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)


def _measured(file: str, common: bytes) -> Path | None:
    """Return the coverage of a test file, beside it the times of its tests; None if one fails."""
    key = hashlib.sha256(common + _digest(ROOT / file, *_corpus(file))).hexdigest()[:16]
    data = _KEPT / f"{Path(file).stem}-{key}.coverage"
    if data.with_suffix(".xml").exists():
        return data
    for old in _KEPT.glob(f"{Path(file).stem}-{'[0-9a-f]' * 16}.*"):
        old.unlink()
    # Two runs may measure the same file.
    with tempfile.TemporaryDirectory(dir=_KEPT) as scratch:
        mine = Path(scratch, data.name)
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={_CONFIG}", "-m", "pytest", "-q"]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=0"]
        command += [f"--junitxml={mine.with_suffix('.xml')}", file]
        done = subprocess.run(  # noqa: S603 - our own command
            command,
            cwd=ROOT,
            check=False,
            capture_output=True,
            env={**os.environ, "COVERAGE_FILE": str(mine)},
        )
        if done.returncode != 0:
            click.echo(done.stdout.decode(errors="replace")[-2000:], err=True)
            return None
        for measured in (mine, mine.with_suffix(".xml")):
            if measured.exists():
                measured.replace(_KEPT / measured.name)
    return data


def _test_of(context: str) -> str | None:
    """Return `file::function` of a context such as `tests.unit.test_message.test_it`."""
    module, _, function = context.rpartition(".")
    file = f"{module.replace('.', '/')}.py"
    return f"{file}::{function}" if function.startswith("test_") and (ROOT / file).is_file() else None
