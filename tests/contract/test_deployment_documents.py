"""What the pages about deploying and operating name: commands, parameters, files and places."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import click
import pytest
from repository import command_of, install, options_of, run, section, syntax_error, text

from operations.__main__ import operations
from operations.doctor import CHECKS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

DEPLOY, RUNBOOK, SECURITY = (text(page) for page in ("docs/deploy.md", "docs/operate.md", "SECURITY.md"))

pages = pytest.mark.parametrize(
    "page", [DEPLOY, RUNBOOK, SECURITY], ids=["deploy.md", "operate.md", "SECURITY.md"]
)


def shell_blocks(page: str) -> list[str]:
    """Return the scripts of a page."""
    return re.findall(r"```(?:sh|bash)\n(.*?)```", page, re.DOTALL)


@pages
def test_shell_commands_parse(page: str) -> None:
    assert [error for script in shell_blocks(page) if (error := syntax_error(script))] == []


@pages
def test_commands_and_options_of_operations_exist(page: str) -> None:
    command_line = r"(?:^|`|-m |\| )operations(?: --settings \S+)? ([a-z][^`\n|#]*)"
    for line in re.findall(command_line, page.replace("\\\n", ""), re.MULTILINE):
        words = line.split()
        command = command_of(words)
        assert command is not operations, line
        assert {word for word in words if word.startswith("--")} <= options_of(command), line


def commands_of(group: click.Group, *names: str) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of every command of a group, and its options."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, *names, name)
        else:
            yield " ".join((*names, name)), options_of(command)


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
def test_parameters_and_targets_that_are_named_exist(page: str) -> None:
    main, makefile = text("infrastructure/main.bicep"), text("Makefile")

    for name in re.findall(r"^param (\w+) = ", page, re.MULTILINE):
        assert f"\nparam {name} " in main, name
    for name in re.findall(r"properties\.outputs\.(\w+)\.value", page):
        assert f"\noutput {name} " in main, name
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", page, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# A key goes from az to `operations connect` through a pipe.
PIPES = [
    script
    for page in (DEPLOY, RUNBOOK, SECURITY)
    for script in shell_blocks(page)
    if "--sas-key-stdin" in script
]
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG="

pipes = pytest.mark.parametrize("script", PIPES, ids=["first connection", "rotation"])


def run_pipe(script: str, folder: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script of a page, with programs of ours in the place of az and Python.

    Each records its arguments in `called`. `az` lists the key and ends with 0, or ends with another code; Python
    records its standard input, and always succeeds.
    """
    programs = {
        "bin/az": f'case "$*" in *renew*) exit 0;; esac; test {code} -ne 0 || echo {KEY}; exit {code}',
        "bin/operations": "exit 0",
        ".venv/bin/python": f"cat >> {folder}/stdin",
        ".venv-operations/bin/python": f"cat >> {folder}/stdin",
    }
    for name, does in programs.items():
        install(folder / name, f'echo "$(basename "$0") $*" >> {folder}/called\n{does}')
    return run(script, folder)


@pipes
def test_a_key_reaches_the_command_through_the_pipe_only(tmp_path: Path, script: str) -> None:
    done = run_pipe(f"output() {{ echo value; }}\n{script}", tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "stdin").read_text(encoding="utf-8") == f"{KEY}\n"
    called = (tmp_path / "called").read_text(encoding="utf-8")
    assert KEY not in called
    assert " connect --application-id " in called


@pipes
def test_the_pipe_fails_when_its_first_part_fails(tmp_path: Path, script: str) -> None:
    """Otherwise no new key is stored, and the next step of the rotation still renews the key in use."""
    (block,) = re.findall(r"^\(\n.*?^\)\n", script, re.DOTALL | re.MULTILINE)
    functions = "".join(re.findall(r"^\w+\(\) \{\n.*?^\}\n", script, re.DOTALL | re.MULTILINE))

    for code in (0, 1):
        done = run_pipe(f"output() {{ echo value; }}\n{functions}{block}", tmp_path, code)
        assert done.returncode == code


