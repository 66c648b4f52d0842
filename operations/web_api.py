"""Access to an environment for administrators: reads, creates, updates and actions of the Web API.

Everything that is created gets an id derived from its name, so that a request may be repeated.
"""

from __future__ import annotations

import json
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from operations.environment import dataverse_settings_of, response_seconds
from shared.bootstrap import build_dataverse
from shared.clock import Clock, Deadline, SystemClock
from shared.credential import Identities
from shared.dataverse import API
from shared.errors import DataverseThrottled, RecordNotFound
from shared.retrieval import InvoiceReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from shared.dataverse import ChangeSet, Dataverse, Read
    from shared.invoice import Invoice
    from shared.response import Response

Row = dict[str, Any]
Result = TypeVar("Result")

# No request of the set-up takes longer; Dataverse itself gives up after two minutes.
_SECONDS = 120.0
_PAGE = 1000
# Seconds to wait in all where Dataverse throttles; each wait is one at least.
_PATIENCE = 600.0
_RETRY_AFTER_ABSENT = 10.0
_READ_HEADERS = {"If-None-Match": "null"}
_WRITE_HEADERS = {"Content-Type": "application/json; charset=utf-8"}
# Of everything that operations creates in Dataverse.
_IDS = uuid.UUID("9cc663f0-2125-4a6e-a33f-574f67052b28")


def derived_id(*names: str) -> str:
    """Return the id that something with these names has: the same at each run."""
    return str(uuid.uuid5(_IDS, "/".join(name.lower() for name in names)))


class WebApi:
    """One environment, as the user who is logged in."""

    def __init__(
        self, url: str, dataverse: Dataverse, clock: Clock, seconds: float, deadline: Deadline | None = None
    ) -> None:
        self.url = url
        self._dataverse = dataverse
        self._clock = clock
        self._seconds = seconds
        self._fixed_deadline = deadline

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> WebApi:
        """Return the environment that DATAVERSE_URL names; raises InvalidSettings."""
        settings, clock = dataverse_settings_of(environment), SystemClock()
        seconds = response_seconds(environment, _SECONDS)
        return cls(settings.url, build_dataverse(settings, Identities(environment), clock), clock, seconds)

    def until(self, deadline: Deadline) -> WebApi:
        """Return the same environment for somebody who waits no longer than this."""
        return WebApi(self.url, self._dataverse, self._clock, self._seconds, deadline)

    def get(self, path: str) -> Response:
        """Return the response to a read, with any status."""
        return self._ask("GET", path, _READ_HEADERS)

    def row(self, path: str) -> Row:
        """Return one record, or the result of a function."""
        return self._patiently(partial(self._document, path, _READ_HEADERS))

    def row_or_none(self, path: str) -> Row | None:
        """Return one record, or None where there is none with this id."""
        try:
            return self.row(path)
        except RecordNotFound:
            return None

    def rows(self, path: str) -> Iterator[Row]:
        """Yield the records of a query, page by page; `path` may have spaces."""
        following: str | None = path
        while following is not None:
            headers = {**_READ_HEADERS, "Prefer": f'odata.maxpagesize={_PAGE},odata.include-annotations="*"'}
            document = self._patiently(partial(self._document, following, headers))
            yield from document["value"]
            link = document.get("@odata.nextLink")
            following = str(link).partition(API)[2] if link else None

    def first(self, path: str) -> Row | None:
        """Return the first record of a query, or None."""
        return next(self.rows(path), None)

    def create(self, entity_set: str, values: Row) -> None:
        """Create a record."""
        self._write("POST", entity_set, values)

    def call(self, path: str, values: Row) -> Row:
        """Invoke an action and return its result."""
        return self._write("POST", path, values)

    def update(self, path: str, values: Row) -> None:
        """Change a record that is there."""
        self._write("PATCH", path, values, {"If-Match": "*"})

    def delete(self, path: str) -> None:
        """Delete a record; none is there afterwards, which is all that is wanted."""
        try:
            self._patiently(lambda: self._ask("DELETE", path, {}).raise_for_status())
        except RecordNotFound:
            return

    def batch(self, operations: Sequence[Read | ChangeSet]) -> list[Response]:
        """Return the responses to many operations."""
        return self._patiently(lambda: self._dataverse.batch(operations, self._deadline))

    def one_batch(self, operations: Sequence[Read | ChangeSet]) -> list[Response]:
        """Return the responses to one request: fewer than operations if Dataverse stopped at a failed one."""
        return self._patiently(lambda: self._dataverse.one_batch(operations, self._deadline))

    def invoice(self, invoice_id: str) -> Invoice:
        """Retrieve an invoice by itself, with its totals calculated; raises RecordNotFound."""
        return self._patiently(lambda: InvoiceReader(self._dataverse).retrieve(invoice_id, self._deadline))

    def address(self, path: str) -> str:
        """Return the whole URL of a record."""
        return self.url + API + path

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        """Wait where Dataverse throttles, some minutes at most; a deadline of its own has no time for that."""
        patience = _PATIENCE if self._fixed_deadline is None else 0.0
        while True:
            try:
                return ask()
            except DataverseThrottled as error:
                wait = error.retry_after or _RETRY_AFTER_ABSENT
                patience -= wait
                if patience < 0:
                    raise
                self._clock.sleep(wait)

    def _document(self, path: str, headers: Mapping[str, str]) -> Row:
        return self._ask("GET", path, headers).json()

    def _write(self, method: str, path: str, values: Row, headers: Mapping[str, str] | None = None) -> Row:
        body = json.dumps(values).encode()
        # A 429 is refused before anything is done.
        return self._patiently(
            lambda: self._ask(method, path, {**_WRITE_HEADERS, **(headers or {})}, body).json()
        )

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Response:
        return self._dataverse.request(method, path, headers, body, self._deadline)

    @property
    def _deadline(self) -> Deadline:
        return self._fixed_deadline or Deadline.after(self._clock, self._seconds)


def quoted(value: str) -> str:
    """Return a string literal for a filter."""
    return "'" + quote(value.replace("'", "''"), safe="") + "'"
