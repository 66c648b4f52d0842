from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
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
        """Return the next one."""
        listed = self.remaining.pop(0) if len(self.remaining) > 1 else self.remaining[0]
        if isinstance(listed, AzureCommandFailed):
            raise listed
        return listed

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.time += seconds

    def wait_for(self, version: str, seconds: float = 60) -> None:
        """Wait with this Azure."""
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


@pytest.fixture
def azure_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a script as the Azure CLI; it records its arguments.

    It returns the outputs of the deployment; the given script responds to all other queries.
    """

    def install(script: str, found: object = OUTPUTS) -> Path:
        called = tmp_path / "called"
        az = tmp_path / "bin" / "az"
        az.parent.mkdir()
        deployment = f"""case "$1" in deployment) echo '{json.dumps(found)}'; exit 0;; esac"""
        az.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{deployment}\n{script}\n', encoding="utf-8")
        az.chmod(0o755)
        monkeypatch.setenv("PATH", f"{az.parent}:{os.environ['PATH']}")
        return called

    return install


def run(folder: Path, *more: str) -> tuple[int, str]:
    arguments = ["--resource-group", "rg", "--package", str(package(folder)), "--seconds", "0", *more]
    result = CliRunner().invoke(verify.main, arguments)
    return result.exit_code, result.output


def test_queries_azure_through_its_cli(tmp_path: Path, azure_cli: Callable[..., Path]) -> None:
    called = azure_cli(f"echo '{json.dumps(listing('0123456789abcdef'))}'")

    assert run(tmp_path) == (0, "GenerateInvoiceFunction runs version 0123456789abcdef.\n")
    assert (
        "/subscriptions/{subscriptionId}/resourceGroups/rg/providers/Microsoft.Web/sites/invoicing-dev"
        "/functions/GenerateInvoiceFunction?api-version=" in called.read_text(encoding="utf-8")
    )


def test_finds_the_newest_deployment_that_succeeded_or_the_named_one(
    tmp_path: Path, azure_cli: Callable[..., Path]
) -> None:
    called = azure_cli(f"echo '{json.dumps(listing('0123456789abcdef'))}'")

    run(tmp_path)
    run(tmp_path, "--deployment", "invoicing-7")

    newest, _, named, _ = called.read_text(encoding="utf-8").splitlines()
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
def test_a_message_of_the_cli_is_passed_on(
    tmp_path: Path, azure_cli: Callable[..., Path], script: str, says: str
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


APP_SETTINGS = {
    "DATAVERSE_URL": "https://contoso.crm.dynamics.com",
    "BASH_ENV": "/home/someone",
    "HTTPS_PROXY": "http://192.0.2.1",
    "PATH": "/home/someone",
    "X\x1b[2J\nforged": "",
}


def written(tmp_path: Path, azure_cli: Callable[..., Path]) -> tuple[Path, str]:
    listed = json.dumps([{"name": name, "value": value} for name, value in APP_SETTINGS.items()])
    azure_cli(f"cat <<'END'\n{listed}\nEND")
    output = tmp_path / "new" / "settings.json"
    result = CliRunner().invoke(settings.main, ["--resource-group", "rg", "--output", str(output)])
    assert result.exit_code == 0
    return output, result.output


def test_only_settings_that_operations_reads_leave_azure(
    tmp_path: Path, azure_cli: Callable[..., Path]
) -> None:
    """A setting called BASH_ENV or HTTPS_PROXY could run or redirect things on the operator's machine."""
    output, printed = written(tmp_path, azure_cli)

    values = json.loads(output.read_bytes())["Values"]
    assert values == {"DATAVERSE_URL": "https://contoso.crm.dynamics.com"}
    left_out = "BASH_ENV, HTTPS_PROXY, PATH, X\N{REPLACEMENT CHARACTER}[2J forged"
    assert f"Left out, because operations does not read them: {left_out}\n" in printed


def test_the_file_is_readable_by_its_owner_only(tmp_path: Path, azure_cli: Callable[..., Path]) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "settings.json").write_text("{}", encoding="utf-8")
    (tmp_path / "new" / "settings.json").chmod(0o644)

    output, _ = written(tmp_path, azure_cli)

    assert stat.S_IMODE(output.stat().st_mode) == 0o600


def test_operations_reads_the_file(tmp_path: Path, azure_cli: Callable[..., Path]) -> None:
    output, printed = written(tmp_path, azure_cli)

    assert f"python -m operations --settings {output} --help" in printed
    result = CliRunner().invoke(operations, ["--settings", str(output), "failed", "--help"])
    assert result.exit_code == 0


@pytest.mark.parametrize("command", [settings.main, outputs.main])
def test_without_a_deployment(tmp_path: Path, azure_cli: Callable[..., Path], command: click.Command) -> None:
    azure_cli("exit 1", None)

    result = CliRunner().invoke(command, ["--resource-group", "rg"])

    assert (result.exit_code, result.output) == (1, "Error: rg has no deployment invoicing that succeeded\n")
    assert list(tmp_path.glob("*.json")) == []


def test_a_deployment_of_another_template(azure_cli: Callable[..., Path]) -> None:
    azure_cli("exit 1", {})

    result = CliRunner().invoke(settings.main, ["--resource-group", "rg"])

    assert "the deployment in rg has no output 'functionAppName'" in result.output


def test_prints_outputs_or_one_of_them(azure_cli: Callable[..., Path]) -> None:
    azure_cli("exit 1")

    def printed(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(outputs.main, ["--resource-group", "rg", *arguments])
        return result.exit_code, result.output

    every = "functionAppName=invoicing-dev\nserviceBusNamespaceId=/subscriptions/s/namespaces/n\n"
    assert printed() == (0, every)
    assert printed("functionAppName") == (0, "invoicing-dev\n")
    assert printed("other") == (
        1,
        "Error: There is no output other; there are functionAppName, serviceBusNamespaceId.\n",
    )
