"""AMQP 1.0's types to bytes and back (OASIS AMQP 1.0, part 1).

Python's own types stand for the usual AMQP types: None, bool, int (long), float (double), str, bytes (binary), UUID,
list and dict. The classes below stand for the others, so that a decoded value is encoded with the type that it had.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

# Deeper values than any client sends; a bound keeps a hostile one from exhausting the stack.
_MAX_DEPTH = 64
# An array of null or true takes no bytes for its elements, so their number needs a bound of its own.
_MAX_EMPTY_ELEMENTS = 65536
_SHORT = 256


class Malformed(ValueError):
    """The bytes are not what AMQP 1.0 defines."""


class Unencodable(ValueError):
    """AMQP 1.0 has no such value."""


class Symbol(str):
    """A symbolic name."""

    __slots__ = ()


class Char(str):
    """One character."""

    __slots__ = ()


class UByte(int):
    """Unsigned, 8 bits."""

    __slots__ = ()


class UShort(int):
    """Unsigned, 16 bits."""

    __slots__ = ()


class UInt(int):
    """Unsigned, 32 bits."""

    __slots__ = ()


class ULong(int):
    """Unsigned, 64 bits."""

    __slots__ = ()


class Byte(int):
    """Signed, 8 bits."""

    __slots__ = ()


class Short(int):
    """Signed, 16 bits."""

    __slots__ = ()


class Int(int):
    """Signed, 32 bits."""

    __slots__ = ()


class Timestamp(int):
    """Milliseconds since 1970 in UTC."""

    __slots__ = ()


class Float(float):
    """32 bits."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Decimal:
    """A decimal number of 4, 8 or 16 bytes; only passed on, so the bytes are not interpreted."""

    encoded: bytes


@dataclass(frozen=True, slots=True)
class Described:
    """A value with a descriptor, which states its meaning."""

    descriptor: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Array:
    """Values of one type. `constructor` is the type's widest encoding; `descriptor` that of described elements."""

    constructor: int
    items: tuple[Any, ...]
    descriptor: Any = None

    @classmethod
    def of(cls, kind: type, items: Iterable[Any]) -> "Array":
        """Return the array of values of a Python type."""
        return cls(_ELEMENT_CONSTRUCTORS[kind], tuple(items))


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Return the value that begins there and where it ends; raise Malformed."""
    try:
        return _value(data, at, 0)
    except Malformed:
        raise
    except (IndexError, struct.error, ValueError, TypeError, OverflowError) as error:
        # Cut off, not UTF-8, a character beyond Unicode, a key that cannot be a key.
        raise Malformed(f"not an AMQP 1.0 value: {error}") from error


def encode(value: Any) -> bytes:  # noqa: ANN401 - any AMQP value
    """Return a value's bytes; raise Unencodable."""
    try:
        return _write(value)
    except (struct.error, UnicodeEncodeError, RecursionError) as error:
        raise Unencodable(f"AMQP 1.0 has no such value: {error}") from error


def is_encodable(value: Any) -> bool:  # noqa: ANN401 - any value
    """Return whether AMQP has a type for exactly this type of value."""
    return type(value) in _WRITERS


# Decoding: a decoder for each constructor gets the data, the position behind the constructor, and the depth.

Decoder = Callable[[bytes, int, int], tuple[Any, int]]


