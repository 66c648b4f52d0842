"""Any request gets a response of Dataverse's own kind: never an exception of the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox.dataverse.errors import RequestRefused
from sandbox.dataverse.filters import parse_filter
from sandbox.dataverse.schema import TABLES

if TYPE_CHECKING:
    from sandbox.dataverse import Database
    from tests.sandbox.dataverse.conftest import World

GUID = "11111111-2222-4333-8444-555555555555"
WORDS = (
    "name statecode _customerid_value totalamount createdon customerid_account/name eq ne gt le and or not null"
    f" true ( ) 'it''s' '%' 1 -2.5 1e5 {GUID} 2026-01-01 2026-01-01T00:00:00Z contains( startswith( , any() $it @x"
    " createdby/businessunitid/name nothing / ' 99999999999999999999 0001-01-01"
).split()
SEGMENTS = (
    f"opportunities accounts({GUID}) opportunities({GUID}) WhoAmI WhoAmI() WinOpportunity $batch $ref $metadata"
    " EntityDefinitions EntityDefinitions(LogicalName='account') Attributes Microsoft.Dynamics.CRM.AddPrivilegesRole"
    " RetrieveRolePrivilegesRole(RoleId=@x) systemuserroles_association opportunity_invoices ( ) %FF é (( ' = ,"
).split()
OPTIONS = ["$select", "$filter", "$orderby", "$top", "$expand", "$count", "$skiptoken", "$skip", "@x", "x"]
BODIES = (
    "",
    "{}",
    "[]",
    "null",
    '{"name": 1}',
    '{"name": "a"}',
    '{"a": {"b": [1.5]}}',
    '{"statecode": 1}',
    "\ud800",
)

filters = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join)
many = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@many
@given(text=st.one_of(filters, st.text(max_size=40)))
def test_every_filter_runs_or_is_refused(database: Database, text: str) -> None:
    table = TABLES["opportunity"]
    try:
        condition = parse_filter(text, table)
    except RequestRefused as error:
        assert error.status in (400, 501)  # noqa: PT017 - either outcome is right
        return
    with database.reading() as transaction:
        transaction.rows(table, condition.sql, condition.parameters)


@many
@given(
    method=st.sampled_from(["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"]),
    segments=st.lists(st.one_of(st.sampled_from(SEGMENTS), st.text(max_size=5)), max_size=3),
    options=st.lists(
        st.tuples(st.sampled_from(OPTIONS), st.one_of(filters, st.sampled_from(SEGMENTS))), max_size=3
    ),
    body=st.sampled_from(BODIES),
)
def test_every_request_gets_a_response(
    world: World, method: str, segments: list[str], options: list[tuple[str, str]], body: str
) -> None:
    query = "&".join(f"{name}={quote(value)}" for name, value in options)
    path = "/".join(quote(segment, safe="()',=$@%") for segment in segments)
    response = world.admin.session.request(
        method,
        f"{world.admin.root}{path}?{query}",
        data=body.encode(errors="surrogatepass"),
        headers={"Authorization": f"Bearer {world.admin.token}", "Content-Type": "application/json"},
    )
    assert response.status_code < 500 or response.status_code == 501
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "text", ["(" * 5000 + "statecode eq 0" + ")" * 5000, "not " * 5000 + "statecode eq 0"]
)
def test_a_filter_that_is_nested_too_deeply_is_refused(text: str) -> None:
    with pytest.raises(RequestRefused):
        parse_filter(text, TABLES["opportunity"])


def test_a_filter_has_five_hundred_conditions_at_most(database: Database) -> None:
    table = TABLES["opportunity"]
    terms = [f"statecode eq {number}" for number in range(501)]
    condition = parse_filter(" or ".join(terms[:500]), table)
    with database.reading() as transaction:
        assert transaction.rows(table, condition.sql, condition.parameters) == []
    with pytest.raises(RequestRefused) as refused:
        parse_filter(" or ".join(terms), table)
    assert refused.value.code == "0x8004430d"
