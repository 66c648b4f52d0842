from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from azure.servicebus import ServiceBusClient

from shared.errors import InvalidSettings, RetryPolicy
from shared.invoice import InvoiceOwner, OrderedOpportunity
from shared.settings import (
    ConnectionString,
    Namespace,
    Settings,
    dataverse_settings,
    queue_settings,
    retry_settings,
    service_bus_settings,
    telemetry_settings,
)
from shared.tracing import TelemetryExporter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY = "bm90LWEtcmVhbC1rZXk="
CONNECTION_STRING = (
    f"Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey={KEY}"
)
CLIENT = "11111111-2222-3333-4444-555555555555"
OTHER = "66666666-7777-8888-9999-aaaaaaaaaaaa"
ENTITIES = {
    "OPPORTUNITY_WON_QUEUE": "opportunity-won",
    "OPPORTUNITY_WON_FAILED_QUEUE": "opportunity-won-failed",
    "INVOICE_CREATED_TOPIC": "invoice-created",
}
IDENTITY = {"ServiceBusConnection__fullyQualifiedNamespace": "contoso.servicebus.windows.net"}
DATAVERSE = {"DATAVERSE_URL": "https://contoso.crm4.dynamics.com"}


def problems(read: Callable[[Mapping[str, str]], object], environment: Mapping[str, str]) -> tuple[str, ...]:
    with pytest.raises(InvalidSettings) as raised:
        read(environment)
    return raised.value.problems


def test_service_bus_by_identity() -> None:
    settings = service_bus_settings(
        {**ENTITIES, **IDENTITY, "ServiceBusConnection__clientId": CLIENT.upper(), "AZURE_CLIENT_ID": OTHER}
    )
    assert settings.connection == Namespace("contoso.servicebus.windows.net", CLIENT)
    assert settings.opportunity_won_queue == "opportunity-won"
    assert settings.failed_queue == "opportunity-won-failed"
    assert settings.invoice_created_topic == "invoice-created"
    assert settings.invocation_deadline == 240


def test_service_bus_falls_back_to_the_functions_identity_and_then_to_the_systems() -> None:
    of_function = service_bus_settings({**ENTITIES, **IDENTITY, "AZURE_CLIENT_ID": "{" + CLIENT + "}"})
    assert of_function.connection == Namespace("contoso.servicebus.windows.net", CLIENT)
    of_system = service_bus_settings({**ENTITIES, **IDENTITY})
    assert of_system.connection == Namespace("contoso.servicebus.windows.net", None)


def test_a_connection_string_wins_over_an_identity_as_in_the_trigger() -> None:
    settings = service_bus_settings({**ENTITIES, **IDENTITY, "ServiceBusConnection": CONNECTION_STRING})
    assert settings.connection == ConnectionString(CONNECTION_STRING)


def test_no_representation_shows_a_key() -> None:
    settings = service_bus_settings({**ENTITIES, "ServiceBusConnection": CONNECTION_STRING})
    assert KEY not in repr(settings)
    assert KEY not in str(settings.connection)


def test_every_problem_of_service_bus_is_reported_at_once() -> None:
    reported = problems(service_bus_settings, {"INVOCATION_DEADLINE_SECONDS": "soon"})
    assert [sentence.split()[3] for sentence in reported] == [
        "ServiceBusConnection__fullyQualifiedNamespace",
        "OPPORTUNITY_WON_QUEUE",
        "OPPORTUNITY_WON_FAILED_QUEUE",
        "INVOICE_CREATED_TOPIC",
        "INVOCATION_DEADLINE_SECONDS",
    ]
    assert reported[1] == (
        "The app setting OPPORTUNITY_WON_QUEUE is missing: it should be the name of the queue, "
        "such as opportunity-won."
    )
    assert reported[4] == (
        "The app setting INVOCATION_DEADLINE_SECONDS is not valid: it should be a number of seconds from 1 to "
        "285, such as 240."
    )


