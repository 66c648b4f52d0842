"""What AMQP 1.0's frames say (OASIS AMQP 1.0, parts 2 and 5): each performative and what stands in its fields.

Every class has the fields of the specification in their order. Decoding checks types and mandatory fields, so the rest
of the engine does not; encoding writes all fields, because Microsoft's Python library reads the last ones of some
performatives without checking whether they are present.
"""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

from sandbox.service_bus.amqp.encoding import (
    Described,
    Malformed,
    Symbol,
    ULong,
    decode,
    encode,
    write_binary,
    write_boolean,
    write_list,
    write_ubyte,
    write_uint,
    write_ushort,
)

MAX_UINT = 2**32 - 1
_MAX_USHORT = 2**16 - 1
_MAX_UBYTE = 2**8 - 1
_MAX_ULONG = 2**64 - 1

# An instance of any class below.
Performative = tuple[Any, ...]

# Delivery ids, transfer ids and delivery counts are serial numbers: after the last one comes 0.
SERIAL = 2**32

# What `role` says: whether the sender of the performative is the link's receiver.
SENDER, RECEIVER = False, True


def distance(ahead: int, behind: int) -> int:
    """Return how far one serial number is ahead of another; less than 0 if it is behind."""
    return (ahead - behind + SERIAL // 2) % SERIAL - SERIAL // 2


class Condition(NamedTuple):
    """Why something ended or was refused: AMQP's `error`, whose `condition` is the name here."""

    name: str
    description: str | None = None
    info: dict[Any, Any] | None = None


class Open(NamedTuple):
    """Begins a connection."""

    container_id: str
    hostname: str | None = None
    max_frame_size: int = MAX_UINT
    channel_max: int = _MAX_USHORT
    idle_time_out: int | None = None
    outgoing_locales: Any = None
    incoming_locales: Any = None
    offered_capabilities: Any = None
    desired_capabilities: Any = None
    properties: Any = None


class Begin(NamedTuple):
    """Begins a session."""

    remote_channel: int | None
    next_outgoing_id: int
    incoming_window: int
    outgoing_window: int
    handle_max: int = MAX_UINT
    offered_capabilities: Any = None
    desired_capabilities: Any = None
    properties: Any = None


class Attach(NamedTuple):
    """Attaches a link."""

    name: str
    handle: int
    role: bool
    snd_settle_mode: int = 2
    rcv_settle_mode: int = 0
    source: Any = None
    target: Any = None
    unsettled: Any = None
    incomplete_unsettled: bool = False
    initial_delivery_count: int | None = None
    max_message_size: int | None = None
    offered_capabilities: Any = None
    desired_capabilities: Any = None
    properties: Any = None


class Flow(NamedTuple):
    """States windows and credit."""

    next_incoming_id: int | None
    incoming_window: int
    next_outgoing_id: int
    outgoing_window: int
    handle: int | None = None
    delivery_count: int | None = None
    link_credit: int | None = None
    available: int | None = None
    drain: bool = False
    echo: bool = False
    properties: Any = None


class Transfer(NamedTuple):
    """Carries a message, or a part of one."""

    handle: int
    delivery_id: int | None = None
    delivery_tag: bytes | None = None
    message_format: int | None = None
    settled: bool | None = None
    more: bool = False
    rcv_settle_mode: int | None = None
    state: Any = None
    resume: bool = False
    aborted: bool = False
    batchable: bool = False


class Disposition(NamedTuple):
    """States what became of deliveries."""

    role: bool
    first: int
    last: int | None = None
    settled: bool = False
    state: Any = None
    batchable: bool = False


class Detach(NamedTuple):
    """Detaches a link."""

    handle: int
    closed: bool = False
    error: Condition | None = None


class End(NamedTuple):
    """Ends a session."""

    error: Condition | None = None


class Close(NamedTuple):
    """Ends a connection."""

    error: Condition | None = None


class Received(NamedTuple):
    """A delivery state: so much has arrived."""

    section_number: Any = None
    section_offset: Any = None


class Accepted(NamedTuple):
    """An outcome: the message was processed."""


class Rejected(NamedTuple):
    """An outcome: the message cannot be processed."""

    error: Condition | None = None


class Released(NamedTuple):
    """An outcome: the message was not processed, and may be delivered again."""


class Modified(NamedTuple):
    """An outcome: the message was not processed, and shall be changed."""

    delivery_failed: bool | None = None
    undeliverable_here: bool | None = None
    message_annotations: dict[Any, Any] | None = None


class Source(NamedTuple):
    """Where a link's messages come from."""

    address: Any = None
    durable: Any = None
    expiry_policy: Any = None
    timeout: Any = None
    dynamic: Any = None
    dynamic_node_properties: Any = None
    distribution_mode: Any = None
    filter: dict[Any, Any] | None = None
    default_outcome: Any = None
    outcomes: Any = None
    capabilities: Any = None


class Target(NamedTuple):
    """Where a link's messages go."""

    address: Any = None
    durable: Any = None
    expiry_policy: Any = None
    timeout: Any = None
    dynamic: Any = None
    dynamic_node_properties: Any = None
    capabilities: Any = None


class Coordinator(NamedTuple):
    """A target that controls transactions."""

    capabilities: Any = None


class SaslMechanisms(NamedTuple):
    """The mechanisms that a server offers."""

    mechanisms: Any


class SaslInit(NamedTuple):
    """The mechanism that a client selects."""

    mechanism: str
    initial_response: bytes | None = None
    hostname: str | None = None


class SaslOutcome(NamedTuple):
    """How authentication ended."""

    code: int
    additional_data: bytes | None = None


class FieldType(NamedTuple):
    """How a field's value is checked when it is decoded, and how it is encoded."""

    accepts: Callable[[Any], bool]
    write: Callable[[Any], bytes]


def unpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Return the performative that begins there and where it ends; raise Malformed."""
    value, end = decode(data, at)
    composite = _composite(value)
    if isinstance(composite, Described) or not isinstance(value, Described):
        raise Malformed("a frame does not begin with a performative")
    return composite, end


def pack(composite: Performative) -> bytes:
    """Return a performative's bytes, or those of another composite value."""
    layout = _BY_CLASS[type(composite)]
    fields = [
        b"\x40" if value is None else write(value)
        for value, write in zip(composite, layout.writers, strict=True)
    ]
    return layout.head + write_list(fields)


class _Layout:
    """A class, its descriptor, and its fields' types: `!` marks a mandatory field."""

    def __init__(self, kind: Any, code: int, name: str, types: str) -> None:  # noqa: ANN401 - a class above
        self.kind = kind
        self.head = b"\x00" + encode(ULong(code))
        self.code = code
        self.name = f"amqp:{name}:list"
        names = types.split()
        self.writers = [_TYPES[each.rstrip("!")].write for each in names]
        defaults = self.kind._field_defaults
        self._fields = [
            (field, each.endswith("!"), _TYPES[each.rstrip("!")].accepts, defaults.get(field))
            for field, each in zip(self.kind._fields, names, strict=True)
        ]

    def build(self, values: Any) -> Any:  # noqa: ANN401 - what was decoded
        """Return an instance; raise Malformed."""
        if not isinstance(values, list) or len(values) > len(self._fields):
            raise Malformed(f"{self.name} has other fields than AMQP 1.0 defines")
        arguments = []
        for (field, mandatory, accepts, default), given in zip_longest(self._fields, values):
            value = _composite(given) if type(given) is Described else given
            if value is None:
                if mandatory:
                    raise Malformed(f"{self.name} has no {field}")
                value = default
            elif not accepts(value):
                raise Malformed(f"{self.name} has another type of {field} than AMQP 1.0 defines")
            arguments.append(value)
        return self.kind(*arguments)


def _composite(value: Any) -> Any:  # noqa: ANN401 - what was decoded
    """Return a described value as one of the classes above, or as it is."""
    if type(value) is not Described or not isinstance(value.descriptor, int | str):
        return value
    layout = _BY_DESCRIPTOR.get(value.descriptor)
    return value if layout is None else layout.build(value.value)


def _whole(most: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int) and value is not True and value is not False and 0 <= value <= most
    )


