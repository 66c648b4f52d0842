"""Tests mutants in forked processes; run.py starts it in a copy of the repository.

    python worker.py collected tests/unit/test_a.py …   imports the tests once
    python worker.py fresh                              imports nothing that is tested

Both read one request a line, as JSON, and write one outcome. A collected worker replaces the code of functions and the
module's constants in the forked process, which costs little. Any other mutation, such as one of a class, and any that
was not noticed so, needs a fresh one, which imports the mutated file.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

Request = dict[str, Any]

# What most tests import besides the code under test.
_PRELOADED = (
    "azure.functions",
    "azure.identity",
    "azure.servicebus",
    "cloudevents.core.bindings.amqp",
    "hypothesis",
    "jsonschema",
    "requests",
    "sandbox.service_bus",
    "trustme",
)
# CO_OPTIMIZED of inspect: the bodies of modules and classes do not have it.
_IS_FUNCTION = 0x0001


class Unpatched(Exception):
    """The mutation changes more than the code of functions that can be replaced."""


def serve(run: Callable[[Request], str | None]) -> None:
    """Say that nothing is being imported any more; then fork for each request, and write what became of it."""
    with os.fdopen(int(os.environ["OUTCOMES"]), "w", buffering=1) as outcomes:
        outcomes.write(json.dumps({"ready": True}) + "\n")
        for line in sys.stdin:
            outcomes.write(json.dumps(_forked(run, json.loads(line))) + "\n")


def _forked(run: Callable[[Request], str | None], request: Request) -> Request:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(run, request, writing)
    os.close(writing)
    received = b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        until = time.monotonic() + request["timeout"]
        while (left := until - time.monotonic()) > 0 and select.select([pipe], [], [], left)[0]:
            data = pipe.read(65536)
            received += data or b""
            # Not until the end: what the tests started may keep the pipe open.
            if not data or data.endswith(b"\n"):
                break
        else:
            received = json.dumps({"noticed_by": "timeout"}).encode()
    # The whole group, so that what the tests started ends with them.
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return json.loads(received) if received else {"noticed_by": f"the process ended with status {status}"}


def _child(run: Callable[[Request], str | None], request: Request, writing: int) -> None:
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    sys.dont_write_bytecode = True
    try:
        outcome: Request = {"noticed_by": run(request)}
    except Unpatched:
        outcome = {"unpatched": True}
    except BaseException as error:  # noqa: BLE001 - this process must not return to the caller's loop
        outcome = {"noticed_by": f"{type(error).__name__} that ended pytest"}
    os.write(writing, json.dumps(outcome).encode() + b"\n")
    os._exit(0)


class FirstFailure:
    """A pytest plug-in that remembers the first test or file that failed."""

    def __init__(self) -> None:
        self.name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid or "collection"


# ---------------------------------------------------------------------------------------------- fresh


def _arguments(tests: Sequence[str]) -> list[str]:
    options = ["-x", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=0", "--basetemp=tmp"]
    # What is imported before pytest begins needs no better assertions.
    return [*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", *tests]


def run_files(request: Request) -> str | None:
    """Run pytest from the beginning."""
    first = FirstFailure()
    code = pytest.main(_arguments(request["tests"]), plugins=[first])
    return first.name or (None if code == 0 else f"pytest's exit code {code}")


# ---------------------------------------------------------------------------------------------- collected


class Collected:
    """A pytest plug-in that serves requests instead of running all tests."""

    def __init__(self) -> None:
        self._first = FirstFailure()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Index tests and functions, and serve."""
        items: dict[str, list[pytest.Item]] = {}
        for item in session.items:
            items.setdefault(item.nodeid.partition("[")[0], []).append(item)
        functions = _functions(Path.cwd())
        session.config.pluginmanager.register(self._first)
        gc.collect()
        gc.freeze()

        def run(request: Request) -> str | None:
            patch(functions, str(Path.cwd() / request["module"]), request["original"], request["mutated"])
            chosen = [item for test in request["tests"] for item in items.get(test, ())]
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self._first.name is not None:
                    return self._first.name
            return None

        serve(run)
        return True