def test_a_value_is_never_quoted() -> None:
    """It may be a secret that was put into the wrong setting."""
    wrong = dict.fromkeys([*ENTITIES, *IDENTITY, "ServiceBusConnection__clientId"], f"se cret;{KEY}")
    assert len(problems(service_bus_settings, wrong)) == 5
    assert KEY not in " ".join(problems(service_bus_settings, wrong))
    misplaced = {**ENTITIES, "ServiceBusConnection": f"SharedAccessKey={KEY}"}
    assert KEY not in " ".join(problems(service_bus_settings, misplaced))


@pytest.mark.parametrize("value", ["", "  ", "\t"])
def test_an_empty_setting_is_a_missing_one(value: str) -> None:
    """A template deploys an optional setting as an empty one."""
    settings = service_bus_settings({**ENTITIES, **IDENTITY, "ServiceBusConnection": value})
    assert isinstance(settings.connection, Namespace)
    assert dataverse_settings({**DATAVERSE, "DATAVERSE_ORGANIZATION_ID": value}).organization_id is None
    (problem,) = problems(service_bus_settings, {**ENTITIES, **IDENTITY, "OPPORTUNITY_WON_QUEUE": value})
    assert "is missing" in problem


@pytest.mark.parametrize("name", ["invoices", "Sales/Won.2_x~y-z", "q" * 260])
def test_names_that_entities_can_have(name: str) -> None:
    settings = service_bus_settings({**IDENTITY, **ENTITIES, "INVOICE_CREATED_TOPIC": name})
    assert settings.invoice_created_topic == name


@pytest.mark.parametrize(
    "name", ["in voices", "a?b", "a\\b", "a#b", "ü", "q" * 261, "/a", "a/", "a//b", "-a", "a.", "_a"]
)
def test_names_that_no_entity_can_have(name: str) -> None:
    (problem,) = problems(service_bus_settings, {**IDENTITY, **ENTITIES, "INVOICE_CREATED_TOPIC": name})
    assert "INVOICE_CREATED_TOPIC is not valid" in problem


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("https://contoso.crm4.dynamics.com", "https://contoso.crm4.dynamics.com"),
        (" https://contoso.crm4.dynamics.com/ ", "https://contoso.crm4.dynamics.com"),
        ("HTTPS://Contoso.CRM4.dynamics.com", "https://contoso.crm4.dynamics.com"),
        ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("https://contoso.crm4.dynamics.com:443/", "https://contoso.crm4.dynamics.com"),
        ("https://contoso.crm4.dynamics.com./", "https://contoso.crm4.dynamics.com"),
        ("https://contoso.api.crm4.dynamics.com", "https://contoso.crm4.dynamics.com"),
        ("https://contoso.api.crm.dynamics.com", "https://contoso.crm.dynamics.com"),
        ("https://api.crm.dynamics.com", "https://api.crm.dynamics.com"),
        ("https://contoso.api.example.com", "https://contoso.api.example.com"),
    ],
)
def test_the_environments_address_has_one_form(value: str, url: str) -> None:
    """The token's scope, the event's source and the links derive from it."""
    assert dataverse_settings({"DATAVERSE_URL": value}).url == url


@pytest.mark.parametrize(
    "value",
    [
        "http://contoso.crm4.dynamics.com",
        "contoso.crm4.dynamics.com",
        "https://",
        "https://user@contoso.crm4.dynamics.com",
        "https://contoso.crm4.dynamics.com/api/data/v9.2/",
        "https://contoso.crm4.dynamics.com?x=1",
        "https://contoso.crm4.dynamics.com#x",
        "https://contoso.crm4.dynamics.com:99999",
        "https://[::1",
        "https://con toso.crm4.dynamics.com",
        "https://contoso..crm4.dynamics.com",
        "https://contoso-.crm4.dynamics.com",
        "https://contoso.crm4.dynamics.com..",
        "https://@contoso.crm4.dynamics.com",
    ],
)
def test_what_is_no_environments_address(value: str) -> None:
    (problem,) = problems(dataverse_settings, {"DATAVERSE_URL": value})
    assert problem == (
        "The app setting DATAVERSE_URL is not valid: it should be the environment's address and nothing after "
        "it, such as https://contoso.crm.dynamics.com."
    )


