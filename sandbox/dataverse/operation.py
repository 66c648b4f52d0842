"""One request to the Web API, alone or within a batch: its URL and headers, parsed, and its reply."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from sandbox.dataverse.columns import InvalidValue, Table, guid
from sandbox.dataverse.errors import RequestRefused, bad_request, no_segment, not_supported
from sandbox.dataverse.payload import included_annotations

ROOT: Final = "/api/data/v9.2"
MAX_PAGE: Final = 5000
_SERVICE_ROOT = re.compile(r"/api/data/v9\.[0-2](?=/|\Z)")
_SEGMENT = re.compile(r"([\w.$]+)(?:\((.*)\))?\Z", re.DOTALL)


@dataclass(frozen=True)
class Segment:
    """A segment of a path, and the text in parentheses after it."""

    name: str
    key: str | None


@dataclass(frozen=True)
class Preferences:
    """What the Prefer header asks for."""

    representation: bool
    annotations: tuple[str, ...]
    page_size: int

    @property
    def applied(self) -> dict[str, str]:
        """Return the preferences that were applied."""
        applied = []
        if self.annotations:
            applied.append(f'odata.include-annotations="{",".join(self.annotations)}"')
        if self.representation:
            applied.append("return=representation")
        if self.page_size < MAX_PAGE:
            applied.append(f"odata.maxpagesize={self.page_size}")
        return {"Preference-Applied": ",".join(applied)} if applied else {}


@dataclass(frozen=True)
class Operation:
    """One request, alone or within a batch; `url` is absolute or relative to the service's root.

    The names of `headers` are in lower case.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    content_id: str | None = None

    @property
    def may_write(self) -> bool:
        """Whether it needs a transaction that may change rows; retrieving an invoice does, to calculate its totals."""
        return self.method != "GET" or "/invoices(" in self.url or self.url.startswith("invoices(")

    @cached_property
    def path(self) -> str:
        """The URL's path, not decoded."""
        return urlsplit(self.url).path

    @cached_property
    def segments(self) -> list[Segment]:
        """The segments of the path after the service's root. Raises RequestRefused (404)."""
        return [
            _segment(unquote(text))
            for text in split(_SERVICE_ROOT.sub("", self.path, count=1).strip("/"), "/")
        ]

    @cached_property
    def options(self) -> dict[str, str]:
        """The query options, such as `$select`."""
        return {name: value for name, value in self._query if not name.startswith("@")}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """The values of parameters, such as `@p1`."""
        return {name: value for name, value in self._query if name.startswith("@")}

    @cached_property
    def preferences(self) -> Preferences:
        """The Prefer header. Raises RequestRefused (501)."""
        text = self.headers.get("prefer", "")
        for name in ("odata.track-changes", "respond-async"):
            if name in text:
                raise not_supported(f"the preference {name}")
        size = re.search(r"odata\.maxpagesize\s*=\s*(\d+)", text)
        return Preferences(
            "return=representation" in text.replace(" ", ""),
            included_annotations(text),
            min(max(int(size[1]), 1), MAX_PAGE) if size else MAX_PAGE,
        )

    @cached_property
    def _query(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.url).query, keep_blank_values=True)

    def next_page(self, offset: int) -> str:
        """Return path and query of the page that begins with this row."""
        options = {**self.options, "$skiptoken": str(offset)}
        return f"{self.path}?" + "&".join(f"{name}={quote(value)}" for name, value in options.items())

    @property
    def offset(self) -> int:
        """The row with which the page begins. Raises RequestRefused (400)."""
        return self._number("$skiptoken") or 0

    @property
    def top(self) -> int | None:
        """How many rows to return at most. Raises RequestRefused (400)."""
        return self._number("$top")

    def _number(self, option: str) -> int | None:
        text = self.options.get(option)
        if text is not None and not re.fullmatch("[0-9]{1,9}", text):
            raise bad_request(f"Invalid value '{text}' for {option}.")
        return None if text is None else int(text)


@dataclass(frozen=True)
class Reply:
    """The reply to one operation: `content` is written as JSON, `text` unchanged; without both there is no body."""

    status: HTTPStatus
    content: object = None
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None


def _segment(text: str) -> Segment:
    match = _SEGMENT.match(text)
    if match is None:
        raise no_segment(text)
    return Segment(match[1], match[2])


def split(text: str, separator: str) -> list[str]:
    """Split at separators that are outside of parentheses and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for position, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        elif quoted:
            continue
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def named_with_options(text: str) -> tuple[str, dict[str, str]]:
    """Read `name($select=…;$filter=…)`, an item of `$expand`."""
    match = _SEGMENT.match(text)
    items = split((match and match[2]) or "", ";")
    options = dict(item.strip().partition("=")[::2] for item in items if item)
    return (match[1] if match else text), options


def record_id(table: Table, key: str) -> str:
    """Read the key of a row. Raises RequestRefused (400, 501)."""
    name, _, value = key.rpartition("=")
    if name not in ("", table.key):
        raise not_supported("alternate keys")
    try:
        return guid(value)
    except InvalidValue as error:
        raise bad_request(f"Error in query syntax: {error}", "0x8006088a") from error


def literal(text: str) -> object:
    """Read a function's parameter: a quoted string, JSON, or the bare text of a GUID."""
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    try:
        return json.loads(text)
    except ValueError:
        return text


def method_not_allowed(method: str) -> RequestRefused:
    """Refuse a method that a resource does not support."""
    return RequestRefused(
        HTTPStatus.METHOD_NOT_ALLOWED, "0x80060880", f"The requested resource does not support {method}."
    )
