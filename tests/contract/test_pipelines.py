"""The pipelines against Azure Pipelines' published schema, and against what they start, use and refer to."""

from __future__ import annotations

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
import yaml
from repository import ROOT, command_of, install, options_of, run, syntax_error, text

from infrastructure import bicep, outputs, settings, verify
from operations.__main__ import operations

if TYPE_CHECKING:
    from collections.abc import Iterator

MAIN = ROOT / "azure-pipelines.yml"
FOLDER = ROOT / "infrastructure" / "pipelines"
PIPELINES = [MAIN, *sorted(FOLDER.rglob("*.yml"))]
ENVIRONMENT = FOLDER / "environment.yml"
BICEP = FOLDER / "steps" / "bicep.yml"

# Anything that is replaced in a script before a shell sees it: template expressions, and macros such as $(name).
REPLACED = re.compile(r"\$\{\{|\$\[|\$\([A-Za-z_][\w.]*\)")


@dataclass(frozen=True)
class Step:
    """A step with the job that it belongs to (empty in a template of steps)."""

    path: Path
    job: str
    content: dict[str, Any]

    @property
    def script(self) -> str:
        """What a shell runs."""
        return str(self.content.get("script") or self.inputs.get("inlineScript") or "")

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of a task."""
        given: dict[str, Any] = self.content.get("inputs", {})
        return given

    @property
    def connection(self) -> str | None:
        """The service connection that the step uses."""
        found: str | None = self.inputs.get("azureSubscription") or self.inputs.get("connectedServiceNameARM")
        return found

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path.name}: {self.content.get('displayName', self.content)}"


def document(path: Path) -> Any:  # noqa: ANN401 - of any shape
    """Return what a file contains."""
    return yaml.safe_load(text(path))


def steps_of(path: Path) -> list[Step]:
    """Return the steps anywhere in a file."""
    return list(_steps_below(path, document(path), ""))


def _steps_below(path: Path, node: object, job: str) -> Iterator[Step]:
    if isinstance(node, list):
        for each in node:
            yield from _steps_below(path, each, job)
    elif isinstance(node, dict):
        job = str(node.get("job") or node.get("deployment") or job)
        for name, each in node.items():
            steps = list(_unconditional(each)) if name == "steps" else []
            yield from (Step(path, job, step) for step in steps)
            if not steps:
                yield from _steps_below(path, each, job)


def _unconditional(steps: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the steps of a list, those of conditional insertions (${{ if … }}) included."""
    for step in steps:
        inserted = [each for name, each in step.items() if name.startswith("${{")]
        if not inserted:
            yield step
        for each in inserted:
            yield from _unconditional(each)


STEPS = [step for path in PIPELINES for step in steps_of(path)]
SCRIPTS = [step for step in STEPS if step.script]

scripts = pytest.mark.parametrize("step", SCRIPTS, ids=lambda step: step.name)


def step_called(name: str) -> Step:
    """Return the one step with a display name."""
    (found,) = [step for step in STEPS if step.content.get("displayName") == name]
    return found