def test_dataverse_by_default() -> None:
    settings = dataverse_settings(DATAVERSE)
    assert settings.client_id is None
    assert settings.organization_id is None
    assert settings.ordered_opportunity is OrderedOpportunity.SKIP
    assert (settings.invoice_owner, settings.invoice_columns) == (InvoiceOwner.OPPORTUNITY, ())


def test_dataverse_in_full() -> None:
    settings = dataverse_settings(
        {
            **DATAVERSE,
            "AZURE_CLIENT_ID": CLIENT,
            "DATAVERSE_ORGANIZATION_ID": "{" + OTHER.upper() + "}",
            "ORDERED_OPPORTUNITY": "Invoice",
            "INVOICE_OWNER": "Application-User",
            "INVOICE_COLUMNS": "billto_city, New_CostCenter\nnew_fee,,billto_city",
        }
    )
    assert settings.invoice_owner is InvoiceOwner.APPLICATION_USER
    assert settings.invoice_columns == ("billto_city", "new_costcenter", "new_fee")
    assert (settings.client_id, settings.organization_id) == (CLIENT, OTHER)
    assert settings.ordered_opportunity is OrderedOpportunity.INVOICE


@pytest.mark.parametrize(
    "value",
    ["00000000-0000-0000-0000-000000000000", CLIENT[:-1], CLIENT.replace("-", ""), f"{CLIENT} {CLIENT}"],
)
def test_what_is_no_id(value: str) -> None:
    """An empty GUID is what a template's placeholder leaves: no event would come from that organization."""
    (problem,) = problems(dataverse_settings, {**DATAVERSE, "DATAVERSE_ORGANIZATION_ID": value})
    assert "DATAVERSE_ORGANIZATION_ID is not valid" in problem


@pytest.mark.parametrize(
    "value", ["new-fee", "1fee", "a.b", "a' or 'b", "größe", "a" * 129, ",".join(f"c{n}" for n in range(101))]
)
def test_names_that_no_column_can_have(value: str) -> None:
    (problem,) = problems(dataverse_settings, {**DATAVERSE, "INVOICE_COLUMNS": value})
    assert "INVOICE_COLUMNS is not valid: it should be up to 100 logical names of columns" in problem


def test_as_many_columns_as_there_may_be() -> None:
    names = tuple(f"c{number}" for number in range(100))
    assert dataverse_settings({**DATAVERSE, "INVOICE_COLUMNS": " ".join(names)}).invoice_columns == names


def test_every_problem_of_dataverse_is_reported_at_once() -> None:
    reported = problems(
        dataverse_settings,
        {
            "AZURE_CLIENT_ID": "me",
            "DATAVERSE_ORGANIZATION_ID": "us",
            "ORDERED_OPPORTUNITY": "maybe",
            "INVOICE_OWNER": "me",
            "INVOICE_COLUMNS": "?",
        },
    )
    assert [sentence.split()[3] for sentence in reported] == [
        "DATAVERSE_URL",
        "AZURE_CLIENT_ID",
        "DATAVERSE_ORGANIZATION_ID",
        "ORDERED_OPPORTUNITY",
        "INVOICE_OWNER",
        "INVOICE_COLUMNS",
    ]
    assert reported[4].endswith("it should be opportunity or application-user.")
    assert reported[3].endswith("it should be skip or invoice.")


def test_retrying_by_default() -> None:
    settings = retry_settings({})
    assert settings.bounds == {
        RetryPolicy.OPEN: timedelta(minutes=5),
        RetryPolicy.RECORD: timedelta(hours=1),
        RetryPolicy.OUTAGE: timedelta(days=3),
    }
    assert (settings.first_delay, settings.longest_delay) == (timedelta(seconds=5), timedelta(minutes=15))


