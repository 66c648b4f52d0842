from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from shared.errors import InvalidSettings, RetryPolicy
from shared.invoice import OrderedOpportunity
from shared.settings import (
    ConnectionString,
    Namespace,
    dataverse_settings,
    retry_settings,
    service_bus_settings,
)

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


def test_every_problem_of_service_bus_is_told_at_once() -> None:
    told = problems(service_bus_settings, {"INVOCATION_DEADLINE_SECONDS": "soon"})
    assert [sentence.split()[3] for sentence in told] == [
        "ServiceBusConnection__fullyQualifiedNamespace",
        "OPPORTUNITY_WON_QUEUE",
        "OPPORTUNITY_WON_FAILED_QUEUE",
        "INVOICE_CREATED_TOPIC",
        "INVOCATION_DEADLINE_SECONDS",
    ]
    assert told[1] == (
        "The app setting OPPORTUNITY_WON_QUEUE is missing: it should be the name of the queue, "
        "such as opportunity-won."
    )
    assert told[4] == (
        "The app setting INVOCATION_DEADLINE_SECONDS is not valid: it should be a number of seconds above 0 "
        "and up to 285, such as 240."
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


@pytest.mark.parametrize("name", ["in voices", "a?b", "a\\b", "a#b", "ü", "q" * 261])
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
    ],
)
def test_the_environments_address_has_one_form(value: str, url: str) -> None:
    """The token's scope derives from it: no slash at the end."""
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


def test_dataverse_in_full() -> None:
    settings = dataverse_settings(
        {
            **DATAVERSE,
            "AZURE_CLIENT_ID": CLIENT,
            "DATAVERSE_ORGANIZATION_ID": "{" + OTHER.upper() + "}",
            "ORDERED_OPPORTUNITY": "Invoice",
        }
    )
    assert (settings.client_id, settings.organization_id) == (CLIENT, OTHER)
    assert settings.ordered_opportunity is OrderedOpportunity.INVOICE


def test_every_problem_of_dataverse_is_told_at_once() -> None:
    told = problems(
        dataverse_settings,
        {"AZURE_CLIENT_ID": "me", "DATAVERSE_ORGANIZATION_ID": "us", "ORDERED_OPPORTUNITY": "maybe"},
    )
    assert [sentence.split()[3] for sentence in told] == [
        "DATAVERSE_URL",
        "AZURE_CLIENT_ID",
        "DATAVERSE_ORGANIZATION_ID",
        "ORDERED_OPPORTUNITY",
    ]
    assert told[3].endswith("it should be skip or invoice.")


def test_retrying_by_default() -> None:
    settings = retry_settings({})
    assert settings.bounds == {
        RetryPolicy.OPEN: timedelta(minutes=5),
        RetryPolicy.RECORD: timedelta(hours=1),
        RetryPolicy.OUTAGE: timedelta(days=3),
    }
    assert (settings.first_delay, settings.longest_delay) == (timedelta(seconds=5), timedelta(minutes=15))


def test_bounds_of_retrying_may_be_below_a_second() -> None:
    settings = retry_settings({"RETRY_OPEN_SECONDS": "0.25", "RETRY_FIRST_DELAY_SECONDS": "1e-2"})
    assert settings.bounds[RetryPolicy.OPEN] == timedelta(milliseconds=250)
    assert settings.first_delay == timedelta(milliseconds=10)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e9", "five", "5 s"])
def test_what_is_no_bound(value: str) -> None:
    (problem,) = problems(retry_settings, {"RETRY_OUTAGE_SECONDS": value})
    assert "RETRY_OUTAGE_SECONDS is not valid" in problem
