"""One environment: the state that its parts share, and switches for behaviour about which sources differ."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from sandbox.clock import Clock
from sandbox.dataverse.columns import Table
from sandbox.dataverse.database import Database
from sandbox.dataverse.errors import RequestRefused
from sandbox.dataverse.events import EventPipeline


class DuplicateResponse(Enum):
    """The response to creating a row whose primary key exists already; reports about Dataverse differ."""

    DUPLICATE_412 = "412 0x80040237"
    ALTERNATE_KEY_412 = "412 0x80060892"
    DUPLICATE_500 = "500 0x80040237"
    DEADLOCK_500 = "500 0x80044150"
    THROTTLED_429 = "429 0x80072321"

    def error(self, table: Table) -> RequestRefused:
        """Return the refusal."""
        status, code = self.value.split()
        headers = {"Retry-After": "1"} if self is DuplicateResponse.THROTTLED_429 else {}
        return RequestRefused(HTTPStatus(int(status)), code, _LOSER_TEXTS[self].format(table.name), headers)


_LOSER_TEXTS = {
    DuplicateResponse.DUPLICATE_412: "A record with matching key values already exists.",
    DuplicateResponse.ALTERNATE_KEY_412: "Entity Key {} violated. A record with the same value already exists.",
    DuplicateResponse.DUPLICATE_500: "Cannot insert duplicate key.",
    DuplicateResponse.DEADLOCK_500: (
        "Sql error: Generic SQL error. CRM ErrorCode: -2147204784 Sql ErrorCode: -2146232060 Sql Number: 1205"
    ),
    DuplicateResponse.THROTTLED_429: (
        "Combined execution time of incoming requests exceeded limit of 1200000 milliseconds over time window "
        "of 300 seconds. Decrease number of concurrent requests or reduce the duration of requests and try again later."
    ),
}


class FailedChangeSet(Enum):
    """What happens to the rest of a batch with `odata.continue-on-error` after a change set has failed.

    The documentation says that the batch continues. Some reports say that it stops, with one of the two statuses.
    """

    CONTINUES = "continues"
    STOPS_WITH_200 = "stops, 200"
    STOPS_WITH_400 = "stops, 400"


@dataclass
class Organization:
    """One environment: its identity, rows, clock, and the switches that a test may set."""

    id: str
    unique_name: str
    url: str
    clock: Clock
    database: Database
    pipeline: EventPipeline
    new_id: Callable[[], str]
    duplicate_response: DuplicateResponse = DuplicateResponse.DUPLICATE_412
    failed_change_set: FailedChangeSet = FailedChangeSet.CONTINUES
