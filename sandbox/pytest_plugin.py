"""The sandbox in pytest: a fixture that runs the function app of a project.

# pytest.ini
[pytest]
sandbox_app = app
sandbox_entities = entities.json

# test_orders.py
def test_an_order_is_confirmed(function_app):
    function_app.send("orders", {"number": 7})
    assert function_app.receive("confirmations", "all").json()["state"] == "confirmed"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandbox.testing import FunctionApp


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the settings in pytest.ini or pyproject.toml; paths are relative to that file."""
    parser.addini("sandbox_app", "the folder of the function app under test", type="paths", default=[])
    parser.addini("sandbox_entities", "a file with its queues and topics", type="paths", default=[])
    parser.addini(
        "sandbox_settings", "its app settings, a NAME=VALUE on each line", type="linelist", default=[]
    )
    parser.addini("sandbox_mode", "connection-string or identity", default="connection-string")


@pytest.fixture(scope="session")
def running_function_app(pytestconfig: pytest.Config) -> Iterator[FunctionApp]:
    """Run the function app once for all tests."""
    # A second of imports, for those only who use the fixture.
    from sandbox.cloud import Mode  # noqa: PLC0415
    from sandbox.testing import FunctionApp  # noqa: PLC0415

    settings = dict(line.partition("=")[::2] for line in pytestconfig.getini("sandbox_settings"))
    app = FunctionApp(
        _path(pytestconfig, "sandbox_app"),
        _path(pytestconfig, "sandbox_entities"),
        settings,
        mode=Mode(pytestconfig.getini("sandbox_mode")),
    )
    with app:
        yield app


@pytest.fixture
def function_app(running_function_app: FunctionApp) -> FunctionApp:
    """Return the running function app, with no messages of earlier tests."""
    running_function_app.clear()
    return running_function_app


def _path(config: pytest.Config, name: str) -> Path:
    paths: list[Path] = config.getini(name)
    if len(paths) != 1:
        raise pytest.UsageError(f"set {name} in pytest.ini, one path")
    return paths[0]
