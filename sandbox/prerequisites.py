"""Checks what a machine needs before anything is installed, and says what to do about what is missing.

It runs before there is a virtual environment: standard library only, and syntax that old Pythons understand, so that
they can say that they are too old.
"""

import os
import shutil
import subprocess
import sys
import sysconfig

OLDEST = (3, 11)


def main():
    """Print what is missing and return 1, or return 0."""
    problems = list(missing())
    for problem in problems:
        sys.stderr.write("missing: " + problem + "\n")
    return 1 if problems else 0


def missing():
    """Yield a sentence for each thing that is missing, with what to install."""
    if sys.version_info < OLDEST:
        yield "Python 3.11 or later; {} is {}. Install one, or name it: make PYTHON=/path/to/python3.12 ...".format(
            sys.executable, sys.version.split()[0]
        )
        return
    if not _has_module("venv") or not _has_module("ensurepip"):
        yield "Python's venv module. Debian and Ubuntu: apt-get install python3-venv."
    if sys.platform.startswith("linux"):
        # There are no wheels of Qpid Proton for Linux: pip compiles it, and without OpenSSL silently without TLS.
        for problem in _missing_for_proton():
            yield problem


def _missing_for_proton():
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CC", "cc").split()[0], "gcc", "clang")):
        yield "a C compiler. Debian and Ubuntu: apt-get install build-essential; Fedora: dnf install gcc."
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if not os.path.exists(header):
        yield "the headers of Python ({}). Debian and Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel.".format(
            header
        )
    if not shutil.which("pkg-config"):
        yield "pkg-config. Debian and Ubuntu: apt-get install pkg-config; Fedora: dnf install pkgconf-pkg-config."
    elif subprocess.call(["pkg-config", "--exists", "openssl"]) != 0:
        yield "the headers of OpenSSL. Debian and Ubuntu: apt-get install libssl-dev; Fedora: dnf install openssl-devel."


def _has_module(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
