from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from infrastructure import package
from infrastructure.package import (
    EARLIEST,
    PROJECT,
    PYTHON_VERSION,
    Contents,
    Package,
    PackageNotBuilt,
    build,
    interpreter_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

SITE_PACKAGES = ".python_packages/lib/site-packages/"
CERTIFI = (f"{SITE_PACKAGES}certifi/__init__", f"{SITE_PACKAGES}certifi/core")
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHON = "3.12" if THIS_PYTHON != "3.12" else "3.13"


def locked(*names: str) -> str:
    """Return the project's lock file, reduced to some packages."""
    whole = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    # Hashes stand on lines of their own, after a backslash.
    pins = re.findall(r"^([\w-]+)(==.*?[^\\]\n)", whole, re.MULTILINE | re.DOTALL)
    return "".join(name + pin for name, pin in pins if name in names)


class Project:
    """A project with a function of two lines and idna as its only dependency, unless something else is written."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.output = folder / "function.zip"
        self.write("host.json", "{}")
        self.write("GenerateInvoiceFunction/function.json", '{"bindings": []}')
        self.write("GenerateInvoiceFunction/__init__.py", "import shared\ndef main(message): ...")
        self.write("shared/__init__.py", "")
        self.write("requirements.txt", locked("idna"))

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def build(
        self,
        python: str = THIS_PYTHON,
        output: Path | None = None,
        **options: Any,  # noqa: ANN401 - those of build
    ) -> Package:
        return build(self.root, output or self.output, python, **options)

    def run(self, *more: str) -> Result:
        """Run the command."""
        arguments = ["--project", str(self.root), "--output", str(self.output), *more]
        return CliRunner().invoke(package.main, arguments)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def entries(built: Package) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(built.path) as archive:
        return archive.infolist()


def names(built: Package) -> list[str]:
    return [entry.filename for entry in entries(built)]


@pytest.fixture(scope="module")
def built(package_of: Callable[[str, str], Package]) -> Package:
    """Build this project's package as it is deployed."""
    return package_of(PYTHON_VERSION, "off")


def test_the_same_sources_give_the_same_bytes(built: Package, tmp_path: Path) -> None:
    """Built again from a copy elsewhere, with other times and permissions and what a Python left behind."""
    copy = tmp_path / "elsewhere"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("GenerateInvoiceFunction", "shared"):
        shutil.copytree(PROJECT / folder, copy / folder, copy_function=shutil.copyfile, ignore=ignored)
    for file in ("host.json", "requirements.txt"):
        shutil.copyfile(PROJECT / file, copy / file)
    (copy / "host.json").chmod(0o600)
    os.utime(copy / "host.json", (0, 0))
    (copy / "shared" / "__pycache__").mkdir()
    (copy / "shared" / "__pycache__" / "settings.cpython-312.pyc").write_bytes(b"compiled")

    again = build(copy, tmp_path / "again.zip", PYTHON_VERSION)

    assert (again.version, again.sha256, again.size) == (built.version, built.sha256, built.size)


def test_contains_what_runs_and_nothing_else(built: Package) -> None:
    own = [name for name in names(built) if not name.startswith(SITE_PACKAGES) and not name.endswith(".pyc")]
    code = [
        path.relative_to(PROJECT).as_posix()
        for folder in ("GenerateInvoiceFunction", "shared")
        for path in (PROJECT / folder).rglob("*.py")
    ]

    assert sorted(own) == sorted(["host.json", "GenerateInvoiceFunction/function.json", *code])
    # At the root it would turn the app into one of the other programming model.
    assert "function_app.py" not in own


def test_contains_the_pinned_dependencies_for_the_python_of_the_app(built: Package) -> None:
    installed = {name.removeprefix(SITE_PACKAGES).split("/")[0] for name in names(built)}
    tag = "cpython-" + PYTHON_VERSION.replace(".", "")
    compiled = [name for name in names(built) if name.endswith(".so")]

    for name in ("azure_functions", "azure_identity", "azure_servicebus", "requests"):
        assert any(each.startswith(f"{name}-") and each.endswith(".dist-info") for each in installed), name
    assert all(tag in name or ".abi3." in name for name in compiled), compiled


def test_the_package_contains_nothing_of_the_machine_that_built_it(built: Package) -> None:
    assert {entry.date_time for entry in entries(built)} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries(built)} == {0o100644}
    assert names(built) == sorted(names(built))
    forbidden = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    assert not [name for name in names(built) if name.endswith(forbidden) or "/bin/" in name]


