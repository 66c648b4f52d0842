"""multipart/mixed: many requests or responses in one body, as OData batches use it.

Written for what a batch needs, since the standard library's `email` reads a response line by line, which takes ten
times as long. Here a truncated body is an error, there a "defect". What the parts mean is left to `dataverse.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_REST_OF_LINE = re.compile(rb"(--)?[ \t]*(?:\r\n|\n|\r|\Z)")
_BLANK_LINE = re.compile(rb"(?>\A|\r\n|\n|\r)(?:\r\n|\n|\r)")


class Truncated(Exception):
    """The body ends before its last part does, or is not multipart at all."""


@dataclass(frozen=True)
class Part:
    """One part. `headers` has lower-case names."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def is_multipart(self) -> bool:
        """Whether it has parts itself: a change set."""
        return is_multipart(self.headers.get("content-type", ""))


def is_multipart(content_type: str) -> bool:
    """Whether a Content-Type announces parts."""
    return content_type.lower().startswith("multipart/mixed")


def join(boundary: str, parts: Sequence[bytes]) -> bytes:
    """Return the body with these parts, each with its own headers."""
    delimiter = f"--{boundary}".encode()
    return b"".join(delimiter + b"\r\n" + part + b"\r\n" for part in parts) + delimiter + b"--\r\n"


def split(content_type: str, body: bytes) -> list[Part]:
    """Return the parts of a body; raises Truncated unless it is complete."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        raise Truncated("It has no boundary.")
    parts: list[Part] = []
    begins: int | None = None
    for ends, after, is_last in _delimiters(
        body, b"--" + (match[1] or match[2]).encode("latin-1", "replace")
    ):
        if begins is not None and begins != ends:
            parts.append(_part(_without_line_end(body[begins:ends])))
        # A delimiter right behind another one neither begins nor ends anything, as the standard library reads it.
        if is_last and begins != ends:
            break
        begins = after
    else:
        raise Truncated("Its last part has no end.")
    if not parts:
        raise Truncated("It has no part.")
    return parts


def _delimiters(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield where each delimiter begins and ends, and whether it is the last. Each has a line of its own.

    Without a regular expression of the boundary: each response has another one, and compiling it takes longer than
    the rest.
    """
    at = body.find(delimiter)
    while at >= 0:
        end = at + len(delimiter)
        rest = _REST_OF_LINE.match(body, end)
        if rest is None or (at and body[at - 1] not in b"\r\n"):
            at = body.find(delimiter, end)
        else:
            yield at, rest.end(), rest[1] is not None
            at = body.find(delimiter, rest.end())


def _without_line_end(content: bytes) -> bytes:
    # The line end before a delimiter belongs to the delimiter.
    return content.removesuffix(b"\n").removesuffix(b"\r")


def _part(content: bytes) -> Part:
    lines, body = head_and_body(content)
    return Part(header_fields(lines), body)


def head_and_body(content: bytes) -> tuple[list[str], bytes]:
    """Return the lines before the first empty line, and what follows it; lines end in CR LF, LF or CR."""
    blank = _BLANK_LINE.search(content)
    head, body = (content[: blank.start()], content[blank.end() :]) if blank else (content, b"")
    # Bytes, since a text has further line ends: among them is the second byte of an Å in UTF-8.
    return [line.decode("latin-1") for line in head.splitlines()], body


def header_fields(lines: Sequence[str]) -> dict[str, str]:
    """Return header lines by their names in lower case."""
    fields = (line.partition(":") for line in lines if line)
    return {name.lower(): value.strip() for name, _, value in fields}
