"""Run the Bicep compiler over the infrastructure: check it, snapshot what it would deploy, or compile it.

The compiler is the environment variable BICEP, or `bicep` on the path. It reports a wrong property or API version as a
warning and still exits with 0, so this module treats every diagnostic as a failure.

    python -m infrastructure.bicep check
    python -m infrastructure.bicep snapshot
    python -m infrastructure.bicep build --output build/template
    python -m infrastructure.bicep flatten --output build/scan
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).resolve().parent
# The release that the pipeline installs: https://github.com/Azure/bicep/releases/tag/v0.49.2.
VERSION = "0.49.2"
SECONDS = 120
TEMPLATES = (FOLDER / "main.bicep", FOLDER / "operators.bicep")
# Where an offline snapshot pretends to deploy to.
SNAPSHOT_TARGET = (
    *("--tenant-id", "00000000-0000-0000-0000-000000000000"),
    *("--subscription-id", "00000000-0000-0000-0000-000000000000"),
    *("--location", "westeurope"),
)
SCHEMA = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
MISSING = "There is no Bicep compiler: set BICEP to its path, or install it on the path."


class CheckFailed(Exception):
    """The compiler has something to report; the text is its output."""


class Compiler:
    """The Bicep compiler at a path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def find(cls) -> Compiler | None:
        """Return the compiler of this machine, or None."""
        path = os.environ.get("BICEP") or shutil.which("bicep")
        return cls(Path(path)) if path else None

    def version(self) -> str:
        """Return its version, such as 0.49.2; raises CheckFailed."""
        # Bicep CLI version 0.49.2 (hash)
        return self._run("--version").split()[3]

    def lint(self, file: Path) -> None:
        """Compile a file with what it refers to, and apply every linter rule; raises CheckFailed."""
        diagnostics = self._run("lint", str(file))
        if diagnostics:
            raise CheckFailed(diagnostics)

    def check_format(self, file: Path) -> None:
        """Raise CheckFailed if the compiler's formatter would change a file."""
        if self._run("format", str(file), "--stdout") != file.read_text(encoding="utf-8").rstrip("\n"):
            raise CheckFailed("run bicep format")

    def validate_snapshot(self, parameters: Path) -> None:
        """Compare what an environment would deploy with its snapshot; raises CheckFailed with the differences."""
        self._snapshot(parameters, "validate")

    def write_snapshot(self, parameters: Path) -> None:
        """Write the snapshot of an environment next to its parameters; raises CheckFailed."""
        self._snapshot(parameters, "overwrite")

    def build(self, template: Path, output: Path) -> None:
        """Compile a template, or a file of parameters, to JSON; raises CheckFailed."""
        command = "build-params" if template.suffix == ".bicepparam" else "build"
        diagnostics = self._run(command, str(template), "--outfile", str(output))
        if diagnostics:
            raise CheckFailed(diagnostics)

    def _snapshot(self, parameters: Path, mode: str) -> None:
        group = f"rg-invoicing-{parameters.stem}"
        target = (*SNAPSHOT_TARGET, "--resource-group", group)
        self._run("snapshot", str(parameters), "--mode", mode, *target)

    def _run(self, *arguments: str) -> str:
        """Return what the compiler prints on both outputs; raises CheckFailed where it fails."""
        try:
            done = subprocess.run(  # noqa: S603 - our own command, no shell
                [self._path, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
                check=False,
                # Without it the compiler needs a library for languages that small machines lack.
                env={**os.environ, "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckFailed(f"{self._path} cannot be run: {error}") from error
        if done.returncode != 0:
            raise CheckFailed(done.stdout.strip() or f"{self._path} ended with {done.returncode}.")
        return done.stdout.rstrip("\n")


def environments() -> list[Path]:
    """Return the parameter files of all environments."""
    return sorted((FOLDER / "environments").glob("*.bicepparam"))


def sources() -> list[Path]:
    """Return all files that the compiler formats."""
    return [*sorted(FOLDER.rglob("*.bicep")), *environments()]


def problems(compiler: Compiler) -> list[str]:
    """Return everything that the compiler reports about the files and their snapshots."""
    checks = [
        *((compiler.lint, file) for file in (*TEMPLATES, *environments())),
        *((compiler.validate_snapshot, file) for file in environments()),
        *((compiler.check_format, file) for file in sources()),
    ]

    def problem(check: Callable[[Path], None], file: Path) -> str | None:
        try:
            check(file)
        except CheckFailed as error:
            return f"{file.name}: {error}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(filter(None, pool.map(problem, *zip(*checks, strict=True))))


@click.group()
@click.pass_context
def main(context: click.Context) -> None:
    """Check, snapshot or compile the infrastructure with the Bicep compiler."""
    context.obj = Compiler.find()


@main.command()
@click.pass_obj
def check(compiler: Compiler | None) -> None:
    """Lint and format-check all files, and compare the snapshots; without a compiler only say so."""
    if compiler is None:
        click.echo(f"Bicep: not checked. {MISSING}")
        return
    found = problems(compiler)
    if found:
        raise click.ClickException("\n".join(found))
    click.echo(f"Bicep: {len(sources())} files without diagnostics, snapshots as reviewed.")


@main.command()
@click.pass_obj
def snapshot(compiler: Compiler | None) -> None:
    """Write the snapshot of each environment anew, for review."""
    _for_each(compiler, environments(), lambda found, file: found.write_snapshot(file))


@main.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/template"), show_default=True)
@click.pass_obj
def build(compiler: Compiler | None, output: Path) -> None:
    """Compile main.bicep and the parameters of each environment to JSON."""
    output.mkdir(parents=True, exist_ok=True)

    def one(found: Compiler, file: Path) -> None:
        suffix = ".parameters.json" if file.suffix == ".bicepparam" else ".json"
        found.build(file, output / f"{file.stem}{suffix}")

    _for_each(compiler, [TEMPLATES[0], *environments()], one)


@main.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/scan"), show_default=True)
def flatten(output: Path) -> None:
    """Write the resources of each snapshot as one template, for scanners that do not understand Bicep's types."""
    output.mkdir(parents=True, exist_ok=True)
    for parameters in environments():
        reviewed = json.loads(parameters.with_suffix(".snapshot.json").read_bytes())
        template = {
            "$schema": SCHEMA,
            "contentVersion": "1.0.0.0",
            "resources": reviewed["predictedResources"],
        }
        (output / f"{parameters.stem}.json").write_text(json.dumps(template, indent=2), encoding="utf-8")


def _for_each(compiler: Compiler | None, files: list[Path], action: Callable[[Compiler, Path], None]) -> None:
    if compiler is None:
        raise click.ClickException(MISSING)
    for file in files:
        try:
            action(compiler, file)
        except CheckFailed as error:
            raise click.ClickException(f"{file.name}: {error}") from error


if __name__ == "__main__":
    main()
