"""The names of opportunities and their customers, for lists that people read."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from operations.web_api import WebApi
from shared.clock import Deadline, SystemClock
from shared.dataverse import Read
from shared.errors import InvoicingFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Ids in one filter, which is a part of an address, and filters in one request.
_IDS = 25
_READS = 20
# A list does not wait longer for names.
_SECONDS = 15.0


@dataclass(frozen=True)
class OpportunityName:
    """What people call an opportunity, and its amount. None where Dataverse does not say."""

    name: str
    customer: str | None
    amount: str | None = None

    def __str__(self) -> str:
        return self.name if self.customer is None else f"{self.name} ({self.customer})"


@dataclass(frozen=True)
class Names:
    """The names that Dataverse returned. `unavailable`: why there are none, where it could not be asked."""

    by_id: Mapping[str, OpportunityName]
    unavailable: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], opportunity_ids: Iterable[str | None]) -> Names:
        """Read the names of opportunities; never fails, since a list is useful without them."""
        ids = sorted({each for each in opportunity_ids if each is not None})
        if not ids:
            return cls({})
        try:
            api = WebApi.of(environment).until(Deadline.after(SystemClock(), _SECONDS))
            return cls(dict(_names(api, ids)))
        except InvoicingFailure as error:
            return cls({}, str(error))


def _names(api: WebApi, ids: list[str]) -> Iterator[tuple[str, OpportunityName]]:
    filters = (
        " or ".join(f"opportunityid eq {each}" for each in ids[start : start + _IDS])
        for start in range(0, len(ids), _IDS)
    )
    while some := list(islice(filters, _READS)):
        reads = [
            Read(f"opportunities?$select=name,_customerid_value,totalamount&$filter={each}") for each in some
        ]
        for response in api.batch(reads):
            for row in response.records():
                name = OpportunityName(
                    row.text("name") or "", row.label("_customerid_value"), row.label("totalamount")
                )
                yield row.guid("opportunityid"), name
