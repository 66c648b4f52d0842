"""Hints about `--set NAME=VALUE` with a name that the app does not seem to read: usually a typing error."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

# Read by the Functions host or by Python, not by the app.
_OF_THE_HOST = ("AzureFunctionsJobHost__", "AzureWebJobs", "FUNCTIONS_", "PYTHON", "WEBSITE_")
_NAMES = re.compile(r"""["']([A-Za-z][A-Za-z0-9]*_[A-Za-z0-9_]+)["']""")
_SOURCES = ("*.py", "*.json", "*/*.py", "*/*.json")


def hints(app: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each setting that no file of the app mentions, with the name that may be meant."""
    asked = [name for name in names if not name.startswith(_OF_THE_HOST)]
    if not asked:
        return
    text = "\n".join(_read(path) for pattern in _SOURCES for path in sorted(app.glob(pattern)))
    known = set(_NAMES.findall(text))
    for name in asked:
        # ServiceBusConnection__clientId: bindings name what stands before the two underscores.
        if re.search(rf"\b{re.escape(name.partition('__')[0])}\b", text):
            continue
        similar = get_close_matches(name.upper(), known, n=1, cutoff=0.6)
        meant = f" Did you mean {similar[0]}?" if similar else ""
        yield f"--set {name}: no file of the app mentions this setting, so it probably has no effect.{meant}"


def _read(path: Path) -> str:
    hidden = any(part.startswith(".") for part in path.parts[-2:])
    return "" if hidden or not path.is_file() else path.read_text("utf-8", errors="replace")
