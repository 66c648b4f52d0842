"""Build the zip that is deployed: the function, `shared`, `host.json` and the pinned dependencies, nothing else.

The same sources give the same bytes: entries are sorted, their times and permissions are fixed, and what pip writes
about the machine is left out. The package can be built with any Python for the one that the app runs on, because
only wheels are installed and the lock file's markers are evaluated for the target.

Where a Python of the app's version is found on Linux x86-64, the package also contains the bytecode of the modules that
a cold start and an invocation import, so that they compile nothing. Which these are is found by importing them. Python
uses bytecode without comparing it with its source ("unchecked hash"), since both come from one build. A Python of
another version ignores it, as its file names contain the version.

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
from typing import TYPE_CHECKING

import click
from packaging.requirements import InvalidRequirement, Requirement

from infrastructure import FUNCTION

if TYPE_CHECKING:
    from collections.abc import Iterable

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
# What wheels contain and the function never imports: types, tests, sources of C and protobuf, the asyncio variants of
# Azure's libraries, live metrics, and psutil for other systems.
UNUSED = (
    "**/*.pyi",
    "**/py.typed",
    "**/tests",
    "**/testdata",
    "**/*.[ch]",
    "**/*.proto",
    "**/aio",
    "azure/monitor/opentelemetry/exporter/_quickpulse",
    *(f"psutil/_ps{system}.py" for system in ("aix", "bsd", "osx", "sunos", "windows")),
)
# Flex Consumption runs on x86-64 Linux with a glibc not older than 2.28.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PIP_SECONDS = 900
COMPILE_SECONDS = 300
REQUIREMENTS = "requirements.txt"
# A zip cannot store an earlier time.
EARLIEST = 315532800
# What an entry of a zip costs besides its content: two headers, each with the name.
ENTRY_BYTES = 30 + 46


class PackageNotBuilt(click.ClickException):
    """The package could not be built; the text says why, for people."""


@dataclass(frozen=True)
class Contents:
    """What a package contains besides the sources.

    `lock` is the file with the dependencies. `imported` are the modules that, with what they import, have bytecode: the
    function, and what its libraries import at their first use only. Those that are not installed are ignored, except
    for the first.
    """

    lock: str = REQUIREMENTS
    imported: tuple[str, ...] = (
        FUNCTION,
        "azure.core.rest._requests_basic",
        "azure.identity._credentials.app_service",
    )

    def with_exporter(self, name: str, *imported: str) -> Contents:
        """Return the same with OpenTelemetry's SDK and one exporter."""
        lock = f"requirements-telemetry-{name}.txt"
        return Contents(lock, (*self.imported, "shared.open_telemetry", *imported))


BARE = Contents()
_AZURE_MONITOR = BARE.with_exporter(
    "azure-monitor",
    "azure.monitor.opentelemetry.exporter",
    "azure.monitor.opentelemetry.exporter.statsbeat.customer._manager",
)
_OTLP = BARE.with_exporter(
    "otlp",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "google.protobuf.duration_pb2",
    "google.protobuf.timestamp_pb2",
)
# One exporter at a time: each adds more than a megabyte. 1 is short for the one that Bicep switches on.
TELEMETRY = {"azure-monitor": _AZURE_MONITOR, "otlp": _OTLP, "1": _AZURE_MONITOR}


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
    contents: Contents = BARE,
    bytecode: bool = True,
    timestamp: int = EARLIEST,
    pip_seconds: float = PIP_SECONDS,
) -> Package:
    """Build the package of the project at `root` for a Python version such as "3.12".

    `bytecode` False leaves it out even where it could be compiled. `timestamp` (seconds since 1970) becomes the time of
    every entry; pip is stopped after `pip_seconds`. Raises PackageNotBuilt.
    """
    with tempfile.TemporaryDirectory(prefix="package-") as folder:
        staging = Path(folder) / "staging"
        _copy_sources(root, staging)
        requirements = Path(folder) / REQUIREMENTS
        requirements.write_text(_applicable(root / contents.lock, python), encoding="utf-8")
        _install(requirements, staging / SITE_PACKAGES, python, pip_seconds)
        _remove(staging / SITE_PACKAGES, MACHINE_SPECIFIC + UNUSED)
        version = _stamp(staging)
        interpreter = interpreter_of(python) if bytecode else None
        if interpreter is not None:
            _compile(staging, _imported(staging, interpreter, contents.imported), interpreter)
        output.parent.mkdir(parents=True, exist_ok=True)
        listed = output.with_suffix(".requirements.txt")
        shutil.copyfile(requirements, listed)
        return _zip(staging, output, listed, version, max(timestamp, EARLIEST))


