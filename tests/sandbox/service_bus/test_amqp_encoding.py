"""AMQP's types, against Microsoft's codec in both directions: it is an implementation that we did not write."""

import math
import struct
import uuid
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from azure.servicebus._pyamqp import _decode, _encode
from azure.servicebus._pyamqp.types import TYPE, VALUE, AMQPTypes
from hypothesis import example, given
from hypothesis import strategies as st

from sandbox.service_bus.amqp.encoding import (
    Array,
    Byte,
    Char,
    Decimal,
    Described,
    Float,
    Int,
    Malformed,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    Unencodable,
    UShort,
    decode,
    encode,
)

WHOLE = [
    (UByte, AMQPTypes.ubyte, 0, 2**8 - 1),
    (UShort, AMQPTypes.ushort, 0, 2**16 - 1),
    (UInt, AMQPTypes.uint, 0, 2**32 - 1),
    (ULong, AMQPTypes.ulong, 0, 2**64 - 1),
    (Byte, AMQPTypes.byte, -(2**7), 2**7 - 1),
    (Short, AMQPTypes.short, -(2**15), 2**15 - 1),
    (Int, AMQPTypes.int, -(2**31), 2**31 - 1),
    (int, AMQPTypes.long, -(2**63), 2**63 - 1),
    (Timestamp, AMQPTypes.timestamp, -(2**63), 2**63 - 1),
]
TEXT = st.text(max_size=300)
BINARY = st.binary(max_size=300)
# What both sides have, each with the name that Microsoft's encoder has for it.
SIMPLE = st.one_of(
    *[st.tuples(st.integers(least, most).map(kind), st.just(name)) for kind, name, least, most in WHOLE],
    st.booleans().map(lambda value: (value, AMQPTypes.boolean)),
    st.floats(allow_nan=False).map(lambda value: (value, AMQPTypes.double)),
    st.uuids().map(lambda value: (value, AMQPTypes.uuid)),
    BINARY.map(lambda value: (value, AMQPTypes.binary)),
    TEXT.map(lambda value: (value, AMQPTypes.string)),
    TEXT.map(lambda value: (Symbol(value), AMQPTypes.symbol)),
    st.just((None, AMQPTypes.null)),
)  # fmt: skip
# Everything that AMQP has.
PRIMITIVES = st.one_of(
    SIMPLE.map(lambda pair: pair[0]),
    st.characters(exclude_categories=["Cs"]).map(Char),
    st.floats(width=32, allow_nan=False).map(Float),
    st.sampled_from([4, 8, 16]).flatmap(lambda size: st.binary(min_size=size, max_size=size)).map(Decimal),
)
ARRAYS = st.one_of(
    *[
        st.lists(st.integers(least, most).map(kind), max_size=5).map(partial(Array.of, kind))
        for kind, _, least, most in WHOLE
    ],
    st.lists(TEXT.map(Symbol), max_size=300).map(lambda items: Array.of(Symbol, items)),
    st.lists(BINARY, max_size=5).map(lambda items: Array.of(bytes, items)),
    st.lists(st.booleans(), max_size=5).map(lambda items: Array.of(bool, items)),
    st.lists(st.uuids(), max_size=5).map(lambda items: Array.of(uuid.UUID, items)),
    st.lists(st.lists(st.integers(0, 300), max_size=3), max_size=3).map(lambda items: Array.of(list, items)),
    st.lists(st.dictionaries(TEXT, BINARY, max_size=2), max_size=3).map(lambda items: Array.of(dict, items)),
)
VALUES = st.recursive(
    PRIMITIVES | ARRAYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=300),
        st.dictionaries(TEXT | BINARY | TEXT.map(Symbol), inner, max_size=5),
        st.tuples(st.integers(0, 2**64 - 1).map(ULong) | TEXT.map(Symbol), inner).map(
            lambda pair: Described(*pair)
        ),
    ),
    max_leaves=20,
)


def typed(value: Any) -> Any:  # noqa: ANN401 - any AMQP value
    """Return a value with its types, which Python ignores when it compares."""
    if isinstance(value, list):
        return [typed(each) for each in value]
    if isinstance(value, dict):
        return [(typed(key), typed(each)) for key, each in value.items()]
    if isinstance(value, Described):
        return "described", typed(value.descriptor), typed(value.value)
    if isinstance(value, Array):
        return "array", value.constructor, typed(list(value.items)), typed(value.descriptor)
    return type(value), value


@given(VALUES)
def test_every_value_keeps_its_type(value: Any) -> None:  # noqa: ANN401 - any AMQP value
    encoded = encode(value)
    decoded, end = decode(encoded)
    assert end == len(encoded)
    assert typed(decoded) == typed(value)