def test_each_bound_and_delay_has_a_setting() -> None:
    settings = retry_settings(
        {
            "RETRY_OPEN_SECONDS": "1",
            "RETRY_RECORD_SECONDS": "2",
            "RETRY_OUTAGE_SECONDS": "3",
            "RETRY_FIRST_DELAY_SECONDS": "4",
            "RETRY_MAX_DELAY_SECONDS": "5",
        }
    )
    assert [settings.bounds[policy].total_seconds() for policy in RetryPolicy] == [1, 2, 3]
    assert (settings.first_delay, settings.longest_delay) == (timedelta(seconds=4), timedelta(seconds=5))


def test_bounds_of_retrying_may_be_below_a_second() -> None:
    settings = retry_settings({"RETRY_OPEN_SECONDS": "0.25", "RETRY_FIRST_DELAY_SECONDS": "1e-2"})
    assert settings.bounds[RetryPolicy.OPEN] == timedelta(milliseconds=250)
    assert settings.first_delay == timedelta(milliseconds=10)


@pytest.mark.parametrize("value", ["0", "-1", "1e-9", "nan", "inf", "1e9", "five", "5 s"])
def test_what_is_no_bound(value: str) -> None:
    (problem,) = problems(retry_settings, {"RETRY_OUTAGE_SECONDS": value})
    assert "RETRY_OUTAGE_SECONDS is not valid: it should be a number of seconds from 0.001 to" in problem


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RETRY_FIRST_DELAY_SECONDS": "901"}, "RETRY_FIRST_DELAY_SECONDS is above RETRY_MAX_DELAY_SECONDS"),
        ({"RETRY_RECORD_SECONDS": "259201"}, "RETRY_RECORD_SECONDS is above RETRY_OUTAGE_SECONDS"),
        (
            {"RETRY_OUTAGE_SECONDS": "3600", "RETRY_OPEN_SECONDS": "3601"},
            "RETRY_OPEN_SECONDS is above RETRY_OUTAGE_SECONDS",
        ),
    ],
)
def test_bounds_that_contradict_each_other(environment: dict[str, str], says: str) -> None:
    (problem,) = problems(retry_settings, environment)
    assert says in problem


@pytest.mark.parametrize(
    ("value", "valid"),
    [("0.001", True), ("0.0009", False), (f"{366 * 86_400}", True), (f"{366 * 86_400 + 1}", False)],
)
def test_a_time_is_from_a_millisecond_to_a_year(value: str, *, valid: bool) -> None:
    environment = {"RETRY_OUTAGE_SECONDS": value}
    if valid:
        assert retry_settings(environment).bounds[RetryPolicy.OUTAGE] == timedelta(seconds=float(value))
    else:
        (problem,) = problems(retry_settings, environment)
        assert "RETRY_OUTAGE_SECONDS is not valid" in problem


def test_a_short_bound_of_all_retries_contradicts_no_default() -> None:
    assert retry_settings({"RETRY_OUTAGE_SECONDS": "60"}).bounds[RetryPolicy.OUTAGE] == timedelta(minutes=1)


def test_bounds_may_be_equal() -> None:
    equal = dict.fromkeys(
        ("RETRY_OPEN_SECONDS", "RETRY_RECORD_SECONDS", "RETRY_OUTAGE_SECONDS", "RETRY_FIRST_DELAY_SECONDS"),
        "900",
    )
    assert retry_settings(equal).first_delay == timedelta(minutes=15)


@pytest.mark.parametrize(("seconds", "valid"), [("1", True), ("285", True), ("0.9", False), ("1e-9", False)])
def test_an_invocation_has_time_to_do_something(seconds: str, valid: bool) -> None:  # noqa: FBT001 - a case
    environment = {**ENTITIES, **IDENTITY, "INVOCATION_DEADLINE_SECONDS": seconds}
    if valid:
        assert service_bus_settings(environment).invocation_deadline == float(seconds)
    else:
        (problem,) = problems(service_bus_settings, environment)
        assert "INVOCATION_DEADLINE_SECONDS is not valid" in problem


