"""What users do in Dataverse while a history happens: each act is one transaction, and noted in the scenario.

The histories in one process and those on real sockets have the same users. When they act is left to the histories.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sandbox.dataverse import DuplicateResponse, FailedChangeSet
from sandbox.dataverse.actions import lose_opportunity, win_opportunity
from sandbox.dataverse.schema import TABLES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping
    from random import Random

    from proofs.scenario import Scenario
    from sandbox.dataverse import DataverseApp
    from sandbox.dataverse.seed import DemoOrganization
    from sandbox.dataverse.service import Session

_OPEN, _WON = 0, 1
_CANCELED_ORDER = {"statecode": 2, "statuscode": 4}


def draw_behaviour(random: Random, app: DataverseApp, counts: Counter[str]) -> None:
    """Draw where sources differ on what Dataverse does."""
    organization = app.organization
    organization.duplicate_response = random.choice(list(DuplicateResponse))
    modes = list(FailedChangeSet)
    organization.failed_change_set = random.choice((modes[0], *modes))
    counts[f"batch after a failed change set: {organization.failed_change_set.value}"] += 1


def win(app: DataverseApp, opportunity_id: str) -> None:
    """Win an open opportunity; Dataverse posts the event by itself."""
    with app.session() as session:
        win_opportunity(session, _closing(opportunity_id))


class Users:
    """The users of one Dataverse; every act returns whether it could be done.

    `random` draws amounts and salespeople; `is_under_way` says whether an invocation may still generate the invoice of
    an opportunity.
    """

    def __init__(
        self,
        app: DataverseApp,
        demo: DemoOrganization,
        random: Random,
        is_under_way: Callable[[str], bool],
    ) -> None:
        self._app = app
        self._demo = demo
        self._random = random
        self._is_under_way = is_under_way

    # --- opportunities ---

    def win(self, scenario: Scenario) -> bool:
        """Win an open opportunity."""
        if self.opportunity(scenario)["statecode"] != _OPEN:
            return False
        win(self._app, scenario.id)
        scenario.won = True
        return True

    def commit_win(self, scenario: Scenario) -> None:
        """Commit a win without a post: the steps that are registered report nothing."""
        self.write("opportunity", scenario.id, {"statecode": _WON, "statuscode": 3})
        scenario.won = True

    def lose(self, scenario: Scenario) -> bool:
        """Lose an open opportunity."""
        with self._app.session() as session:
            lose_opportunity(session, _closing(scenario.id))
        return True

    def reopen(self, scenario: Scenario) -> bool:
        """Reopen a won opportunity."""
        if self.opportunity(scenario)["statecode"] != _WON:
            return False
        # Until it is won again: then it must have its invoice like any other.
        scenario.won = False
        self._change("opportunity", scenario.id, {"statecode": _OPEN, "statuscode": 1})
        return True

    def change_terms(self, scenario: Scenario, what: str) -> None:
        """Change what an open opportunity is billed for, or something that is not billed."""
        row, demo = self.opportunity(scenario), self._demo
        changes: dict[str, dict[str, object]] = {
            "amount": {"freightamount": Decimal(self._random.randint(100, 900))},
            "currency": _other(row, "transactioncurrencyid", demo.currencies.values()),
            "customer": _other(row, "customerid", (*demo.accounts, *demo.contacts)),
            "name": {"name": "Renamed"},
            "nothing": {},
        }
        if changes[what]:
            self._change("opportunity", scenario.id, changes[what])

    def reassign_opportunity(self, scenario: Scenario) -> bool:
        """Give the opportunity to another salesperson."""
        scenario.is_owner_fixed = False
        self._change("opportunity", scenario.id, {"ownerid": self._seller()})
        return True

    def delete_note(self, scenario: Scenario) -> bool:
        """Delete the claim."""
        with self._app.session() as session:
            notes = _rows(session, "annotation", "objectid", scenario)
            if not notes:
                return False
            scenario.concurrent = True
            scenario.claim_deleted_under_way |= self._is_under_way(scenario.id)
            session.delete(TABLES["annotation"], notes[0]["annotationid"])
        return True

    # --- orders ---

    def order(self, scenario: Scenario) -> bool:
        """Create a sales order."""
        scenario.changed_by_user = scenario.ordered = True
        return self.create("salesorder", scenario)

    def order_and_cancel(self, scenario: Scenario) -> bool:
        """Create a sales order, and cancel it."""
        self.create("salesorder", scenario)
        with self._app.session() as session:
            for order in _rows(session, "salesorder", "opportunityid", scenario):
                session.update(TABLES["salesorder"], order["salesorderid"], _CANCELED_ORDER)
        return True

    def create(self, table: str, scenario: Scenario) -> bool:
        """Create a row that refers to the opportunity."""
        with self._app.session() as session:
            session.create(TABLES[table], {"name": "by hand", "opportunityid": scenario.id})
        return True

    # --- invoices: the first of an opportunity ---

    def create_invoice(self, scenario: Scenario) -> bool:
        """Create an invoice by hand."""
        scenario.concurrent = True
        return self.create("invoice", scenario)

    def delete_invoice(self, scenario: Scenario) -> bool:
        """Delete an invoice."""
        with self._app.session() as session:
            invoices = _rows(session, "invoice", "opportunityid", scenario)
            if not invoices:
                return False
            session.delete(TABLES["invoice"], invoices[0]["invoiceid"])
        scenario.changed_by_user = True
        # The second: deleted just before it is read, and again when a replay or a deleted note has made another.
        scenario.reasons |= {"ClaimedWithoutInvoice", "RecordNotFound"}
        return True

    def cancel_invoice(self, scenario: Scenario) -> bool:
        """Cancel an invoice."""
        canceled = {"statecode": 3, "statuscode": 100003}
        is_done = self._change_invoice(scenario, lambda: canceled, "statecode <> 3")
        if is_done:
            scenario.changed_by_user = True
            scenario.reasons.add("ClaimedWithoutInvoice")
        return is_done

    def correct_invoice(self, scenario: Scenario) -> bool:
        """Correct an active invoice, so that it differs from its opportunity."""
        return self._change_invoice(scenario, lambda: {"freightamount": Decimal(77)}, "statecode = 0")

    def reassign_invoice(self, scenario: Scenario) -> bool:
        """Give an invoice to another salesperson."""
        is_done = self._change_invoice(scenario, lambda: {"ownerid": self._seller()})
        scenario.is_owner_fixed &= not is_done
        return is_done

    def _change_invoice(
        self, scenario: Scenario, values: Callable[[], Mapping[str, object]], condition: str = "true"
    ) -> bool:
        with self._app.session() as session:
            invoices = _rows(session, "invoice", "opportunityid", scenario, condition)
            if invoices:
                session.update(TABLES["invoice"], invoices[0]["invoiceid"], values())
        return bool(invoices)

    def _seller(self) -> str:
        return self._random.choice(self._demo.sellers)

    # --- rows ---

    def write(self, table: str, id_: str, values: Mapping[str, object]) -> None:
        """Change a row past the rules of Dataverse, which post nothing then."""
        with self._app.session() as session:
            session.transaction.update(TABLES[table], id_, values)

    def _change(self, table: str, id_: str, values: Mapping[str, object]) -> None:
        with self._app.session() as session:
            session.update(TABLES[table], id_, values)

    def opportunity(self, scenario: Scenario) -> dict[str, Any]:
        """Return the columns of an opportunity."""
        with self._app.database.reading() as transaction:
            return transaction.rows(TABLES["opportunity"], "opportunityid = ?", (scenario.id,))[0]


def _rows(
    session: Session, table: str, column: str, scenario: Scenario, condition: str = "true"
) -> list[dict[str, Any]]:
    """Return the rows of a table that refer to the opportunity, in the order of their ids."""
    where = f't."{column}" = ? AND {condition}'
    return session.transaction.rows(TABLES[table], where, (scenario.id,), f"ORDER BY {TABLES[table].key}")


def _other(row: Mapping[str, Any], column: str, ids: Iterable[str]) -> dict[str, object]:
    return {column: next(id_ for id_ in ids if id_ != row[column])}


def _closing(opportunity_id: str) -> dict[str, object]:
    return {
        "OpportunityClose": {"opportunityid@odata.bind": f"/opportunities({opportunity_id})"},
        "Status": -1,
    }
