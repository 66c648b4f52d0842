from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from infrastructure import package
from infrastructure.package import EARLIEST, PROJECT, PYTHON_VERSION, Package, PackagingError, build

SITE_PACKAGES = ".python_packages/lib/site-packages/"


def locked(*names: str) -> str:
    """Return the project's lock file, reduced to some packages."""
    whole = (PROJECT / "requirements.txt").read_text(encoding="utf-8").replace("\\\n", "\\\\")
    return (
        "\n".join(line.replace("\\\\", "\\\n") for line in whole.split("\n") if line.startswith(names)) + "\n"
    )


def project(folder: Path, requirements: str) -> Path:
    """Lay out a project with a function of one line."""
    (folder / "GenerateInvoiceFunction").mkdir(parents=True)
    (folder / "shared").mkdir()
    (folder / "host.json").write_text("{}", encoding="utf-8")
    (folder / "GenerateInvoiceFunction/function.json").write_text('{"bindings": []}', encoding="utf-8")
    (folder / "GenerateInvoiceFunction/__init__.py").write_text("def main(message): ...", encoding="utf-8")
    (folder / "shared/__init__.py").write_text("", encoding="utf-8")
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    return folder


def names(built: Package) -> list[str]:
    with zipfile.ZipFile(built.path) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Build this project's package as it is deployed."""
    return build(PROJECT, tmp_path_factory.mktemp("built") / "function.zip", PYTHON_VERSION)


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
    own = [name for name in names(built) if not name.startswith(SITE_PACKAGES)]
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


def test_nothing_tells_of_the_machine_that_built_it(built: Package) -> None:
    with zipfile.ZipFile(built.path) as archive:
        entries = archive.infolist()

    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.external_attr >> 16 for entry in entries} == {0o100644}
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    forbidden = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    assert not [name for name in names(built) if name.endswith((".pyc", *forbidden)) or "/bin/" in name]


def test_the_version_stands_where_azure_shows_it(built: Package) -> None:
    with zipfile.ZipFile(built.path) as archive:
        function = json.loads(archive.read("GenerateInvoiceFunction/function.json"))

    assert function.pop("generatedBy") == built.version
    assert function == json.loads((PROJECT / "GenerateInvoiceFunction/function.json").read_bytes())


def test_the_hash_stands_beside_it(built: Package) -> None:
    sha256 = hashlib.sha256(built.path.read_bytes()).hexdigest()

    assert built.sha256 == sha256
    assert Path(f"{built.path}.sha256").read_text(encoding="ascii") == f"{sha256}  function.zip\n"


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

    with pytest.raises(PackagingError, match=says):
        build(root, tmp_path / "function.zip", PYTHON_VERSION)

    assert list(tmp_path.glob("function.zip*")) == []


@pytest.mark.parametrize(
    "missing", ["host.json", "requirements.txt", "GenerateInvoiceFunction/function.json"]
)
def test_what_is_missing_is_said(tmp_path: Path, missing: str) -> None:
    root = project(tmp_path / "project", locked("idna"))
    (root / missing).unlink()

    with pytest.raises(PackagingError, match=missing):
        build(root, tmp_path / "function.zip", PYTHON_VERSION)


def test_pip_that_never_ends_is_given_up(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))

    with pytest.raises(PackagingError, match="pip did not finish"):
        build(root, tmp_path / "function.zip", PYTHON_VERSION, pip_seconds=0.001)


def test_the_command_prints_what_came_out(tmp_path: Path) -> None:
    root = project(tmp_path / "project", locked("idna"))
    output = tmp_path / "function.zip"

    result = CliRunner().invoke(package.main, ["--project", str(root), "--output", str(output)])

    assert result.exit_code == 0
    assert f"Python {PYTHON_VERSION} on Linux" in result.output
    assert f"({output.stat().st_size:,} bytes, " in result.output
    assert hashlib.sha256(output.read_bytes()).hexdigest() in result.output


def test_the_command_fails_in_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(package.main, ["--project", str(tmp_path), "--output", str(tmp_path / "zip")])

    assert (result.exit_code, result.output) == (1, f"Error: There is no host.json in {tmp_path}.\n")
