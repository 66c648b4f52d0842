"""Worker processes by themselves: what they see, how they respond, how they end."""

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import azure.functions
import pytest

from sandbox.functions_host.configuration import Settings
from sandbox.functions_host.functions import read_functions
from sandbox.functions_host.worker import read_frame, write_frame
from sandbox.functions_host.worker_pool import WorkerPool
from sandbox.functions_host.worker_process import (
    App,
    WorkerDied,
    WorkerProcess,
    declarations,
    protocol,
)
from tests.sandbox.conftest import wait_until
from tests.sandbox.functions_host.conftest import add_breakpoint

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    return folder


class _Runner:
    """Starts workers for an app and ends them all."""

    def __init__(self, app: Path, records: Path) -> None:
        self.settings = {"QUEUE": "q", "Bus": "Endpoint=sb://x", "RECORDS": str(records)}
        self.app = App(app, self.settings)
        self.functions = read_functions(declarations(self.app), Settings(self.settings))
        self._records = records
        self._started: list[WorkerProcess] = []

    def start(self) -> WorkerProcess:
        process = WorkerProcess(self.app, self.functions)
        self._started.append(process)
        process.initialize()
        return process

    def invoke(self, process: WorkerProcess, body: bytes = b"hello") -> Any:  # noqa: ANN401 - protobuf
        response = process.invoke(self.functions[0], request(body)).result(20)
        return response.invocation_response.result

    def record(self) -> dict[str, Any]:
        (path,) = self._records.glob("*.json")
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def stop(self) -> None:
        for process in self._started:
            process.stop()


@pytest.fixture
def runner(app: Path, records: Path) -> Iterator[_Runner]:
    running = _Runner(app, records)
    yield running
    running.stop()


def request(body: bytes, function_id: str = "record") -> object:
    messages = protocol()
    metadata = {
        "UserProperties": "{}",
        "DeliveryCount": "1",
        "EnqueuedTimeUtc": '"2026-01-02T03:04:05.12"',
        "ExpiresAtUtc": '"9999-12-31T23:59:59.9999999"',
    }
    return messages.InvocationRequest(
        invocation_id="an-invocation",
        function_id=function_id,
        input_data=[messages.ParameterBinding(name="message", data=messages.TypedData(bytes=body))],
        trigger_metadata={name: messages.TypedData(json=value) for name, value in metadata.items()},
    )


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_function_runs_and_succeeds(runner: _Runner) -> None:
    result = runner.invoke(runner.start())
    assert result.status == protocol().StatusResult.Success
    assert runner.record()["invocation"] == "an-invocation"


def test_the_function_sees_app_settings_and_nothing_of_the_sandbox(
    runner: _Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("SECRET_OF_THE_SANDBOX", "x")
    process = runner.start()
    runner.invoke(process)
    record = runner.record()
    allowed = {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "FUNCTIONS_WORKER_RUNTIME", "LC_CTYPE"}
    assert record["environment"].keys() - allowed == runner.settings.keys()
    assert str(REPOSITORY) not in record["path"]
    assert not [path for path in record["path"] if "functions_host" in path and "recorder" in path]


def test_the_apps_folder_comes_first(runner: _Runner, app: Path) -> None:
    runner.invoke(runner.start())
    assert runner.record()["path"][0] == str(app)


INSTALLED = Path(azure.functions.__file__).parents[2]


def give_packages(app: Path) -> Path:
    """Give an app what it needs itself; returns where."""
    packages = app / ".python_packages" / "lib" / "site-packages"
    for name in ("azure/functions", "werkzeug", "markupsafe"):
        shutil.copytree(INSTALLED / name, packages / name)
    return packages


def test_an_app_with_its_own_packages_sees_no_others(runner: _Runner, app: Path) -> None:
    """A package that the deployed zip lacks must be missing here as it would be in Azure."""
    packages = give_packages(app)
    function = app / "record" / "__init__.py"
    function.write_text(
        function.read_text()
        + "\n\nimport importlib.util\n"
        + "assert importlib.util.find_spec('pytest') is None\n"
        + "assert importlib.util.find_spec('requests') is None\n"
        + "assert importlib.util.find_spec('sandbox') is None\n"
    )
    assert runner.invoke(runner.start()).status == protocol().StatusResult.Success
    path = runner.record()["path"]
    assert path[:2] == [str(app), str(packages)]
    assert str(INSTALLED) not in path


V2_APP = """
import azure.functions as func

from record import main

app = func.FunctionApp()


@app.service_bus_queue_trigger(arg_name="message", connection="Bus", queue_name="q", data_type="BINARY")
def receive(message: func.ServiceBusMessage, context: func.Context) -> None:
    main(message, context)
"""


def test_a_v2_app_with_its_own_packages_sees_no_others(app: Path, records: Path) -> None:
    give_packages(app)
    (app / "function_app.py").write_text(V2_APP)
    running = _Runner(app, records)
    try:
        process = running.start()
        function_id = running.functions[0].declaration.function_id
        response = process.invoke(running.functions[0], request(b"x", function_id)).result(20)
        assert response.invocation_response.result.status == protocol().StatusResult.Success
        assert str(INSTALLED) not in running.record()["path"]
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("body", "message"),
    [(b'{"do": "fail"}', "ValueError: as requested"), (b'{"do": "return"}', "without a $return binding")],
)
def test_an_exception_and_a_return_value_fail_the_invocation(
    runner: _Runner, body: bytes, message: str
) -> None:
    result = runner.invoke(runner.start(), body)
    assert result.status == protocol().StatusResult.Failure
    assert message in result.exception.message


