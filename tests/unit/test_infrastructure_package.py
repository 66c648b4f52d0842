from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

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

SITE_PACKAGES = ".python_packages/lib/site-packages/"
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_PYTHON = "3.12" if THIS_PYTHON != "3.12" else "3.13"


def locked(*names: str) -> str:
    """Return the project's lock file, reduced to some packages."""
    whole = (PROJECT / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", "\\\\")
    return (
        "\n".join(line.replace("\\\\", "\\\n") for line in whole.split("\n") if line.startswith(names)) + "\n"
    )


def project(folder: Path, requirements: str) -> Path:
    """Lay out a project with a function of two lines."""
    (folder / "GenerateInvoiceFunction").mkdir(parents=True)
    (folder / "shared").mkdir()
    (folder / "host.json").write_text("{}", encoding="utf-8")
    (folder / "GenerateInvoiceFunction/function.json").write_text('{"bindings": []}', encoding="utf-8")
    (folder / "GenerateInvoiceFunction/__init__.py").write_text(
        "import shared\ndef main(message): ...", encoding="utf-8"
    )
    (folder / "shared/__init__.py").write_text("", encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    return folder


def names(built: Package) -> list[str]:
    with zipfile.ZipFile(built.path) as archive:
        return archive.namelist()


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
    with zipfile.ZipFile(built.path) as archive:
        entries = archive.infolist()

    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    forbidden = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    assert not [name for name in names(built) if name.endswith(forbidden) or "/bin/" in name]


def test_what_is_never_imported_is_left_out(built: Package) -> None:
    """Types, tests, sources of C, and the asyncio variants of Azure's libraries."""
    assert [
        name
        for name in names(built)
        if name.endswith((".pyi", "py.typed", ".h", ".c")) or re.search(r"/(tests|aio)/", name)
    ] == []


def test_what_is_left_out_may_be_in_a_folder_of_the_same_name(tmp_path: Path) -> None:
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
    root = project(tmp_path / "project", f"nested @ {wheel.as_uri()} --hash=sha256:{sha256}\n")

    nested = build(root, tmp_path / "function.zip", PYTHON_VERSION, bytecode=False)

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


def unpacked(package: Package, folder: Path) -> Path:
    """Unpack a package into a folder that cannot be written to."""
    with zipfile.ZipFile(package.path) as archive:
        archive.extractall(folder)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def imported(python: str, folder: Path) -> str:
    """Import `shared` of an unpacked package in a new process, and return what its `source` says."""
    code = "import shared; print(shared.source)"
    environment = {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        [python, "-c", code], env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def with_other_source(package: Package) -> Package:
    """Replace the source of `shared` in a package, and not its bytecode."""
    changed = package.path.with_name("changed.zip")
    with zipfile.ZipFile(package.path) as old, zipfile.ZipFile(changed, "w") as new:
        for entry in old.infolist():
            text = b"source = 'compiled here'" if entry.filename == "shared/__init__.py" else old.read(entry)
            new.writestr(entry, text)
    return replace(package, path=changed)


def bytecode(package: Package) -> set[str]:
    """Return the modules that have bytecode, as paths without `__pycache__` and tag."""
    paths = [PurePosixPath(name) for name in names(package) if name.endswith(".pyc")]
    return {f"{path.parent.parent}/{path.name.split('.')[0]}" for path in paths}


def test_what_the_function_imports_has_bytecode_and_nothing_else_has(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna", "certifi"))
    (root / "GenerateInvoiceFunction/__init__.py").write_text("import shared.used", encoding="utf-8")
    (root / "shared/used.py").write_text("import certifi", encoding="utf-8")
    (root / "shared/unused.py").write_text("import idna", encoding="utf-8")

    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON)

    assert bytecode(compiled) == {
        "GenerateInvoiceFunction/__init__",
        "shared/__init__",
        "shared/used",
        f"{SITE_PACKAGES}certifi/__init__",
        f"{SITE_PACKAGES}certifi/core",
    }
    tag = f"cpython-{THIS_PYTHON.replace('.', '')}"
    assert f"shared/__pycache__/used.{tag}.pyc" in names(compiled)


def test_what_a_library_imports_at_its_first_use_has_bytecode(tmp_path: Path) -> None:
    """Named for the package; a name that a later version of the library does not have is ignored."""
    root = project(tmp_path / "project", locked("idna"))
    contents = Contents(
        imported=("GenerateInvoiceFunction", "idna.intranges", "idna.gone", "gone.altogether")
    )

    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON, contents=contents)

    assert f"{SITE_PACKAGES}idna/intranges" in bytecode(compiled)
    assert f"{SITE_PACKAGES}idna/codec" not in bytecode(compiled)


def test_a_module_that_lacks_an_optional_dependency_has_bytecode(tmp_path: Path) -> None:
    """It is compiled at each start, and then cannot be imported."""
    root = project(tmp_path / "project", locked("idna"))
    (root / "GenerateInvoiceFunction/__init__.py").write_text(
        "try:\n    import shared.optional\nexcept ImportError:\n    pass", encoding="utf-8"
    )
    (root / "shared/optional.py").write_text("import gone_altogether", encoding="utf-8")

    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON)

    assert "shared/optional" in bytecode(compiled)


def test_settings_of_the_machine_do_not_change_what_has_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path / "project", locked("idna"))
    (root / "GenerateInvoiceFunction/__init__.py").write_text(
        "import os\nif 'A_SETTING' in os.environ: import idna", encoding="utf-8"
    )
    monkeypatch.setenv("A_SETTING", "1")

    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON)

    assert bytecode(compiled) == {"GenerateInvoiceFunction/__init__"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import gone_altogether", "No module named 'gone_altogether'"),
        ("import shared.broken", r"broken\.py"),
        ("raise RuntimeError('at import')", "at import"),
    ],
)
def test_a_function_that_cannot_be_imported_is_not_packaged(tmp_path: Path, source: str, says: str) -> None:
    root = project(tmp_path / "project", locked("idna"))
    (root / "shared/broken.py").write_text("def", encoding="utf-8")
    (root / "GenerateInvoiceFunction/__init__.py").write_text(source, encoding="utf-8")

    with pytest.raises(PackageNotBuilt, match=rf"(?s)The package cannot be imported:.*{says}"):
        build(root, tmp_path / "function.zip", THIS_PYTHON)


