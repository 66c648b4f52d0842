"""A slip in `--set NAME=VALUE` is reported in a sentence."""

from pathlib import Path

import pytest

from sandbox.command_line.unknown_settings import hints

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name",
    [
        "RETRY_FIRST_DELAY_SECONDS",
        "ServiceBusConnection__fullyQualifiedNamespace",
        "AzureFunctionsJobHost__extensions__serviceBus__maxConcurrentCalls",
        "PYTHON_THREADPOOL_THREAD_COUNT",
    ],
)
def test_a_setting_that_the_app_or_its_host_reads_has_no_hint(name: str) -> None:
    assert list(hints(ROOT, [name])) == []


def test_a_slip_has_a_hint_with_the_name_that_is_meant() -> None:
    (hint,) = hints(ROOT, ["RETRY_FIRST_DELAY_SECOND"])
    assert hint.startswith("--set RETRY_FIRST_DELAY_SECOND: no file of the app mentions this setting")
    assert hint.endswith("Did you mean RETRY_FIRST_DELAY_SECONDS?")


def test_a_name_like_no_other_has_a_hint_too(tmp_path: Path) -> None:
    (tmp_path / "function_app.py").write_text("import os\nos.environ['SOME_SETTING']\n")
    (hint,) = hints(tmp_path, ["XYZ"])
    assert hint.endswith("so it probably has no effect.")
