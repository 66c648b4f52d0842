"""The pipelines against Azure Pipelines' published schema, and against what they start and refer to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from infrastructure import settings, verify
from operations.__main__ import operations

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "azure-pipelines.yml"
TEMPLATES = sorted((ROOT / "infrastructure" / "pipelines").glob("*.yml"))
PIPELINES = [MAIN, *TEMPLATES]


def validate(*paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.azure-pipelines"]
    # The schema's patterns are for .NET; one of them is no valid Unicode pattern.
    command += ["--data-transform", "azure-pipelines", "--regex-variant", "nonunicode"]
    return subprocess.run(  # noqa: S603 - our own command, no shell
        [*command, *map(str, paths)], capture_output=True, text=True, timeout=60, check=False
    )


def steps_of(path: Path) -> list[dict[str, Any]]:
    """Return the steps anywhere in a file."""

    def walk(node: object) -> list[dict[str, Any]]:
        if isinstance(node, list):
            return [step for each in node for step in walk(each)]
        if not isinstance(node, dict):
            return []
        found = [step for each in node.values() for step in walk(each)]
        return [*found, *(step for step in node.get("steps", []) if isinstance(step, dict))]

    return walk(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_all_of_them_are_valid() -> None:
    done = validate(*PIPELINES)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("isFlexConsumption: true", "isFlexConsumptionPlan: true"),
        ("task: AzureFunctionApp@2", "task: AzureFunctionApp@9"),
        ("environment: invoicing-", "enviroment: invoicing-"),
        ("runOnce:", "runTwice:"),
    ],
)
def test_the_validator_finds_slips(tmp_path: Path, right: str, wrong: str) -> None:
    original = (ROOT / "infrastructure/pipelines/environment.yml").read_text(encoding="utf-8")
    assert right in original
    broken = tmp_path / "environment.yml"
    broken.write_text(original.replace(right, wrong), encoding="utf-8")

    assert validate(broken).returncode == 1


def test_templates_are_there_and_get_the_parameters_that_they_declare() -> None:
    used = re.findall(
        r"- template: (\S+)\n(?:\s+parameters:\n((?:\s+\w+: .*\n?)+))?", MAIN.read_text(encoding="utf-8")
    )

    assert len(used) == 5
    for name, given in used:
        declared = yaml.safe_load((ROOT / name).read_text(encoding="utf-8")).get("parameters", [])
        assert set(re.findall(r"^\s+(\w+):", given, re.MULTILINE)) == {each["name"] for each in declared}, (
            name
        )


def test_stages_wait_for_stages_that_exist() -> None:
    """`after` and `dependsOn`, with the templates' names filled in."""
    text = MAIN.read_text(encoding="utf-8")
    environments = re.findall(r"environment: (\w+)", text)
    stages = {"check", "package"} | {
        f"{each}_{what}" for each in environments for what in ("preview", "deploy", "verify")
    }

    assert environments == ["dev", "test", "prod"]
    for names in re.findall(r"after: \[(.*)\]", text):
        assert set(names.split(", ")) <= stages


def test_every_environment_has_its_parameters() -> None:
    for environment in re.findall(r"environment: (\w+)", MAIN.read_text(encoding="utf-8")):
        assert (ROOT / "infrastructure" / "environments" / f"{environment}.bicepparam").is_file()


def test_only_what_is_on_main_and_no_pull_request_is_deployed() -> None:
    stages = yaml.safe_load(MAIN.read_text(encoding="utf-8"))["stages"]
    always = [each["stage"] for each in stages if "stage" in each]
    (condition,) = [key for each in stages for key in each if key.startswith("${{")]

    assert always == ["check", "package"]
    assert "eq(variables['Build.SourceBranch'], 'refs/heads/main')" in condition
    assert "ne(variables['Build.Reason'], 'PullRequest')" in condition


def test_tests_run_on_every_python_that_the_project_supports() -> None:
    (job,) = yaml.safe_load((ROOT / "infrastructure/pipelines/check.yml").read_text(encoding="utf-8"))["jobs"]
    versions = sorted(each["python"] for each in job["strategy"]["matrix"].values())
    deployed = (ROOT / "infrastructure/python-version.txt").read_text(encoding="ascii").strip()

    assert deployed in versions
    assert f'requires-python = ">={versions[0]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f"\nVERSIONS ?= {' '.join(versions)}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_package_is_built_once_and_deployed_by_its_hash() -> None:
    building = [
        path.name
        for path in PIPELINES
        for step in steps_of(path)
        if "make package" in str(step.get("script"))
    ]
    scripts = [
        str(step.get("script")) for step in steps_of(ROOT / "infrastructure/pipelines/environment.yml")
    ]

    assert building == ["package.yml"]
    assert "sha256sum --check function.zip.sha256" in scripts


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_scripts_are_bash_that_parses(path: Path) -> None:
    for step in steps_of(path):
        script = str(step.get("script") or step.get("inputs", {}).get("inlineScript") or "")
        script = re.sub(r"\$\{\{.*?\}\}", "value", script)
        done = subprocess.run(  # noqa: S603 - it only parses
            ["/bin/bash", "-n", "-c", script],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # Without it a failing command in the middle goes unnoticed.
        assert script.count("\n") < 2 or script.startswith("set -euo pipefail") or "exit 1" in script


def test_make_targets_that_the_pipeline_calls_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = {
        target
        for path in PIPELINES
        for step in steps_of(path)
        for target in re.findall(r"\bmake ([a-z-]+)", str(step.get("script")))
    }

    assert called == {"check", "test", "package"}
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_the_pipelines_start_exists_with_its_options() -> None:
    """Modules of this project, their commands, and every option that is given to them."""
    modules: dict[str, click.Command] = {
        "operations": operations,
        "infrastructure.settings": settings.main,
        "infrastructure.verify": verify.main,
    }
    started = set()
    for path in PIPELINES:
        for step in steps_of(path):
            script = str(step.get("inputs", {}).get("inlineScript")).replace("\\\n", " ")
            # What other programs are given stands in quotes.
            script = re.sub(r'"[^"]*"', "value", script)
            for name, line in re.findall(r"python -m (\S+) (.*)", script):
                command, known = modules[name], {"--settings"} if name == "operations" else set()
                for word in line.split():
                    if isinstance(command, click.Group):
                        command = command.commands.get(word, command)
                known |= {option for parameter in command.params for option in parameter.opts}
                assert not isinstance(command, click.Group), line
                assert {word for word in line.split() if word.startswith("--")} <= known, line
                started.add(f"{name} {command.name}")

    assert started == {
        "infrastructure.settings main",
        "infrastructure.verify main",
        "operations doctor",
        "operations reconcile",
    }


def test_the_verification_wants_to_see_every_link_and_minds_nothing_that_was_left_over() -> None:
    (diagnosis,) = [
        str(step["inputs"]["inlineScript"])
        for step in steps_of(ROOT / "infrastructure/pipelines/environment.yml")
        if " doctor " in str(step.get("inputs", {}).get("inlineScript"))
    ]

    assert "--fail-on cannot-see" in diagnosis
    assert "attention" not in diagnosis


def test_there_are_no_secrets() -> None:
    for path in PIPELINES:
        for forbidden in ("secret", "password", "accountkey", "addspntoenvironment", "publishprofile"):
            lines = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if not line.lstrip().startswith("#")
            ]
            assert forbidden not in "\n".join(lines).lower(), path.name