def test_bytecode_is_used_without_a_check_in_a_read_only_folder(tmp_path: Path) -> None:
    """Its flags say "unchecked": neither time nor hash of the source is compared."""
    root = project(tmp_path / "project", locked("idna"))
    (root / "shared/__init__.py").write_text("source = 'bytecode'", encoding="utf-8")
    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON)

    folder = unpacked(with_other_source(compiled), tmp_path / "unpacked")

    assert imported(sys.executable, folder) == "bytecode"


def test_another_python_ignores_the_bytecode(tmp_path: Path) -> None:
    interpreter = interpreter_of(OTHER_PYTHON)
    if interpreter is None:
        pytest.skip(f"there is no Python {OTHER_PYTHON} here")
    root = project(tmp_path / "project", locked("idna"))
    (root / "shared/__init__.py").write_text("source = 'bytecode'", encoding="utf-8")
    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON)

    folder = unpacked(with_other_source(compiled), tmp_path / "unpacked")

    assert imported(interpreter, folder) == "compiled here"


def test_bytecode_is_the_same_in_every_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another folder, with another hash seed, and with sets among the constants."""
    root = project(tmp_path / "project", locked("idna", "certifi"))
    (root / "shared/__init__.py").write_text(
        "def is_vowel(letter): return letter in {'a', 'e', 'i', 'o', 'u'}", encoding="utf-8"
    )
    built = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        built.append(build(root, tmp_path / f"{seed}.zip", THIS_PYTHON).sha256)

    assert built[0] == built[1]


def test_the_version_names_sources_and_not_bytecode(tmp_path: Path) -> None:
    """A machine without the app's Python builds a package of the same version."""
    root = project(tmp_path / "project", locked("idna"))

    compiled = build(root, tmp_path / "function.zip", THIS_PYTHON)
    plain = build(root, tmp_path / "plain.zip", THIS_PYTHON, bytecode=False)

    assert compiled.version == plain.version
    assert plain.bytecode == 0
    assert compiled.size - compiled.bytecode == plain.size


def test_any_change_is_another_version(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))
    before = build(root, tmp_path / "before.zip", PYTHON_VERSION)

    (root / "shared/__init__.py").write_text("# changed", encoding="utf-8")
    after = build(root, tmp_path / "after.zip", PYTHON_VERSION)

    assert before.version != after.version


