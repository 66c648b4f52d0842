"""The coverage-guided fuzzer at work, in its short form; `make fuzz` is the long one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("shared", "tests/events", "tests/responses", "tests/fuzz")
# A bound for a slow machine; it takes seconds.
ENOUGH = 100

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="the fuzzer, atheris, comes as a wheel only for Linux on x86-64",
)


def fuzz(
    root: Path, inputs: int, found: Path, target: str = "opportunity_won"
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        f"tests/fuzz/{target}.py",
        "fuzz",
        "--inputs",
        str(inputs),
        "--found",
        str(found),
    ]
    return subprocess.run(command, cwd=root, check=False, capture_output=True, text=True, timeout=ENOUGH)  # noqa: S603


def test_thousands_of_inputs_guided_by_coverage_have_one_of_the_three_results(tmp_path: Path) -> None:
    ended = fuzz(ROOT, 10_000, tmp_path / "found")
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert "Done 10000 runs" in ended.stderr
    assert any((tmp_path / "found").iterdir()), "something reached what the corpus does not"


def test_a_fourth_result_is_found_and_kept(tmp_path: Path) -> None:
    """The fault that is planted in a copy is met by no event of the corpus."""
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part)
    parser = tmp_path / "shared" / "opportunity_won.py"
    entrance = "    by_name = _members("
    code = parser.read_text()
    assert code.count(entrance) == 1
    fault = '    if body[-1:].isupper():\n        raise KeyError("planted")\n'
    parser.write_text(code.replace(entrance, fault + entrance))

    ended = fuzz(tmp_path, 1_000_000, tmp_path / "build" / "found")

    assert ended.returncode != 0
    assert "planted" in ended.stderr + ended.stdout
    [crash] = (tmp_path / "build").glob("crash-*")
    assert crash.read_bytes()[-1:].isupper()


def test_thousands_of_responses_are_values_or_our_own_failures(tmp_path: Path) -> None:
    ended = fuzz(ROOT, 10_000, tmp_path / "found", "dataverse_response")
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert "Done 10000 runs" in ended.stderr
    assert any((tmp_path / "found").iterdir()), "something reached what the corpus does not"


def test_a_response_that_raises_something_else_is_found_and_kept(tmp_path: Path) -> None:
    """The fault that is planted in a copy: an absurd exponent, which the decimal module refuses."""
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part)
    reader = tmp_path / "shared" / "response.py"
    code = reader.read_text()
    handled = "except InvalidOperation:"
    assert code.count(handled) == 1
    reader.write_text(code.replace(handled, "except ZeroDivisionError:"))
    (tmp_path / "tests/responses/retrieve-extreme.http").unlink()

    ended = fuzz(tmp_path, 1_000_000, tmp_path / "build" / "found", "dataverse_response")

    assert ended.returncode != 0
    assert "InvalidOperation" in ended.stderr + ended.stdout
    [crash] = (tmp_path / "build").glob("crash-*")
    assert crash.exists()