def interpreter_of(python: str) -> str | None:
    """Return the path of a Python of a version such as "3.12" on this machine, or None.

    None also where it could not load the package, which contains modules compiled for Linux x86-64.
    """
    probe = "import sys, sysconfig; print(sys.implementation.name + '-' + sysconfig.get_platform(),"
    probe += " '%d.%d' % sys.version_info[:2], sys.executable)"
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
        if name == "cpython-linux-x86_64" and path:
            return path
    return None


# Imports modules, of which the first must exist, and prints the files of all that were compiled, also of those that
# then could not be imported: a library tries whether an optional dependency is there.
_IMPORT = """
import importlib, importlib.machinery, sys
staging, site_packages, *names = sys.argv[1:]
sys.path[:0] = [staging, site_packages]
loader, files = importlib.machinery.SourceFileLoader, set()
get_code = loader.get_code
def record(self, name):
    files.add(self.path)
    return get_code(self, name)
loader.get_code = record
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name == names[0] or not f"{name}.".startswith(f"{error.name}."):
            raise
print(*sorted(file for file in files if file.startswith(staging)), sep="\\n")
"""


def _imported(staging: Path, interpreter: str, names: tuple[str, ...]) -> str:
    """Return the files of modules and of what they import, one on each line."""
    folders = [str(staging), str(staging / SITE_PACKAGES)]
    command = [interpreter, "-I", "-S", "-B", "-c", _IMPORT, *folders, *names]
    return _run(command, "", "The package cannot be imported")


def _compile(staging: Path, files: str, interpreter: str) -> None:
    """Compile modules; the same sources give the same bytes."""
    command = [interpreter, "-S", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # Paths in the bytecode are relative to the package. Python replaces them with the real ones when it loads a module.
    command += ["-s", str(staging), "-i", "-"]
    _run(command, files, "Some modules do not compile")


def _run(command: list[str], given: str, failure: str) -> str:
    """Run a Python of the app's version and return what it prints; `failure` says what it means if that fails."""
    # Of the environment only what Python itself needs: settings could change what is imported.
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        done = subprocess.run(  # noqa: S603 - our own command, no shell
            command,
            input=given,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageNotBuilt(f"{failure} within {COMPILE_SECONDS} s.") from error
    if done.returncode != 0:
        raise PackageNotBuilt(f"{failure}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


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


def _remove(site_packages: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in list(site_packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                # It is gone already where it was in a folder of the same name.
                path.unlink(missing_ok=True)


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
    contents = TELEMETRY[telemetry] if telemetry else BARE
    package = build(project, output, python, contents=contents, timestamp=timestamp)
    if telemetry:
        with tempfile.TemporaryDirectory(prefix="package-") as folder:
            without = build(project, Path(folder) / output.name, python)
    click.echo(package.path)
    click.echo(f"  for        Python {python} on Linux x86-64")
    click.echo(f"  size       {_megabytes(package.size)} ({package.size:,} bytes, {package.files:,} files)")
    if package.bytecode:
        click.echo(
            f"  bytecode   {_megabytes(package.bytecode)} of it; {_megabytes(package.size - package.bytecode)} without"
        )
    else:
        click.echo(f"  bytecode   none: there is no Python {python} for Linux x86-64 here to compile with")
    if telemetry:
        click.echo(f"  telemetry  {(package.size - without.size) / 1e6:.2f} MB of it")
    click.echo(f"  version    {package.version}")
    click.echo(f"  SHA-256    {package.sha256}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