Key = tuple[str, str, int]


def _functions(folder: Path) -> dict[Key, list[FunctionType]]:
    """Return the functions that the files below a folder define."""
    found: dict[Key, list[FunctionType]] = {}
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and _is_below(each.__code__.co_filename, folder):
            found.setdefault(_key(each.__code__), []).append(each)
    return found


def _key(code: CodeType) -> Key:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def patch(functions: dict[Key, list[FunctionType]], file: str, original: str, mutated: str) -> None:
    """Give a module the code and constants of a mutated one; raises Unpatched where that does not suffice."""
    try:
        changed = _changed(*(compile(source, file, "exec") for source in (original, mutated)))
    except Unpatched:
        _patch_constants(file, original, mutated)
        return
    for before, after in changed:
        targets = functions.get(_key(before))
        if not targets:
            raise Unpatched
        for target in targets:
            try:
                target.__code__ = after
            except ValueError as error:
                raise Unpatched from error


def _patch_constants(file: str, original: str, mutated: str) -> None:
    """Assign the module's constants that differ, and those that are made of them, wherever they were imported."""
    bodies = [ast.parse(source).body for source in (original, mutated)]
    names: set[str] = set()
    for before, after in zip(*bodies, strict=True):
        differs = ast.dump(before) != ast.dump(after)
        targets = _constants_of(after)
        used = {node.id for node in _evaluated(after) if isinstance(node, ast.Name)}
        if differs or used & names:
            if not targets:
                raise Unpatched
            names |= targets
    ours = [
        module for module in sys.modules.values() if _is_below(getattr(module, "__file__", None), Path.cwd())
    ]
    (live,) = (module for module in ours if module.__file__ == file)
    values = {"__name__": live.__name__, "__file__": file}
    try:
        exec(compile(mutated, file, "exec"), values)  # noqa: S102 - our own code, mutated
    except Exception as error:
        raise Unpatched from error
    for name in names:
        old = getattr(live, name)
        for module in ours:
            if vars(module).get(name) is old:
                setattr(module, name, values[name])


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is evaluated when a statement of a module is: of functions the defaults, not the bodies."""
    yield node
    for name, value in ast.iter_fields(node):
        if name != "body" or not isinstance(node, ast.FunctionDef | ast.Lambda):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _evaluated(child)


def _constants_of(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    else:
        return set()
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _is_below(file: str | None, folder: Path) -> bool:
    return file is not None and file.startswith(f"{folder}{os.sep}")


def _changed(before: CodeType, after: CodeType) -> list[tuple[CodeType, CodeType]]:
    """Return the outermost functions that differ; raises Unpatched if what runs at import does."""
    theirs, ours = (
        [each for each in code.co_consts if isinstance(each, CodeType)] for code in (before, after)
    )
    if len(theirs) != len(ours) or _shell(before) != _shell(after):
        raise Unpatched
    changed = []
    for one, other in zip(theirs, ours, strict=True):
        if one.co_flags & _IS_FUNCTION:
            if one != other:
                changed.append((one, other))
        else:
            changed += _changed(one, other)
    return changed


def _shell(code: CodeType) -> tuple[object, ...]:
    """Return what runs at import, in a form that can be compared: 1 and True differ."""
    constants = [repr(each) for each in code.co_consts if not isinstance(each, CodeType)]
    return code.co_code, code.co_names, constants


def main(kind: str, files: Sequence[str]) -> None:
    """Serve until standard input ends."""
    folder = Path.cwd()
    sys.path.insert(0, str(folder))
    os.environ["OUTCOMES"] = str(os.dup(1))
    os.set_inheritable(int(os.environ["OUTCOMES"]), False)  # noqa: FBT003 - its only argument
    os.dup2(2, 1)
    for name in _PRELOADED:
        importlib.import_module(name)
    # Otherwise each forked process would examine, and so copy, all of that.
    gc.collect()
    gc.freeze()
    if kind == "fresh":
        serve(run_files)
    else:
        pytest.main(_arguments(files), plugins=[Collected()])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
