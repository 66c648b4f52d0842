"""Files of the repository, its scripts with programs of ours in the place of others, and the commands of operations."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from operations.__main__ import operations

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]


def text(path: str | Path) -> str:
    """Return a file by its path from the root of the repository."""
    return (ROOT / path).read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """Return what a page says below a heading of the second level."""
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, with the programs of its folder `bin` first on the path."""
    return _bash(["-c", script], folder, {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **environment})


def syntax_error(script: str) -> str:
    """Return what the shell says of a script that it cannot parse."""
    return _bash(["-n", "-c", script], ROOT, {}).stderr


def _bash(
    arguments: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - scripts of this project
        ["/bin/bash", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def install(program: Path, script: str) -> None:
    """Write a program that does what a shell script says."""
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)


def command_of(words: Iterable[str], command: click.Command = operations) -> click.Command:
    """Return the command of a group that the first words name; the group itself where they name none."""
    for word in words:
        if isinstance(command, click.Group):
            command = command.commands.get(word, command)
    return command


def options_of(command: click.Command) -> set[str]:
    """Return the options of a command, and its arguments."""
    return {option for parameter in command.params for option in parameter.opts}
