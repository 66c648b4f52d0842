from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from infrastructure import outputs, settings, verify
from infrastructure.azure_cli import AzureCommandFailed
from infrastructure.verify import NotVerified, version_of, wait_for
from operations.__main__ import operations

if TYPE_CHECKING:
    from pathlib import Path

    import click

Listed = Mapping[str, object] | AzureCommandFailed


class Azure:
    """Lists the given functions in turn, the last one from then on; time passes only by sleeping."""

    def __init__(self, *listed: Listed) -> None:
        self.remaining = list(listed)
        self.time = 0.0
        self.reported: list[str] = []

    def listing(self) -> Mapping[str, object]:
        listed = self.remaining.pop(0) if len(self.remaining) > 1 else self.remaining[0]
        if isinstance(listed, AzureCommandFailed):
            raise listed
        return listed

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def wait_for(self, version: str, seconds: float = 60) -> None:
        wait_for(
            version,
            self.listing,
            seconds=seconds,
            now=lambda: self.time,
            sleep=self.sleep,
            report=self.reported.append,
        )


def listing(version: str | None, *, disabled: bool = False) -> Listed:
    config = {"bindings": []} if version is None else {"generatedBy": version, "bindings": []}
    return {"properties": {"config": config, "isDisabled": disabled}}


def test_the_new_version_is_listed_at_once() -> None:
    azure = Azure(listing("new"))

    azure.wait_for("new")

    assert azure.time == 0


def test_waits_while_the_deployment_is_still_running() -> None:
    """The function is missing at first, then the old one is listed, then the new one is."""
    azure = Azure(AzureCommandFailed("Not Found"), listing("old"), listing("old"), listing("new"))

    azure.wait_for("new")

    assert azure.reported == [
        "The function is not listed: Not Found",
        "Version old is listed, not new.",
        "GenerateInvoiceFunction runs version new.",
    ]


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (listing("old"), "Version old is listed, not new."),
        (listing(None), "Version unknown is listed, not new."),
        (listing("new", disabled=True), "The function is disabled."),
        (AzureCommandFailed("Not Found"), "not listed: Not Found"),
        ({}, "Version unknown is listed, not new."),
        ({"properties": None}, "Version unknown is listed, not new."),
        (listing("\x1b[2J\nold"), "Version \N{REPLACEMENT CHARACTER}\\[2J old is listed, not new."),
    ],
)
def test_stops_in_time_and_reports_what_was_listed(listed: Listed, says: str) -> None:
    azure = Azure(listed)

    with pytest.raises(NotVerified, match=says):
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
def test_a_file_that_is_not_a_package_is_named(tmp_path: Path, content: str) -> None:
    with pytest.raises(NotVerified, match=r"function\.zip is not a package"):
        version_of(package(tmp_path, content))
    with pytest.raises(NotVerified, match=r"nowhere\.zip is not a package"):
        version_of(tmp_path / "nowhere.zip")


OUTPUTS = {
    "functionAppName": {"type": "String", "value": "invoicing-dev"},
    "serviceBusNamespaceId": {"type": "String", "value": "/subscriptions/s/namespaces/n"},
}


