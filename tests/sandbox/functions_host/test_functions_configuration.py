import json
from datetime import timedelta
from pathlib import Path

import pytest

from sandbox.functions_host.configuration import (
    ConnectionString,
    HostConfiguration,
    IdentityConnection,
    InvalidAppConfiguration,
    Settings,
    read_host,
)
from sandbox.functions_host.functions import (
    DataType,
    Function,
    Model,
    Source,
    connection_names,
    declarations_of_v1,
    read_functions,
)
from tests.sandbox.functions_host.conftest import change_binding

SETTINGS = {"QUEUE": "opportunity-won", "Bus": "Endpoint=sb://127.0.0.1"}


def write_host(app: Path, service_bus: dict[str, object], **rest: object) -> None:
    content = {"version": "2.0", "extensions": {"serviceBus": service_bus}} | rest
    (app / "host.json").write_text(json.dumps(content))


def function(app: Path, **settings: str) -> Function:
    (found,) = read_functions(declarations_of_v1(app), Settings(SETTINGS | settings))
    return found


def host(app: Path, **settings: str) -> HostConfiguration:
    return read_host(app, Settings(settings))


def test_host_json_is_read_with_comments(app: Path) -> None:
    assert host(app) == HostConfiguration(timedelta(seconds=20), 3, timedelta(minutes=5), 1)


def test_app_settings_override_host_json_in_any_case(app: Path) -> None:
    overridden = host(
        app,
        AzureFunctionsJobHost__functionTimeout="00:01:30.500",
        azurefunctionsjobhost__extensions__servicebus__MAXCONCURRENTCALLS="7",
        FUNCTIONS_WORKER_PROCESS_COUNT="4",
    )
    assert overridden == HostConfiguration(timedelta(seconds=90.5), 7, timedelta(minutes=5), 4)


def test_defaults_are_azures(app: Path) -> None:
    (app / "host.json").write_text('{"version": "2.0"}')
    read = host(app)
    assert (read.function_timeout, read.max_auto_lock_renewal) == (
        timedelta(minutes=30),
        timedelta(minutes=5),
    )
    assert read.max_concurrent_calls % 16 == 0


def test_function_timeout_may_be_unlimited_and_days_are_understood(app: Path) -> None:
    write_host(app, {"maxAutoLockRenewalDuration": "1.02:03:04"}, functionTimeout="-1")
    assert host(app).function_timeout is None
    assert host(app).max_auto_lock_renewal == timedelta(days=1, hours=2, minutes=3, seconds=4)


@pytest.mark.parametrize(
    ("service_bus", "message"),
    [
        ({"maxConcurentCalls": 4}, "has no setting 'maxconcurentcalls'"),
        ({"maxConcurrentCalls": 0}, "maxConcurrentCalls must be"),
        ({"maxConcurrentCalls": "many"}, "maxConcurrentCalls must be a whole number"),
        ({"maxAutoLockRenewalDuration": "5 minutes"}, "maxAutoLockRenewalDuration must look like hh:mm:ss"),
        ({"autoCompleteMessages": False}, "autoCompleteMessages must stay on"),
        ({"enableCrossEntityTransactions": True}, "enableCrossEntityTransactions is not supported"),
        ({"transportType": "amqpWebSockets"}, "transportType must be amqpTcp"),
    ],
)
def test_host_json_is_refused_by_name(app: Path, service_bus: dict[str, object], message: str) -> None:
    write_host(app, service_bus)
    with pytest.raises(InvalidAppConfiguration, match=message):
        host(app)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"host\.json is missing"),
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", '"version": "2.0"'),
    ],
)
def test_a_missing_or_broken_host_json_is_refused(app: Path, text: str | None, message: str) -> None:
    (app / "host.json").unlink()
    if text is not None:
        (app / "host.json").write_text(text)
    with pytest.raises(InvalidAppConfiguration, match=message):
        host(app)


def test_client_retry_options_are_accepted_and_have_no_effect(app: Path) -> None:
    write_host(app, {"clientRetryOptions": {"mode": "exponential", "maxRetries": 3}, "prefetchCount": 0})
    host(app)


def test_function_json_is_read(app: Path) -> None:
    change_binding(app, name="won")
    read = function(app)
    declared = read.declaration
    assert (read.name, declared.function_id, declared.entry_point) == ("record", "record", "main")
    assert not read.disabled
    assert (read.trigger.parameter, read.trigger.source) == ("won", Source("opportunity-won"))
    assert read.trigger.data_type is DataType.BINARY
    assert declared.script_file == (app / "record" / "__init__.py").resolve()


