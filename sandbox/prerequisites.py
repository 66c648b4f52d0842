"""Checks what a machine needs before anything is installed, and says what to do about what is missing.

It runs before there is a virtual environment, so with the standard library only, and with syntax that an older Python
understands as well: it should name the version that is needed rather than fail. Nothing but Python is needed on Linux,
macOS and Windows: everything that is locked comes as a wheel.
"""

import importlib.util
import sys

MIN_PYTHON = (3, 11)


def main() -> int:
    """Print what is missing and return 1, or return 0."""
    problems = missing()
    for problem in problems:
        sys.stderr.write(f"missing: {problem}\n")
    return 1 if problems else 0


def missing(version: "tuple[int, ...]" = sys.version_info[:3]) -> "list[str]":
    """Return a sentence for each thing that is missing, with what to install."""
    if version < MIN_PYTHON:
        found = ".".join(str(part) for part in version[:3])
        return [
            f"Python 3.11 or later; {sys.executable} is {found}. Install one, or name it: make PYTHON=… demo."
        ]
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        return ["Python's venv module. Debian and Ubuntu: apt-get install python3-venv."]
    return []


if __name__ == "__main__":
    sys.exit(main())
