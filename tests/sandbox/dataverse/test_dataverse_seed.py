"""The demo organization: the same for the same seed, and quickly many."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from sandbox.clock import MovableClock
from sandbox.dataverse import DataverseApp, base_data, seed
from sandbox.dataverse.columns import ORGANIZATION_ID, stable_id
from sandbox.dataverse.schema import TABLES
from sandbox.identity import TokenAuthority

if TYPE_CHECKING:
    from sandbox.dataverse.columns import Row

CLOCK = MovableClock()


def opportunities(number: int) -> dict[str, Row]:
    app = DataverseApp(TokenAuthority(CLOCK).verify, clock=CLOCK)
    demo = seed.demo_organization(app, 30, seed=number)
    with app.database.reading() as transaction:
        rows = {row["opportunityid"]: row for row in transaction.rows(TABLES["opportunity"])}
    app.close()
    assert rows.keys() == set(demo.opportunities)
    return rows


def test_the_same_seed_makes_the_same_rows_and_another_makes_others() -> None:
    def shown(rows: dict[str, Row]) -> list[tuple[object, ...]]:
        return [(key, row["name"], row["estimatedvalue"], row["ownerid"]) for key, row in rows.items()]

    assert shown(opportunities(1)) == shown(opportunities(1))
    assert shown(opportunities(1)) != shown(opportunities(2))


def test_amounts_fit_their_currencies() -> None:
    """Each currency occurs, and no amount has more digits than its currency."""
    precision = {
        stable_id(ORGANIZATION_ID, "transactioncurrency", c.code): c.precision for c in base_data.CURRENCIES
    }
    rows = opportunities(1).values()
    assert {row["transactioncurrencyid"] for row in rows} == precision.keys()
    for row in rows:
        unit = Decimal(1).scaleb(-precision[row["transactioncurrencyid"]])
        assert row["estimatedvalue"] > 0
        assert row["estimatedvalue"] % unit == 0
