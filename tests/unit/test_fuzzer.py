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


def fuzz(root: Path, target: str, inputs: int, found: Path) -> subprocess.CompletedProcess[str]:
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


def fuzz_with_fault(folder: Path, target: str, file: str, code: str, instead: str) -> str:
    """Fuzz a copy in which a fault replaces some code, until an input meets it; return what the fuzzer says."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part)
    source = (folder / file).read_text()
    assert source.count(code) == 1
    (folder / file).write_text(source.replace(code, instead))
    (folder / "tests/responses/retrieve-extreme.http").unlink()

    ended = fuzz(folder, target, 1_000_000, folder / "build" / "found")

    assert ended.returncode != 0
    return ended.stderr + ended.stdout


@pytest.mark.parametrize("target", ["opportunity_won", "dataverse_response"])
def test_thousands_of_inputs_guided_by_coverage_have_one_of_the_allowed_results(
    target: str, tmp_path: Path
) -> None:
    ended = fuzz(ROOT, target, 10_000, tmp_path / "found")
    assert ended.returncode == 0, ended.stderr[-2_000:]
    assert "Done 10000 runs" in ended.stderr
    assert any((tmp_path / "found").iterdir()), "something reached what the corpus does not"


def test_a_fourth_result_of_an_event_is_found_and_kept(tmp_path: Path) -> None:
    """No event of the corpus meets the fault."""
    entrance = "    by_name = _members("
    fault = '    if body[-1:].isupper():\n        raise KeyError("planted")\n'

    said = fuzz_with_fault(
        tmp_path, "opportunity_won", "shared/opportunity_won.py", entrance, fault + entrance
    )

    assert "planted" in said
    [crash] = (tmp_path / "build").glob("crash-*")
    assert crash.read_bytes()[-1:].isupper()


def test_a_response_that_raises_something_else_is_found_and_kept(tmp_path: Path) -> None:
    """The fault: an absurd exponent, which the decimal module refuses, is not handled."""
    handled, fault = "except InvalidOperation:", "except ZeroDivisionError:"

    said = fuzz_with_fault(tmp_path, "dataverse_response", "shared/response.py", handled, fault)

    assert "InvalidOperation" in said
    [_] = (tmp_path / "build").glob("crash-*")
