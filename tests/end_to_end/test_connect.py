"""`python -m operations connect`, `disconnect` and `reconcile`, over sockets against the Dataverse of the sandbox."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from operations.__main__ import operations
from operations.privileges import PRIVILEGES, needed_privileges
from operations.web_api import WebApi
from sandbox.certificates import CertificateAuthority
from sandbox.clock import SystemClock
from sandbox.cloud.settings import entity_settings
from sandbox.dataverse import (
    DataverseApp,
    DataverseServer,
    Depth,
    ServiceProtection,
    ServiceProtectionLimits,
    seed,
)
from sandbox.dataverse.schema import TABLES
from sandbox.identity import Identity, IdentityServer, TokenAuthority
from sandbox.service_bus import Authenticator, Broker, Configuration, ServiceBusServer
from shared.sales import claim_of
from tests.end_to_end.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from click.testing import Result

ROOT = Path(__file__).resolve().parents[2]
ADMINISTRATOR = Identity.named("administrator")
FUNCTION = Identity.named("function")
QUEUE = "opportunity-won"
_MADE = ("serviceendpoint", "sdkmessageprocessingstep", "role", "systemuserroles")
KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG="


@dataclass
class Organization:
    """A Dataverse over HTTPS, an administrator's login, and the command line pointed at them."""

    app: DataverseApp
    environment: dict[str, str]
    posts: list[tuple[Any, ...]] = field(default_factory=list)
    # Changes get the response of a change that was made.
    forgets_changes: bool = False
    # They are taken, and not found afterwards.
    forgets_endpoints: bool = False

    def run(self, *arguments: str, stdin: str | None = None, **environment: str) -> Result:
        return CliRunner().invoke(operations, arguments, stdin, env={**self.environment, **environment})

    def set_up(self, command: str, *arguments: str, stdin: str | None = None, **environment: str) -> Result:
        """Connect or disconnect the function's identity."""
        return self.run(
            command, "--application-id", FUNCTION.client_id, *arguments, stdin=stdin, **environment
        )

    def connect(self, *arguments: str, key: str = KEY) -> dict[str, str]:
        return outcomes(self.set_up("connect", "--json", "--yes", *arguments, OPPORTUNITY_WON_SAS_KEY=key))

    def mark_won(self, *opportunities: str, on: str = "2026-03-01") -> None:
        """Win opportunities, which posts no event."""
        with self.app.session() as session:
            for opportunity in opportunities:
                won = {"statecode": 1, "actualclosedate": on}
                session.change(TABLES["opportunity"], opportunity, won)

    def change(self, table: str, **values: object) -> None:
        """Change the one row of a table."""
        (row,) = self.rows(table)
        with self.app.session() as session:
            session.change(TABLES[table], row[TABLES[table].key], values)

    def win(self, opportunity: str) -> None:
        api = WebApi.of(self.environment)
        close = {"opportunityid@odata.bind": f"/opportunities({opportunity})", "subject": "Won"}
        api.call("WinOpportunity", {"OpportunityClose": close, "Status": 3})

    def rows(self, table: str) -> list[dict[str, Any]]:
        with self.app.session() as session:
            return [dict(row) for row in session.transaction.rows(TABLES[table])]