def _value(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    return _DECODERS[data[at]](data, at + 1, depth)


def _unknown(data: bytes, at: int, _depth: int) -> tuple[Any, int]:
    raise Malformed(f"there is no constructor {data[at - 1]:#04x}")


def _constant(value: Any) -> Decoder:  # noqa: ANN401 - any AMQP value
    return lambda _data, at, _depth: (value, at)


def _fixed(layout: str, kind: Callable[[Any], Any] | None = None) -> Decoder:
    unpack, size = struct.Struct(layout).unpack_from, struct.calcsize(layout)

    def read(data: bytes, at: int, _depth: int) -> tuple[Any, int]:
        (value,) = unpack(data, at)
        return value if kind is None else kind(value), at + size

    return read


def _variable(width: int, kind: Callable[[bytes], Any]) -> Decoder:
    def read(data: bytes, at: int, _depth: int) -> tuple[Any, int]:
        start = at + width
        end = start + int.from_bytes(data[at:start], "big")
        if end > len(data):
            raise Malformed("a value is cut off")
        return kind(data[start:end]), end

    return read


def _compound(width: int, build: Callable[[list[Any]], Any]) -> Decoder:
    def read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
        count, at, end = _bounds(data, at, width, depth)
        items = []
        for _ in range(count):
            item, at = _DECODERS[data[at]](data, at + 1, depth + 1)
            items.append(item)
        _require_end(at, end)
        return build(items), end

    return read


def _array(width: int) -> Decoder:
    def read(data: bytes, at: int, depth: int) -> tuple[Any, int]:
        count, at, end = _bounds(data, at, width, depth)
        descriptor = None
        if data[at] == 0:
            descriptor, at = _value(data, at + 1, depth + 1)
        constructor, at = data[at], at + 1
        if count > end - at and count > _MAX_EMPTY_ELEMENTS:
            raise Malformed("an array has more elements than bytes")
        items = []
        for _ in range(count):
            item, at = _DECODERS[constructor](data, at, depth + 1)
            items.append(item)
        _require_end(at, end)
        return Array(_WIDEST.get(constructor, constructor), tuple(items), descriptor), end

    return read


def _bounds(data: bytes, at: int, width: int, depth: int) -> tuple[int, int, int]:
    """Return a compound's number of elements, where they begin and where they end."""
    if depth >= _MAX_DEPTH:
        raise Malformed(f"the value is nested more than {_MAX_DEPTH} times")
    start = at + width
    end = start + int.from_bytes(data[at:start], "big")
    count = int.from_bytes(data[start : start + width], "big")
    if end > len(data) or start + width > end:
        raise Malformed("a value is cut off")
    return count, start + width, end


def _require_end(at: int, end: int) -> None:
    if at != end:
        raise Malformed("a compound value does not have the length that it states")


def _described(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth >= _MAX_DEPTH:
        raise Malformed(f"the value is nested more than {_MAX_DEPTH} times")
    descriptor, at = _value(data, at, depth + 1)
    value, at = _value(data, at, depth + 1)
    return Described(descriptor, value), at


def _boolean(data: bytes, at: int, _depth: int) -> tuple[Any, int]:
    return data[at] != 0, at + 1


def _map(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise Malformed("a map has a key without a value")
    return dict(zip(items[::2], items[1::2], strict=True))


def _text(encoded: bytes) -> str:
    return str(encoded, "utf-8")


def _symbol(encoded: bytes) -> Symbol:
    # ASCII by the specification; some clients write content types beyond it.
    return Symbol(encoded, "utf-8")


def _is(value: Any) -> Any:  # noqa: ANN401 - any AMQP value
    return value


_DECODERS: list[Decoder] = [_unknown] * 256
for _code, _decoder in {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(value=True),
    0x42: _constant(value=False),
    0x43: _constant(UInt(0)),
    0x44: _constant(ULong(0)),
    0x45: lambda _data, at, _depth: ([], at),
    0x50: _fixed(">B", UByte),
    0x51: _fixed(">b", Byte),
    0x52: _fixed(">B", UInt),
    0x53: _fixed(">B", ULong),
    0x54: _fixed(">b", Int),
    0x55: _fixed(">b"),
    0x56: _boolean,
    0x60: _fixed(">H", UShort),
    0x61: _fixed(">h", Short),
    0x70: _fixed(">I", UInt),
    0x71: _fixed(">i", Int),
    0x72: _fixed(">f", Float),
    0x73: _fixed(">I", lambda code: Char(chr(code))),
    0x74: _fixed("4s", Decimal),
    0x80: _fixed(">Q", ULong),
    0x81: _fixed(">q"),
    0x82: _fixed(">d"),
    0x83: _fixed(">q", Timestamp),
    0x84: _fixed("8s", Decimal),
    0x94: _fixed("16s", Decimal),
    0x98: _fixed("16s", lambda encoded: UUID(bytes=encoded)),
    0xA0: _variable(1, _is),
    0xA1: _variable(1, _text),
    0xA3: _variable(1, _symbol),
    0xB0: _variable(4, _is),
    0xB1: _variable(4, _text),
    0xB3: _variable(4, _symbol),
    0xC0: _compound(1, _is),
    0xC1: _compound(1, _map),
    0xD0: _compound(4, _is),
    0xD1: _compound(4, _map),
    0xE0: _array(1),
    0xF0: _array(4),
}.items():
    _DECODERS[_code] = _decoder


# Encoding: a writer for each Python type returns constructor and value.

Writer = Callable[[Any], bytes]


def _write(value: Any) -> bytes:  # noqa: ANN401 - any AMQP value
    writer = _WRITERS.get(type(value))
    return writer(value) if writer is not None else _write_other(value)


def _write_other(value: Any) -> bytes:  # noqa: ANN401 - any value
    """Write what is a kind of a type that AMQP has: an enumeration's member, for example."""
    for kind in type(value).__mro__:
        if kind in _WRITERS:
            return _WRITERS[kind](value)
    raise Unencodable(f"AMQP 1.0 has no {type(value).__name__}")


def _sized(short: int, long: int) -> Callable[[bytes], bytes]:
    short_code, long_code, pack = bytes([short]), bytes([long]), struct.Struct(">I").pack

    def write(encoded: bytes) -> bytes:
        size = len(encoded)
        return short_code + bytes([size]) + encoded if size < _SHORT else long_code + pack(size) + encoded

    return write


write_binary: Callable[[bytes], bytes] = _sized(0xA0, 0xB0)
_write_text, _write_symbol = _sized(0xA1, 0xB1), _sized(0xA3, 0xB3)


def _whole(constructor: int, layout: str, small: tuple[int, str, int, int] | None = None) -> Writer:
    """Return what writes an integer, in one byte where `small` has a constructor and limits for that."""
    pack = struct.Struct(f">B{layout}").pack
    if small is None:
        return lambda value: pack(constructor, value)
    code, small_layout, least, most = small
    pack_small = struct.Struct(f">B{small_layout}").pack
    return lambda value: pack_small(code, value) if least <= value <= most else pack(constructor, value)


write_uint: Writer = _whole(0x70, "I", (0x52, "B", 0, 255))
write_ubyte: Writer = _whole(0x50, "B")
write_ushort: Writer = _whole(0x60, "H")


def write_boolean(value: object) -> bytes:
    """Return true's or false's one byte."""
    return b"\x41" if value else b"\x42"


def write_list(encoded: list[bytes]) -> bytes:
    """Return a list of values that are encoded already."""
    return _write_compound(0xC0, 0xD0, encoded) if encoded else b"\x45"


def _write_compound(short: int, long: int, encoded: list[bytes]) -> bytes:
    body = b"".join(encoded)
    if len(body) < _SHORT - 1 and len(encoded) < _SHORT:
        return bytes((short, len(body) + 1, len(encoded))) + body
    return struct.pack(">BII", long, len(body) + 4, len(encoded)) + body


def _write_sequence(items: Iterable[Any]) -> bytes:
    return write_list([_write(item) for item in items])


def _write_map(items: Mapping[Any, Any]) -> bytes:
    return _write_compound(0xC1, 0xD1, [_write(each) for pair in items.items() for each in pair])


def _write_described(value: Described) -> bytes:
    return b"\x00" + _write(value.descriptor) + _write(value.value)


def _write_array(array: Array) -> bytes:
    """Write each element as its type's widest encoding, without the constructor that the array states once."""
    element = _ELEMENT_WRITERS.get(array.constructor)
    if element is None:
        raise Unencodable(f"there is no array of {array.constructor:#04x}")
    constructor = bytes([array.constructor])
    if array.descriptor is not None:
        constructor = b"\x00" + _write(array.descriptor) + constructor
    body = constructor + b"".join([element(item) for item in array.items])
    return struct.pack(">BII", 0xF0, len(body) + 4, len(array.items)) + body


_WRITERS: dict[type, Writer] = {
    type(None): lambda _value: b"\x40",
    bool: write_boolean,
    UByte: write_ubyte,
    UShort: write_ushort,
    UInt: write_uint,
    ULong: _whole(0x80, "Q", (0x53, "B", 0, 255)),
    Byte: _whole(0x51, "b"),
    Short: _whole(0x61, "h"),
    Int: _whole(0x71, "i", (0x54, "b", -128, 127)),
    int: _whole(0x81, "q", (0x55, "b", -128, 127)),
    Timestamp: _whole(0x83, "q"),
    Float: lambda value: struct.pack(">Bf", 0x72, value),
    float: lambda value: struct.pack(">Bd", 0x82, value),
    Char: lambda value: struct.pack(">BI", 0x73, ord(value)),
    Decimal: lambda value: bytes([{4: 0x74, 8: 0x84, 16: 0x94}[len(value.encoded)]]) + value.encoded,
    UUID: lambda value: b"\x98" + value.bytes,
    bytes: write_binary,
    bytearray: lambda value: write_binary(bytes(value)),
    str: lambda value: _write_text(value.encode()),
    Symbol: lambda value: _write_symbol(value.encode()),
    list: _write_sequence,
    tuple: _write_sequence,
    dict: _write_map,
    Described: _write_described,
    Array: _write_array,
}

# What decoded arrays of a compact encoding are encoded as.
_WIDEST = {
    0x41: 0x56, 0x42: 0x56, 0x43: 0x70, 0x44: 0x80, 0x45: 0xD0, 0x52: 0x70, 0x53: 0x80, 0x54: 0x71, 0x55: 0x81,
    0xA0: 0xB0, 0xA1: 0xB1, 0xA3: 0xB3, 0xC0: 0xD0, 0xC1: 0xD1, 0xE0: 0xF0,
}  # fmt: skip
_ELEMENT_CONSTRUCTORS: dict[type, int] = {
    bool: 0x56, UByte: 0x50, UShort: 0x60, UInt: 0x70, ULong: 0x80, Byte: 0x51, Short: 0x61, Int: 0x71, int: 0x81,
    Timestamp: 0x83, Float: 0x72, float: 0x82, UUID: 0x98, bytes: 0xB0, str: 0xB1, Symbol: 0xB3, list: 0xD0,
    dict: 0xD1,
}  # fmt: skip


def _element(layout: str) -> Writer:
    return struct.Struct(layout).pack


def _element_sized(encode_text: Callable[[Any], bytes]) -> Writer:
    def write(value: Any) -> bytes:  # noqa: ANN401 - any AMQP value
        encoded = encode_text(value)
        return struct.pack(">I", len(encoded)) + encoded

    return write


def _element_compound(value: Any) -> bytes:  # noqa: ANN401 - any AMQP value
    """Write a list or map in the wide form that its array has stated."""
    flat = [each for pair in value.items() for each in pair] if isinstance(value, dict) else value
    body = b"".join([_write(each) for each in flat])
    return struct.pack(">II", len(body) + 4, len(flat)) + body


_ELEMENT_WRITERS: dict[int, Writer] = {
    0x40: lambda _value: b"",
    0x50: _element(">B"), 0x51: _element(">b"), 0x56: _element(">?"), 0x60: _element(">H"), 0x61: _element(">h"),
    0x70: _element(">I"), 0x71: _element(">i"), 0x72: _element(">f"), 0x80: _element(">Q"), 0x81: _element(">q"),
    0x82: _element(">d"), 0x83: _element(">q"),
    0x73: lambda value: struct.pack(">I", ord(value)),
    0x74: lambda value: value.encoded, 0x84: lambda value: value.encoded, 0x94: lambda value: value.encoded,
    0x98: lambda value: value.bytes,
    0xB0: _element_sized(bytes), 0xB1: _element_sized(str.encode), 0xB3: _element_sized(str.encode),
    0xD0: _element_compound, 0xD1: _element_compound,
    0xF0: lambda value: _write_array(value)[1:],
}  # fmt: skip