def test_the_queues_name_may_be_part_of_a_setting(app: Path) -> None:
    change_binding(app, queueName="pre-%queue%-post")
    assert function(app).trigger.source == Source("pre-opportunity-won-post")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "queueTrigger"}, "exactly one binding, a serviceBusTrigger"),
        ({"queueName": ""}, "a queueName, or a topicName and a subscriptionName"),
        ({"topicName": "t", "subscriptionName": "s"}, "a queueName, or a topicName and a subscriptionName"),
        ({"name": ""}, "name is missing"),
        ({"queueName": "%OTHER%"}, "%OTHER%.* does not resolve to a value"),
        ({"dataType": "stream"}, "dataType must be 'binary' or 'string' here, not 'stream'"),
        ({"cardinality": "many"}, "cardinality must be 'one'"),
        ({"isSessionsEnabled": True}, "sessions"),
        ({"autoComplete": False}, "autoComplete must stay on"),
        ({"direction": "out"}, "direction"),
        ({"connection": "Elsewhere"}, "neither Elsewhere"),
    ],
)
def test_what_the_host_does_not_do_is_refused_by_name(
    app: Path, changes: dict[str, object], message: str
) -> None:
    change_binding(app, **changes)
    with pytest.raises(InvalidAppConfiguration, match=message):
        function(app)


def add_function(app: Path, name: str, *bindings: dict[str, object]) -> None:
    folder = app / name
    folder.mkdir()
    (folder / "function.json").write_text(json.dumps({"bindings": list(bindings)}))


HTTP: dict[str, object] = {"type": "httpTrigger", "direction": "in", "name": "request"}


def test_a_function_with_another_trigger_is_left_out(app: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_function(app, "web", HTTP)
    assert function(app).name == "record"
    assert "does not run web: " in caplog.text
    assert "it has httpTrigger" in caplog.text


def test_an_app_with_no_function_that_can_run_is_refused(tmp_path: Path) -> None:
    add_function(tmp_path, "web", HTTP)
    add_function(tmp_path, "empty")
    with pytest.raises(InvalidAppConfiguration, match=r"empty: .*it has none; web: .*it has httpTrigger"):
        function(tmp_path)


def test_a_subscription_may_be_the_source(app: Path) -> None:
    change_binding(app, queueName=None, topicName="events-%QUEUE%", subscriptionName="all")
    source = function(app).trigger.source
    assert source == Source("events-opportunity-won", "all")
    assert source.path == "events-opportunity-won/Subscriptions/all"


@pytest.mark.parametrize(
    ("word", "data_type"), [("STRING", DataType.STRING), (None, DataType.STRING), ("BINARY", DataType.BINARY)]
)
def test_the_body_is_a_string_unless_binary_is_asked_for(
    app: Path, word: str | None, data_type: DataType
) -> None:
    change_binding(app, dataType=word)
    assert function(app).trigger.data_type is data_type


def test_the_names_of_connections_come_from_all_service_bus_bindings(app: Path) -> None:
    add_function(app, "web", HTTP, {"type": "serviceBus", "direction": "out", "connection": "Out"})
    add_function(app, "other", {"type": "serviceBusTrigger", "name": "m", "queueName": "q"})
    assert connection_names(declarations_of_v1(app)) == {"Bus", "Out", "ServiceBus"}


def test_a_script_at_the_top_makes_an_app_one_of_the_v2_model(app: Path) -> None:
    assert Model.of(app, Settings({})) is Model.V1
    (app / "main.py").touch()
    assert Model.of(app, Settings({"PYTHON_SCRIPT_FILE_NAME": "main.py"})) is Model.V2
    (app / "function_app.py").touch()
    assert Model.of(app, Settings({})) is Model.V2


def test_a_folder_without_functions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAppConfiguration, match=r"neither function_app\.py nor a function\.json"):
        function(tmp_path)


def test_a_connection_string_wins_over_an_identity(app: Path) -> None:
    read = function(app, Bus__fullyQualifiedNamespace="127.0.0.9")
    assert read.trigger.connection == ConnectionString(SETTINGS["Bus"])
    assert SETTINGS["Bus"] not in repr(read)


IDENTITY = {
    "QUEUE": "q",
    "Bus__fullyQualifiedNamespace": "127.0.0.9",
    "Bus__credential": "managedidentity",
    "Bus__clientId": "an-id",
    "IDENTITY_ENDPOINT": "http://127.0.0.1:1/msi/token",
    "IDENTITY_HEADER": "secret-header",
}


def test_a_connection_by_identity(app: Path) -> None:
    (read,) = read_functions(declarations_of_v1(app), Settings(IDENTITY))
    assert read.trigger.connection == IdentityConnection(
        "127.0.0.9", "an-id", "http://127.0.0.1:1/msi/token", "secret-header"
    )
    assert "secret-header" not in repr(read)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("IDENTITY_HEADER", "IDENTITY_HEADER is not set"),
        ("Bus__credential", "Bus__credential=managedidentity"),
        ("Bus__fullyQualifiedNamespace", "Bus__fullyQualifiedNamespace"),
    ],
)
def test_half_a_connection_by_identity_is_refused(app: Path, missing: str, message: str) -> None:
    settings = {name: value for name, value in IDENTITY.items() if name != missing}
    with pytest.raises(InvalidAppConfiguration, match=message):
        read_functions(declarations_of_v1(app), Settings(settings))


@pytest.mark.parametrize("name", ["AzureWebJobs.record.Disabled", "AzureWebJobs_record_Disabled"])
@pytest.mark.parametrize(("value", "disabled"), [("true", True), ("1", True), ("false", False)])
def test_a_function_is_disabled_by_a_setting(app: Path, name: str, value: str, *, disabled: bool) -> None:
    assert function(app, **{name: value}).disabled is disabled
