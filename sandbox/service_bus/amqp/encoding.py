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
        return cls(_WIDE[kind][0], tuple(items))


# Numbers: the constructor and the layout of their usual encoding, and of the encoding in one byte where they have one.
_FIXED: dict[type, tuple[int, str]] = {
    bool: (0x56, "?"), UByte: (0x50, "B"), UShort: (0x60, "H"), UInt: (0x70, "I"), ULong: (0x80, "Q"),
    Byte: (0x51, "b"), Short: (0x61, "h"), Int: (0x71, "i"), int: (0x81, "q"), Timestamp: (0x83, "q"),
    Float: (0x72, "f"), float: (0x82, "d"),
}  # fmt: skip
_SMALL: dict[type, tuple[int, str]] = {
    UInt: (0x52, "B"), ULong: (0x53, "B"), Int: (0x54, "b"), int: (0x55, "b"),
}  # fmt: skip
_DECIMALS = {4: 0x74, 8: 0x84, 16: 0x94}


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


def _fixed(layout: str, kind: Callable[[Any], Any]) -> Decoder:
    unpack, size = struct.Struct(f">{layout}").unpack_from, struct.calcsize(f">{layout}")

    def read(data: bytes, at: int, _depth: int) -> tuple[Any, int]:
        (value,) = unpack(data, at)
        return kind(value), at + size

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
    **{code: _fixed(layout, kind) for table in (_FIXED, _SMALL) for kind, (code, layout) in table.items()},
    **{code: _fixed(f"{size}s", Decimal) for size, code in _DECIMALS.items()},
    0x73: _fixed("I", lambda code: Char(chr(code))),
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
    if writer is None:
        raise Unencodable(f"AMQP 1.0 has no {type(value).__name__}")
    return writer(value)


# The widest encoding of each type, without its constructor: that of an array's elements.


def _wide_bytes(encoded: bytes) -> bytes:
    return struct.pack(">I", len(encoded)) + encoded


def _wide_compound(encoded: list[bytes]) -> bytes:
    body = b"".join(encoded)
    return struct.pack(">II", len(body) + 4, len(encoded)) + body


def _items(values: Iterable[Any]) -> list[bytes]:
    return [_write(each) for each in values]


def _pairs(values: Mapping[Any, Any]) -> list[bytes]:
    return [_write(each) for pair in values.items() for each in pair]


def _wide_array(array: Array) -> bytes:
    """Write each element without the constructor, which the array states once."""
    element = _ELEMENT_WRITERS.get(array.constructor)
    if element is None:
        raise Unencodable(f"there is no array of {array.constructor:#04x}")
    constructor = bytes([array.constructor])
    if array.descriptor is not None:
        constructor = b"\x00" + _write(array.descriptor) + constructor
    body = constructor + b"".join([element(item) for item in array.items])
    return struct.pack(">II", len(body) + 4, len(array.items)) + body


_WIDE: dict[type, tuple[int, Writer]] = {
    **{kind: (code, struct.Struct(f">{layout}").pack) for kind, (code, layout) in _FIXED.items()},
    Char: (0x73, lambda value: struct.pack(">I", ord(value))),
    UUID: (0x98, lambda value: value.bytes),
    bytes: (0xB0, _wide_bytes),
    str: (0xB1, lambda value: _wide_bytes(value.encode())),
    Symbol: (0xB3, lambda value: _wide_bytes(value.encode())),
    list: (0xD0, lambda value: _wide_compound(_items(value))),
    dict: (0xD1, lambda value: _wide_compound(_pairs(value))),
    Array: (0xF0, _wide_array),
}
_ELEMENT_WRITERS: dict[int, Writer] = {
    0x40: lambda _value: b"",
    **dict.fromkeys(_DECIMALS.values(), lambda value: value.encoded),
    **dict(_WIDE.values()),
}
# What decoded arrays of a compact encoding are encoded as.
_WIDEST = {
    0x41: 0x56, 0x42: 0x56, 0x43: 0x70, 0x44: 0x80, 0x45: 0xD0, 0x52: 0x70, 0x53: 0x80, 0x54: 0x71, 0x55: 0x81,
    0xA0: 0xB0, 0xA1: 0xB1, 0xA3: 0xB3, 0xC0: 0xD0, 0xC1: 0xD1, 0xE0: 0xF0,
}  # fmt: skip


# The shortest encoding of each type, with its constructor.


def _constructed(kind: type) -> Writer:
    code, write = _WIDE[kind]
    constructor = bytes([code])
    return lambda value: constructor + write(value)


def _small(kind: type) -> Writer:
    """Return what writes an integer in one byte if it is small."""
    code, layout = _SMALL[kind]
    least, most = (0, 255) if layout == "B" else (-128, 127)
    write_small, write = struct.Struct(f">B{layout}").pack, _constructed(kind)
    return lambda value: write_small(code, value) if least <= value <= most else write(value)


def _sized(short: int, long: int) -> Callable[[bytes], bytes]:
    short_code, long_code = bytes([short]), bytes([long])

    def write(encoded: bytes) -> bytes:
        size = len(encoded)
        return short_code + bytes([size]) + encoded if size < _SHORT else long_code + _wide_bytes(encoded)

    return write


def _compound_of(short: int, long: int) -> Callable[[list[bytes]], bytes]:
    long_code = bytes([long])

    def write(encoded: list[bytes]) -> bytes:
        size = sum(map(len, encoded)) + 1
        if size < _SHORT and len(encoded) < _SHORT:
            return bytes((short, size, len(encoded))) + b"".join(encoded)
        return long_code + _wide_compound(encoded)

    return write


write_binary, _write_text, _write_symbol = _sized(0xA0, 0xB0), _sized(0xA1, 0xB1), _sized(0xA3, 0xB3)
_write_items, _write_pairs = _compound_of(0xC0, 0xD0), _compound_of(0xC1, 0xD1)
write_ubyte, write_ushort = _constructed(UByte), _constructed(UShort)
write_uint = _small(UInt)


def write_boolean(value: object) -> bytes:
    """Return true's or false's one byte."""
    return b"\x41" if value else b"\x42"


def write_list(encoded: list[bytes]) -> bytes:
    """Return a list of values that are encoded already."""
    return _write_items(encoded) if encoded else b"\x45"


_WRITERS: dict[type, Writer] = {
    **{kind: _constructed(kind) for kind in _WIDE},
    **{kind: _small(kind) for kind in _SMALL},
    type(None): lambda _value: b"\x40",
    bool: write_boolean,
    Decimal: lambda value: bytes([_DECIMALS[len(value.encoded)]]) + value.encoded,
    bytes: write_binary,
    bytearray: write_binary,
    str: lambda value: _write_text(value.encode()),
    Symbol: lambda value: _write_symbol(value.encode()),
    list: lambda value: write_list(_items(value)),
    tuple: lambda value: write_list(_items(value)),
    dict: lambda value: _write_pairs(_pairs(value)),
    Described: lambda value: b"\x00" + _write(value.descriptor) + _write(value.value),
}
