"""A response of Dataverse: its value, or the error that decides what happens to the message.

The decision comes from Dataverse's error code first, then from its text, and from the HTTP status last: a plug-in
may refuse with any status from 400 to 504, and its code is often empty. Sending requests is left to `dataverse.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from shared.errors import (
    DataverseForbidden,
    DataverseNotFound,
    DataverseThrottled,
    DataverseUnauthorized,
    DataverseUnavailable,
    InvoiceRefused,
    InvoicingFailure,
    RecordNotFound,
    RequestRejected,
)
from shared.record import Record
from shared.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]

# Seconds. Less than a second is no pause; after 15 minutes it is better to try again.
_RETRY_AFTER_BOUNDS: Final = (1.0, 15 * 60.0)
_MAX_DIGITS: Final = 100
_NOT_A_NUMBER: Final = float("nan")


@dataclass(frozen=True)
class Response:
    """The response to one request or one part of a batch. `headers` has lower-case names, `received` is in UTC."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    received: datetime

    @property
    def succeeded(self) -> bool:
        """Whether the status is a success."""
        return 200 <= self.status < 300  # noqa: PLR2004 - the range of HTTP

    @property
    def failed(self) -> bool:
        """Whether the status is an error of the client or the server."""
        return 400 <= self.status < 600  # noqa: PLR2004 - the range of HTTP

    @property
    def exceeds_limits(self) -> bool:
        """Whether Dataverse reports that its service-protection limits are exceeded."""
        return self.failed and _ErrorBody.of(self).code in _LIMITS

    def raise_for_status(self) -> None:
        """Raise the decision that an error calls for."""
        if not self.succeeded:
            raise _decision(self)

    def json(self) -> Json:
        """Return the JSON object of a success, `{}` where there is no body; raises the error's decision."""
        self.raise_for_status()
        if not self.body.strip():
            return {}
        document = _json(self.body)
        if document is None:
            raise DataverseUnavailable(
                f"A response with status {self.status} is not Dataverse's JSON.", request_id=self.request_id
            )
        return document

    def record(self) -> Record:
        """Return the row of a retrieve; raises the error's decision."""
        return Record(self.json(), self.request_id)

    def records(self) -> list[Record]:
        """Return the rows of a query; raises the error's decision."""
        rows = self.json().get("value")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise self.record().unexpected("value")
        return [Record(row, self.request_id) for row in rows]

    @property
    def retry_after(self) -> float | None:
        """The seconds that `Retry-After` asks to wait, unbounded; None where it is absent or not usable."""
        value = self.headers.get("retry-after", "")
        try:
            seconds = float(value)
        except ValueError:
            seconds = _seconds_until(value, self.received)
        # Comparisons with NaN are false.
        return seconds if seconds > 0 else None


def bounded(retry_after: float) -> float:
    """Return the seconds to wait, at least 1 and at most 15 minutes."""
    shortest, longest = _RETRY_AFTER_BOUNDS
    return min(max(retry_after, shortest), longest)


def _seconds_until(date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return _NOT_A_NUMBER
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - now).total_seconds()


# ---------------------------------------------------------------------------------------------- JSON


def _json(body: bytes) -> Json | None:
    """Return the JSON object of a response with exact numbers, or None where it is not one."""
    try:
        document = json.loads(
            body.decode("utf-8-sig"), parse_float=_exact, parse_int=_whole, parse_constant=_constant
        )
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _exact(digits: str) -> Decimal | float:
    # What no column of Dataverse can hold becomes NaN, which no getter of a record returns.
    try:
        return Decimal(digits) if len(digits) <= _MAX_DIGITS else _NOT_A_NUMBER
    except InvalidOperation:
        return _NOT_A_NUMBER