def test_the_time_of_the_entries_can_be_chosen(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))

    for timestamp, year in ((0, 1980), (EARLIEST, 1980), (1_700_000_000, 2023)):
        chosen = build(root, tmp_path / "function.zip", PYTHON_VERSION, timestamp=timestamp)
        with zipfile.ZipFile(chosen.path) as archive:
            assert {entry.date_time[0] for entry in archive.infolist()} == {year}


@pytest.mark.parametrize(("python", "release"), [("3.12", "1."), ("3.13", "2.")])
def test_markers_are_evaluated_for_the_app_and_not_for_the_builder(
    tmp_path: Path, python: str, release: str
) -> None:
    root = project(tmp_path / "project", locked("azure-functions"))

    chosen = build(root, tmp_path / "function.zip", python)

    (version,) = {
        name.split("azure_functions-")[1].split(".dist-info")[0]
        for name in names(chosen)
        if ".dist-info/" in name
    }
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
def test_what_is_wrong_with_the_lock_is_said(tmp_path: Path, requirements: str, says: str) -> None:
    root = project(tmp_path / "project", requirements)

    with pytest.raises(PackageNotBuilt, match=says):
        build(root, tmp_path / "function.zip", PYTHON_VERSION)

    assert list(tmp_path.glob("function.zip*")) == []


@pytest.mark.parametrize(
    "missing", ["host.json", "requirements.txt", "GenerateInvoiceFunction/function.json"]
)
def test_what_is_missing_is_said(tmp_path: Path, missing: str) -> None:
    root = project(tmp_path / "project", locked("idna"))
    (root / missing).unlink()

    with pytest.raises(PackageNotBuilt, match=missing):
        build(root, tmp_path / "function.zip", PYTHON_VERSION)


def test_pip_that_never_ends_is_given_up(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))

    with pytest.raises(PackageNotBuilt, match="pip did not finish"):
        build(root, tmp_path / "function.zip", PYTHON_VERSION, pip_seconds=0.001)


def test_the_command_prints_the_properties(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))
    output = tmp_path / "function.zip"

    arguments = ["--project", str(root), "--output", str(output), "--python", THIS_PYTHON]
    result = CliRunner().invoke(package.main, arguments)

    assert result.exit_code == 0
    assert f"Python {THIS_PYTHON} on Linux" in result.output
    assert re.search(r"bytecode   \d\.\d MB of it; \d\.\d MB without\n", result.output)
    assert f"({output.stat().st_size:,} bytes, " in result.output
    assert hashlib.sha256(output.read_bytes()).hexdigest() in result.output


def test_the_command_reports_that_there_is_no_python_to_compile_with(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))

    arguments = ["--project", str(root), "--output", str(tmp_path / "function.zip"), "--python", "3.99"]
    result = CliRunner().invoke(package.main, arguments)

    assert "bytecode   none: there is no Python 3.99 for Linux x86-64 here to compile with\n" in result.output


@pytest.mark.parametrize(
    ("telemetry", "lock"),
    [
        ("1", "requirements-telemetry-azure-monitor.txt"),
        ("azure-monitor", "requirements-telemetry-azure-monitor.txt"),
        ("otlp", "requirements-telemetry-otlp.txt"),
    ],
)
def test_each_exporter_has_a_lock_of_its_own_and_its_size_is_shown(
    telemetry: str, lock: str, tmp_path: Path
) -> None:
    root = project(tmp_path / "project", locked("idna"))
    (root / lock).write_text(locked("idna", "certifi"), encoding="utf-8")
    (root / "shared/open_telemetry.py").write_text("import certifi", encoding="utf-8")
    output = tmp_path / "function.zip"

    arguments = ["--project", str(root), "--output", str(output), "--python", THIS_PYTHON]
    result = CliRunner().invoke(package.main, [*arguments, "--telemetry", telemetry])

    assert re.search(r"telemetry  0\.1\d MB of it\n", result.output)
    with zipfile.ZipFile(output) as archive:
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


def test_the_command_fails_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(package.main, ["--project", str(tmp_path), "--output", str(tmp_path / "zip")])

    assert (result.exit_code, result.output) == (1, f"Error: There is no host.json in {tmp_path}.\n")
