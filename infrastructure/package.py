"""Build the zip that is deployed: the function, `shared`, `host.json` and the pinned dependencies, nothing else.

The same sources give the same bytes: entries are sorted, their times and permissions are fixed, and what pip writes
about the machine is left out. The package can be built with any Python for the one that the app runs on, because
only wheels are installed and the lock file's markers are evaluated for the target.

Where a Python of the app's version is found, the package also contains bytecode, so that a cold start compiles
nothing. Python uses it without comparing it with its source ("unchecked hash"), since both come from one build. A
Python of another version ignores it, as its file names contain the version.

    python -m infrastructure.package [--output build/function.zip] [--python 3.12] [--telemetry otlp]
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import click
from packaging.requirements import InvalidRequirement, Requirement

from infrastructure import FUNCTION

PROJECT = Path(__file__).resolve().parent.parent
PYTHON_VERSION = (PROJECT / "infrastructure" / "python-version.txt").read_text(encoding="ascii").strip()
SITE_PACKAGES = ".python_packages/lib/site-packages"
# Only what runs: code, and the two files that the host reads.
SOURCES = ("host.json", f"{FUNCTION}/function.json", f"{FUNCTION}/**/*.py", "shared/**/*.py")
# What pip or Python writes about the machine and the moment of the installation, and what a function never starts.
MACHINE_SPECIFIC = (
    "**/__pycache__",
    "*.dist-info/RECORD",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
    "bin",
    ".lock",
)
# Flex Consumption runs on x86-64 Linux with a glibc not older than 2.28.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PIP_SECONDS = 900
COMPILE_SECONDS = 300
REQUIREMENTS = "requirements.txt"
# One exporter at a time: each adds more than a megabyte. 1 is short for the one that Bicep switches on.
TELEMETRY = {
    name: f"requirements-telemetry-{exporter}.txt"
    for name, exporter in (("azure-monitor", "azure-monitor"), ("otlp", "otlp"), ("1", "azure-monitor"))
}
# A zip cannot store an earlier time.
EARLIEST = 315532800
# What an entry of a zip costs besides its content: two headers, each with the name.
ENTRY_BYTES = 30 + 46


class PackageNotBuilt(Exception):
    """The package could not be built; the text says why, for people."""


@dataclass(frozen=True)
class Package:
    """A built package. `version` names sources and dependencies, independent of compression and bytecode.

    `size` and `bytecode` (the part of `size` that is bytecode) are in bytes. `requirements` lists the packages in it,
    locked with hashes.
    """

    path: Path
    requirements: Path
    version: str
    sha256: str
    size: int
    bytecode: int
    files: int


def build(
    root: Path,
    output: Path,
    python: str,
    *,
    lock: str = REQUIREMENTS,
    bytecode: bool = True,
    timestamp: int = EARLIEST,
    pip_seconds: float = PIP_SECONDS,
) -> Package:
    """Build the package of the project at `root` for a Python version such as "3.12".

    `lock` is the file with the dependencies. `bytecode` False leaves it out even where it could be compiled.
    `timestamp` (seconds since 1970) becomes the time of every entry; pip is stopped after `pip_seconds`. Raises
    PackageNotBuilt.
    """
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        staging = Path(folder) / "staging"
        _copy_sources(root, staging)
        requirements = Path(folder) / REQUIREMENTS
        requirements.write_text(_applicable(root / lock, python), encoding="utf-8")
        _install(requirements, staging / SITE_PACKAGES, python, pip_seconds)
        _remove_machine_specific(staging / SITE_PACKAGES)
        version = _stamp(staging)
        interpreter = interpreter_of(python) if bytecode else None
        if interpreter is not None:
            _compile(staging, interpreter)
        output.parent.mkdir(parents=True, exist_ok=True)
        listed = output.with_suffix(".requirements.txt")
        shutil.copyfile(requirements, listed)
        return _zip(staging, output, listed, version, max(timestamp, EARLIEST))


def interpreter_of(python: str) -> str | None:
    """Return the path of a Python of a version such as "3.12" on this machine, or None."""
    probe = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.executable)"
    # With pyenv, python3.12 on the path is a script that needs the version besides.
    environment = {**os.environ, "PYENV_VERSION": python}
    for candidate in (sys.executable, f"python{python}"):
        try:
            done = subprocess.run(  # noqa: S603 - our own command, no shell
                [candidate, "-c", probe],
                capture_output=True,
                text=True,
                timeout=COMPILE_SECONDS,
                check=False,
                env=environment,
            )
        except OSError:
            continue
        name, _, path = done.stdout.strip().partition(f" {python} ")
        if name == "cpython" and path:
            return path
    return None


def _compile(staging: Path, interpreter: str) -> None:
    """Compile every module; the same sources give the same bytes."""
    command = [interpreter, "-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # Paths in the bytecode are relative to the package. Python replaces them with the real ones when it loads a module.
    command += ["-s", str(staging), str(staging)]
    try:
        done = subprocess.run(  # noqa: S603 - our own command, no shell
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PackageNotBuilt(f"The modules were not compiled within {COMPILE_SECONDS} s.") from error
    if done.returncode != 0:
        raise PackageNotBuilt(f"Some modules do not compile:\n{done.stdout[-2000:]}")


def _copy_sources(root: Path, staging: Path) -> None:
    for pattern in SOURCES:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if not found:
            raise PackageNotBuilt(f"There is no {pattern} in {root}.")
        for path in found:
            target = staging / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _install(requirements: Path, target: Path, python: str, seconds: float) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    # The lock lists everything, so that nothing is left to resolve; and pip would compare the Python that it runs on.
    command += ["--no-deps", "--ignore-requires-python"]
    command += ["--require-hashes", "--only-binary", ":all:", "--no-compile"]
    command += ["--implementation", "cp", "--python-version", python]
    command += [part for platform in PLATFORMS for part in ("--platform", platform)]
    command += ["--target", str(target), "--requirement", str(requirements)]
    try:
        done = subprocess.run(  # noqa: S603 - our own command, no shell
            command, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise PackageNotBuilt(f"pip did not finish within {seconds:g} s.") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if not line.startswith("WARNING")][-15:]
        raise PackageNotBuilt(
            "\n".join([f"pip could not install the dependencies for Python {python}:", *errors])
        )


def _applicable(lock: Path, python: str) -> str:
    """Return what of a lock file applies to the target, without markers.

    pip evaluates markers for the Python that it runs on, even with `--python-version`.
    """
    target = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError as error:
        raise PackageNotBuilt(f"{lock} cannot be read: {error.strerror}.") from error
    applicable = []
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        wanted, *hashes = line.split("--hash=")
        try:
            requirement = Requirement(wanted.strip())
        except InvalidRequirement as error:
            raise PackageNotBuilt(
                f"{lock.name} has a line that is no requirement: {wanted.strip()}"
            ) from error
        if requirement.marker is None or requirement.marker.evaluate(target):
            requirement.marker = None
            applicable.append(" ".join([str(requirement), *(f"--hash={each.strip()}" for each in hashes)]))
    return "\n".join([*applicable, ""])


def _remove_machine_specific(site_packages: Path) -> None:
    for pattern in MACHINE_SPECIFIC:
        for path in list(site_packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _stamp(staging: Path) -> str:
    """Name the content, and write the name where Azure shows it: in the function's listing.

    `generatedBy` is a property of function.json that Microsoft's own build tools write and the host ignores. With it
    the pipeline sees which package is running.
    """
    content = hashlib.sha256()
    for path in _files(staging):
        content.update(f"{path.relative_to(staging).as_posix()}\0".encode())
        content.update(hashlib.sha256(path.read_bytes()).digest())
    version = content.hexdigest()[:16]
    listing = staging / FUNCTION / "function.json"
    stamped = {"generatedBy": version, **json.loads(listing.read_text(encoding="utf-8"))}
    listing.write_text(json.dumps(stamped, indent=2) + "\n", encoding="utf-8")
    return version


def _zip(staging: Path, output: Path, requirements: Path, version: str, timestamp: int) -> Package:
    files = _files(staging)
    bytecode = 0
    # The final name never belongs to an incomplete package.
    unfinished = output.with_name(output.name + ".unfinished")
    with zipfile.ZipFile(unfinished, "w") as archive:
        for path in files:
            entry = zipfile.ZipInfo(path.relative_to(staging).as_posix(), time.gmtime(timestamp)[:6])
            entry.create_system = 3  # Unix: the permissions count
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
            if path.suffix == ".pyc":
                bytecode += ENTRY_BYTES + 2 * len(entry.filename) + entry.compress_size
    unfinished.replace(output)
    content = output.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return Package(output, requirements, version, sha256, len(content), bytecode, len(files))


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=Path.as_posix)


@click.command()
@click.option(
    "--project", type=click.Path(path_type=Path), default=PROJECT, help="The folder of the project."
)
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/function.zip"), show_default=True
)
@click.option("--python", default=PYTHON_VERSION, show_default=True, help="The Python that the app runs on.")
@click.option(
    "--telemetry",
    type=click.Choice(list(TELEMETRY)),
    help="Add OpenTelemetry's SDK and an exporter; 1 is azure-monitor.",
)
@click.option(
    "--timestamp",
    type=click.IntRange(min=0),
    envvar="SOURCE_DATE_EPOCH",
    default=EARLIEST,
    help="Time of the entries, in seconds since 1970.",
)
def main(project: Path, output: Path, python: str, timestamp: int, telemetry: str | None) -> None:
    """Build the package that is deployed to Azure, and print its properties."""
    lock = TELEMETRY[telemetry] if telemetry else REQUIREMENTS
    try:
        package = build(project, output, python, lock=lock, timestamp=timestamp)
        if telemetry:
            with tempfile.TemporaryDirectory(prefix="package-") as folder:
                without = build(project, Path(folder) / output.name, python)
    except PackageNotBuilt as error:
        raise click.ClickException(str(error)) from error
    click.echo(package.path)
    click.echo(f"  for        Python {python} on Linux x86-64")
    click.echo(f"  size       {_megabytes(package.size)} ({package.size:,} bytes, {package.files:,} files)")
    if package.bytecode:
        click.echo(
            f"  bytecode   {_megabytes(package.bytecode)} of it; {_megabytes(package.size - package.bytecode)} without"
        )
    else:
        click.echo(f"  bytecode   none: there is no Python {python} here to compile with")
    if telemetry:
        more = package.size - without.size
        source = more - (package.bytecode - without.bytecode)
        click.echo(f"  telemetry  {_megabytes(more)} of it, of which {_megabytes(source)} are not bytecode")
    click.echo(f"  version    {package.version}")
    click.echo(f"  SHA-256    {package.sha256}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