def _whole(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else _NOT_A_NUMBER


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON.")


# ---------------------------------------------------------------------------------------------- errors


def _codes(*groups: str) -> frozenset[str]:
    return frozenset(f"0x{code}" for group in groups for code in group.split())


_LIMITS: Final = _codes("80072321 80072322 80072326")
_CODES: Final[tuple[tuple[frozenset[str], type[InvoicingFailure]], ...]] = (
    (
        _codes(
            "80040265",  # IsvAborted: a plug-in refused
            "80048d02 80048d05 80048d06 80048d08 80048d09 80048d0b",  # the same with 404, 401, 403, 409, 412, 400
            "80048d0c 80048d0d 80048d0e 80048d11",  # the same with 405, 410, 424, 413
            "80040224 80048550 8009000c 80040251",  # a plug-in has a bug
            "80100010",  # price list
            "80048cea 80048ced 80048cfb 80048cfc",  # currency
            "8004022d 80040517",  # customer, for example inactive
            "80043b24 80043b1b 80043b16",  # product, unit
            "80040333",  # duplicate detection
        ),
        InvoiceRefused,
    ),
    (_codes("80040217"), RecordNotFound),
    (_codes("80044331", "80048d19"), RequestRejected),  # a value is too long, or the payload is invalid
    (
        _codes("80040220 80040231 80048306 80040299 80042f09 80050304"),  # privileges, roles, licence
        DataverseForbidden,
    ),
    (_codes("80060888"), DataverseNotFound),  # no such table, column or action
    (
        _codes(
            "80048d03 80048d04 80048d07 80048d0a 80048d0f 80048d10",  # the backend of a plug-in fails
            "80040237 80060892 80073002",  # the key exists: the claim, whose reads decide
            "80044151 80073000 8004a001 80048554 80044339",  # database: timeout, busy, locks
            "80048543 80048542 80040255",  # database: a solution is imported
            "80044150",  # a wrapper for any SQL error, a deadlock among them
            "8004418d 8004418e 80044171 80044172 80044173 80044174 80081111 80081116",  # the plug-in sandbox
            "80044190 80044191",  # a plug-in cannot be loaded
            "8004a104 8004a107 8004a113",  # the organization is disabled or in administration mode
            "80040216",  # unexpected; also the context of a plug-in is too large
        ),
        DataverseUnavailable,
    ),
)
_DECISION_OF_CODE: Final = {code: decision for codes, decision in _CODES for code in codes}

# Texts of Dataverse itself, for responses whose code says nothing.
_TEXTS: Final[tuple[tuple[re.Pattern[str], type[InvoicingFailure]], ...]] = (
    (re.compile(r"\bprv[A-Z]\w+|Read Privilege Check"), DataverseForbidden),
    (re.compile(r"With Ids? = \S+ Does Not Exist", re.IGNORECASE), RecordNotFound),
    (
        re.compile(r"SQL (Server )?(error|time-?out)|deadlock|administration mode", re.IGNORECASE),
        DataverseUnavailable,
    ),
)
_REFUSALS: Final = frozenset({400, 405, 409, 410, 412, 413, 417, 422, 424})
_STATUSES: Final[Mapping[int, type[InvoicingFailure]]] = {
    HTTPStatus.UNAUTHORIZED: DataverseUnauthorized,
    HTTPStatus.FORBIDDEN: DataverseForbidden,
    HTTPStatus.NOT_FOUND: DataverseNotFound,
}


@dataclass(frozen=True)
class _ErrorBody:
    """Dataverse's description of an error; empty texts where the body is not an error of Dataverse."""

    code: str = ""
    text: str = ""
    plug_in: str = ""

    @classmethod
    def of(cls, response: Response) -> _ErrorBody:
        document = _json(response.body)
        error = document.get("error") if document else None
        if not isinstance(error, dict):
            return cls()
        # Only these: other annotations, such as TraceText, can hold personal data.
        source = next(
            (value for name, value in error.items() if name.endswith(".ApiExceptionSourceKey")), None
        )
        return cls(_code(error.get("code")), _text(error.get("message"), 500), _text(source, 200))

    def __str__(self) -> str:
        code = f" {self.code}" if self.code else ""
        said = f"{code}: {self.text}" if code or self.text else "."
        return f"{said} (plug-in {self.plug_in})" if self.plug_in else said


def _text(value: object, length: int) -> str:
    return one_line(str(value or ""), length)


def _code(value: object) -> str:
    """Return a code as 0x and eight digits, also from a signed number, as some layers of Dataverse write it."""
    text = _text(value, 40).lower()
    if re.fullmatch(r"-\d{1,10}", text):
        return f"0x{int(text) & 0xFFFFFFFF:08x}"
    return f"0x{text}" if re.fullmatch(r"8[0-9a-f]{7}", text) else text


def _decision(response: Response) -> InvoicingFailure:
    """Return the decision that an error calls for."""
    error, request_id = _ErrorBody.of(response), response.request_id or None
    said = f"Dataverse responded {response.status}{error}"
    if error.code in _LIMITS or response.status == HTTPStatus.TOO_MANY_REQUESTS:
        return _throttled(response, said)
    if 300 <= response.status < 400:  # noqa: PLR2004 - the range of HTTP
        return DataverseUnavailable(f"{said} {_redirected(response)}", request_id=request_id)
    if response.status == HTTPStatus.FORBIDDEN and not (error.code or error.text):
        said += (
            " There is no text: the environment may be in administration mode, or its IP firewall may not allow the "
            "outbound addresses of the function."
        )
    return _kind_of(response.status, error)(said, request_id=request_id)


def _kind_of(status: int, error: _ErrorBody) -> type[InvoicingFailure]:
    if error.code in _DECISION_OF_CODE:
        return _DECISION_OF_CODE[error.code]
    for pattern, decision in _TEXTS:
        if pattern.search(error.text):
            return decision
    if status in _REFUSALS and (error.code or error.text):
        return InvoiceRefused
    return _STATUSES.get(status, DataverseUnavailable)


def _throttled(response: Response, said: str) -> DataverseThrottled:
    asked = response.retry_after
    if asked is None:
        return DataverseThrottled(said, retry_after=None, request_id=response.request_id or None)
    wait = bounded(asked)
    if wait < asked:
        said += f" It asks to wait {asked:.0f} s; it is asked again after {wait:.0f} s."
    return DataverseThrottled(said, retry_after=wait, request_id=response.request_id or None)


_SIGN_IN: Final = re.compile(r"(^|\.)(login|signin|sts|adfs|auth)\w*\.|/(adfs|oauth2|login)\b", re.IGNORECASE)


def _redirected(response: Response) -> str:
    """Say where a redirect leads; only the host, since the rest may hold tokens."""
    try:
        target = urlsplit(response.headers.get("location", ""))
        host = one_line(target.hostname or "", 260)
    except ValueError:
        target, host = urlsplit(""), ""
    if not host:
        return "It redirects without naming a host: check DATAVERSE_URL."
    if _SIGN_IN.search(f"{host}{target.path}"):
        return (
            f"It redirects to the sign-in page {host}: DATAVERSE_URL does not name a Web API that accepts the "
            "function's token, or a proxy asks users to sign in."
        )
    return (
        f"It redirects to {host}: if the environment's address has changed, set DATAVERSE_URL to the new one."
    )
