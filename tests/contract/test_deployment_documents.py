"""What the pages about deploying and operating name: commands, parameters, files and places."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from operations.__main__ import operations
from operations.doctor import CHECKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def shell_blocks(page: Path) -> list[str]:
    """Return the scripts of a page."""
    return re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pages
def test_shell_commands_parse(page: Path) -> None:
    for script in shell_blocks(page):
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


def commands_of(group: click.Group, *names: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of every command of a group, and its options."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, *names, name)
        else:
            options = {option for parameter in command.params for option in parameter.opts}
            yield " ".join((*names, name)), options


def test_the_runbook_says_which_commands_ask_and_which_print_json() -> None:
    """A command that is added has to be classified here, and where it is an exception, in the runbook."""
    every = dict(commands_of(operations))
    asks = {name for name, options in every.items() if "--yes" in options}
    without_json = {name for name, options in every.items() if "--json" not in options}
    (sentence,) = re.findall(r"^\* (Every command takes .*?)\n\n", RUNBOOK, re.DOTALL | re.MULTILINE)

    assert asks == {
        *("connect", "disconnect", "doctor", "opportunity", "reconcile"),
        *("failed discard", "failed replay", "waiting retry-now"),
    }
    assert every.keys() - asks == {
        *("dashboard", "events resend", "failed export", "failed list", "failed show"),
        *("waiting list", "waiting show"),
    }
    assert without_json == set(re.findall(r"`([a-z ]+)`", sentence.partition(".")[0]))
    assert "except `events resend` and a replay or retry of one message" in " ".join(sentence.split())


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


RUNBOOK = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
# A key goes from az to `operations connect` through a pipe.
PIPES = [script for page in PAGES for script in shell_blocks(page) if "--sas-key-stdin" in script]
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG="

pipes = pytest.mark.parametrize("script", PIPES, ids=["first connection", "rotation"])


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script of a page, with programs of ours in the place of az and Python.

    Each records its arguments in `called`. `az` lists the key and ends with 0, or ends with another code; Python
    records its standard input, and always succeeds.
    """

    def run(script: str, code: int) -> subprocess.CompletedProcess[str]:
        recorded = f'echo "$(basename "$0") $*" >> {tmp_path}/called'
        programs = {
            "bin/az": f'case "$*" in *renew*) exit 0;; esac; test {code} -ne 0 || echo {KEY}; exit {code}',
            "bin/operations": "exit 0",
            ".venv/bin/python": f"cat >> {tmp_path}/stdin",
            ".venv-operations/bin/python": f"cat >> {tmp_path}/stdin",
        }
        for name, does in programs.items():
            program = tmp_path / name
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f"#!/bin/sh\n{recorded}\n{does}\n", encoding="utf-8")
            program.chmod(0o755)
        return subprocess.run(  # noqa: S603 - a script of this project
            ["/bin/bash", "-c", script],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


@pipes
def test_a_key_reaches_the_command_through_the_pipe_only(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, script: str
) -> None:
    done = shell(f"output() {{ echo value; }}\n{script}", 0)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "stdin").read_text(encoding="utf-8") == f"{KEY}\n"
    called = (tmp_path / "called").read_text(encoding="utf-8")
    assert KEY not in called
    assert " connect --application-id " in called


@pipes
def test_the_pipe_fails_when_its_first_part_fails(
    shell: Callable[..., subprocess.CompletedProcess[str]], script: str
) -> None:
    """Otherwise no new key is stored, and the next step of the rotation still renews the key in use."""
    (block,) = re.findall(r"^\(\n.*?^\)\n", script, re.DOTALL | re.MULTILINE)
    functions = "".join(re.findall(r"^\w+\(\) \{\n.*?^\}\n", script, re.DOTALL | re.MULTILINE))

    assert shell(f"output() {{ echo value; }}\n{functions}{block}", 0).returncode == 0
    assert shell(f"output() {{ echo value; }}\n{functions}{block}", 1).returncode == 1


def test_the_last_step_of_a_rotation_works_in_the_same_shell(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (renew,) = re.findall(r"`(keys renew --key PrimaryKey [^`]*)`", RUNBOOK)
    (rotation,) = [script for script in PIPES if "keys renew" in script]

    done = shell(f"{rotation}\n{renew}", 0)

    assert (done.returncode, done.stderr) == (0, "")
    renewed = re.findall(r"renew.* --key (\w+)", (tmp_path / "called").read_text(encoding="utf-8"))
    assert renewed == ["SecondaryKey", "PrimaryKey"]


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


def test_the_diagnosis_on_the_page_has_every_check_in_its_order() -> None:
    (shown,) = re.findall(r"^Check +State.*?^```", DEPLOY, re.DOTALL | re.MULTILINE)
    checks = [check.name for check in CHECKS]

    assert re.findall(r"^(\S.*?) {2,}ok  ", shown, re.MULTILINE) == checks
    assert f"\n{len(checks)} ok\n" in shown


def test_the_deploy_connection_may_assign_the_roles_of_the_template_and_no_other() -> None:
    (listed,) = re.findall(r"^roles='(.*)'$", DEPLOY, re.MULTILINE)

    assert set(listed.split(", ")) == assigned_roles()
    assert "PrincipalType] ForAnyOfAnyValues:StringEqualsIgnoreCase {'ServicePrincipal'}" in DEPLOY


def test_the_condition_has_the_form_that_azure_expects(tmp_path: Path) -> None:
    """The shell of the page builds it, for writing by what is requested and for deleting by what exists."""
    (function,) = re.findall(r"^limited\(\) \{.*?^\}", DEPLOY, re.MULTILINE | re.DOTALL)
    (condition,) = re.findall(r'--condition (".*")$', DEPLOY, re.MULTILINE)
    script = f"roles='ROLE'\n{function}\necho {condition}"

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
    # Who may assign roles in the first group could otherwise widen the role.
    assert json.loads(role)["AssignableScopes"] == ["$group", "$pipeline"]
    assert re.search(r'^pipeline="\$\(az group show --name rg-invoicing-pipeline ', DEPLOY, re.MULTILINE)
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


def test_the_costs_count_the_alerts_that_are_deployed() -> None:
    snapshot = json.loads((ROOT / "infrastructure/environments/prod.snapshot.json").read_bytes())
    kinds = [each["type"] for each in snapshot["predictedResources"]]

    assert f"| {kinds.count('Microsoft.Insights/metricAlerts')} metric alerts |" in DEPLOY
    assert (
        f"| {kinds.count('Microsoft.Insights/scheduledQueryRules')} log alerts, every 5 minutes |" in DEPLOY
    )


def test_every_price_is_called_an_assumption() -> None:
    tables = [
        DEPLOY.split(f"## {title}")[1].split("\n## ")[0] for title in ("What it costs", "Private networking")
    ]

    for table in tables:
        (header,) = re.findall(r"^\|.*\|\n\|-", table, re.MULTILINE)
        assert re.search(r"(price|cost) \(assumption\)", header)
    elsewhere = re.sub(r"^\|.*\|$", "", "".join(tables), flags=re.MULTILINE)
    assert "$" not in elsewhere


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