def as_theirs(value: Any) -> Any:  # noqa: ANN401 - any AMQP value
    """Return a value as Microsoft's decoder returns it: texts as bytes, numbers without their type."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return [as_theirs(each) for each in value]
    if isinstance(value, dict):
        return {as_theirs(key): as_theirs(each) for key, each in value.items()}
    return value


@given(
    st.recursive(
        SIMPLE.map(lambda pair: pair[0]),
        lambda inner: st.lists(inner, max_size=300) | st.dictionaries(TEXT | BINARY, inner, max_size=5),
        max_leaves=10,
    )
)
def test_microsofts_decoder_reads_what_we_encode(value: Any) -> None:  # noqa: ANN401 - any AMQP value
    encoded = memoryview(encode(value))
    rest, decoded = _decode._DECODE_BY_CONSTRUCTOR[encoded[0]](encoded[1:])
    assert len(rest) == 0
    assert decoded == as_theirs(value)


@given(SIMPLE)
@example((Symbol(""), AMQPTypes.symbol))
def test_we_decode_what_microsofts_encoder_writes(pair: tuple[Any, str]) -> None:
    value, name = pair
    output = bytearray()
    if name == AMQPTypes.timestamp:
        _encode.encode_timestamp(output, value)
    else:
        _encode.encode_value(output, {TYPE: name, VALUE: value})
    decoded, end = decode(bytes(output))
    assert end == len(output)
    assert typed(decoded) == typed(value)


@given(st.lists(SIMPLE, max_size=300), st.dictionaries(TEXT, st.integers(-(2**31), 2**31 - 1), max_size=60))
def test_we_decode_microsofts_lists_and_maps(items: list[tuple[Any, str]], mapping: dict[str, int]) -> None:
    items = [pair for pair in items if pair[1] not in (AMQPTypes.timestamp, AMQPTypes.null)]
    output = bytearray()
    _encode.encode_list(output, [{TYPE: name, VALUE: value} for value, name in items])
    _encode.encode_map(output, dict(mapping))
    first, at = decode(bytes(output))
    second, end = decode(bytes(output), at)
    assert end == len(output)
    assert typed(first) == typed([value for value, _ in items])
    assert second == mapping


def test_not_a_number_is_kept() -> None:
    for kind in (float, Float):
        decoded, _ = decode(encode(kind("nan")))
        assert math.isnan(decoded)


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("43", UInt(0)), ("44", ULong(0)), ("45", []), ("5601", True), ("5600", False), ("52ff", UInt(255)),
        ("e0020241", Array(0x56, (True, True))), ("e00602a301610162", Array(0xB3, (Symbol("a"), Symbol("b")))),
        ("e004025301ff", Array(0x80, (ULong(1), ULong(255)))),
    ],
)  # fmt: skip
def test_compact_encodings_are_read(encoded: str, value: object) -> None:
    assert typed(decode(bytes.fromhex(encoded))[0]) == typed(value)


@pytest.mark.parametrize(
    "encoded",
    [
        b"", b"\x3f", b"\x70\x00", b"\xa1\x05abc", b"\xa1\x01\xff", b"\xc0\x03\x01\x40", b"\xc0\x02\x02\x40",
        b"\xc1\x03\x01\xa1\x00", b"\xd1\x00\x00\x00\x0a\x00\x00\x00\x02\x45\x40", b"\x00\x53", b"\x73\x00\x11\x00\x00",
        b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40", b"\xd0\xff\xff\xff\xff\xff\xff\xff\xff", b"\x73\x80\x00\x00\x00",
        b"\xc0\x00", b"\x00" * 1000,
    ],
    ids=bytes.hex,
)  # fmt: skip
def test_what_is_not_amqp_is_malformed(encoded: bytes) -> None:
    with pytest.raises(Malformed):
        decode(encoded)


def test_nesting_has_a_bound() -> None:
    nested = b"\x45"
    for _ in range(100):
        nested = b"\xd0" + struct.pack(">II", len(nested) + 4, 1) + nested
    with pytest.raises(Malformed, match="nested"):
        decode(nested)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(noise: bytes) -> None:
    with suppress(Malformed):
        value, _ = decode(noise)
        with suppress(Unencodable):
            encode(value)


@pytest.mark.parametrize(
    "value",
    [2**63, object(), "\ud800", UByte(256), {"key": {1, 2}}],
    ids=["too large", "no type", "half a character", "too large for its type", "no type inside"],
)
def test_what_amqp_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(Unencodable):
        encode(value)
