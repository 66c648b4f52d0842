"""Installs what requirements files lock into the environment of the Python that runs this, and shows the progress.

    .venv/bin/python sandbox/install.py -r requirements-sandbox.txt -r requirements-runtime.txt

pip itself shows either nothing or several lines for each package. Here it shows each name as it is collected, and
pip's whole output where it fails. Bytecode is compiled when a module is first imported, which takes seconds less.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import PurePath

_COLLECTING = "Collecting "
# Where wheels are taken from a folder.
_PROCESSING = "Processing "
_INSTALLING = "Installing collected packages: "
_WIDTH = 110


def main() -> int:
    """Install with pip's own arguments; return pip's exit code."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes"]
    # The locks list everything, so that nothing is left to resolve. The libraries that run functions declare Python
    # 3.13 and run on older ones.
    command += ["--no-deps", "--ignore-requires-python"]
    command += ["--no-compile", "--progress-bar=off", "--no-color", *sys.argv[1:]]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:  # noqa: S603
        assert pip.stdout is not None  # noqa: S101 - for the type checker
        for text in progress(_kept(pip.stdout, said)):
            sys.stdout.write(text)
            sys.stdout.flush()
    if pip.returncode != 0:
        sys.stderr.write("\n" + "".join(said))
    return pip.returncode


def progress(lines: Iterable[str]) -> Iterator[str]:
    """Return what to show for pip's lines: the packages as they are collected, then how many are installed."""
    column = 0
    for line in lines:
        if line.startswith((_COLLECTING, _PROCESSING)):
            name = _package(line)
            if column + len(name) > _WIDTH or not column:
                yield ("\n" if column else "") + "  "
                column = 2
            yield f"{name} "
            column += len(name) + 1
        elif line.startswith(_INSTALLING):
            count = line.count(",") + 1
            yield ("\n" if column else "") + f"  installing {count} packages …\n"
            column = 0


def _package(line: str) -> str:
    what = line.split()[1]
    if line.startswith(_COLLECTING):
        return what.partition("=")[0]
    return PurePath(what).name.partition("-")[0].replace("_", "-")


def _kept(lines: Iterable[str], said: list[str]) -> Iterator[str]:
    for line in lines:
        said.append(line)
        yield line


if __name__ == "__main__":
    sys.exit(main())
