from __future__ import annotations

from email.parser import BytesParser
from email.policy import compat32
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.multipart import Part, Truncated, header_fields, is_multipart, join, split

if TYPE_CHECKING:
    from email.message import Message

CONTENT_TYPE = "multipart/mixed; boundary=b"


def parts_of_email(content_type: str, body: bytes) -> list[bytes] | None:
    """Return the bodies that the standard library finds; None where it reports a defect."""
    document: Message[str, str] = BytesParser(policy=compat32).parsebytes(
        b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body
    )
    parts = document.get_payload()
    if document.defects or not isinstance(parts, list):
        return None
    return [cast("bytes", cast("Message[str, str]", part).get_payload(decode=True)) for part in parts]


def bodies(content_type: str, body: bytes) -> list[bytes] | None:
    try:
        return [part.body for part in split(content_type, body)]
    except Truncated:
        return None


def test_parts_are_joined_by_delimiters_and_nothing_else() -> None:
    assert join("b", [b"\r\none"]) == b"--b\r\n\r\none\r\n--b--\r\n"


def test_parts_have_headers_and_bodies() -> None:
    body = join("b", [b"Content-Type: Text/Plain \r\nX-Empty:\r\n\r\none\r\n", b"\r\ntwo", b"A: b"])
    assert split(CONTENT_TYPE, body) == [
        Part({"content-type": "Text/Plain", "x-empty": ""}, b"one\r\n"),
        Part({}, b"two"),
        Part({"a": "b"}, b""),
    ]


@pytest.mark.parametrize("byte", [b"\x85", b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e"])
def test_only_cr_and_lf_end_a_header(byte: bytes) -> None:
    """Text has more line ends, which would begin a header in the middle of a value."""
    (part,) = split(CONTENT_TYPE, join("b", [b"X: 1" + byte + b"Y: 2\r\n\r\none"]))
    assert part.headers == {"x": f"1{byte.decode('latin-1')}Y: 2"}


def test_what_stands_before_and_after_the_parts_is_ignored() -> None:
    assert bodies(CONTENT_TYPE, b"preamble\r\n--b\r\n\r\none\r\n--b--\r\nepilogue\r\n--b\r\n\r\nx") == [
        b"one"
    ]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/mixed; boundary=b", "b"),
        ('multipart/mixed; boundary="b"', "b"),
        ('multipart/mixed;charset=utf-8;BOUNDARY = "b c"', "b c"),
        ("Multipart/Mixed; boundary=b;charset=utf-8", "b"),
        ("multipart/mixed; boundary=batchresponse_(1+2)", "batchresponse_(1+2)"),
    ],
)
def test_a_boundary_is_a_word_or_a_quoted_text(content_type: str, boundary: str) -> None:
    assert is_multipart(content_type)
    assert bodies(content_type, join(boundary, [b"\r\none"])) == [b"one"]


@pytest.mark.parametrize(
    "content_type", ["multipart/mixed", "multipart/mixed; boundary=", "application/json"]
)
def test_without_a_boundary_there_are_no_parts(content_type: str) -> None:
    with pytest.raises(Truncated, match="no boundary"):
        split(content_type, join("b", [b"\r\none"]))


@pytest.mark.parametrize(
    "body",
    [b"", b"--b--\r\n", b"one", b"--b\r\n\r\none", b"--b\r\n\r\none\r\n--b\r\n", b"x--b\r\n\r\none\r\n--b--"],
)
def test_what_has_no_end_or_no_part_is_truncated(body: bytes) -> None:
    with pytest.raises(Truncated, match=r"no end|no part"):
        split(CONTENT_TYPE, body)


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r"])
def test_a_delimiter_stands_on_a_line_of_its_own(line_end: bytes) -> None:
    body = line_end.join([b"--b \t", b"", b"a --b", b"--bc", b"--b--c", b"", b"--b-- "])
    assert bodies(CONTENT_TYPE, body) == [line_end.join([b"a --b", b"--bc", b"--b--c", b""])]
    assert bodies(CONTENT_TYPE, line_end.join([b"--b", b"", b"one", b"--b--"])) == [b"one"]