def test_several_invocations_run_at_once(runner: _Runner, records: Path) -> None:
    process = runner.start()
    waiting = [process.invoke(runner.functions[0], request(b'{"do": "wait", "for": "go"}')) for _ in range(3)]
    wait_until(lambda: len(list(records.glob("*.json"))) == 3)
    assert not any(response.done() for response in waiting)
    (records / "go").touch()
    for response in waiting:
        assert response.result(10).invocation_response.result.status == protocol().StatusResult.Success


def test_logs_and_prints_of_the_function_come_back(runner: _Runner, caplog: pytest.LogCaptureFixture) -> None:
    process = runner.start()
    with caplog.at_level("INFO"):
        runner.invoke(process)
        process.stop()
    logged = {(record.name, record.levelname, record.getMessage()) for record in caplog.records}
    assert ("Function.User.recorder", "WARNING", "recorded None") in logged
    assert ("Host.Function.Console", "INFO", "printed by the function") in logged


def test_a_death_ends_what_was_running(runner: _Runner) -> None:
    process = runner.start()
    waiting = process.invoke(runner.functions[0], request(b'{"do": "wait", "for": "never"}'))
    process.invoke(runner.functions[0], request(b'{"do": "die"}'))
    with pytest.raises(WorkerDied):
        waiting.result(10)
    assert process.wait(5)
    with pytest.raises(WorkerDied):
        process.invoke(runner.functions[0], request(b"too late")).result(1)


EXIT_HANDLER = """
import atexit
import os
import time
from pathlib import Path


def export_the_last_batch() -> None:
    Path(os.environ["RECORDS"], "exported").touch()
    time.sleep(float(os.environ["EXPORT_SECONDS"]))


atexit.register(export_the_last_batch)
"""


@pytest.mark.parametrize("seconds", ["0", "600"])
def test_the_end_of_a_worker_runs_its_exit_handlers_within_a_bound(
    runner: _Runner, app: Path, records: Path, seconds: str
) -> None:
    """Exporters of telemetry send their last batch there, even while a function still runs."""
    function = app / "record" / "__init__.py"
    function.write_text(function.read_text() + EXIT_HANDLER)
    runner.settings["EXPORT_SECONDS"] = seconds
    process = runner.start()
    process.invoke(runner.functions[0], request(b'{"do": "wait", "for": "never"}'))
    started = time.monotonic()
    process.stop()
    assert not is_running(process.pid)
    assert (records / "exported").exists()
    assert time.monotonic() - started < 20


def test_a_breakpoint_without_a_debugger_is_ignored(
    runner: _Runner, app: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_breakpoint(app)
    process = runner.start()
    with caplog.at_level("INFO"):
        assert runner.invoke(process).status == protocol().StatusResult.Success
        process.stop()
    assert "no debugger is attached" in caplog.text


def test_a_worker_that_cannot_even_start_says_why(app: Path, runner: _Runner) -> None:
    (app / ".python_packages" / "lib" / "site-packages").mkdir(parents=True)
    pool = WorkerPool(1, runner.app, runner.functions)
    with pytest.raises(WorkerDied, match=r"No module named 'azure"):
        pool.start()
    assert pool.pids == ()


def test_a_pool_takes_turns_and_replaces_the_dead(runner: _Runner) -> None:
    pool = WorkerPool(2, runner.app, runner.functions)
    pool.start()
    try:
        first = pool.take_turn(10)
        assert first is not None
        first.kill()
        assert first.wait(5)
        assert pool.take_turn(1) is not first
        wait_until(lambda: first.pid not in pool.pids and len(pool.pids) == 2)
        pids = set(pool.pids)
        assert {turn.pid for turn in (pool.take_turn(1), pool.take_turn(1)) if turn} == pids
    finally:
        pool.stop()
    assert not any(is_running(pid) for pid in pids)


def test_a_frame_that_is_cut_is_the_end() -> None:
    stream = io.BytesIO()
    write_frame(stream, b"whole")
    assert read_frame(io.BytesIO(stream.getvalue())) == b"whole"
    assert read_frame(io.BytesIO(stream.getvalue()[:-1])) is None
    assert read_frame(io.BytesIO(stream.getvalue()[:2])) is None
