"""The repository keeps to one vocabulary: words that were replaced by the field's terms do not come back.

docs/glossary.md defines the terms. Only words without another meaning are listed here. The changelog may name old
settings, and the properties of messages in flight keep their names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = {
    ".bicep",
    ".bicepparam",
    ".css",
    ".html",
    ".js",
    ".json",
    ".kql",
    ".md",
    ".mjs",
    ".py",
    ".sh",
    ".svg",
    ".toml",
    ".ts",
    ".yaml",
    ".yml",
}
# Not written by people; the sandbox writes and removes the second one while it runs.
GENERATED = {"package-lock.json", "local.settings.json"}
EXEMPT = {ROOT / "CHANGELOG.md", Path(__file__).resolve()}
# Folders of tools; those with a dot at the beginning are skipped too, except these.
SKIPPED = {"node_modules", "build", "__pycache__", "htmlcov"}
OWN_DOT_FOLDERS = {".ci", ".devcontainer", ".vscode"}

# What to write instead, the retired words, and a text that has one of them.
RETIRED = [
    ("response", r"(?i:answer)", "no answer in time"),
    ("retry policy", r"(?<!Invoicing)(?i:rhythm)|Retry(Short|Long)\b", "RetryShort"),
    ("throttle, back off", r"(?i:\b(hold(s|ing)?|held)[ _]?back)", "hold_back"),
    ("reschedule", r"(?i:\bput(s|ting)? aside)", "is put aside"),
    ("Ignored", r"NotOurs|NotAWin|not_ours", "NotOurs"),
    ("emulator", r"(?i:\bstand-?ins?\b)", "the stand-in for Dataverse"),
    ("connection, dependency", r"(?i:(\b|_)wires?(\b|_))", "Wire.DATAVERSE"),
    ("timeout", r"(?i:\btime-outs?\b)", "a time-out"),
    ("outbound, inbound", r"(?i:\b(out|in)wards?\b|\bways?[ _](out|in)\b)", "the way out"),
    ("fix", r"(?i:\bmend(s|ed|ing)?\b)", "mended"),
    ("not tested", r"(?i:untried)", "Untried are"),
    ("settle", r"let_go", "let_go"),
    ("CheckFailed, RightMissing", r"CannotSee", "CannotSee"),
    ("changed_by_user", r"(?i:meddl)", "meddled"),
    ("concurrent", r"(?i:\bcrowd(ed)?\b)", "crowded"),
    ("sender link, receiver link", r"(?i:\b(in|out)lets?\b)", "an outlet"),
    ("EventKind", r"\bHappened\b", "Happened.LOST"),
    ("MAX_…, MIN_…", r"\b_?(MOST|LONGEST|OLDEST)_[A-Z]|\bOLDEST\b", "_MOST_RETRIES"),
    ("idempotent", r"(?i:harmless|without harm)", "again without harm"),
    ("salesperson", r"(?i:\bsales persons?\b)", "a sales person"),
    ("the actor's name", r"(?i:\b(who|what)ever\b|strangers?\b)", "whoever sends it"),
    ("like Azure", r"(?i:\bas (the )?[\w.]+ (has|have) it\b)", "as Azure has it"),
]


def texts() -> dict[str, str]:
    """Return the text files of the repository by path."""
    found = {}
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            each for each in subfolders if each not in SKIPPED and (each[0] != "." or each in OWN_DOT_FOLDERS)
        ]
        for path in (Path(folder, name) for name in names if name not in GENERATED):
            if (path.suffix in TEXT or path.name == "Makefile") and path.resolve() not in EXEMPT:
                found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def repository() -> dict[str, str]:
    return texts()


def test_all_parts_of_the_repository_are_read(repository: dict[str, str]) -> None:
    parts = {path.partition("/")[0] for path in repository}
    assert parts >= {
        "shared",
        "operations",
        "sandbox",
        "tests",
        "docs",
        "infrastructure",
        "README.md",
        "Makefile",
    }


@pytest.mark.parametrize(("term", "retired", "example"), RETIRED, ids=[term for term, *_ in RETIRED])
def test_a_retired_word_is_not_used(
    term: str, retired: str, example: str, repository: dict[str, str]
) -> None:
    pattern = re.compile(retired)
    assert pattern.search(example)
    used = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in repository.items()
        if pattern.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert used == [], f"write instead: {term}"
