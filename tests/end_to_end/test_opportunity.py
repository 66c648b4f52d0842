"""`python -m operations opportunity` and `reconcile`: a scenario in the sandbox for each verdict and each problem."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from operations.opportunity import Verdict
from operations.reconcile import Problem
from operations.web_api import WebApi
from sandbox.actors import OpportunityChange, Salesperson
from sandbox.cloud import CREATED_TOPIC, WON_QUEUE, Cloud, CloudOptions
from sandbox.dataverse.schema import TABLES
from sandbox.service_bus import Message, ReceiveMode
from shared.sales import claim_note
from tests.end_to_end.conftest import Namespace, event, run_operations, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
SINCE = ("reconcile", "--since", "2000-01-01")


class Office(Namespace):
    """The sandbox without a function: what a function would have done is arranged, step by step."""

    def __init__(self, cloud: Cloud, salesperson: Salesperson) -> None:
        super().__init__(cloud.broker, cloud.operator_settings)
        self.cloud = cloud
        self.salesperson = salesperson
        self._unused = list(cloud.demo.opportunities)
        self.api = WebApi.of(self.environment)

    def opportunity(self) -> str:
        return self._unused.pop()

    def win(self, opportunity: str) -> None:
        """Win it, and take the event out of the queue that Dataverse posts."""
        before = self.broker.counts(WON_QUEUE).active
        self.salesperson.win(opportunity)
        wait_until(lambda: self.broker.counts(WON_QUEUE).active > before, "the event is posted")
        self.broker.receive(WON_QUEUE, before + 1, ReceiveMode.RECEIVE_AND_DELETE)

    def won(self) -> str:
        """Return an opportunity that is won."""
        opportunity = self.opportunity()
        self.win(opportunity)
        return opportunity

    def invoice(self, opportunity: str, *, claimed: bool = True) -> str:
        """Generate an invoice, assign it and read it, as the function does; returns its id."""
        if claimed:
            claim = claim_note(opportunity)
            self.api.create(claim.path, dict(claim.body))
        columns = {"AllColumns": False, "Columns": ["invoiceid"]}
        made = self.api.call(
            "GenerateInvoiceFromOpportunity", {"OpportunityId": opportunity, "ColumnSet": columns}
        )
        invoice = self.api.invoice(str(made["invoiceid"])).id
        with self.cloud.dataverse.session() as session:
            owner = session.find(TABLES["opportunity"], opportunity)["ownerid"]
        self.overwrite("invoice", invoice, ownerid=owner)
        return invoice

    def row(self, table: str, row_id: str, **values: object) -> None:
        with self.cloud.dataverse.session() as session:
            session.change(TABLES[table], row_id, values)

    def overwrite(self, table: str, row_id: str, **values: object) -> None:
        """Change a row of the database without what follows from a change."""
        with self.cloud.dataverse.session() as session:
            session.transaction.update(TABLES[table], row_id, values)

    def history(self, text: str, **environment: str) -> dict[str, Any]:
        result = run_operations({**self.environment, **environment}, "opportunity", text, "--json")
        document: dict[str, Any] = json.loads(result.stdout)
        return document


@contextmanager
def opened(opportunities: int, *, functions_host: bool = False) -> Iterator[Office]:
    options = CloudOptions(ROOT, opportunities=opportunities, functions_host=functions_host)
    with Cloud(options) as cloud, Salesperson(cloud) as salesperson, pytest.MonkeyPatch.context() as patch:
        # The libraries read where identities and trusted certificates are from the process's environment.
        for name, value in cloud.operator_settings.items():
            patch.setenv(name, value)
        yield Office(cloud, salesperson)


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    with opened(60) as office:
        yield office


# ---------------------------------------------------------------------------------------------- verdicts


# Each function lets something happen to an opportunity that is won, and returns what is said about it.


def _reopened(office: Office, opportunity: str) -> str:
    office.salesperson.reopen(opportunity)
    return "it is open"


def _lost(office: Office, opportunity: str) -> str:
    office.salesperson.reopen(opportunity)
    office.salesperson.lose(opportunity)
    return "it is lost"


def _invoiced_once(office: Office, opportunity: str) -> str:
    office.invoice(opportunity)
    (row,) = office.api.rows(f"invoices?$select=invoicenumber&$filter=_opportunityid_value eq {opportunity}")
    return str(row["invoicenumber"])


def _won_again_without_a_change(office: Office, opportunity: str) -> str:
    number = _invoiced_once(office, opportunity)
    office.salesperson.reopen(opportunity)
    office.win(opportunity)
    return number


def _invoiced_twice(office: Office, opportunity: str) -> str:
    office.invoice(opportunity)
    office.invoice(opportunity, claimed=False)
    return ", "


def _outdated(office: Office, opportunity: str) -> str:
    invoice = office.invoice(opportunity)
    # Dataverse's times have seconds: the second win is later.
    office.overwrite("invoice", invoice, createdon="2026-01-01T00:00:00Z")
    office.salesperson.reopen(opportunity)
    office.salesperson.change(opportunity, OpportunityChange(freight=Decimal("12.34")))
    office.win(opportunity)
    return "the invoice amounts to"


def _retried(office: Office, opportunity: str) -> str:
    office.schedule(opportunity, reason="DataverseForbidden")
    return "because DataverseForbidden"


def _in_queue(office: Office, opportunity: str) -> str:
    office.broker.send(WON_QUEUE, Message(event(opportunity)))
    return ""


def _parked(office: Office, opportunity: str) -> str:
    office.park(opportunity, text="No price list.")
    return "No price list."


def _publish_failed(office: Office, opportunity: str) -> str:
    office.invoice(opportunity)
    office.park(opportunity, reason="PublishFailed")
    return "PublishFailed"


def _ordered(office: Office, opportunity: str) -> str:
    order = office.salesperson.order(opportunity)
    return str(office.api.row(f"salesorders({order})?$select=ordernumber")["ordernumber"] or order)


def _invoice_gone(office: Office, opportunity: str) -> str:
    office.api.delete(f"invoices({office.invoice(opportunity)})")
    return ""


def _job_failed(office: Office, opportunity: str) -> str:
    with office.cloud.dataverse.session() as session:
        session.transaction.insert(
            TABLES["asyncoperation"],
            {
                "asyncoperationid": str(uuid4()),
                "name": "Post",
                "regardingobjectid": opportunity,
                "statecode": 3,
                "statuscode": 31,
                "message": "401 sig=c2VjcmV0",
                "createdon": "2026-11-27T12:00:00Z",
            },
        )
    return "401 sig=…"


def _never_arrived(_: Office, __: str) -> str:
    return ""


VERDICTS: dict[Callable[[Office, str], str], Verdict] = {
    _reopened: Verdict.NOT_WON,
    _lost: Verdict.NOT_WON,
    _invoiced_once: Verdict.INVOICED_ONCE,
    _won_again_without_a_change: Verdict.INVOICED_ONCE,
    _invoiced_twice: Verdict.INVOICED_TWICE,
    _outdated: Verdict.OUTDATED,
    _retried: Verdict.RETRIED,
    _in_queue: Verdict.IN_QUEUE,
    _parked: Verdict.PARKED,
    _publish_failed: Verdict.PARKED,
    _ordered: Verdict.ORDERED,
    _invoice_gone: Verdict.INVOICE_GONE,
    _job_failed: Verdict.JOB_FAILED,
    _never_arrived: Verdict.NEVER_ARRIVED,
}


@pytest.mark.parametrize("arrange", VERDICTS)
def test_each_verdict_has_a_scenario(office: Office, arrange: Callable[[Office, str], str]) -> None:
    verdict = VERDICTS[arrange]
    opportunity = office.won()
    because = arrange(office, opportunity)
    text = office.run("opportunity", opportunity.upper()).stdout
    (said,) = re.findall("^Verdict: (.+)$", text, re.MULTILINE)
    assert said.startswith(verdict.text)
    assert because in said
    assert because or said.strip() == verdict.text, "where there is no reason, none is given"
    advice = verdict.advice.replace("opportunity ID", f"opportunity {opportunity}")
    assert f"\nTo do:   {advice}\n" in text
    assert "Not seen: " not in text
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("20"))


def test_what_cannot_be_seen_is_named_and_nothing_is_concluded_from_it(office: Office) -> None:
    opportunity = office.won()
    found = office.history(
        opportunity,
        ServiceBusConnection="Endpoint=sb://127.0.0.1:1/;SharedAccessKeyName=x;"
        "SharedAccessKey=y;UseDevelopmentEmulator=true",
    )
    assert found["verdict"] == Verdict.NOT_INVOICED.code
    assert any("queue of wins: Service Bus refuses the connection" in each for each in found["notSeen"])


def test_every_verdict_is_tried() -> None:
    assert {*VERDICTS.values()} | {Verdict.NOT_INVOICED} == set(Verdict)


def test_an_opportunity_is_found_by_a_part_of_its_name_and_by_the_number_of_its_invoice(
    office: Office,
) -> None:
    opportunity = office.won()
    number = _invoiced_once(office, opportunity)
    office.row("opportunity", opportunity, name="100% O'Neil & Söhne #7")
    assert office.history("O'Neil & Söhne #7")["opportunity"] == opportunity
    assert office.history(number)["opportunity"] == opportunity


def test_a_whole_name_means_only_its_own_opportunity(office: Office) -> None:
    first, second = office.opportunity(), office.opportunity()
    office.row("opportunity", first, name="Boiler for Elm 1")
    office.row("opportunity", second, name="Boiler for Elm 17")
    assert office.history("boiler for elm 1")["opportunity"] == first


def test_the_output_says_that_there_are_more_matches(office: Office) -> None:
    output = office.run("opportunity", " for ", code=1).output
    assert "these are the newest 20" in output
    assert len(output.splitlines()) == 21


def test_a_missing_privilege_is_named_in_short(office: Office) -> None:
    """Dataverse's own text has several lines of ids."""
    opportunity = office.opportunity()
    as_function = {"OPERATIONS_CLIENT_ID": office.cloud.function_identity.client_id}
    assert office.history(opportunity, **as_function)["notSeen"] == [
        "the system jobs: Dataverse refuses to say (needed: prvReadAsyncOperation)"
    ]


