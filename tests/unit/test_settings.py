from __future__ import annotations

from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING

import pytest
from azure.servicebus import ServiceBusClient

from shared.errors import InvalidSettings, RetryPolicy
from shared.invoice import InvoiceOwner, OrderedOpportunity
from shared.settings import (
    ConnectionString,
    DataverseSettings,
    Namespace,
    RetrySettings,
    ServiceBusSettings,
    Settings,
    dataverse_settings,
    queue_settings,
    retry_settings,
    service_bus_settings,
    telemetry_settings,
)
from shared.tracing import TelemetryExporter
from tests.unit.conftest import APP_SETTINGS, URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY = "bm90LWEtcmVhbC1rZXk="
ENDPOINT = "Endpoint=sb://contoso.servicebus.windows.net/"
WITH_KEY = f";SharedAccessKeyName=n;SharedAccessKey={KEY}"
CONNECTION_STRING = ENDPOINT + WITH_KEY
NAMESPACE = "ServiceBusConnection__fullyQualifiedNamespace"
HOST = "contoso.servicebus.windows.net"
CLIENT = "11111111-2222-3333-4444-555555555555"
OTHER = "66666666-7777-8888-9999-aaaaaaaaaaaa"


def problems(
    changes: Mapping[str, str], read: Callable[[Mapping[str, str]], object] = Settings.of
) -> tuple[str, ...]:
    """Return what is wrong with the app settings after some changes."""
    with pytest.raises(InvalidSettings) as raised:
        read({**APP_SETTINGS, **changes})
    return raised.value.problems


def named(reported: tuple[str, ...]) -> list[str]:
    """Return the setting that each problem is about."""
    return [sentence.split()[3] for sentence in reported]


def retrying(opened: float, record: float, outage: float, first: float, longest: float) -> RetrySettings:
    """Return what is read from these seconds."""
    seconds = {RetryPolicy.OPEN: opened, RetryPolicy.RECORD: record, RetryPolicy.OUTAGE: outage}
    bounds = {policy: timedelta(seconds=bound) for policy, bound in seconds.items()}
    return RetrySettings(bounds, timedelta(seconds=first), timedelta(seconds=longest))


# ---------------------------------------------------------------------------------------------- all of them


def test_what_is_not_set_has_a_default() -> None:
    assert Settings.of(APP_SETTINGS) == Settings(
        ServiceBusSettings(Namespace(HOST, None), "won", "failed", "created", 240),
        retrying(5 * 60, 60 * 60, 3 * 24 * 60 * 60, 5, 15 * 60),
        DataverseSettings(URL, None, None, OrderedOpportunity.SKIP, InvoiceOwner.OPPORTUNITY, ()),
        TelemetryExporter.OFF,
    )


def test_every_setting_counts_and_each_part_can_be_read_by_itself() -> None:
    environment = {
        **APP_SETTINGS,
        "ServiceBusConnection__clientId": OTHER.upper(),
        "INVOCATION_DEADLINE_SECONDS": "60",
        "RETRY_OPEN_SECONDS": "1",
        "RETRY_RECORD_SECONDS": "2",
        "RETRY_OUTAGE_SECONDS": "3",
        "RETRY_FIRST_DELAY_SECONDS": "4",
        "RETRY_MAX_DELAY_SECONDS": "5",
        "AZURE_CLIENT_ID": CLIENT,
        "DATAVERSE_ORGANIZATION_ID": "{" + OTHER.upper() + "}",
        "ORDERED_OPPORTUNITY": "Invoice",
        "INVOICE_OWNER": "Application-User",
        "INVOICE_COLUMNS": "billto_city, New_CostCenter\nnew_fee,,billto_city",
        "TELEMETRY_EXPORTER": "OTLP",
    }
    settings = Settings.of(environment)
    assert settings == Settings(
        ServiceBusSettings(Namespace(HOST, OTHER), "won", "failed", "created", 60),
        retrying(1, 2, 3, 4, 5),
        DataverseSettings(
            URL,
            CLIENT,
            OTHER,
            OrderedOpportunity.INVOICE,
            InvoiceOwner.APPLICATION_USER,
            ("billto_city", "new_costcenter", "new_fee"),
        ),
        TelemetryExporter.OTLP,
    )
    assert service_bus_settings(environment) == settings.service_bus
    assert retry_settings(environment) == settings.retry
    assert dataverse_settings(environment) == settings.dataverse
    assert telemetry_settings(environment) is settings.telemetry


