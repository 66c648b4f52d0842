"""The private folder of a run, and what becomes of the folders of killed runs."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sandbox.control.run_folder import NotPrivate, RunFolder, is_running, running

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from sandbox.control.run_folder import RunFolder

folder = RunFolder.create()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def hold_in_another_process(temporary: Path) -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", HOLD],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_private_and_gone_in_the_end(temporary: Path) -> None:
    folder = RunFolder.create()
    assert folder.path.parent.parent == temporary
    assert [path.stat().st_mode & 0o777 for path in (folder.path, folder.path.parent)] == [0o700, 0o700]
    assert running() == [folder.path]
    folder.close()
    assert list(temporary.iterdir()) == []
    assert running() == []


def test_the_next_start_removes_what_a_killed_run_left(temporary: Path) -> None:
    process, left = hold_in_another_process(temporary)
    (left / "secret").write_text("x")
    assert is_running(left)
    process.kill()
    process.communicate(timeout=30)
    assert left.exists()
    assert not is_running(left)
    folder = RunFolder.create()
    assert not left.exists()
    folder.close()


def test_the_next_start_leaves_what_runs_alone(temporary: Path) -> None:
    process, other = hold_in_another_process(temporary)
    own = RunFolder.create()
    assert set(running()) == {other, own.path}
    own.close()
    assert running() == [other]
    process.communicate(timeout=30)


def test_a_directory_of_somebody_else_is_refused(temporary: Path) -> None:
    RunFolder.create().close()
    directory = temporary / f"sandbox-{os.getuid()}"
    directory.mkdir(mode=0o755)
    with pytest.raises(NotPrivate, match="set TMPDIR"):
        RunFolder.create()
    directory.rmdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)
    with pytest.raises(NotPrivate):
        RunFolder.create()
    assert running() == []
    assert json.dumps([str(path) for path in elsewhere.iterdir()]) == "[]"
