"""The proof can fail: the deployed code with one safeguard removed, and how the histories find that.

A mutant is a staged copy of the deployed package with some lines replaced, run in a process of its own; the code
itself has no switches. `mutants.diff` has them all: lines, or parts of lines, each of which must exist exactly once. A
mutant that does not apply any more is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from proofs import ROOT

_STAGED = ("shared", "operations")
_SCRIPTS = Path(__file__).parents[1]
_DIFF = Path(__file__).with_name("mutants.diff")
_TIMEOUT = 110.0


@dataclass(frozen=True)
class Edit:
    """One place in a file of the package, and its replacement."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A safeguard that is removed. `found_by`: rules, one of which it breaks; `run`: the script, with its arguments.

    `seed`: the first history that is tried. It saves time where it breaks the promise; if it no longer does, one of the
    next ones will.
    """

    name: str
    edits: tuple[Edit, ...] = ()
    found_by: tuple[str, ...] = ()
    run: str = "run_histories.py"
    seed: int = 1


@dataclass(frozen=True)
class Found:
    """How a mutant was found: after how many histories, and which violations."""

    histories: int
    violations: tuple[str, ...]


def _mutant(text: str) -> Mutant:
    """Read one block of mutants.diff: its comments, and then the hunks, each with the file that it is for."""
    head, *hunks = text.strip().split("\n--- ")
    name, *comments = (line.removeprefix("# ") for line in head.splitlines())
    said = dict(comment.split(": ", 1) for comment in comments)
    return Mutant(
        name,
        tuple(map(_edit, hunks)),
        tuple(said["found by"].split("; ")),
        said.get("run", Mutant.run),
        int(said.get("seed", Mutant.seed)),
    )


def _edit(hunk: str) -> Edit:
    file, *lines = hunk.splitlines()
    old, new = ("\n".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
    return Edit(file, old, new)


MUTANTS = [_mutant(text) for text in _DIFF.read_text(encoding="utf-8").split("\n\n")]


def stage(mutant: Mutant, folder: Path) -> None:
    """Copy the package into a folder and replace the lines; raises AssertionError where one does not exist once."""
    for name in _STAGED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in mutant.edits:
        path = folder / edit.file
        text = path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise AssertionError(
                f"The mutant {mutant.name!r} does not apply: {edit.file} has {text.count(edit.old)} times {edit.old!r}."
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def hunt(mutant: Mutant, folder: Path, *, count: int) -> Found:
    """Run histories on the staged mutant until one breaks the promise; raises AssertionError if none does."""
    stage(mutant, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    script, *arguments = mutant.run.split()
    command = [sys.executable, str(_SCRIPTS / script), "--json", *arguments]
    if script == "run_histories.py":
        command += ["--until-broken", "--processes", "1", "--count", str(count), "--seed", str(mutant.seed)]
        command += [argument for rule in mutant.found_by for argument in ("--rule", rule)]
    done = subprocess.run(  # noqa: S603 - our own script
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise AssertionError(f"The hunt for {mutant.name!r} failed:\n{done.stderr[-4000:]}") from error
    violations = tuple(violation for each in report["broken"].values() for violation in each)
    return Found(report["histories"], violations)