# ---------------------------------------------------------------------------------------------- what cannot work


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (f"{CONNECTION_STRING};EntityPath=opportunity-won", "has an EntityPath"),
        (f"{CONNECTION_STRING};entitypath=x;", "has an EntityPath"),
        (
            f"endpoint = sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey={KEY}",
            "is not valid",
        ),
        (
            f"Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName =n;SharedAccessKey={KEY}",
            "has no key",
        ),
        (f";{CONNECTION_STRING}", "is not valid"),
        (f"{CONNECTION_STRING}; ;", "is not valid"),
        (f"{CONNECTION_STRING};SharedAccessSignature=s", "has a key and a signature"),
        ("Endpoint=sb://contoso.servicebus.windows.net/", "has no key"),
        ("Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n", "has no key"),
        (f"Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKey={KEY}", "has no key"),
        (
            "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=",
            "is not valid",
        ),
        (f"Endpoint=sb:///;SharedAccessKeyName=n;SharedAccessKey={KEY}", "is not valid"),
        (
            f"Endpoint=https://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey={KEY}",
            "not valid",
        ),
        (f"Endpoint=sb://con toso/;SharedAccessKeyName=n;SharedAccessKey={KEY}", "is not valid"),
        (f"{CONNECTION_STRING};SharedAccessKey=x", "is not valid"),
        (f"{CONNECTION_STRING};;x=y", "is not valid"),
        (f"{CONNECTION_STRING};TransportType", "is not valid"),
        ("contoso.servicebus.windows.net", "is not valid"),
    ],
)
def test_a_connection_string_that_cannot_work_is_found_before_anything_is_billed(
    value: str, says: str
) -> None:
    (problem,) = problems(service_bus_settings, {**ENTITIES, "ServiceBusConnection": value})
    assert f"The app setting ServiceBusConnection {says}" in problem or says in problem
    assert KEY not in problem


@pytest.mark.parametrize(
    "value",
    [
        f"{CONNECTION_STRING};",
        "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=X",
        f"Endpoint=sb://localhost:5672;SharedAccessKeyName=n;SharedAccessKey={KEY};UseDevelopmentEmulator=true;",
        f"endpoint=sb://CONTOSO.servicebus.windows.net;SHAREDACCESSKEYNAME=n;sharedaccesskey={KEY};;",
        "Endpoint=sb://contoso.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature sr=a&sig=b&se=1",
    ],
)
def test_connection_strings_that_work(value: str) -> None:
    """The SDK takes what the settings accept: what it refuses would be found when an invoice already exists."""
    settings = service_bus_settings({**ENTITIES, "ServiceBusConnection": value})
    assert settings.connection == ConnectionString(value)
    with ServiceBusClient.from_connection_string(value) as client:
        assert client.get_queue_sender("opportunity-won") is not None


@pytest.mark.parametrize(
    "value",
    [
        "contoso.servicebus.windows.net",
        "CONTOSO.servicebus.windows.net.",
        "https://contoso.servicebus.windows.net:443/",
        "sb://contoso.servicebus.windows.net",
        "sb://contoso.servicebus.windows.net:5671/",
        "amqps://contoso.servicebus.windows.net/",
    ],
)
def test_a_namespace_is_a_host_or_a_uri_as_azures_own_client_accepts_it(value: str) -> None:
    environment = {**ENTITIES, "ServiceBusConnection__fullyQualifiedNamespace": value}
    assert service_bus_settings(environment).connection == Namespace("contoso.servicebus.windows.net", None)