def test_the_last_step_of_a_rotation_works_in_the_same_shell(tmp_path: Path) -> None:
    (renew,) = re.findall(r"`(keys renew --key PrimaryKey [^`]*)`", RUNBOOK)
    (rotation,) = [script for script in PIPES if "keys renew" in script]

    done = run_pipe(f"{rotation}\n{renew}", tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    renewed = re.findall(r"renew.* --key (\w+)", (tmp_path / "called").read_text(encoding="utf-8"))
    assert renewed == ["SecondaryKey", "PrimaryKey"]


def test_the_diagnosis_on_the_page_has_every_check_in_its_order() -> None:
    (shown,) = re.findall(r"^Check +State.*?^```", DEPLOY, re.DOTALL | re.MULTILINE)
    checks = [check.name for check in CHECKS]

    assert re.findall(r"^(\S.*?) {2,}ok  ", shown, re.MULTILINE) == checks
    assert f"\n{len(checks)} ok\n" in shown


def test_the_condition_has_the_form_that_azure_expects(tmp_path: Path) -> None:
    """The shell of the page builds it, for writing by what is requested and for deleting by what exists."""
    (function,) = re.findall(r"^limited\(\) \{.*?^\}", DEPLOY, re.MULTILINE | re.DOTALL)
    (condition,) = re.findall(r'--condition (".*")$', DEPLOY, re.MULTILINE)
    script = f"roles='ROLE'\n{function}\necho {condition}"

    attribute = "Microsoft.Authorization/roleAssignments"
    parts = [
        f"((!(ActionMatches{{'{attribute}/{action}'}})) OR (@{of}[{attribute}:RoleDefinitionId]"
        f" ForAnyOfAnyValues:GuidEquals {{ROLE}} AND @{of}[{attribute}:PrincipalType]"
        f" ForAnyOfAnyValues:StringEqualsIgnoreCase {{'ServicePrincipal'}}))"
        for action, of in (("write", "Request"), ("delete", "Resource"))
    ]
    assert run(script, tmp_path).stdout.strip() == " AND ".join(parts)


def test_every_connection_of_the_pipeline_has_its_checks() -> None:
    (both,) = re.findall(r"^for connection in (.*); do$", DEPLOY, re.MULTILINE)

    assert both.split() == ["invoicing-dev-deploy", "invoicing-dev-read"]
    assert re.findall(r'^check (\S+) .*"name": "(\w+)"', DEPLOY, re.MULTILINE) == [
        ("invoicing-dev-deploy", "Approval"),
        ("invoicing-dev-deploy", "ExclusiveLock"),
    ]
    assert all(f"onnection: {name}\n" in text("azure-pipelines.yml") for name in both.split())


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
    for inputs in re.findall(r"^check \S+ '(\{.*?\})'", DEPLOY, re.MULTILINE):
        json.loads(inputs)


def test_the_costs_add_up() -> None:
    """Each column of the table of costs is the sum of its rows; dev and test have no always-ready instance."""
    table = section(DEPLOY, "What it costs")
    rows = [
        [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", table, re.MULTILINE)
    ][2:]
    costs = {row[0]: [int(cell) for cell in row[3:]] for row in rows}
    prod, without = costs.pop("prod"), costs.pop("dev or test**, without an always-ready instance")
    always_ready = costs["one always-ready instance (prod)"]

    assert prod == [sum(column) for column in zip(*costs.values(), strict=True)]
    assert without == [a - b for a, b in zip(prod, always_ready, strict=True)]


def test_every_price_is_called_an_assumption() -> None:
    tables = [section(DEPLOY, title) for title in ("What it costs", "Private networking")]

    for table in tables:
        (header,) = re.findall(r"^\|.*\|\n\|-", table, re.MULTILINE)
        assert re.search(r"(price|cost) \(assumption\)", header)
    elsewhere = re.sub(r"^\|.*\|$", "", "".join(tables), flags=re.MULTILINE)
    assert "$" not in elsewhere


def test_the_threat_model_has_every_credential() -> None:
    credentials = re.findall(r"^\| \*\*(.*?)\*\*", section(SECURITY, "Threat model"), re.MULTILINE)

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
