"""What the pages about deploying and operating name: commands, parameters, files and places."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import click
import pytest

from operations.__main__ import operations

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "deploy.md", ROOT / "docs" / "operate.md", ROOT / "SECURITY.md"]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def command_of(words: list[str]) -> click.Command | None:
    """Return the command of `operations` that words name, or None."""
    command: click.Command = operations
    for word in words:
        if not isinstance(command, click.Group) or word not in command.commands:
            break
        command = command.commands[word]
    return None if command is operations else command


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_shell_commands_parse(page: Path) -> None:
    for script in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        done = subprocess.run(  # noqa: S603 - it only parses
            ["/bin/bash", "-n", "-c", script], capture_output=True, text=True, timeout=10, check=False
        )
        assert done.returncode == 0, done.stderr


@pages
def test_commands_and_options_of_operations_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", "")
    used = re.findall(r"(?:^|`|-m |\| )operations(?: --settings \S+)? ([a-z][^`\n|#]*)", text, re.MULTILINE)

    for line in used:
        words = line.split()
        command = command_of(words)
        assert command is not None, line
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/])((?:infrastructure|docs|shared|sandbox)/[\w./-]+\.\w+)", text):
        assert (ROOT / name).is_file(), name


@pages
def test_parameters_and_targets_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    main = (ROOT / "infrastructure" / "main.bicep").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    for name in re.findall(r"^param (\w+) = ", text, re.MULTILINE):
        assert f"\nparam {name} " in main, name
    for name in re.findall(r"properties\.outputs\.(\w+)\.value", text):
        assert f"\noutput {name} " in main, name
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def assigned_roles() -> set[str]:
    """Return the ids of the roles that main.bicep assigns in production."""
    snapshot = ROOT / "infrastructure" / "environments" / "prod.snapshot.json"
    return {
        each["properties"]["roleDefinitionId"].rsplit("/", 1)[-1]
        for each in json.loads(snapshot.read_bytes())["predictedResources"]
        if each["type"] == "Microsoft.Authorization/roleAssignments"
    }


def test_the_deploy_connection_may_assign_the_roles_of_the_template_and_no_other() -> None:
    (listed,) = re.findall(r"^roles='(.*)'$", DEPLOY, re.MULTILINE)

    assert set(listed.split(", ")) == assigned_roles()
    assert "PrincipalType] ForAnyOfAnyValues:StringEqualsIgnoreCase {'ServicePrincipal'}" in DEPLOY


def test_the_condition_has_the_form_that_azure_expects(tmp_path: Path) -> None:
    """The shell of the page builds it, for writing by what is requested and for deleting by what exists."""
    (function,) = re.findall(r"^limited\(\) \{.*?^\}", DEPLOY, re.MULTILINE | re.DOTALL)
    script = f"roles='ROLE'\n{function}\necho \"$(limited write Request) AND $(limited delete Resource)\""

    done = subprocess.run(  # noqa: S603 - a script of this project
        ["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=10, check=True
    )

    attribute = "Microsoft.Authorization/roleAssignments"
    parts = [
        f"((!(ActionMatches{{'{attribute}/{action}'}})) OR (@{of}[{attribute}:RoleDefinitionId]"
        f" ForAnyOfAnyValues:GuidEquals {{ROLE}} AND @{of}[{attribute}:PrincipalType]"
        f" ForAnyOfAnyValues:StringEqualsIgnoreCase {{'ServicePrincipal'}}))"
        for action, of in (("write", "Request"), ("delete", "Resource"))
    ]
    assert done.stdout.strip() == " AND ".join(parts)


def test_every_connection_of_the_pipeline_has_its_checks() -> None:
    (both,) = re.findall(r"^for connection in (.*); do$", DEPLOY, re.MULTILINE)

    assert both.split() == ["invoicing-dev-deploy", "invoicing-dev-read"]
    assert re.findall(r'^check (\S+) .*"name": "(\w+)"', DEPLOY, re.MULTILINE) == [
        ("invoicing-dev-deploy", "Approval"),
        ("invoicing-dev-deploy", "ExclusiveLock"),
    ]
    pipeline = (ROOT / "azure-pipelines.yml").read_text(encoding="utf-8")
    assert all(f"onnection: {name}\n" in pipeline for name in both.split())


def test_json_on_the_page_is_json() -> None:
    """What is passed to Azure DevOps, and the custom role with its variable filled in."""
    (branch,) = re.findall(r"^branch='(.*)'$", DEPLOY, re.MULTILINE)
    (role,) = re.findall(r"build/role.json <<END\n(.*?)\nEND", DEPLOY, re.DOTALL)

    assert json.loads(branch)["inputs"]["allowedBranches"] == "refs/heads/main"
    assert json.loads(role)["Actions"] == [
        "Microsoft.Resources/deployments/whatIf/action",
        "Microsoft.Web/sites/config/list/action",
    ]
    for text in re.findall(r"^check \S+ '(\{.*?\})'", DEPLOY, re.MULTILINE):
        json.loads(text)


def test_the_costs_add_up() -> None:
    """Each column of the table of costs is the sum of its rows; dev and test have no always-ready instance."""
    table = DEPLOY.split("## What it costs")[1].split("\n## ")[0]
    rows = [
        [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", table, re.MULTILINE)
    ][2:]
    costs = {row[0]: [int(cell) for cell in row[3:]] for row in rows}
    prod, without = costs.pop("prod"), costs.pop("dev or test**, without an always-ready instance")
    always_ready = costs["one always-ready instance (prod)"]

    assert prod == [sum(column) for column in zip(*costs.values(), strict=True)]
    assert without == [a - b for a, b in zip(prod, always_ready, strict=True)]


def test_the_threat_model_has_every_credential() -> None:
    table = SECURITY.split("## Threat model")[1].split("\n## ")[0]
    credentials = re.findall(r"^\| \*\*(.*?)\*\*", table, re.MULTILINE)

    assert credentials == [
        "the Send key",
        "the function's identity",
        "the deploy connection",
        "the read connection",
        "an operator's login",
        "a publisher's login",
        "writing app settings",
        "a consumer's login",
        "the logs",
    ]