@pytest.mark.parametrize(
    "value",
    [
        "http://contoso.servicebus.windows.net",
        "https://contoso.servicebus.windows.net/opportunity-won",
        "contoso.servicebus.windows.net:8080",
        "https://user@contoso.servicebus.windows.net",
        "contoso..servicebus.windows.net",
        "-contoso.servicebus.windows.net",
        "https://",
        "sb://[::1",
        f"a.{'b' * 260}",
    ],
)
def test_what_is_no_namespace(value: str) -> None:
    environment = {**ENTITIES, "ServiceBusConnection__fullyQualifiedNamespace": value}
    (problem,) = problems(service_bus_settings, environment)
    assert "ServiceBusConnection__fullyQualifiedNamespace is not valid" in problem


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"OPPORTUNITY_WON_FAILED_QUEUE": "Opportunity-WON"},
            "FAILED_QUEUE is the same as OPPORTUNITY_WON_QUEUE",
        ),
        (
            {"OPPORTUNITY_WON_QUEUE": "WON", "OPPORTUNITY_WON_FAILED_QUEUE": "won"},
            "FAILED_QUEUE is the same as OPPORTUNITY_WON_QUEUE",
        ),
        (
            {"OPPORTUNITY_WON_QUEUE": "Created", "INVOICE_CREATED_TOPIC": "created"},
            "INVOICE_CREATED_TOPIC is the same as OPPORTUNITY_WON_QUEUE",
        ),
        (
            {"INVOICE_CREATED_TOPIC": "OPPORTUNITY-won"},
            "INVOICE_CREATED_TOPIC is the same as OPPORTUNITY_WON_QUEUE",
        ),
        (
            {"INVOICE_CREATED_TOPIC": "opportunity-won-Failed"},
            "INVOICE_CREATED_TOPIC is the same as OPPORTUNITY_WON_FAILED_QUEUE",
        ),
    ],
)
def test_every_entity_is_another_one_without_regard_to_case(changes: dict[str, str], says: str) -> None:
    """A parked message would be processed again, or be an event."""
    (problem,) = problems(service_bus_settings, {**ENTITIES, **IDENTITY, **changes})
    assert f"{says}: it should be" in problem


def test_without_a_failed_queue_of_its_own_nothing_can_be_parked() -> None:
    same = {**ENTITIES, **IDENTITY, "OPPORTUNITY_WON_FAILED_QUEUE": "opportunity-won"}
    (problem,) = problems(queue_settings, same)
    assert "is the same as" in problem


def test_queues_suffice_for_messages_to_wait() -> None:
    environment = {**ENTITIES, **IDENTITY, "INVOICE_CREATED_TOPIC": "", "INVOCATION_DEADLINE_SECONDS": "x"}
    settings = queue_settings(environment)
    assert (settings.opportunity_won_queue, settings.failed_queue) == (
        "opportunity-won",
        "opportunity-won-failed",
    )
    assert (settings.invoice_created_topic, settings.invocation_deadline) == ("", 240)


def test_all_settings_have_all_problems() -> None:
    reported = problems(
        Settings.of, {**ENTITIES, **IDENTITY, "RETRY_OPEN_SECONDS": "0", "INVOICE_CREATED_TOPIC": ""}
    )
    assert [sentence.split()[3] for sentence in reported] == [
        "INVOICE_CREATED_TOPIC",
        "RETRY_OPEN_SECONDS",
        "DATAVERSE_URL",
    ]
    settings = Settings.of({**ENTITIES, **IDENTITY, **DATAVERSE})
    assert settings.service_bus == service_bus_settings({**ENTITIES, **IDENTITY})
    assert settings.retry == retry_settings({})
    assert settings.dataverse == dataverse_settings(DATAVERSE)
    assert settings.telemetry is telemetry_settings({})


@pytest.mark.parametrize(
    ("value", "exporter"),
    [
        ("", TelemetryExporter.OFF),
        ("off", TelemetryExporter.OFF),
        ("OTLP", TelemetryExporter.OTLP),
        ("azure-monitor", TelemetryExporter.AZURE_MONITOR),
    ],
)
def test_telemetry_is_exported_where_a_setting_says(value: str, exporter: TelemetryExporter) -> None:
    assert telemetry_settings({"TELEMETRY_EXPORTER": value}) is exporter