def test_several_matches_and_none_are_sentences(office: Office) -> None:
    for opportunity in (first := office.opportunity(), second := office.opportunity()):
        office.row("opportunity", opportunity, name=f"Twins {opportunity[:4]}\x1b[2J")
    output = office.run("opportunity", "Twins", code=1).output
    assert first in output
    assert second in output
    assert "\x1b" not in output
    assert "No opportunity has" in office.run("opportunity", str(uuid4()), code=1).output


def test_sending_puts_an_event_on_the_queue_for_a_won_opportunity_only(office: Office) -> None:
    opportunity = office.opportunity()
    before = office.broker.counts(WON_QUEUE).active
    assert "is not won" in office.run("opportunity", opportunity, "--send", "--yes", code=1).output
    assert office.broker.counts(WON_QUEUE).active == before
    # It takes every message from the queue.
    office.win(opportunity)
    assert "--yes" in office.run("opportunity", opportunity, "--send", "--json", code=2).output
    assert office.broker.counts(WON_QUEUE).active == 0
    office.run("opportunity", opportunity, "--send", "--yes")
    assert office.broker.counts(WON_QUEUE).active == 1
    assert office.history(opportunity)["verdict"] == Verdict.IN_QUEUE.code


def test_a_real_function_shows_the_win_the_claim_the_invoice_and_the_event() -> None:
    with opened(1, functions_host=True) as office:
        opportunity = office.opportunity()
        office.salesperson.win(opportunity)
        audit = f"{CREATED_TOPIC}/Subscriptions/audit"
        wait_until(lambda: office.broker.counts(audit).active == 1, "the event is published")
        found = office.history(opportunity)
    assert (found["verdict"], found["advice"]) == (
        Verdict.INVOICED_ONCE.code,
        Verdict.INVOICED_ONCE.advice,
    )
    assert "INV-" in found["because"]
    assert found["notSeen"] == []
    what = [entry["what"] for entry in found["timeline"]]
    for expected in ("won", "claimed", "invoiced", "event published"):
        assert expected in what, what
    assert found["remarks"] == []