def test_what_is_never_imported_is_left_out(built: Package) -> None:
    """Types, tests, sources of C, and the asyncio variants of Azure's libraries."""
    assert [
        name
        for name in names(built)
        if name.endswith((".pyi", "py.typed", ".h", ".c")) or re.search(r"/(tests|aio)/", name)
    ] == []


def test_what_is_left_out_may_be_in_a_folder_of_the_same_name(tmp_path: Path, project: Project) -> None:
    wheel = tmp_path / "nested-1.0-py3-none-any.whl"
    described = "nested-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("__init__.py", "tests/__init__.py", "tests/data/tests/__init__.py"):
            archive.writestr(f"nested/{name}", "")
        archive.writestr(f"{described}/METADATA", "Metadata-Version: 2.1\nName: nested\nVersion: 1.0\n")
        archive.writestr(
            f"{described}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{described}/RECORD", "")
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    project.write("requirements.txt", f"nested @ {wheel.as_uri()} --hash=sha256:{sha256}\n")

    nested = project.build(PYTHON_VERSION, bytecode=False)

    assert [name for name in names(nested) if "/nested/" in name] == [f"{SITE_PACKAGES}nested/__init__.py"]


def test_the_version_stands_where_azure_shows_it(built: Package) -> None:
    with zipfile.ZipFile(built.path) as archive:
        function = json.loads(archive.read("GenerateInvoiceFunction/function.json"))

    assert function.pop("generatedBy") == built.version
    assert function == json.loads((PROJECT / "GenerateInvoiceFunction/function.json").read_bytes())


def test_the_packages_in_it_are_listed_beside_it(built: Package) -> None:
    """Pins with hashes and without markers, for the bill of materials and the vulnerability scan."""
    listed = built.requirements.read_text(encoding="utf-8").splitlines()
    installed = {
        name.removeprefix(SITE_PACKAGES).split(".dist-info")[0]
        for name in names(built)
        if ".dist-info/" in name
    }

    assert built.requirements.name == "function.requirements.txt"
    assert all("==" in line and "--hash=sha256:" in line and ";" not in line for line in listed)
    assert {line.split(" ")[0].replace("==", "-").replace("-", "_").lower() for line in listed} == {
        name.replace("-", "_").lower() for name in installed
    }


def bytecode(package: Package) -> set[str]:
    """Return the modules that have bytecode, as paths without `__pycache__` and the tag of this Python."""
    suffix = f".cpython-{THIS_PYTHON.replace('.', '')}.pyc"
    paths = [PurePosixPath(name) for name in names(package) if name.endswith(".pyc")]
    return {f"{path.parent.parent}/{path.name.removesuffix(suffix)}" for path in paths}