def test_every_problem_is_reported_at_once_and_by_each_part_its_own() -> None:
    missing = dict.fromkeys(APP_SETTINGS, "")
    of_service_bus = problems({**missing, "INVOCATION_DEADLINE_SECONDS": "soon"}, service_bus_settings)
    assert named(of_service_bus) == [
        NAMESPACE,
        "OPPORTUNITY_WON_QUEUE",
        "OPPORTUNITY_WON_FAILED_QUEUE",
        "INVOICE_CREATED_TOPIC",
        "INVOCATION_DEADLINE_SECONDS",
    ]
    assert of_service_bus[1] == (
        "The app setting OPPORTUNITY_WON_QUEUE is missing: it should be the name of the queue, "
        "such as opportunity-won."
    )
    wrong = {
        "DATAVERSE_URL": "",
        "AZURE_CLIENT_ID": "me",
        "DATAVERSE_ORGANIZATION_ID": "us",
        "ORDERED_OPPORTUNITY": "maybe",
        "INVOICE_OWNER": "me",
        "INVOICE_COLUMNS": "?",
    }
    of_dataverse = problems(wrong, dataverse_settings)
    assert named(of_dataverse) == list(wrong)
    assert of_dataverse[3].endswith("it should be skip or invoice.")
    assert of_dataverse[4].endswith("it should be opportunity or application-user.")
    of_all = problems({**missing, "RETRY_OPEN_SECONDS": "0", "TELEMETRY_EXPORTER": "x"})
    assert named(of_all) == [
        *named(of_service_bus)[:4],
        *("RETRY_OPEN_SECONDS", "DATAVERSE_URL", "TELEMETRY_EXPORTER"),
    ]


def test_a_value_is_never_quoted() -> None:
    """It may be a secret that was put into the wrong setting."""
    names = [*APP_SETTINGS, "ServiceBusConnection__clientId"]
    reported = problems(dict.fromkeys(names, f"se cret;{KEY}"))
    assert len(reported) == len(names)
    assert KEY not in " ".join(reported)


@pytest.mark.parametrize("value", ["", "  ", "\t"])
def test_an_empty_setting_is_a_missing_one(value: str) -> None:
    """A template deploys an optional setting as an empty one."""
    optional = dict.fromkeys(
        ["ServiceBusConnection", "DATAVERSE_ORGANIZATION_ID", "TELEMETRY_EXPORTER"], value
    )
    assert Settings.of({**APP_SETTINGS, **optional}) == Settings.of(APP_SETTINGS)
    (problem,) = problems({"OPPORTUNITY_WON_QUEUE": value})
    assert "is missing" in problem


# ---------------------------------------------------------------------------------------------- one of them


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
    settings = service_bus_settings({**APP_SETTINGS, NAMESPACE: value})
    assert settings.connection == Namespace(HOST, None)


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


HUNDRED_COLUMNS = [f"c{number}" for number in range(100)]


@pytest.mark.parametrize(
    ("name", "value", "part", "expected"),
    [
        ("INVOICE_CREATED_TOPIC", "invoices", "service_bus.invoice_created_topic", "invoices"),
        ("INVOICE_CREATED_TOPIC", "Won.2_x~y/z", "service_bus.invoice_created_topic", "Won.2_x~y/z"),
        ("INVOICE_CREATED_TOPIC", "q" * 260, "service_bus.invoice_created_topic", "q" * 260),
        ("INVOCATION_DEADLINE_SECONDS", "1", "service_bus.invocation_deadline", 1),
        ("INVOCATION_DEADLINE_SECONDS", "285", "service_bus.invocation_deadline", 285),
        ("RETRY_FIRST_DELAY_SECONDS", "0.001", "retry.first_delay", timedelta(milliseconds=1)),
        ("RETRY_FIRST_DELAY_SECONDS", "1e-2", "retry.first_delay", timedelta(milliseconds=10)),
        ("INVOICE_COLUMNS", " ".join(HUNDRED_COLUMNS), "dataverse.invoice_columns", tuple(HUNDRED_COLUMNS)),
        ("TELEMETRY_EXPORTER", "off", "telemetry", TelemetryExporter.OFF),
        ("TELEMETRY_EXPORTER", "azure-monitor", "telemetry", TelemetryExporter.AZURE_MONITOR),
    ],
)
def test_what_a_setting_accepts(name: str, value: str, part: str, expected: object) -> None:
    assert attrgetter(part)(Settings.of({**APP_SETTINGS, name: value})) == expected


