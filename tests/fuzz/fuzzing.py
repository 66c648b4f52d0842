"""What the fuzz targets share: a command line that fuzzes with atheris, guided by coverage, or replays inputs."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """What is fuzzed. `judge` returns the kind of outcome of an input, and raises for an outcome that must not be.

    `modules` are instrumented while they are imported; `corpus` is a folder of inputs to begin with.
    """

    description: str
    modules: tuple[str, ...]
    judge: Callable[[bytes], str]
    corpus: Path
    dictionary: Path


def run(target: Target, arguments: list[str]) -> None:
    """Run the command line of a target."""
    parser = argparse.ArgumentParser(description=target.description)
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz")
    fuzz.add_argument("--inputs", type=int, default=1_000_000)
    fuzz.add_argument("--found", type=Path, required=True, help="folder for inputs that reach something new")
    fuzz.add_argument("--seed", type=int, default=1)
    replay = commands.add_parser("replay")
    replay.add_argument("found", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT))
    if options.command == "replay":
        _replay(target, options.found)
    else:
        _fuzz(target, options.inputs, options.seed, options.found)


def _replay(target: Target, found: list[Path]) -> None:
    files = [file for place in found for file in (sorted(place.iterdir()) if place.is_dir() else [place])]
    outcomes = [target.judge(file.read_bytes()) for file in files]
    for outcome in sorted(set(outcomes)):
        sys.stdout.write(f"{outcomes.count(outcome):6} {outcome}\n")


def _fuzz(target: Target, inputs: int, seed: int, found: Path) -> None:
    # By name: it is not installed everywhere.
    try:
        atheris = importlib.import_module("atheris")
    except ModuleNotFoundError:
        sys.exit("The fuzzer, atheris, comes as a wheel only for Linux on x86-64 and Python 3.11 to 3.13.")
    with atheris.instrument_imports(include=["shared"]):
        for module in target.modules:
            importlib.import_module(module)
    found.mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={inputs}",
            f"-seed={seed}",
            "-max_len=32768",
            "-timeout=5",
            "-print_final_stats=1",
            "-verbosity=1",
            f"-dict={target.dictionary}",
            f"-artifact_prefix={found.parent}/crash-",
            str(found),
            str(target.corpus),
        ],
        lambda data: _judge(target, data),
    )
    atheris.Fuzz()


def _judge(target: Target, data: bytes) -> None:
    try:
        target.judge(data)
    except BaseException:
        # The timer that finds endless inputs could end the process before the input is written.
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise
