"""What the pages about deploying and operating name: commands, parameters, files and places."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from operations.__main__ import operations

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "deploy.md", ROOT / "docs" / "operate.md", ROOT / "SECURITY.md"]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def command_of(words: list[str]) -> click.Command | None:
    """Return the command of `operations` that words name, or None."""
    command: click.Command = operations
    for word in words:
        if not isinstance(command, click.Group) or word not in command.commands:
            break
        command = command.commands[word]
    return None if command is operations else command


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_shell_commands_parse(page: Path) -> None:
    for script in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        done = subprocess.run(  # noqa: S603 - it only parses
            ["/bin/bash", "-n", "-c", script], capture_output=True, text=True, timeout=10, check=False
        )
        assert done.returncode == 0, done.stderr


@pages
def test_commands_and_options_of_operations_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    used = re.findall(r"(?:^|`|-m |\| )operations(?: --settings \S+)? ([a-z][^`\n|#]*)", text, re.MULTILINE)

    for line in used:
        words = line.split()
        command = command_of(words)
        assert command is not None, line
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pages
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])((?:infrastructure|docs|shared|sandbox)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).is_file(), name


@pages
def test_parameters_and_targets_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    main = (ROOT / "infrastructure" / "main.bicep").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for name in re.findall(r"^param (\w+) = ", text, re.MULTILINE):
        assert f"\nparam {name} " in main, name
    for name in re.findall(r"properties\.outputs\.(\w+)\.value", text):
        assert f"\noutput {name} " in main, name
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