@pytest.mark.parametrize(
    ("function", "compiled"),
    [
        ("import shared.used", {"shared/__init__", "shared/used", *CERTIFI}),
        # It is compiled at each start, and then cannot be imported.
        ("try: import shared.optional\nexcept ImportError: pass", {"shared/__init__", "shared/optional"}),
        ("import os\nif 'A_SETTING' in os.environ: import idna", set()),
    ],
    ids=["a dependency", "a missing dependency", "a setting of the machine"],
)
def test_what_the_function_imports_has_bytecode_and_nothing_else_has(
    project: Project, function: str, compiled: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SETTING", "1")
    project.write("requirements.txt", locked("idna", "certifi"))
    project.write("GenerateInvoiceFunction/__init__.py", function)
    project.write("shared/used.py", "import certifi")
    project.write("shared/optional.py", "import gone_altogether")
    project.write("shared/unused.py", "import idna")

    assert bytecode(project.build()) == {"GenerateInvoiceFunction/__init__", *compiled}


def test_what_a_library_imports_at_its_first_use_has_bytecode(project: Project) -> None:
    """Named for the package; a name that a later version of the library does not have is ignored."""
    imported = ("GenerateInvoiceFunction", "idna.intranges", "idna.gone", "gone.altogether")

    compiled = project.build(contents=Contents(imported=imported))

    assert f"{SITE_PACKAGES}idna/intranges" in bytecode(compiled)
    assert f"{SITE_PACKAGES}idna/codec" not in bytecode(compiled)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import gone_altogether", "No module named 'gone_altogether'"),
        ("import shared.broken", r"broken\.py"),
        ("raise RuntimeError('at import')", "at import"),
    ],
)
def test_a_function_that_cannot_be_imported_is_not_packaged(project: Project, source: str, says: str) -> None:
    project.write("shared/broken.py", "def")
    project.write("GenerateInvoiceFunction/__init__.py", source)

    with pytest.raises(PackageNotBuilt, match=rf"(?s)The package cannot be imported:.*{says}"):
        project.build()


@pytest.mark.parametrize(("python", "source"), [(THIS_PYTHON, "bytecode"), (OTHER_PYTHON, "compiled here")])
def test_only_the_python_of_the_app_uses_the_bytecode_and_does_so_without_a_check_in_a_read_only_folder(
    tmp_path: Path, project: Project, python: str, source: str
) -> None:
    """Its flags say "unchecked": neither time nor hash of the source is compared."""
    interpreter = interpreter_of(python)
    if interpreter is None:
        pytest.skip(f"there is no Python {python} here")
    project.write("shared/__init__.py", "source = 'bytecode'")
    with zipfile.ZipFile(project.build().path) as archive:
        archive.extractall(tmp_path / "unpacked")
    (tmp_path / "unpacked/shared/__init__.py").write_text("source = 'compiled here'", encoding="utf-8")
    for path in [*(tmp_path / "unpacked").rglob("*"), tmp_path / "unpacked"]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [interpreter, "-c", "import shared; print(shared.source)"],
        env={"PYTHONPATH": str(tmp_path / "unpacked"), "PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.strip() == source


def test_bytecode_is_the_same_in_every_build(
    tmp_path: Path, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder, with another hash seed, and with sets among the constants."""
    project.write("requirements.txt", locked("idna", "certifi"))
    project.write("shared/__init__.py", "def is_vowel(letter): return letter in {'a', 'e', 'i', 'o', 'u'}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    built = set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        built.add(project.build().sha256)

    assert len(built) == 1


def test_the_version_names_sources_and_not_bytecode(tmp_path: Path, project: Project) -> None:
    """A machine without the app's Python builds a package of the same version."""
    compiled = project.build()
    plain = project.build(output=tmp_path / "plain.zip", bytecode=False)

    assert compiled.version == plain.version
    assert plain.bytecode == 0
    assert compiled.size - compiled.bytecode == plain.size


def test_any_change_is_another_version(project: Project) -> None:
    before = project.build(PYTHON_VERSION)
    project.write("shared/__init__.py", "# changed")

    assert before.version != project.build(PYTHON_VERSION).version


def test_the_time_of_the_entries_can_be_chosen(project: Project) -> None:
    for timestamp, year in ((0, 1980), (EARLIEST, 1980), (1_700_000_000, 2023)):
        chosen = project.build(PYTHON_VERSION, timestamp=timestamp)
        assert {entry.date_time[0] for entry in entries(chosen)} == {year}


@pytest.mark.parametrize(("python", "release"), [("3.12", "1."), ("3.13", "2.")])
def test_markers_are_evaluated_for_the_app_and_not_for_the_builder(
    project: Project, python: str, release: str
) -> None:
    project.write("requirements.txt", locked("azure-functions"))

    installed = names(project.build(python))

    (version,) = set(re.findall(r"azure_functions-(\S+)\.dist-info/", "\n".join(installed)))
    assert version.startswith(release)


@pytest.mark.parametrize(
    ("requirements", "says"),
    [
        ("idna==3.20 --hash=sha256:" + 64 * "0", "DO NOT MATCH THE HASHES"),
        ("idna==3.20", "Hashes are required"),
        ("idna===== 3", "no requirement: idna===== 3"),
        ("idna==999.0 --hash=sha256:" + 64 * "0", "No matching distribution found"),
    ],
)
def test_what_is_wrong_with_the_lock_is_said(
    tmp_path: Path, project: Project, requirements: str, says: str
) -> None:
    project.write("requirements.txt", requirements)

    with pytest.raises(PackageNotBuilt, match=says):
        project.build(PYTHON_VERSION)

    assert list(tmp_path.glob("function.zip*")) == []


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("host.json", "There is no host.json in ROOT."),
        (
            "GenerateInvoiceFunction/function.json",
            "There is no GenerateInvoiceFunction/function.json in ROOT.",
        ),
        ("requirements.txt", "ROOT/requirements.txt cannot be read: No such file or directory."),
    ],
)
def test_the_command_says_what_is_missing(project: Project, missing: str, says: str) -> None:
    (project.root / missing).unlink()

    result = project.run()

    assert (result.exit_code, result.output) == (1, f"Error: {says.replace('ROOT', str(project.root))}\n")


