"""The import contract: the tables of docs/architecture.md against every import of the repository."""

from __future__ import annotations

import ast
import re
import sys
from typing import TYPE_CHECKING

import pytest
from repository import ROOT, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = text("docs/architecture.md")
# The only module that may import what the package with telemetry contains besides.
TELEMETRY = ROOT / "shared" / "open_telemetry.py"


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table with this header line."""
    table = PAGE.partition(header)[2].partition("\n\n")[0]
    lines = table.strip().splitlines()[1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


MAY_IMPORT = {
    quoted(folder)[0].rstrip("/"): quoted(may)
    for folder, _, may in rows("| folder | contents | may import |")
}
PACKAGES = sorted(MAY_IMPORT.keys() - {"tests"})
ORDER = [quoted(module)[0].removesuffix(".py") for module, _ in rows("| module | responsibility |")]


def imports(path: Path) -> Iterator[str]:
    """Yield the full names that a module imports, those for the type checker included."""
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert packages - MAY_IMPORT.keys() == set()
    assert [package for package in PACKAGES if not (ROOT / package).is_dir()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_table_permits(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - {package, *MAY_IMPORT[package]}
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        for name in imports(path)
        if name.partition(".")[0] in forbidden
    ]
    assert found == []


def test_every_module_of_shared_is_in_the_order() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in modules("shared") if path.stem != "__init__")


def test_a_module_of_shared_imports_only_modules_below_it() -> None:
    place = {module: number for number, module in enumerate(ORDER)}
    upward = [
        f"{path.name} imports {name}"
        for path in modules("shared")
        for name in imports(path)
        if name.startswith("shared.") and place[name.split(".")[1]] <= place[path.stem]
    ]
    assert upward == []


def test_what_is_deployed_imports_only_pinned_packages() -> None:
    pinned = re.findall(r"^([\w.-]+)==", text("requirements.txt"), re.MULTILINE)
    permitted = {*sys.stdlib_module_names, "shared", *pinned}
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("shared", "GenerateInvoiceFunction")
        for path in modules(package)
        for name in imports(path)
        if distribution(name) not in permitted and not (path == TELEMETRY and is_telemetry(name))
    ]
    assert found == []


def distribution(name: str) -> str:
    """Return the distribution of an import: azure is a namespace that several share."""
    first, second, *_ = f"{name}.".split(".")
    return f"azure-{second}" if first == "azure" else first


def is_telemetry(name: str) -> bool:
    return name.startswith(("opentelemetry.", "azure.monitor."))


def test_an_exception_is_named_after_the_decision_without_a_suffix() -> None:
    named = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for package in MAY_IMPORT
        for path in modules(package)
        for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    assert named == []


def quoted_in_prose() -> set[str]:
    return set(quoted(re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)))


def test_the_files_that_the_page_names_exist() -> None:
    named = {name for name in quoted_in_prose() if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|json)", name)}
    assert "shared/response.py" in named
    # The names of the sandbox's packages are relative to it.
    assert [name for name in named if not any((ROOT / at / name).exists() for at in (".", "sandbox"))] == []


def test_the_names_in_the_code_that_the_page_gives_exist() -> None:
    """`Class.method` and names with an underscore at the beginning, which a change elsewhere could rename."""
    code = "\n".join(text(path) for path in modules("shared"))
    named = {name for name in quoted_in_prose() if re.fullmatch(r"_\w+|[A-Z][a-z]\w*(\.\w+)?", name)}
    assert {"_CODES", "Handler._delay", "RetryLater"} <= named
    words = {word for name in named for word in name.split(".")} - MAY_IMPORT.keys()
    assert {
        word for word in words if not re.search(rf"(def|class) {word}\b|^{word}\b.* = ", code, re.MULTILINE)
    } == set()
