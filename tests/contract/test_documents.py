"""Links and names of files lead to what exists, and the changelog has the version of the project."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest
from repository import ROOT, text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("tests/*/*.md")}
)
FOLDERS = (
    *("GenerateInvoiceFunction", "shared", "operations", "sandbox", "infrastructure", "docs", "examples"),
    *("benchmarks", "tests"),
)
# Links, but not images.
LINK = re.compile(r"(?<!!)\[[^\[\]]*\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            yield link


pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pages
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]+\.[a-z]+)\b", text(page))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(prose(ROOT / "README.md"))}
    pages = {page for page in ROOT.glob("docs/*.md") if page.name != "faults-matrix.md"}
    assert pages - linked == set()


def test_the_index_of_decisions_has_each_record() -> None:
    index = text("docs/decisions/README.md")
    records = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("0*.md"))
    assert re.findall(r"\((\d{4}-[\w-]+\.md)\)", index) == records


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    project = tomllib.loads(text("pyproject.toml"))["project"]
    versions = re.findall(r"^## \[(\d[\w.]*)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == project["version"]