def test_pip_that_never_ends_is_given_up(project: Project) -> None:
    with pytest.raises(PackageNotBuilt, match="pip did not finish"):
        project.build(PYTHON_VERSION, pip_seconds=0.001)


def test_the_command_prints_the_properties(project: Project) -> None:
    result = project.run("--python", THIS_PYTHON)

    assert result.exit_code == 0
    assert f"Python {THIS_PYTHON} on Linux" in result.output
    assert re.search(r"bytecode   \d\.\d MB of it; \d\.\d MB without\n", result.output)
    assert f"({project.output.stat().st_size:,} bytes, " in result.output
    assert hashlib.sha256(project.output.read_bytes()).hexdigest() in result.output


def test_the_command_reports_that_there_is_no_python_to_compile_with(project: Project) -> None:
    assert (
        "bytecode   none: there is no Python 3.99 for Linux x86-64 here to compile with\n"
        in project.run("--python", "3.99").output
    )


@pytest.mark.parametrize(
    ("telemetry", "lock"),
    [
        ("1", "requirements-telemetry-azure-monitor.txt"),
        ("azure-monitor", "requirements-telemetry-azure-monitor.txt"),
        ("otlp", "requirements-telemetry-otlp.txt"),
    ],
)
def test_each_exporter_has_a_lock_of_its_own_and_its_size_is_shown(
    telemetry: str, lock: str, project: Project
) -> None:
    project.write(lock, locked("idna", "certifi"))
    project.write("shared/open_telemetry.py", "import certifi")

    result = project.run("--python", THIS_PYTHON, "--telemetry", telemetry)

    assert re.search(r"telemetry  0\.1\d MB of it\n", result.output)
    with zipfile.ZipFile(project.output) as archive:
        assert f"{SITE_PACKAGES}certifi/core.py" in archive.namelist()
        assert [name for name in archive.namelist() if "certifi/__pycache__/core." in name]


@pytest.mark.parametrize(
    ("telemetry", "exporter"),
    [
        ("azure-monitor", "azure-monitor-opentelemetry-exporter"),
        ("otlp", "opentelemetry-exporter-otlp-proto-http"),
    ],
)
def test_the_lock_with_telemetry_has_the_versions_of_the_one_without(telemetry: str, exporter: str) -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[\w-]+==\S+", (PROJECT / name).read_text(encoding="utf-8"), re.MULTILINE))

    lock = package.TELEMETRY[telemetry].lock
    added = {pin.split("==")[0] for pin in pins(lock) - pins("requirements.txt")}

    assert pins("requirements.txt") <= pins(lock)
    # What the tests run with is what is deployed.
    assert pins(lock) <= pins("requirements-dev.txt")
    assert {"opentelemetry-sdk", exporter} <= added
    # The distribution would bring instrumentation of Django, Flask and others.
    assert not [name for name in added if "instrumentation" in name]