def test_lists_show_opportunity_and_customer_by_name(office: Office) -> None:
    opportunity = office.won()
    office.row("opportunity", opportunity, name="Chairs\x1b[31m")
    office.park(opportunity, reason="NamesAreShown", text="")
    (listed,) = office.listed("failed", "list", "--reason", "NamesAreShown")
    assert listed["opportunityName"] == "Chairs\x1b[31m"
    assert listed["customer"]
    text = office.run("failed", "list", "--reason", "NamesAreShown").stdout
    assert "Chairs\\x1b[31m (" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_list_without_dataverse_shows_ids_and_says_why(office: Office) -> None:
    opportunity = office.won()
    office.park(opportunity, reason="NoNames")
    environment = office.environment | {"DATAVERSE_URL": "https://127.0.0.1:1"}
    done = run_operations(environment, "failed", "list", "--reason", "NoNames")
    assert opportunity[:8] in done.stdout
    assert "Ids instead of names: " in done.stderr


# ---------------------------------------------------------------------------------------------- the audit


def _pricing_error(office: Office, opportunity: str) -> str:
    office.overwrite("invoice", office.invoice(opportunity), pricingerrorcode=1)
    return ""


def _order_canceled(office: Office, opportunity: str) -> str:
    office.salesperson.cancel_order(office.salesperson.order(opportunity))
    return ""


