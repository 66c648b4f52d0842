"""Checks what a machine needs before anything is installed, and says what to do about what is missing.

It runs before there is a virtual environment, so with the standard library only, and in words that a Python which is
too old understands as well: it should say so rather than fail.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OLDEST = (3, 11)


def main() -> int:
    """Print what is missing and return 1, or return 0."""
    problems = missing()
    for problem in problems:
        sys.stderr.write(f"missing: {problem}\n")
    return 1 if problems else 0


def missing() -> "list[str]":
    """Return a sentence for each thing that is missing, with what to install."""
    if sys.version_info < OLDEST:
        version = sys.version.split()[0]
        return [
            f"Python 3.11 or later; {sys.executable} is {version}. Install one, or name it: make PYTHON=… demo."
        ]
    problems = []
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        problems.append("Python's venv module. Debian and Ubuntu: apt-get install python3-venv.")
    if sys.platform.startswith("linux"):
        # There are no wheels of Qpid Proton for Linux: pip compiles it, and without OpenSSL silently without TLS.
        problems += _missing_for_proton()
    return problems


def _missing_for_proton() -> "list[str]":
    problems = []
    compilers = (os.environ.get("CC", "cc").split()[0], "gcc", "clang")
    if not any(shutil.which(compiler) for compiler in compilers):
        problems.append(
            "a C compiler. Debian and Ubuntu: apt-get install build-essential; Fedora: dnf install gcc."
        )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        install = "Debian and Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel"
        problems.append(f"the headers of Python ({header}). {install}.")
    pkg_config = shutil.which("pkg-config")
    if pkg_config is None:
        install = "Debian and Ubuntu: apt-get install pkg-config; Fedora: dnf install pkgconf-pkg-config"
        problems.append(f"pkg-config. {install}.")
    elif subprocess.call([pkg_config, "--exists", "openssl"]) != 0:  # noqa: S603 - a fixed command
        install = "Debian and Ubuntu: apt-get install libssl-dev; Fedora: dnf install openssl-devel"
        problems.append(f"the headers of OpenSSL. {install}.")
    return problems


if __name__ == "__main__":
    sys.exit(main())
