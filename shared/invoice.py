"""The domain's types: an invoice, who it is for, and what happens to an opportunity that was ordered.

They hold values and no behaviour: `invoicing.py` builds them, `invoice_created.py` writes them as an event.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal


class OrderedOpportunity(Enum):
    """What to do with a won opportunity that has a sales order."""

    SKIP = "skip"
    INVOICE = "invoice"


@dataclass(frozen=True)
class Customer:
    """Whom the invoice is for: `kind` is the table's logical name, account or contact; `id` a GUID."""

    kind: str
    id: str


@dataclass(frozen=True)
class Currency:
    """The invoice's currency: `iso_code` of ISO 4217, `precision` its decimal places in Dataverse."""

    id: str
    iso_code: str
    precision: int


@dataclass(frozen=True)
class Invoice:
    """An invoice as Dataverse has it.

    `pricing_error_code` is None or 0 where there is no pricing error. Raises ValueError for ids of invoice and
    opportunity that are not GUIDs in lower case with hyphens (other ids would derive from them), for a
    `created_on` without a zone, and for an amount that is not a number.
    """

    id: str
    number: str | None
    name: str | None
    opportunity_id: str
    customer: Customer | None
    total_amount: Decimal | None
    currency: Currency | None
    pricing_error_code: int | None
    created_on: datetime

    def __post_init__(self) -> None:
        for guid in (self.id, self.opportunity_id):
            if str(uuid.UUID(guid)) != guid:
                raise ValueError("An id is not a GUID in lower case with hyphens.")
        if self.created_on.tzinfo is None:
            raise ValueError("created_on has no zone.")
        if self.total_amount is not None and not self.total_amount.is_finite():
            raise ValueError("total_amount is not a number.")