INVALID = {
    f"{NAMESPACE} is not valid: it should be the namespace's host name, such as contoso.servicebus.windows.net "
    "(or set ServiceBusConnection instead)": [
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
    "ServiceBusConnection is not valid: it should be a connection string of the namespace: "
    "Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…": [
        f"endpoint = sb://contoso.servicebus.windows.net/{WITH_KEY}",
        f";{CONNECTION_STRING}",
        f"{CONNECTION_STRING}; ;",
        f"{ENDPOINT};SharedAccessKeyName=n;SharedAccessKey=",
        f"Endpoint=sb:///{WITH_KEY}",
        f"Endpoint=https://contoso.servicebus.windows.net/{WITH_KEY}",
        f"Endpoint=sb://con toso/{WITH_KEY}",
        f"{CONNECTION_STRING};SharedAccessKey=x",
        f"{CONNECTION_STRING};;x=y",
        f"{CONNECTION_STRING};TransportType",
        f"SharedAccessKey={KEY}",
        "contoso.servicebus.windows.net",
    ],
    "INVOICE_CREATED_TOPIC is not valid: it should be the name of the topic, such as invoice-created": [
        *("in voices", "a?b", "a\\b", "a#b", "ü", "q" * 261, "/a", "a/", "a//b", "-a", "a.", "_a"),
    ],
    "INVOCATION_DEADLINE_SECONDS is not valid: it should be a number of seconds from 1 to 285, such as 240": [
        "0.9",
        "1e-9",
        "285.1",
        "soon",
    ],
    "RETRY_OUTAGE_SECONDS is not valid: it should be a number of seconds from 0.001 to 3.16224e+07, such as "
    "259200": ["0", "-1", "1e-9", "0.0009", f"{366 * 86_400 + 1}", "1e9", "nan", "inf", "five", "5 s"],
    "DATAVERSE_URL is not valid: it should be the environment's address and nothing after it, such as "
    "https://contoso.crm.dynamics.com": [
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
    # An empty GUID is what a template's placeholder leaves: no event would come from that organization.
    "DATAVERSE_ORGANIZATION_ID is not valid: it should be the environment's organization id, such as "
    "00000000-0000-0000-0000-000000000000": [
        "00000000-0000-0000-0000-000000000000",
        CLIENT[:-1],
        CLIENT.replace("-", ""),
        f"{CLIENT} {CLIENT}",
    ],
    "INVOICE_COLUMNS is not valid: it should be up to 100 logical names of columns, separated by commas, such as "
    "billto_city,new_costcenter": [
        *("new-fee", "1fee", "a.b", "a' or 'b", "größe", "a" * 129),
        ",".join(f"c{n}" for n in range(101)),
    ],
}


@pytest.mark.parametrize(
    ("value", "problem"), [(value, problem) for problem, values in INVALID.items() for value in values]
)
def test_what_a_setting_does_not_accept(value: str, problem: str) -> None:
    assert problems({problem.split(maxsplit=1)[0]: value}) == (f"The app setting {problem}.",)


# ---------------------------------------------------------------------------------------------- the connection


def test_service_bus_falls_back_to_the_functions_identity() -> None:
    settings = service_bus_settings({**APP_SETTINGS, "AZURE_CLIENT_ID": "{" + CLIENT + "}"})
    assert settings.connection == Namespace(HOST, CLIENT)


@pytest.mark.parametrize(
    "value",
    [
        CONNECTION_STRING,
        f"{CONNECTION_STRING};",
        f"{ENDPOINT};SharedAccessKeyName=n;SharedAccessKey=X",
        f"Endpoint=sb://localhost:5672{WITH_KEY};UseDevelopmentEmulator=true;",
        f"endpoint=sb://CONTOSO.servicebus.windows.net;SHAREDACCESSKEYNAME=n;sharedaccesskey={KEY};;",
        f"{ENDPOINT};SharedAccessSignature=SharedAccessSignature sr=a&sig=b&se=1",
    ],
)
def test_a_connection_string_that_works_wins_over_an_identity_as_in_the_trigger(value: str) -> None:
    """The SDK takes what the settings accept: what it refuses would be found when an invoice already exists."""
    settings = service_bus_settings({**APP_SETTINGS, "ServiceBusConnection": value})
    assert settings.connection == ConnectionString(value)
    assert KEY not in repr(settings)
    assert KEY not in str(settings.connection)
    with ServiceBusClient.from_connection_string(value) as client:
        assert client.get_queue_sender("opportunity-won") is not None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (f"{CONNECTION_STRING};EntityPath=opportunity-won", "has an EntityPath"),
        (f"{CONNECTION_STRING};entitypath=x;", "has an EntityPath"),
        (f"{CONNECTION_STRING};SharedAccessSignature=s", "has a key and a signature"),
        (f"{ENDPOINT};SharedAccessKeyName =n;SharedAccessKey={KEY}", "has no key"),
        (ENDPOINT, "has no key"),
        (f"{ENDPOINT};SharedAccessKeyName=n", "has no key"),
        (f"{ENDPOINT};SharedAccessKey={KEY}", "has no key"),
    ],
)
def test_a_connection_string_that_cannot_work_is_found_before_anything_is_billed(
    value: str, says: str
) -> None:
    (problem,) = problems({"ServiceBusConnection": value})
    assert problem.startswith(f"The app setting ServiceBusConnection {says}: it should be")
    assert KEY not in problem