def validate(*paths: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Validate files, of which the schema lacks one task's second version: its inputs are a part of the first's."""
    copies = []
    for number, path in enumerate(paths):
        known = text(path).replace("PublishCodeCoverageResults@2\n", "PublishCodeCoverageResults@1\n")
        tool = "codeCoverageTool: Cobertura\n          summaryFileLocation:"
        copies.append(folder / f"{number}-{path.name}")
        copies[-1].write_text(known.replace("summaryFileLocation:", tool), encoding="utf-8")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.azure-pipelines"]
    # The schema's patterns are for .NET; one of them is no valid Unicode pattern.
    command += ["--data-transform", "azure-pipelines", "--regex-variant", "nonunicode"]
    return subprocess.run(  # noqa: S603 - our own command, no shell
        [*command, *map(str, copies)], capture_output=True, text=True, timeout=110, check=False
    )


# Structure.


def test_all_of_them_are_valid(tmp_path: Path) -> None:
    done = validate(*PIPELINES, folder=tmp_path)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("isFlexConsumption: true", "isFlexConsumptionPlan: true"),
        ("task: AzureFunctionApp@2", "task: AzureFunctionApp@9"),
        ("environment: invoicing-", "enviroment: invoicing-"),
        ("runOnce:", "runTwice:"),
        ("lockBehavior: sequential", "lockBehavior: parallel"),
    ],
)
def test_the_validator_finds_slips(tmp_path: Path, right: str, wrong: str) -> None:
    original = text(ENVIRONMENT)
    assert right in original
    broken = tmp_path / "environment.yml"
    broken.write_text(original.replace(right, wrong), encoding="utf-8")

    assert validate(broken, folder=tmp_path).returncode == 1


def test_templates_exist_and_get_the_parameters_that_they_declare() -> None:
    used = 0
    for path in PIPELINES:
        for name, given in re.findall(
            r"- template: (\S+)\n(?:\s+parameters:\n((?:\s+\w+: .*\n?)+))?", text(path)
        ):
            declared = document(path.parent / name).get("parameters", [])
            names = set(re.findall(r"^\s+(\w+):", given, re.MULTILINE))
            assert names <= {each["name"] for each in declared}, name
            assert {each["name"] for each in declared if "default" not in each} <= names, name
            used += 1

    assert used > 10


def test_stages_wait_for_stages_that_exist() -> None:
    """`after` and `dependsOn`, with the templates' names filled in."""
    environments = re.findall(r"environment: (\w+)", text(MAIN))
    stages = {"check", "package"} | {
        f"{each}_{what}" for each in environments for what in ("preview", "deploy")
    }

    assert environments == ["dev", "test", "prod"]
    for names in re.findall(r"after: \[(.*)\]", text(MAIN)):
        assert set(names.split(", ")) <= stages


def test_every_environment_has_its_parameters_and_its_own_names() -> None:
    main = text(MAIN)
    environments = re.findall(r"environment: (\w+)", main)
    assert environments
    for environment in environments:
        assert (ROOT / "infrastructure" / "environments" / f"{environment}.bicepparam").is_file()
        assert f"deployConnection: invoicing-{environment}-deploy\n" in main
        assert f"readConnection: invoicing-{environment}-read\n" in main
        assert f"resourceGroup: rg-invoicing-{environment}\n" in main


def test_only_what_is_on_main_and_no_pull_request_is_deployed() -> None:
    stages = document(MAIN)["stages"]
    always = [each["stage"] for each in stages if "stage" in each]
    (condition,) = [key for each in stages for key in each if key.startswith("${{")]

    assert always == ["check", "package"]
    assert "eq(variables['Build.SourceBranch'], 'refs/heads/main')" in condition
    assert "ne(variables['Build.Reason'], 'PullRequest')" in condition


def test_tests_run_on_every_python_that_the_project_supports() -> None:
    job, _ = document(FOLDER / "check.yml")["jobs"]
    versions = sorted(each["python"] for each in job["strategy"]["matrix"].values())
    deployed = text("infrastructure/python-version.txt").strip()

    assert deployed in versions
    assert f'requires-python = ">={versions[0]}"' in text("pyproject.toml")
    assert f"\nVERSIONS ?= {' '.join(versions)}\n" in text("Makefile")


def test_results_of_tests_and_coverage_are_published() -> None:
    tasks = {step.content.get("task"): step for step in steps_of(FOLDER / "check.yml")}

    assert tasks["PublishTestResults@2"].inputs["testResultsFiles"] == "build/results/*.xml"
    # Also those of a run that failed.
    assert tasks["PublishTestResults@2"].content["condition"] == "succeededOrFailed()"
    assert "PublishCodeCoverageResults@2" in tasks


# Credentials.


def test_the_deploy_connection_is_used_by_the_deploy_job_only() -> None:
    """All other jobs have the right to read only."""
    used = {(step.path.name, step.job, step.connection) for step in STEPS if step.connection}

    assert used == {
        ("environment.yml", "what_if", "${{ parameters.readConnection }}"),
        ("environment.yml", "deploy", "${{ parameters.deployConnection }}"),
        ("environment.yml", "verify", "${{ parameters.readConnection }}"),
        ("reconcile.yml", "reconcile", "invoicing-prod-read"),
    }


def test_the_connections_of_a_template_are_of_their_kind() -> None:
    """The values are fixed, so that no caller passes a deploy connection where the template reads."""
    declared = {each["name"]: each.get("values") for each in document(ENVIRONMENT)["parameters"]}

    assert declared["deployConnection"] == [f"invoicing-{each}-deploy" for each in ("dev", "test", "prod")]
    assert declared["readConnection"] == [f"invoicing-{each}-read" for each in ("dev", "test", "prod")]


def test_the_deploy_job_runs_no_code_of_the_repository() -> None:
    """It deploys what was built before the approval; a checkout could contain more."""
    for job in ("deploy", "what_if"):
        checkouts = [
            step.content["checkout"]
            for step in steps_of(ENVIRONMENT)
            if step.job == job and "checkout" in step.content
        ]
        assert checkouts == ["none"]


def test_jobs_beside_a_login_install_no_development_packages() -> None:
    beside = {(step.path, step.job) for step in STEPS if step.connection}
    templates = {
        step.content["template"]
        for step in STEPS
        if (step.path, step.job) in beside and "template" in step.content
    }
    installed = {
        lock
        for step in STEPS
        if (step.path, step.job) in beside or f"steps/{step.path.name}" in templates
        for lock in re.findall(r"requirements[\w-]*\.txt", str(step.content))
    }

    assert templates == {"steps/azure-cli.yml", "steps/operations.yml", "steps/python.yml"}
    assert installed == {"requirements-azure.txt", "requirements-operations.txt"}
    assert all((ROOT / lock).is_file() for lock in installed)


def test_what_runs_beside_a_login_needs_the_requirements_of_operations_only() -> None:
    """Click is one of them; infrastructure needs nothing else."""
    for module in (settings, verify, outputs):
        tree = ast.parse(text(str(module.__file__)))
        imported = {
            (node.module or "").partition(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert imported - {each.partition(".")[0] for each in sys.stdlib_module_names} == {
            "click",
            "infrastructure",
        }


def test_there_are_no_secrets() -> None:
    for line in (line for path in PIPELINES for line in text(path).splitlines()):
        if not line.lstrip().startswith("#") and "There are no secrets" not in line:
            forbidden = r"(?i)secret|password|accountkey|addspntoenvironment|publishprofile"
            assert not re.search(forbidden, line)


# Scripts.


@scripts
def test_scripts_are_bash_that_parses_and_stops_at_a_failure(step: Step) -> None:
    assert syntax_error(step.script) == ""
    # Without it a failing command in the middle goes unnoticed.
    assert step.script.count("\n") < 2 or step.script.startswith("set -euo pipefail\n")


@scripts
def test_no_value_is_pasted_into_a_script(step: Step) -> None:
    """Values reach a shell through its environment: pasted, one that contains code would run."""
    assert REPLACED.findall(step.script) == []


@scripts
def test_every_variable_of_a_script_is_quoted(step: Step) -> None:
    """Outside of quotes a value is split into words and expanded."""
    assert [line for line in unquoted(step.script) if "$" in line] == []


def unquoted(script: str) -> Iterator[str]:
    """Yield what of a script's lines is outside of quotes; a command within $( ) is a line of its own."""
    lines = re.sub(r"'[^'\n]*'", "", script.replace("\\\n", " ")).splitlines()
    for line in lines:
        while found := re.search(r"\$\(([^()]*)\)", line):
            lines.append(found[1])
            line = line.replace(found[0], "")  # noqa: PLW2901 - the same line, without the command
        # A test between double brackets needs no quotes, and neither does an assignment.
        outside = re.sub(r"\[\[.*?\]\]", "", line)
        outside = re.sub(r'"[^"]*"', "", outside)
        yield re.sub(r"=\$\?$", "", outside)


@scripts
def test_every_variable_of_a_script_is_given(step: Step) -> None:
    """In `env`, in the script, or by the agent itself."""
    from_agent = {"AGENT_TEMPDIRECTORY", "BUILD_BUILDID", "PIPELINE_WORKSPACE"}
    given = {*step.content.get("env", {}), *re.findall(r"^\s*(\w+)=", step.script, re.MULTILINE)}
    used = set(re.findall(r"\$\{?([A-Za-z_]\w*)", re.sub(r"'[^']*'", "", step.script)))

    assert used <= given | from_agent


def test_there_are_no_scripts_of_another_kind() -> None:
    """The tests above read `script` and `inlineScript`: a step of another kind, or a file, would escape them."""
    kinds = {"task", "script", "template", "checkout", "download", "publish"}
    for step in STEPS:
        assert len(kinds & step.content.keys()) == 1, step.name
        assert not {"arguments", "scriptPath", "script", "filePath"} & step.inputs.keys(), step.name
    tasks = {step.content["task"] for step in STEPS if "task" in step.content}
    assert tasks == {
        "AzureCLI@2",
        "AzureFunctionApp@2",
        "Cache@2",
        "PublishCodeCoverageResults@2",
        "PublishTestResults@2",
        "UsePythonVersion@0",
    }


def test_the_guards_of_this_module_find_what_they_are_for() -> None:
    for bad in ("echo $A", 'echo "$A" $B', 'x="$(date --date=$A)"', 'x="$(f "$(g $A)" "$B")"'):
        assert [line for line in unquoted(bad) if "$" in line], bad
    for good in ('echo "$A"', 'x="$(date --date="$A days ago")"', "echo '$A'", "[[ $A == x ]]"):
        assert not [line for line in unquoted(good) if "$" in line], good
    assert REPLACED.findall("x ${{ parameters.days }}")
    assert REPLACED.findall("x $(Build.SourceBranchName)")
    assert not REPLACED.findall('x "$(cat file)" $NAME')


def test_parameters_of_people_are_typed_and_have_values() -> None:
    for path in PIPELINES:
        for parameter in document(path).get("parameters", []):
            assert parameter["type"] in {"string", "number", "object"}
            if path.parent == FOLDER and parameter["type"] != "object":
                assert parameter["values"], (path.name, parameter["name"])


# Beside a login, a command may print what others wrote: error texts, names of app settings, values in Azure.
FROM_OTHERS = [
    step
    for step in SCRIPTS
    if step.connection and re.search(r"-m (infrastructure|operations)|what-if", step.script)
]


@pytest.mark.parametrize("step", FROM_OTHERS, ids=lambda step: step.name)
@pytest.mark.parametrize("failing", ["", "infrastructure", "operations", "what-if"])
def test_output_of_others_cannot_command_the_agent(tmp_path: Path, step: Step, failing: str) -> None:
    """A line with ##vso[ sets variables of the job, for example what programs it finds first."""
    says = 'echo "found: ##vso[task.prependpath]/tmp/x"; echo "##[section]" >&2'
    fails = f'case "$*" in *{failing or "nothing"}*) exit 3;; esac'
    for name in ("bin/az", ".venv/bin/python"):
        install(tmp_path / name, f"{says}\n{fails}")

    done = run(
        step.script,
        tmp_path,
        **dict.fromkeys([*step.content["env"], "BUILD_BUILDID", "PIPELINE_WORKSPACE"], "7"),
    )

    assert "found: ## [task.prependpath]/tmp/x\n" in done.stdout
    assert "## [section]\n" in done.stdout
    assert "##vso[" not in done.stdout + done.stderr
    assert "##[" not in done.stdout + done.stderr
    # The exit code of the command survives the pipe.
    started = re.search(r"(-m |group )" + failing, step.script) if failing else None
    assert done.returncode == (3 if started else 0)


@pytest.mark.parametrize(
    "step",
    [step for step in SCRIPTS if step.connection and step not in FROM_OTHERS],
    ids=lambda step: step.name,
)
def test_errors_of_others_cannot_command_the_agent(tmp_path: Path, step: Step) -> None:
    """Where the output of a command is a value for the script, its error texts go to the log all the same."""
    install(
        tmp_path / "bin/az", 'echo "found: ##vso[task.prependpath]/tmp/x" >&2; echo "##[section]" >&2; exit 3'
    )

    done = run(step.script, tmp_path, **dict.fromkeys([*step.content["env"], "BUILD_BUILDID"], "7"))

    assert done.stderr == "found: ## [task.prependpath]/tmp/x\n## [section]\n"
    assert (done.stdout, done.returncode) == ("", 3)


def test_every_job_that_shows_what_others_wrote_is_among_them() -> None:
    assert {step.content["displayName"] for step in FROM_OTHERS} == {
        "az deployment group what-if",
        "The version of this run is the one that runs",
        "The diagnosis is green",
        "Wins without an invoice",
    }


def test_days_are_a_number(tmp_path: Path) -> None:
    script = step_called("Wins without an invoice").script
    install(tmp_path / ".venv/bin/python", f'echo "$@" >> {tmp_path}/called')

    assert run(script, tmp_path, DAYS="7").returncode == 0
    assert re.search(r"--since \d{4}-\d\d-\d\d$", (tmp_path / "called").read_text(), re.MULTILINE)
    assert run(script, tmp_path, DAYS="7; touch pwned").returncode == 1
    assert not (tmp_path / "pwned").exists()


# Two runs.


@pytest.mark.parametrize(
    ("deployed", "may_deploy"),
    [
        ("", True),
        ("invoicing-99", True),
        ("invoicing-100", True),
        ("invoicing-101", False),
        ("invoicing\ninvoicing-9\ninvoicing-1000\nserviceBus-abc\ninvoicing-x", False),
        ("invoicing\nserviceBus-4000\ninvoicing-20 extra", True),
    ],
)
def test_an_older_run_does_not_roll_back(tmp_path: Path, deployed: str, *, may_deploy: bool) -> None:
    """Run 100 compares itself with the runs that have deployed into the resource group."""
    install(tmp_path / "bin/az", f"cat <<'END'\n{deployed}\nEND")

    done = run(
        step_called("No newer run has deployed").script, tmp_path, RESOURCE_GROUP="rg", BUILD_BUILDID="100"
    )

    assert (done.returncode == 0) is may_deploy, done.stdout + done.stderr


def test_without_the_list_of_deployments_nothing_is_deployed(tmp_path: Path) -> None:
    install(tmp_path / "bin/az", "exit 1")

    done = run(
        step_called("No newer run has deployed").script, tmp_path, RESOURCE_GROUP="rg", BUILD_BUILDID="100"
    )

    assert done.returncode == 1


def test_runs_deploy_one_after_the_other_under_names_of_their_own() -> None:
    stages = document(ENVIRONMENT)["stages"]
    deploy = next(stage for stage in stages if stage["stage"].endswith("_deploy"))

    assert deploy["lockBehavior"] == "sequential"
    assert document(MAIN)["lockBehavior"] == "sequential"
    # The lock covers the verification, so that it sees the version of its own run.
    assert [job.get("deployment") or job.get("job") for job in deploy["jobs"]] == ["deploy", "verify"]
    for step in SCRIPTS:
        for name in re.findall(r"(?:--name|--deployment) (\S+)", step.script):
            assert name == '"invoicing-$BUILD_BUILDID"', step.name
    # Without a name, the newest deployment of any run would be verified.
    for step in steps_of(ENVIRONMENT):
        queries = re.findall(r"-m infrastructure\.\w+ .*", step.script.replace("\\\n", " "))
        assert all('--deployment "invoicing-$BUILD_BUILDID"' in each for each in queries), step.name


# What is deployed.


def test_everything_is_built_once() -> None:
    for built in ("make package", "make templates", "make sbom"):
        assert {step.path.name for step in SCRIPTS if built in step.script} == {"package.yml"}


def test_what_is_deployed_was_compiled_before_the_approval() -> None:
    for name in ("az deployment group what-if", "Infrastructure"):
        script = step_called(name).script
        assert '--template-file main.json --parameters "@$ENVIRONMENT_NAME.parameters.json"' in script
    assert not [step.name for step in steps_of(ENVIRONMENT) if ".bicep " in step.script]


def test_the_hash_of_the_package_travels_apart_from_it(tmp_path: Path) -> None:
    """The package job computes the hashes, the run carries them, and the deploy job compares: run as they stand."""
    build = tmp_path / "build"
    (build / "template").mkdir(parents=True)
    (build / "function.zip").write_bytes(b"the package")
    (build / "template/main.json").write_bytes(b"{}")
    (tmp_path / "requirements-azure.txt").write_bytes(b"azure-cli")
    computed = run(step_called("The hashes of what is deployed").script, tmp_path)
    hashes = dict(re.findall(r"variable=(\w+);isOutput=true;isReadOnly=true\](\w{64})", computed.stdout))
    comparison = step_called("Package and templates are the ones that were built")
    preview = step_called("The templates are the ones that were built")

    def compares() -> tuple[int, int]:
        given = {"TEMPLATES_SHA256": hashes["templates"], "PACKAGE_SHA256": hashes["package"]}
        return (
            run(comparison.script, build, **given).returncode,
            run(preview.script, build / "template", **given).returncode,
        )

    assert compares() == (0, 0)
    (build / "function.zip").write_bytes(b"another package")
    assert compares() == (1, 0)
    (build / "function.zip").write_bytes(b"the package")
    (build / "template/prod.parameters.json").write_bytes(b"one more")
    assert compares() == (1, 1)


def test_an_empty_hash_is_no_hash(tmp_path: Path) -> None:
    """What the run carries is empty where the name of a stage, job or step is wrong."""
    (tmp_path / "template").mkdir()
    script = step_called("Package and templates are the ones that were built").script

    assert run(script, tmp_path, TEMPLATES_SHA256="", PACKAGE_SHA256="").returncode == 1


def test_the_hashes_come_from_the_job_that_computes_them() -> None:
    (job,) = document(FOLDER / "package.yml")["jobs"]
    (step,) = [each for each in job["steps"] if each.get("name")]

    assert set(
        re.findall(r"stageDependencies\.(\w+)\.(\w+)\.outputs\['(\w+)\.(\w+)'\]", text(ENVIRONMENT))
    ) == {
        ("package", job["job"], step["name"], "package"),
        ("package", job["job"], step["name"], "templates"),
    }


def test_tools_are_pinned() -> None:
    """Bicep by version and hash, the Azure CLI by a lock file with hashes."""
    (install,) = steps_of(FOLDER / "steps" / "bicep.yml")
    lock = text("requirements-azure.txt")

    assert install.content["env"]["BICEP_VERSION"] == bicep.VERSION
    assert re.fullmatch(r"[0-9a-f]{64}", install.content["env"]["BICEP_SHA256"])
    assert re.search(r"^azure-cli==\d+\.\d+\.\d+ \\\n    --hash=sha256:", lock, re.MULTILINE)
    # What is not a wheel is built, with build tools that are not locked.
    for step in SCRIPTS:
        for options in re.findall(r"pip\"? install ([^\n]*(?:\\\n[^\n]*)*)", step.script):
            assert "--require-hashes --only-binary :all:" in options, step.name
    logins = {(step.path, step.job) for step in STEPS if step.content.get("task") == "AzureCLI@2"}
    for path, job in logins:
        assert [
            step
            for step in steps_of(path)
            if step.job == job and step.content.get("template") == "steps/azure-cli.yml"
        ]


def test_the_pinned_compiler_is_the_one_that_checks_here() -> None:
    compiler = bicep.Compiler.find()
    if compiler is None:
        pytest.skip(bicep.MISSING)

    assert compiler.version() == bicep.VERSION


def test_the_pages_say_which_compiler_the_hash_belongs_to() -> None:
    """It was not compared with the release. Once it was, remove what says so, and this test."""
    page = text("docs/deploy.md")

    assert f"https://github.com/Azure/bicep/releases/tag/v{bicep.VERSION}" in page
    for said in (page, text("SECURITY.md"), text(BICEP)):
        assert "not compared with" in " ".join(said.split())


def test_the_hash_of_the_compiler_is_that_of_the_one_that_checks_here(tmp_path: Path) -> None:
    """The step as it stands accepts the compiler of Linux, and refuses another file."""
    given = os.environ.get("BICEP") or shutil.which("bicep")
    if given is None:
        pytest.skip(bicep.MISSING)
    (step,) = steps_of(BICEP)
    install(tmp_path / "bin/curl", 'while [ "$1" != --output ]; do shift; done; cp "$DOWNLOADED" "$2"')

    def runs(file: Path) -> int:
        variables = {"AGENT_TEMPDIRECTORY": str(tmp_path), "DOWNLOADED": str(file), **step.content["env"]}
        return run(
            step.script, tmp_path, **{name: str(value) for name, value in variables.items()}
        ).returncode

    (tmp_path / "other").write_bytes(b"another compiler")
    assert runs(tmp_path / "other") == 1
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert runs(Path(given)) == 0


def test_make_targets_that_the_pipeline_calls_exist() -> None:
    makefile = text("Makefile")
    called = {target for step in SCRIPTS for target in re.findall(r"\bmake ([a-z-]+)", step.script)}

    assert called == {"check", "test", "package", "sbom", "scan", "templates"}
    for target in called:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_the_pipelines_start_exists_with_its_options() -> None:
    """Modules of this project, their commands, and every option that is given to them."""
    modules: dict[str, click.Command] = {
        "operations": operations,
        "infrastructure.outputs": outputs.main,
        "infrastructure.settings": settings.main,
        "infrastructure.verify": verify.main,
    }
    started = set()
    for step in SCRIPTS:
        # What other programs are given stands in quotes.
        script = step.script.replace("\\\n", " ").replace('"$(', "$(").replace(')"', ")")
        script = re.sub(r'"[^"\n]*"', "value", script)
        for name, line in re.findall(r"\.venv/bin/python -m (\S+) ([^|\n]*)", script):
            if name == "infrastructure.audit":
                continue
            command = command_of(line.split(), modules[name])
            assert not isinstance(command, click.Group), line
            options = {word for word in line.partition("$(")[0].split() if word.startswith("--")}
            assert options <= options_of(command) | options_of(modules[name]), line
            started.add(f"{name} {command.name}")

    assert started == {
        "infrastructure.outputs main",
        "infrastructure.settings main",
        "infrastructure.verify main",
        "operations doctor",
        "operations reconcile",
    }


def test_the_verification_requires_every_check_and_accepts_earlier_failures() -> None:
    diagnosis = step_called("The diagnosis is green").script

    assert "--fail-on cannot-see" in diagnosis
    assert "attention" not in diagnosis