def outcomes(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, (result.output, result.exception)
    return {row["step"]: row["outcome"] for row in json.loads(result.stdout)}


@pytest.fixture
def organization(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Organization]:
    certificates = CertificateAuthority(tmp_path)
    tokens = TokenAuthority()
    posts: list[tuple[Any, ...]] = []
    app = DataverseApp(tokens.verify, post=lambda *post: posts.append(post))
    seed.add_administrator(app, ADMINISTRATOR.client_id)
    context = certificates.server_context("127.0.0.1")

    def forgetful(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:  # noqa: ANN401 - WSGI
        if environ["REQUEST_METHOD"] == "PATCH" and made.forgets_changes:
            start_response("204 No Content", [])
            return []
        endpoints = "/serviceendpoints" in environ["PATH_INFO"] and environ["REQUEST_METHOD"] == "GET"
        if endpoints and made.forgets_endpoints:
            one = "(" in environ["PATH_INFO"]
            start_response("404 Not Found" if one else "200 OK", [("Content-Type", "application/json")])
            return [b'{"error": {"code": "0x80040217", "message": "Gone."}}' if one else b'{"value": []}']
        return app(environ, start_response)

    with (
        IdentityServer(tokens, [ADMINISTRATOR, FUNCTION]) as identity,
        DataverseServer(app, context, middleware=lambda _: forgetful) as server,
    ):
        environment = {
            **certificates.settings,
            **identity.settings,
            "DATAVERSE_URL": server.url,
            "AZURE_CLIENT_ID": ADMINISTRATOR.client_id,
            "ServiceBusConnection__fullyQualifiedNamespace": "contoso.servicebus.windows.net",
            **entity_settings(Configuration.load()),
        }
        # The libraries read where identities and trusted certificates are from the process's environment.
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        made = Organization(app, environment, posts)
        yield made
    app.close()


def test_everything_is_done_once_and_then_exists(organization: Organization) -> None:
    done = organization.connect()
    assert set(done.values()) == {"done", "already there"}
    # What docs/deploy.md shows are these lines.
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").partition("\n## 5.")[0]
    shown = dict(re.findall(r"^(\S.*?) {2,}(done|already there)(?: |$)", page, re.MULTILINE))
    assert shown == done
    again = organization.connect(key="")
    assert set(again.values()) == {"already there"}, again


def test_a_dry_run_says_what_would_be_done_and_does_nothing(organization: Organization) -> None:
    said = organization.connect("--dry-run").values()
    assert "would be done" in said
    assert "done" not in said
    assert organization.rows("serviceendpoint") == organization.rows("sdkmessageprocessingstep") == []


@pytest.mark.parametrize("columns", ["", "billto_city"])
@pytest.mark.parametrize("owner", ["", "opportunity", "application-user"])
def test_the_role_has_exactly_the_privileges_and_what_is_read_at_organization_depth(
    organization: Organization, owner: str, columns: str
) -> None:
    """Those to assign the invoice, and to read the types of columns, only where the function does so."""
    organization.environment |= {"INVOICE_OWNER": owner, "INVOICE_COLUMNS": columns}
    organization.connect()
    (role,) = [row for row in organization.rows("role") if row["name"] == "Opportunity Invoicing"]
    names = {row["privilegeid"]: row["name"] for row in organization.rows("privilege")}
    granted = {
        names[row["privilegeid"]]: row["privilegedepthmask"]
        for row in organization.rows("roleprivileges")
        if row["roleid"] == role["roleid"]
    }
    needed = needed_privileges(organization.environment)
    assert ("prvAssignInvoice" in needed) is (owner != "application-user")
    assert (needed.keys() >= {"prvReadEntity", "prvReadAttribute"}) is bool(columns)
    assert granted == {name: int(Depth[depth.upper()]) for name, depth in needed.items()}
    assert all(
        depth == "Global" for name, depth in needed.items() if name.startswith(("prvRead", "prvAppendToO"))
    )


def test_a_privilege_that_was_granted_at_a_lower_depth_is_raised(organization: Organization) -> None:
    seed.add_role(organization.app, list(PRIVILEGES), depth=Depth.LOCAL)
    assert organization.connect()["Privileges"] == "done"
    assert organization.connect()["Privileges"] == "already there"


def test_the_endpoint_posts_json_to_the_queue_with_the_key(organization: Organization) -> None:
    organization.connect()
    (endpoint,) = organization.rows("serviceendpoint")
    assert {
        name: endpoint[name] for name in ("namespaceaddress", "path", "messageformat", "authtype", "saskey")
    } == {
        "namespaceaddress": "sb://contoso.servicebus.windows.net/",
        "path": "opportunity-won",
        "messageformat": 2,
        "authtype": 2,
        "saskey": KEY,
    }
    (step,) = organization.rows("sdkmessageprocessingstep")
    assert (step["mode"], step["stage"], step["statecode"]) == (1, 40, 0)


def test_a_step_that_somebody_changed_is_corrected(organization: Organization) -> None:
    organization.connect()
    other = seed.add_service_endpoint(
        organization.app, namespace_address="sb://other/", path="other", sas_key=KEY
    )
    (step,) = organization.rows("sdkmessageprocessingstep")
    organization.change("sdkmessageprocessingstep", mode=0, eventhandler=other, statecode=1, statuscode=2)
    done = organization.connect()
    assert (done["Step on Win of opportunity"], done["Step enabled"]) == ("changed", "done")
    (fixed,) = organization.rows("sdkmessageprocessingstep")
    for column in ("mode", "stage", "eventhandler", "sdkmessageid", "sdkmessagefilterid", "statecode"):
        assert fixed[column] == step[column], column


def test_everything_is_read_back(organization: Organization) -> None:
    """A change that Dataverse accepts and does not make is reported, not shown as done."""
    organization.connect()
    organization.change("serviceendpoint", messageformat=1)
    organization.forgets_changes = True
    result = organization.set_up("connect", "--yes")
    assert result.exit_code == 1
    assert re.search(r"^Service endpoint +changed ", result.stdout, re.MULTILINE)
    assert "does not have: Service endpoint." in result.stderr


def test_what_dataverse_writes_differently_is_recognised(organization: Organization) -> None:
    """Whether it keeps an address and the kind of queue as they were written is not confirmed."""
    organization.connect()
    organization.change("serviceendpoint", namespaceaddress="sb://CONTOSO.servicebus.windows.net", contract=2)
    organization.forgets_changes = True
    assert organization.connect(key="")["Service endpoint"] == "already there"


def test_an_endpoint_that_was_taken_and_is_not_there_is_named(organization: Organization) -> None:
    organization.forgets_endpoints = True
    result = organization.set_up("connect", "--yes", OPPORTUNITY_WON_SAS_KEY=KEY)
    assert result.exit_code == 1
    assert "does not have: Service endpoint." in result.stderr


def test_another_key_is_a_rotation(organization: Organization) -> None:
    organization.connect()
    other = KEY.replace("0", "9")
    assert organization.connect(key=other)["Service endpoint"] == "changed"
    (endpoint,) = organization.rows("serviceendpoint")
    assert endpoint["saskey"] == other


def test_without_a_key_nothing_is_registered(organization: Organization) -> None:
    result = organization.set_up("connect", "--yes")
    assert result.exit_code == 2
    assert "OPPORTUNITY_WON_SAS_KEY" in result.output
    assert organization.rows("serviceendpoint") == []


def test_the_key_may_come_from_standard_input(organization: Organization) -> None:
    result = organization.set_up("connect", "--yes", "--sas-key-stdin", stdin=f"{KEY}\n")
    assert result.exit_code == 0, result.output
    assert KEY not in result.output
    assert organization.rows("serviceendpoint")[0]["saskey"] == KEY


@pytest.mark.parametrize("text", ["", "\n", "  \n"])
def test_an_empty_key_on_standard_input_is_an_error(organization: Organization, text: str) -> None:
    """The program before the pipe failed. Keeping the old key would hide that, and it expires next."""
    organization.connect()
    result = organization.set_up("connect", "--yes", "--sas-key-stdin", stdin=text)
    assert result.exit_code == 2
    assert "There is no key on standard input" in result.output
    assert organization.rows("serviceendpoint")[0]["saskey"] == KEY


def test_dataverse_posts_to_no_host_outside_of_azure(organization: Organization) -> None:
    """Events are whole records, and everybody who may write app settings can name a host."""
    result = organization.set_up(
        "connect",
        "--yes",
        OPPORTUNITY_WON_SAS_KEY=KEY,
        ServiceBusConnection="Endpoint=sb://evil.example/;SharedAccessKeyName=a;SharedAccessKey=a2V5",
    )
    assert result.exit_code == 1
    assert "names evil.example, which is not in Azure: Dataverse does not post there" in result.output
    assert organization.rows("serviceendpoint") == organization.rows("sdkmessageprocessingstep") == []


@pytest.mark.parametrize("command", ["connect", "disconnect"])
def test_the_format_of_the_output_is_no_consent(organization: Organization, command: str) -> None:
    organization.connect()
    before = [organization.rows(table) for table in _MADE]
    result = organization.set_up(command, "--json", OPPORTUNITY_WON_SAS_KEY=KEY.replace("0", "9"))
    assert result.exit_code == 2
    assert "--yes" in result.output
    assert [organization.rows(table) for table in _MADE] == before


def test_a_dry_run_of_disconnect_says_what_would_be_deleted_and_deletes_nothing(
    organization: Organization,
) -> None:
    organization.connect()
    before = [organization.rows(table) for table in _MADE]
    said = outcomes(organization.set_up("disconnect", "--dry-run", "--json"))
    deleted = ("Step on Win of opportunity", "Service endpoint", "Role")
    assert {said[step] for step in deleted} == {"would be done"}
    assert [organization.rows(table) for table in _MADE] == before


def test_a_win_is_posted_only_after_connect_and_no_more_after_disconnect(organization: Organization) -> None:
    demo = seed.demo_organization(organization.app, opportunities=3)

    def wins_post(opportunity: str) -> int:
        organization.posts.clear()
        organization.win(opportunity)
        # The system job is written together with the win: none means that none will come.
        wait_until(lambda: organization.posts or not organization.rows("asyncoperation"), "the job ends")
        return len(organization.posts)

    assert wins_post(demo.opportunities[0]) == 0
    organization.connect()
    assert wins_post(demo.opportunities[1]) == 1
    result = organization.set_up("disconnect", "--yes")
    assert result.exit_code == 0, result.output
    assert wins_post(demo.opportunities[2]) == 0
    assert organization.rows("serviceendpoint") == organization.rows("sdkmessageprocessingstep") == []
    assert "Opportunity Invoicing" not in {row["name"] for row in organization.rows("role")}


def test_a_login_without_rights_sees_what_is_missing(organization: Organization) -> None:
    seed.add_application_user(organization.app, FUNCTION.client_id)
    result = organization.set_up("connect", "--yes", AZURE_CLIENT_ID=FUNCTION.client_id)
    assert result.exit_code != 0
    assert "prvRead" in result.output
    assert "operations doctor" in result.output


def test_reconcile_finds_the_wins_that_never_became_an_invoice(organization: Organization) -> None:
    """Also if there are more than a page of the Web API or a batch can hold."""
    demo = seed.demo_organization(organization.app, opportunities=1106)
    invoiced, canceled, ordered, claimed, lost, old, still_open, *missing = demo.opportunities
    api = WebApi.of(organization.environment)
    organization.mark_won(invoiced, canceled, claimed, *missing)
    organization.mark_won(ordered, on="2026-06-01")
    organization.mark_won(old, on="2025-12-31")
    with organization.app.session() as session:
        session.change(TABLES["opportunity"], lost, {"statecode": 2, "actualclosedate": "2026-03-01"})
    for opportunity in (invoiced, canceled):
        api.call(
            "GenerateInvoiceFromOpportunity",
            {"OpportunityId": opportunity, "ColumnSet": {"AllColumns": True}},
        )
    (invoice,) = api.rows(f"invoices?$filter=_opportunityid_value eq {canceled}")
    api.update(f"invoices({invoice['invoiceid']})", {"statecode": 3})
    api.create("salesorders", {"name": "Order", "opportunityid@odata.bind": f"/opportunities({ordered})"})
    note = {
        "annotationid": claim_of(claimed),
        "objectid_opportunity@odata.bind": f"/opportunities({claimed})",
    }
    api.create("annotations", note)

    result = organization.run("reconcile", "--since", "2026-01-01", "--json")
    found = {row["opportunity"]: row["state"] for row in json.loads(result.stdout)}
    assert found == {
        **dict.fromkeys((canceled, *missing), "no invoice"),
        claimed: "its invoice was deleted or canceled",
    }
    assert still_open not in found
    assert result.exit_code == 3
    assert organization.run("reconcile", "--since", "2026-03-02", "--json").exit_code == 0
    also_ordered = organization.run(
        "reconcile", "--since", "2026-03-02", "--json", ORDERED_OPPORTUNITY="invoice"
    )
    assert [row["opportunity"] for row in json.loads(also_ordered.stdout)] == [ordered]


def test_reconcile_refuses_a_login_that_sees_only_a_part(organization: Organization) -> None:
    """Rows of other people are missing without an error, so "none is missing" would be wrong."""
    names = ["prvReadOpportunity", "prvReadInvoice", "prvReadSalesOrder", "prvReadNote", "prvReadUser"]
    role = seed.add_role(organization.app, names, name="Part", depth=Depth.LOCAL)
    seed.add_application_user(organization.app, FUNCTION.client_id, roles=[role])
    asked = organization.run("reconcile", "--since", "2026-01-01", AZURE_CLIENT_ID=FUNCTION.client_id)
    assert asked.exit_code == 1
    assert "prvReadInvoice, prvReadNote, prvReadOpportunity, prvReadSalesOrder for the whole" in asked.output


def test_reconcile_says_where_it_cannot_tell_what_its_login_sees(organization: Organization) -> None:
    organization.environment["INVOICE_OWNER"] = "application-user"
    organization.connect()
    asked = organization.run(
        "reconcile", "--since", "2026-01-01", "--json", AZURE_CLIENT_ID=FUNCTION.client_id
    )
    assert (asked.exit_code, asked.stdout) == (0, "[]\n")
    assert "prvReadUser" in asked.stderr


def test_reconcile_waits_where_dataverse_throttles(organization: Organization) -> None:
    """Every second request is refused for a second, and the command succeeds nevertheless."""
    demo = seed.demo_organization(organization.app, opportunities=1)
    organization.mark_won(*demo.opportunities)
    organization.app.protection = ServiceProtection(
        SystemClock(), ServiceProtectionLimits(requests=1, window=timedelta(seconds=1))
    )
    result = organization.run("reconcile", "--since", "2026-01-01", "--json")
    assert [row["opportunity"] for row in json.loads(result.stdout)] == list(demo.opportunities)
    assert any(request.status == 429 for request in organization.app.requests)


def test_reconcile_sends_an_event_for_each(organization: Organization) -> None:
    demo = seed.demo_organization(organization.app, opportunities=3)
    organization.mark_won(*demo.opportunities)
    configuration = Configuration.load()
    broker = Broker(configuration)
    with ServiceBusServer(broker, authenticator=Authenticator(configuration)) as server:
        connection_string = (
            f"Endpoint=sb://{server.host}:{server.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            "SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;"
        )
        send = ("reconcile", "--since", "2026-01-01", "--send")
        refused = organization.run(*send, "--json", ServiceBusConnection=connection_string)
        assert (refused.exit_code, "--yes" in refused.output, broker.counts(QUEUE).active) == (2, True, 0)
        result = organization.run(*send, "--yes", ServiceBusConnection=connection_string)
    assert result.exit_code == 0, (result.output, result.exception)
    sent = {json.loads(bytes(m.message.body))["opportunityId"] for m in broker.peek(QUEUE, 0, 9)}  # type: ignore[arg-type]
    assert sent == set(demo.opportunities)