def test_after_any_byte_but_a_line_end_a_delimiter_is_content() -> None:
    for before in (bytes([byte]) for byte in range(256) if byte not in b"\r\n"):
        body = b"--b\r\n\r\none" + before + b"--b\r\n--b--\r\n"
        assert bodies(CONTENT_TYPE, body) == [b"one" + before + b"--b"]


def test_a_boundary_may_have_characters_that_no_header_can_hold() -> None:
    with pytest.raises(Truncated, match="no end"):
        split("multipart/mixed; boundary=\u20ac", b"--b\r\n\r\none\r\n--b--")


def test_a_part_may_have_parts_itself() -> None:
    inner = join("c", [b"\r\none", b"\r\ntwo"])
    outer = join("b", [b"Content-Type: multipart/mixed; boundary=c\r\n\r\n" + inner])
    (part,) = split(CONTENT_TYPE, outer)
    assert part.is_multipart
    assert bodies(part.headers["content-type"], part.body) == [b"one", b"two"]
    assert not Part({}, b"").is_multipart


def test_header_fields_have_lower_case_names() -> None:
    assert header_fields(["Retry-After:  7 ", "", "odd", "A: b: c"]) == {
        "retry-after": "7",
        "odd": "",
        "a": "b: c",
    }


# What is likely to matter: line ends, pieces of delimiters, headers, and anything.
PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b"--b",
        b"--b--",
        b"-",
        b" ",
        b"\t",
        b"b",
        b"A: b",
        b"\r\n\r\n",
        b"{}",
        b"\xff",
        b"HTTP/1.1 200 OK",
    ]
)
DOCUMENTS = st.lists(PIECES, max_size=24).map(b"".join)


@settings(max_examples=500)
@given(DOCUMENTS)
@example(b"--b\r\n\r\n--b--")
@example(b"--b\r\n--b--")
def test_the_standard_library_splits_every_body_alike(document: bytes) -> None:
    """It may be more patient with headers that are none: what is found here is what it finds, or nothing."""
    found = bodies(CONTENT_TYPE, document)
    expected = parts_of_email(CONTENT_TYPE, document)
    if found is not None and _has_plain_headers(document):
        assert found == expected
    if found is None:
        assert expected is None


def _has_plain_headers(document: bytes) -> bool:
    """Whether each part begins with header lines, as far as there are any, and a blank line."""
    parts = split(CONTENT_TYPE, document)
    heads = [
        bool(name) and " " not in name and value != ""
        for part in parts
        for name, value in part.headers.items()
    ]
    return all(heads)


BODIES = st.binary(max_size=200).filter(lambda content: b"--boundary" not in content)
HEADERS = st.lists(st.sampled_from([b"Content-Type: application/http", b"Content-ID: 1", b"X:"]), max_size=3)


@settings(max_examples=500)
@given(st.lists(st.tuples(HEADERS, BODIES), min_size=1, max_size=5))
def test_what_was_joined_is_split_as_by_the_standard_library(parts: list[tuple[list[bytes], bytes]]) -> None:
    content_type = 'multipart/mixed; boundary="boundary"'
    body = join(
        "boundary",
        [b"".join(each + b"\r\n" for each in [*headers, b""]) + content for headers, content in parts],
    )
    assert (
        bodies(content_type, body) == [content for _, content in parts] == parts_of_email(content_type, body)
    )


@settings(max_examples=200)
@given(st.lists(BODIES, min_size=1, max_size=4), st.data())
def test_what_is_cut_anywhere_is_truncated(contents: list[bytes], data: st.DataObject) -> None:
    body = join("boundary", [b"\r\n" + content for content in contents])
    # Without its last line end it is whole, and so it is without the dashes' trailing space.
    length = data.draw(st.integers(0, len(body) - 3))
    with pytest.raises(Truncated):
        split("multipart/mixed; boundary=boundary", body[:length])
