from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from infrastructure import bicep

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a script as the compiler: it records its arguments and accepts everything."""
    path = tmp_path / "bicep"
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n[ "$1" = format ] && cat "$2"\nexit 0\n', "utf-8"
    )
    path.chmod(0o755)
    monkeypatch.setenv("BICEP", str(path))
    return path


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(bicep.main, arguments)
    return result.exit_code, result.output


def test_without_a_compiler_the_check_says_so_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BICEP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert run("check") == (0, f"Bicep: not checked. {bicep.MISSING}\n")
    assert run("snapshot") == (1, f"Error: {bicep.MISSING}\n")
    assert run("build", "--output", str(tmp_path)) == (1, f"Error: {bicep.MISSING}\n")


def test_the_compiler_is_found_on_the_path(compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BICEP")
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")

    assert run("check") == (
        0,
        f"Bicep: {len(bicep.sources())} files without diagnostics, snapshots as reviewed.\n",
    )


def test_every_file_is_checked(compiler: Path) -> None:
    assert run("check")[0] == 0

    called = (compiler.parent / "called").read_text(encoding="utf-8")
    for file in (*bicep.TEMPLATES, *bicep.environments()):
        assert f"lint {file}\n" in called
    for file in bicep.environments():
        assert f"snapshot {file} --mode validate " in called
        assert f"--resource-group rg-invoicing-{file.stem}\n" in called
    for file in bicep.sources():
        assert f"format {file} --stdout\n" in called


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'main.bicep(1,1) : Warning BCP037' >&2", "Warning BCP037"),
        ("echo broken; exit 1", "broken"),
        ("exit 139", "ended with 139"),
    ],
)
def test_everything_that_the_compiler_reports_is_a_failure(compiler: Path, script: str, says: str) -> None:
    compiler.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")

    code, output = run("check")

    assert code == 1
    assert says in output


def test_a_file_that_the_formatter_would_change_is_named(compiler: Path) -> None:
    compiler.write_text('#!/bin/sh\n[ "$1" = format ] && echo other\nexit 0\n', encoding="utf-8")

    code, output = run("check")

    assert code == 1
    assert "main.bicep: run bicep format" in output


def test_a_compiler_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BICEP", str(tmp_path / "nothing"))

    assert "nothing cannot be run" in run("snapshot")[1]


def test_templates_and_parameters_are_compiled(compiler: Path, tmp_path: Path) -> None:
    assert run("build", "--output", str(tmp_path / "template")) == (0, "")

    called = (compiler.parent / "called").read_text(encoding="utf-8")
    assert f"build {bicep.TEMPLATES[0]} --outfile {tmp_path}/template/main.json\n" in called
    assert called.count("build-params ") == 3
    assert f"--outfile {tmp_path}/template/prod.parameters.json\n" in called


def test_snapshots_become_templates_for_scanners(tmp_path: Path) -> None:
    assert run("flatten", "--output", str(tmp_path)) == (0, "")

    template = json.loads((tmp_path / "prod.json").read_bytes())
    assert len(list(tmp_path.iterdir())) == 3
    assert "Microsoft.Web/sites" in {each["type"] for each in template["resources"]}