class AzureCli:
    """A script in the place of the Azure CLI, which records its arguments, and the commands that call it.

    It returns `outputs` as those of the deployment; `script` responds to all other queries.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._az = folder / "bin" / "az"
        self._called = folder / "called"
        self._az.parent.mkdir()
        monkeypatch.setenv("PATH", f"{self._az.parent}:{os.environ['PATH']}")

    def responds(self, script: str, outputs: object = OUTPUTS) -> None:
        deployment = f"""case "$1" in deployment) echo '{json.dumps(outputs)}'; exit 0;; esac"""
        self._az.write_text(f'#!/bin/sh\necho "$@" >> {self._called}\n{deployment}\n{script}\n', "utf-8")
        self._az.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self._called.read_text(encoding="utf-8").splitlines()

    def run(self, command: click.Command, *more: str) -> tuple[int, str]:
        result = CliRunner().invoke(command, ["--resource-group", "rg", *more])
        return result.exit_code, result.output

    def verify(self, *more: str) -> tuple[int, str]:
        return self.run(verify.main, "--package", str(package(self._folder)), "--seconds", "0", *more)


@pytest.fixture
def azure_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AzureCli:
    return AzureCli(tmp_path, monkeypatch)


def test_queries_azure_through_its_cli(azure_cli: AzureCli) -> None:
    azure_cli.responds(f"echo '{json.dumps(listing('0123456789abcdef'))}'")

    assert azure_cli.verify() == (0, "GenerateInvoiceFunction runs version 0123456789abcdef.\n")
    assert (
        "/subscriptions/{subscriptionId}/resourceGroups/rg/providers/Microsoft.Web/sites/invoicing-dev"
        "/functions/GenerateInvoiceFunction?api-version=" in azure_cli.calls[-1]
    )


def test_finds_the_newest_deployment_that_succeeded_or_the_named_one(azure_cli: AzureCli) -> None:
    azure_cli.responds(f"echo '{json.dumps(listing('0123456789abcdef'))}'")

    azure_cli.verify()
    azure_cli.verify("--deployment", "invoicing-7")

    newest, _, named, _ = azure_cli.calls
    for query in (newest, named):
        assert "deployment group list --resource-group rg " in query
        assert "properties.provisioningState=='Succeeded'" in query
        assert "sort_by(@, &properties.timestamp) | [-1].properties.outputs" in query
    assert "name=='invoicing' || starts_with(name, 'invoicing-')" in newest
    assert "(name=='invoicing-7')" in named


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Please run az login' >&2; exit 1", "Please run az login"),
        ("echo 'no json'", "no JSON, but 'no json"),
        ("echo '[]'", "no object, but []"),
        ("printf 'no \\033]0;title\\007' >&2; exit 1", "no \N{REPLACEMENT CHARACTER}]0;title"),
    ],
)
def test_a_message_of_the_cli_is_passed_on(azure_cli: AzureCli, script: str, says: str) -> None:
    azure_cli.responds(script)

    code, output = azure_cli.verify()

    assert code == 1
    assert says in output


def test_without_the_cli(azure_cli: AzureCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    code, output = azure_cli.verify()

    assert code == 1
    assert "No such file or directory: 'az'" in output


APP_SETTINGS = {
    "DATAVERSE_URL": "https://contoso.crm.dynamics.com",
    "BASH_ENV": "/home/someone",
    "HTTPS_PROXY": "http://192.0.2.1",
    "PATH": "/home/someone",
    "X\x1b[2J\nforged": "",
}


def test_only_settings_that_operations_reads_leave_azure_for_the_owners_eyes(
    tmp_path: Path, azure_cli: AzureCli
) -> None:
    """A setting called BASH_ENV or HTTPS_PROXY could run or redirect things on the operator's machine."""
    listed = json.dumps([{"name": name, "value": value} for name, value in APP_SETTINGS.items()])
    azure_cli.responds(f"cat <<'END'\n{listed}\nEND")
    file = tmp_path / "new" / "settings.json"
    for _ in range(2):
        code, printed = azure_cli.run(settings.main, "--output", str(file))
        assert code == 0
        assert json.loads(file.read_bytes())["Values"] == {
            "DATAVERSE_URL": "https://contoso.crm.dynamics.com"
        }
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o644)

    left_out = "BASH_ENV, HTTPS_PROXY, PATH, X\N{REPLACEMENT CHARACTER}[2J forged"
    assert f"Left out, because operations does not read them: {left_out}\n" in printed
    assert f"python -m operations --settings {file} --help" in printed
    result = CliRunner().invoke(operations, ["--settings", str(file), "failed", "--help"])
    assert result.exit_code == 0, "operations reads the file"


@pytest.mark.parametrize("command", [settings.main, outputs.main])
def test_without_a_deployment(tmp_path: Path, azure_cli: AzureCli, command: click.Command) -> None:
    azure_cli.responds("exit 1", None)

    assert azure_cli.run(command) == (1, "Error: rg has no deployment invoicing that succeeded\n")
    assert list(tmp_path.glob("*.json")) == []


def test_a_deployment_of_another_template(azure_cli: AzureCli) -> None:
    azure_cli.responds("exit 1", {})

    assert "the deployment in rg has no output 'functionAppName'" in azure_cli.run(settings.main)[1]


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], (0, "functionAppName=invoicing-dev\nserviceBusNamespaceId=/subscriptions/s/namespaces/n\n")),
        (["functionAppName"], (0, "invoicing-dev\n")),
        (
            ["other"],
            (1, "Error: There is no output other; there are functionAppName, serviceBusNamespaceId.\n"),
        ),
    ],
)
def test_prints_outputs_or_one_of_them(
    azure_cli: AzureCli, arguments: list[str], printed: tuple[int, str]
) -> None:
    azure_cli.responds("exit 1")

    assert azure_cli.run(outputs.main, *arguments) == printed
