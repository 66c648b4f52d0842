from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from infrastructure import settings, verify
from infrastructure.azure_cli import NoAnswerError
from infrastructure.verify import NotVerifiedError, version_of, wait_for
from operations.namespace import environment_of

if TYPE_CHECKING:
    from pathlib import Path

Answer = Mapping[str, object] | NoAnswerError


class Azure:
    """Answers in turn, the last one for ever; time passes only by sleeping."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.time = 0.0
        self.told: list[str] = []

    def ask(self) -> Mapping[str, object]:
        """Give the next answer."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, NoAnswerError):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds

    def wait_for(self, version: str, seconds: float = 60) -> None:
        """Wait with this Azure."""
        wait_for(
            version, self.ask, seconds=seconds, now=lambda: self.time, sleep=self.sleep, tell=self.told.append
        )


def listing(version: str | None, *, disabled: bool = False) -> Answer:
    config = {"bindings": []} if version is None else {"generatedBy": version, "bindings": []}
    return {"properties": {"config": config, "isDisabled": disabled}}


def test_the_new_version_is_there_at_once() -> None:
    azure = Azure(listing("new"))

    azure.wait_for("new")

    assert azure.time == 0


def test_waits_while_the_deployment_is_still_going_on() -> None:
    """The function is missing at first, then the old one is listed, then the new one is."""
    azure = Azure(NoAnswerError("Not Found"), listing("old"), listing("old"), listing("new"))

    azure.wait_for("new")

    assert azure.told == [
        "The function is not listed: Not Found",
        "Version old is listed, not new.",
        "GenerateInvoiceFunction runs version new.",
    ]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (listing("old"), "Version old is listed, not new."),
        (listing(None), "Version unknown is listed, not new."),
        (listing("new", disabled=True), "The function is disabled."),
        (NoAnswerError("Not Found"), "not listed: Not Found"),
        ({}, "Version unknown is listed, not new."),
    ],
)
def test_gives_up_in_time_and_says_what_it_saw(answer: Answer, says: str) -> None:
    azure = Azure(answer)

    with pytest.raises(NotVerifiedError, match=says):
        azure.wait_for("new", seconds=100)

    assert azure.time <= 100


def package(folder: Path, content: str = '{"generatedBy": "0123456789abcdef"}') -> Path:
    path = folder / "function.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("GenerateInvoiceFunction/function.json", content)
    return path


def test_the_version_comes_from_the_package(tmp_path: Path) -> None:
    assert version_of(package(tmp_path)) == "0123456789abcdef"


@pytest.mark.parametrize("content", ["{}", "no json"])
def test_what_is_no_package_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(NotVerifiedError, match=r"function\.zip is no package"):
        version_of(package(tmp_path, content))
    with pytest.raises(NotVerifiedError, match=r"nowhere\.zip is no package"):
        version_of(tmp_path / "nowhere.zip")


@pytest.fixture
def azure_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a script in the place of the Azure CLI; it notes what it is called with.

    It names the app of the deployment; the script that is given answers all other questions.
    """

    def install(script: str) -> Path:
        called = tmp_path / "called"
        az = tmp_path / "bin" / "az"
        az.parent.mkdir()
        named = """case "$1" in deployment) echo '"invoicing-dev"'; exit 0;; esac"""
        az.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{named}\n{script}\n', encoding="utf-8")
        az.chmod(0o755)
        monkeypatch.setenv("PATH", f"{az.parent}:{os.environ['PATH']}")
        return called

    return install


def run(folder: Path) -> tuple[int, str]:
    arguments = ["--resource-group", "rg", "--package", str(package(folder)), "--seconds", "0"]
    result = CliRunner().invoke(verify.main, arguments)
    return result.exit_code, result.output


def test_asks_azure_through_its_cli(tmp_path: Path, azure_cli: Callable[[str], Path]) -> None:
    called = azure_cli(f"echo '{json.dumps(listing('0123456789abcdef'))}'")

    assert run(tmp_path) == (0, "GenerateInvoiceFunction runs version 0123456789abcdef.\n")
    assert (
        "/subscriptions/{subscriptionId}/resourceGroups/rg/providers/Microsoft.Web/sites/invoicing-dev"
        "/functions/GenerateInvoiceFunction?api-version=" in called.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Please run az login' >&2; exit 1", "Please run az login"),
        ("echo 'no json'", "no JSON, but 'no json"),
        ("echo '[]'", "no object, but []"),
    ],
)
def test_what_the_cli_says_is_passed_on(
    tmp_path: Path, azure_cli: Callable[[str], Path], script: str, says: str
) -> None:
    azure_cli(script)

    code, output = run(tmp_path)

    assert code == 1
    assert says in output


def test_without_the_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    code, output = run(tmp_path)

    assert code == 1
    assert "No such file or directory: 'az'" in output


def test_the_settings_of_the_app_are_written_for_operations(
    tmp_path: Path, azure_cli: Callable[[str], Path]
) -> None:
    called = azure_cli("""echo '[{"name": "DATAVERSE_URL", "value": "https://contoso.crm.dynamics.com"}]'""")
    output = tmp_path / "new" / "settings.json"

    result = CliRunner().invoke(settings.main, ["--resource-group", "rg", "--output", str(output)])

    assert result.exit_code == 0
    assert str(output) in result.output
    values = environment_of(str(output))
    assert values["DATAVERSE_URL"] == "https://contoso.crm.dynamics.com"
    assert (
        "functionapp config appsettings list --resource-group rg --name invoicing-dev" in called.read_text()
    )


def test_without_a_deployment_there_are_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    az = tmp_path / "az"
    az.write_text("#!/bin/sh\necho null\n", encoding="utf-8")
    az.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    result = CliRunner().invoke(settings.main, ["--resource-group", "rg", "--output", str(tmp_path / "file")])

    assert result.exit_code == 1
    assert "the deployment invoicing in rg has no output functionAppName" in result.output
    assert not (tmp_path / "file").exists()
