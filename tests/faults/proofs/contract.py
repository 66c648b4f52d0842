"""The contract of published events for the judge of histories, from its file: test folders are no packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _load() -> Callable[[bytes, Mapping[str, object], str], None]:
    file = Path(__file__).parents[2] / "contract" / "published_event.py"
    spec = importlib.util.spec_from_file_location("published_event", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    validate: Callable[[bytes, Mapping[str, object], str], None] = module.validate_event
    return validate


validate_event = _load()