# ---------------------------------------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"RETRY_FIRST_DELAY_SECONDS": "901"}, "RETRY_FIRST_DELAY_SECONDS is above RETRY_MAX_DELAY_SECONDS"),
        ({"RETRY_RECORD_SECONDS": "259201"}, "RETRY_RECORD_SECONDS is above RETRY_OUTAGE_SECONDS"),
        (
            {"RETRY_OUTAGE_SECONDS": "3600", "RETRY_OPEN_SECONDS": "3601"},
            "RETRY_OPEN_SECONDS is above RETRY_OUTAGE_SECONDS",
        ),
        # A parked message would be processed again, or be an event. Service Bus does not distinguish case.
        ({"OPPORTUNITY_WON_FAILED_QUEUE": "Won"}, "FAILED_QUEUE is the same as OPPORTUNITY_WON_QUEUE"),
        ({"OPPORTUNITY_WON_QUEUE": "FAILED"}, "FAILED_QUEUE is the same as OPPORTUNITY_WON_QUEUE"),
        ({"OPPORTUNITY_WON_QUEUE": "Created"}, "INVOICE_CREATED_TOPIC is the same as OPPORTUNITY_WON_QUEUE"),
        ({"INVOICE_CREATED_TOPIC": "WON"}, "INVOICE_CREATED_TOPIC is the same as OPPORTUNITY_WON_QUEUE"),
        (
            {"INVOICE_CREATED_TOPIC": "Failed"},
            "INVOICE_CREATED_TOPIC is the same as OPPORTUNITY_WON_FAILED_QUEUE",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, str], says: str) -> None:
    (problem,) = problems(changes)
    assert f"{says}: it should be" in problem


def test_a_short_bound_of_all_retries_contradicts_no_default() -> None:
    assert retry_settings({"RETRY_OUTAGE_SECONDS": "60"}).bounds[RetryPolicy.OUTAGE] == timedelta(minutes=1)


def test_bounds_may_be_equal() -> None:
    year = f"{366 * 86_400}"
    names = ("RETRY_OPEN_SECONDS", "RETRY_RECORD_SECONDS", "RETRY_OUTAGE_SECONDS")
    delays = ("RETRY_FIRST_DELAY_SECONDS", "RETRY_MAX_DELAY_SECONDS")
    settings = retry_settings(dict.fromkeys((*names, *delays), year))
    assert {*settings.bounds.values(), settings.first_delay} == {timedelta(days=366)}


# ---------------------------------------------------------------------------------------------- queues alone


def test_without_a_failed_queue_of_its_own_nothing_can_be_parked() -> None:
    (problem,) = problems({"OPPORTUNITY_WON_FAILED_QUEUE": "won"}, queue_settings)
    assert "is the same as" in problem


def test_queues_suffice_for_messages_to_wait() -> None:
    others = {"INVOICE_CREATED_TOPIC": "", "INVOCATION_DEADLINE_SECONDS": "x"}
    settings = queue_settings({**APP_SETTINGS, **others})
    assert (settings.opportunity_won_queue, settings.failed_queue) == ("won", "failed")
    assert (settings.invoice_created_topic, settings.invocation_deadline) == ("", 240)
