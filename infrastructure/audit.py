"""Check locked requirements for known vulnerabilities with pip-audit, and report what could not be checked.

pip-audit ends with 1 for a vulnerability as well as for a database that it cannot reach. Here the exit codes differ: 0
for no known vulnerability, 1 for a known one, 3 where packages could not be checked.

    python -m infrastructure.audit build/function.requirements.txt requirements-operations.txt
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click

SECONDS = 300
UNCHECKED = 3


@dataclass(frozen=True)
class Audit:
    """What is known about the packages of one file. `unchecked`: why a package, or the whole file, was not checked."""

    checked: int
    vulnerable: tuple[str, ...]
    unchecked: tuple[str, ...]


def audit(requirements: Path) -> Audit:
    """Check the pins of a file with hashes; nothing is installed."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--require-hashes"]
    command += ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(  # noqa: S603 - our own command, no shell
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        dependencies = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return Audit(0, (), (f"pip-audit did not end within {SECONDS} s",))
    except (ValueError, KeyError, TypeError):
        # The last line of its error output is the cause: a host that cannot be reached, a file that cannot be read.
        lines = done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"]
        return Audit(0, (), (lines[-1][:300],))
    return Audit(
        checked=sum("vulns" in each for each in dependencies),
        vulnerable=tuple(
            f"{each['name']} {each['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or '-'}"
            for each in dependencies
            for found in each.get("vulns", [])
        ),
        unchecked=tuple(
            f"{each['name']}: {each['skip_reason']}" for each in dependencies if "vulns" not in each
        ),
    )


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
def main(files: tuple[Path, ...]) -> None:
    """Report the known vulnerabilities of the packages in locked requirements FILES."""
    audits = {file: audit(file) for file in files}
    for file, result in audits.items():
        click.echo(
            f"{file}: {result.checked} packages checked, {len(result.vulnerable)} known vulnerabilities, "
            f"{len(result.unchecked)} not checked"
        )
        for line in result.vulnerable:
            click.echo(f"  vulnerable: {line}")
        for line in result.unchecked:
            click.echo(f"  not checked: {line}")
    if any(result.vulnerable for result in audits.values()):
        sys.exit(1)
    if any(result.unchecked or not result.checked for result in audits.values()):
        sys.exit(UNCHECKED)


if __name__ == "__main__":
    main()