def _is_a(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _write_any(value: Any) -> bytes:  # noqa: ANN401 - any AMQP value
    return pack(value) if type(value) in _BY_CLASS else encode(value)


_TYPES = {
    "any": FieldType(lambda _value: True, _write_any),
    "bool": FieldType(_is_a(bool), write_boolean),
    "ubyte": FieldType(_whole(_MAX_UBYTE), write_ubyte),
    "ushort": FieldType(_whole(_MAX_USHORT), write_ushort),
    "uint": FieldType(_whole(MAX_UINT), write_uint),
    "ulong": FieldType(_whole(_MAX_ULONG), lambda value: encode(ULong(value))),
    "text": FieldType(_is_a(str), lambda value: encode(str(value))),
    "symbol": FieldType(_is_a(str), lambda value: encode(Symbol(value))),
    "binary": FieldType(_is_a(bytes), write_binary),
    "map": FieldType(_is_a(dict), encode),
    "error": FieldType(_is_a(Condition), _write_any),
    "terminus": FieldType(lambda value: isinstance(value, Source | Target | Coordinator), _write_any),
}

_LAYOUTS = [
    _Layout(Open, 0x10, "open", "text! text uint ushort uint any any any any map"),
    _Layout(Begin, 0x11, "begin", "ushort uint! uint! uint! uint any any map"),
    _Layout(
        Attach, 0x12, "attach",
        "text! uint! bool! ubyte ubyte terminus terminus any bool uint ulong any any map",
    ),
    _Layout(Flow, 0x13, "flow", "uint uint! uint! uint! uint uint uint uint bool bool map"),
    _Layout(Transfer, 0x14, "transfer", "uint! uint binary uint bool bool ubyte any bool bool bool"),
    _Layout(Disposition, 0x15, "disposition", "bool! uint! uint bool any bool"),
    _Layout(Detach, 0x16, "detach", "uint! bool error"),
    _Layout(End, 0x17, "end", "error"),
    _Layout(Close, 0x18, "close", "error"),
    _Layout(Condition, 0x1D, "error", "symbol! text map"),
    _Layout(Received, 0x23, "received", "any any"),
    _Layout(Accepted, 0x24, "accepted", ""),
    _Layout(Rejected, 0x25, "rejected", "error"),
    _Layout(Released, 0x26, "released", ""),
    _Layout(Modified, 0x27, "modified", "bool bool map"),
    _Layout(Source, 0x28, "source", "any any any any any any any map any any any"),
    _Layout(Target, 0x29, "target", "any any any any any any any"),
    _Layout(Coordinator, 0x30, "coordinator", "any"),
    _Layout(SaslMechanisms, 0x40, "sasl-mechanisms", "any!"),
    _Layout(SaslInit, 0x41, "sasl-init", "symbol! binary text"),
    _Layout(SaslOutcome, 0x44, "sasl-outcome", "ubyte! binary"),
]  # fmt: skip
_BY_CLASS = {layout.kind: layout for layout in _LAYOUTS}
_BY_DESCRIPTOR: dict[int | str, _Layout] = {
    key: layout for layout in _LAYOUTS for key in (layout.code, layout.name)
}