def _invoice_canceled(office: Office, opportunity: str) -> str:
    office.api.update(f"invoices({office.invoice(opportunity)})", {"statecode": 3})
    return "canceled: "


def _totals_disagree(office: Office, opportunity: str) -> str:
    """Somebody changes a line of the database: no price is calculated anew."""
    invoice = office.invoice(opportunity)
    with office.cloud.dataverse.session() as session:
        rows = session.transaction.rows(TABLES["invoicedetail"], "invoiceid = ?", (invoice,))
        line = next(row for row in rows if row["producttypecode"] != 3)
    office.overwrite("invoicedetail", line["invoicedetailid"], extendedamount=1)
    return "INV-"


def _not_assigned(office: Office, opportunity: str) -> str:
    invoice = office.invoice(opportunity)
    with office.cloud.dataverse.session() as session:
        creator = session.find(TABLES["invoice"], invoice)["createdby"]
    office.overwrite("invoice", invoice, ownerid=creator)
    return "INV-"


SCENARIOS: dict[Callable[[Office, str], str], Problem | None] = {
    _never_arrived: Problem.NO_INVOICE,
    _invoice_gone: Problem.INVOICE_GONE,
    _invoice_canceled: Problem.INVOICE_GONE,
    _order_canceled: Problem.ORDER_CANCELED,
    _invoiced_twice: Problem.TWO_INVOICES,
    _outdated: Problem.OUTDATED,
    _pricing_error: Problem.PRICING_ERROR,
    _totals_disagree: Problem.TOTALS_DISAGREE,
    _not_assigned: Problem.NOT_ASSIGNED,
    _invoiced_once: None,
    _ordered: None,
    _lost: None,
    _won_again_without_a_change: None,
}


def test_the_audit_finds_each_problem() -> None:
    assert {problem for problem in SCENARIOS.values() if problem is not None} == set(Problem)
    with opened(len(SCENARIOS)) as office:
        arranged = {office.won(): arrange for arrange in SCENARIOS}
        details = {opportunity: arrange(office, opportunity) for opportunity, arrange in arranged.items()}
        found = json.loads(office.run(*SINCE, "--json", code=3).stdout)
        text = office.run(*SINCE, code=3).stdout
    problems = {arranged[row["opportunity"]]: row["problem"] for row in found}
    assert len(found) == len(problems)
    assert problems == {arrange: each.code for arrange, each in SCENARIOS.items() if each is not None}
    for row in found:
        assert details[row["opportunity"]] in row["detail"]
    for problem in Problem:
        assert problem.text in text
        assert problem.advice in text


def test_all_is_well_is_a_sentence_with_the_number_of_wins() -> None:
    with opened(3) as office:
        for _ in range(2):
            _invoiced_once(office, office.won())
        assert office.run(*SINCE).stdout == "2 wins checked, none missing.\n"
