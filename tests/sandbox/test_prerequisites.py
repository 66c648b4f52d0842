"""The checks of `make` before it installs anything, and its output meanwhile."""

import shutil
import sys
from pathlib import Path

import pytest

from sandbox.install import progress
from sandbox.prerequisites import missing
from tests.sandbox.conftest import run

SCRIPTS = Path(__file__).parents[2] / "sandbox"


def test_nothing_but_python_is_needed(tmp_path: Path) -> None:
    """There is neither a compiler nor pkg-config on the path."""
    result = run(sys.executable, SCRIPTS / "prerequisites.py", env={"PATH": str(tmp_path)})
    assert (result.returncode, result.stderr) == (0, "")


def test_an_older_python_is_named() -> None:
    (problem,) = missing((3, 10, 4))
    assert problem.startswith("Python 3.11 or later; ")
    assert "is 3.10.4. Install one, or name it: make PYTHON=" in problem


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "operations"])
def test_make_without_python_says_what_to_install(tmp_path: Path, target: str) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("make", "sh"):
        (commands / name).symlink_to(shutil.which(name) or name)
    result = run(
        *(commands / "make", "--makefile", SCRIPTS.parent / "Makefile", f"VENV={tmp_path}/venv", target),
        env={"PATH": str(commands)},
        cwd=_without_environments(tmp_path),
    )
    assert result.returncode == 2
    assert "missing: Python 3.11 or later. Install it" in result.stderr
    assert f"make PYTHON=… {target}" in result.stderr


def _without_environments(tmp_path: Path) -> Path:
    """Return a folder with the files that make looks for, in which nothing is installed."""
    folder = tmp_path / "clone"
    (folder / "sandbox").mkdir(parents=True)
    (folder / "sandbox" / "prerequisites.py").touch()
    for name in ("sandbox", "runtime", "operations"):
        (folder / f"requirements-{name}.txt").touch()
    return folder


def test_each_package_is_shown_as_it_is_collected() -> None:
    lines = [
        "Looking in links: /somewhere\n",
        "Collecting azure-core==1.41.0 (from -r requirements.txt (line 1))\n",
        "  Using cached azure_core-1.41.0-py3-none-any.whl\n",
        "Collecting click==8.5.1 (from -r requirements.txt (line 9))\n",
        "Processing /wheels/msal_extensions-1.3.1-py3-none-any.whl (from -r requirements.txt (line 20))\n",
        "Installing collected packages: click, azure-core\n",
        "Successfully installed azure-core-1.41.0 click-8.5.1\n",
    ]
    assert "".join(progress(lines)) == "  azure-core click msal-extensions \n  installing 2 packages …\n"


def test_a_failing_installation_shows_what_pip_reported(tmp_path: Path) -> None:
    missing_file = tmp_path / "missing.txt"
    arguments = ("-r", str(missing_file))
    result = run(sys.executable, SCRIPTS / "install.py", *arguments, env={"PATH": str(tmp_path)})
    assert result.returncode == 1
    assert str(missing_file) in result.stderr
