"""One connection: framing, SASL, sessions, heartbeats."""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sandbox.service_bus.amqp.encoding import Array, Malformed, Symbol
from sandbox.service_bus.amqp.events import Authenticating, Event, ForeignProtocol, Opened
from sandbox.service_bus.amqp.performatives import (
    Attach,
    Begin,
    Close,
    Condition,
    Detach,
    Disposition,
    End,
    Flow,
    Open,
    Performative,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Transfer,
    pack,
    unpack,
)
from sandbox.service_bus.amqp.session import Session
from sandbox.service_bus.amqp.violations import ConnectionViolation, LinkViolation, SessionViolation

SASL_HEADER = b"AMQP\x03\x01\x00\x00"
AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
_FRAME = struct.Struct(">IBBH")
_AMQP_FRAME, _SASL_FRAME = 0, 1
_SASL_OK, _SASL_REFUSED = 0, 1
# The specification's smallest maximum: a peer that announces less gets frames of this size.
_MIN_MAX_FRAME_SIZE = 512
_MIN_HEARTBEAT_SECONDS = 0.1


@dataclass(frozen=True)
class Limits:
    """What this side announces; the defaults are Azure's. `info` goes into every error that it states.

    The keys of `properties` and `info` are symbols.
    """

    container_id: str = "amqp"
    max_frame_size: int = 64 * 1024
    channel_max: int = 4999
    handle_max: int = 4999
    window: int = 5000
    idle_seconds: float = 240.0
    mechanisms: tuple[str, ...] = ("PLAIN", "ANONYMOUS", "EXTERNAL")
    properties: dict[Symbol, Any] = field(default_factory=dict)
    info: dict[Symbol, Any] = field(default_factory=dict)


class Connection:
    """The server's side of a connection."""

    def __init__(self, limits: Limits, now: float = 0.0) -> None:
        self.limits = limits
        # Nothing is read or sent any more once what is in the output is sent.
        self.is_closed = False
        self.is_closed_by_peer = False
        self._input = _Input(limits.max_frame_size)
        self._output = bytearray()
        self._read = self._read_header
        self._is_open = False
        self._max_frame_size = _MIN_MAX_FRAME_SIZE
        self._sessions: dict[int, Session] = {}
        self._with_outcomes: list[Session] = []
        self._last_received = self._last_sent = now
        self.heartbeat_seconds: float | None = None

    # For the owner

    def receive(self, data: bytes, now: float) -> Iterator[Event]:
        """Take what arrived; yield what it means. The owner handles each event before it asks for the next."""
        self._last_received = now
        self._input.feed(data)
        while not self.is_closed:
            try:
                events = self._read()
            except ConnectionViolation as violation:
                self.close(self.error(violation.condition, violation.description))
                return
            except Malformed as error:
                self.close(self.error("amqp:decode-error", str(error)))
                return
            if events is None:
                return
            yield from events

    def take_output(self, now: float) -> bytes:
        """Return what is to be sent, and forget it."""
        for session in self._with_outcomes:
            session.flush_outcomes()
        self._with_outcomes.clear()
        if not self._output:
            return b""
        self._last_sent = now
        output, self._output = bytes(self._output), bytearray()
        return output

    def tick(self, now: float) -> float:
        """Send a heartbeat or end a silent connection where it is time to; return when to call this again."""
        silent_until = self._last_received + self.limits.idle_seconds
        if now >= silent_until and not self.is_closed:
            milliseconds = int(self.limits.idle_seconds * 1000)
            self.close(
                self.error(
                    "amqp:connection:forced",
                    f"The connection was inactive for more than the allowed {milliseconds} milliseconds and is closed "
                    f"by container '{self.limits.container_id}'.",
                )
            )
        if self.heartbeat_seconds is None or self.is_closed:
            return silent_until
        if now >= self._last_sent + self.heartbeat_seconds:
            self._output += _FRAME.pack(_FRAME.size, 2, _AMQP_FRAME, 0)
            self._last_sent = now
        return min(silent_until, self._last_sent + self.heartbeat_seconds)

    def accept_login(self) -> None:
        """Let the peer in; it begins AMQP itself now."""
        self._send_sasl(SaslOutcome(_SASL_OK))
        self._read = self._read_header

    def refuse_login(self) -> None:
        """End the connection with SASL's refusal."""
        self._send_sasl(SaslOutcome(_SASL_REFUSED))
        self.is_closed = True

    def reject(self, response: bytes) -> None:
        """End the connection with a response in the peer's own protocol."""
        self._output += response
        self.is_closed = True

    def close(self, error: Condition | None = None) -> None:
        """End the connection."""
        if self._read == self._read_sasl_init:
            self.refuse_login()
        elif self._read == self._read_frame and not self.is_closed:
            if not self._is_open:
                # An error can be stated on an open connection only.
                self._send_open()
            self.send(0, Close(error))
        self.is_closed = True

    def error(self, condition: str, description: str) -> Condition:
        """Return an error with all three fields: Microsoft's Python library reads the third without checking."""
        return Condition(condition, description, self.limits.info)

    @property
    def pending_output(self) -> int:
        """Return how many bytes there are to be sent."""
        return len(self._output)

    # For sessions

    @property
    def max_payload(self) -> int:
        """Return how many bytes a frame to the peer may have behind its header."""
        return self._max_frame_size - _FRAME.size

    def send(self, channel: int, performative: Performative, payload: bytes = b"") -> None:
        """Put a frame into the output."""
        if not self.is_closed:
            body = pack(performative)
            self._output += _FRAME.pack(_FRAME.size + len(body) + len(payload), 2, _AMQP_FRAME, channel)
            self._output += body
            self._output += payload

    def note_outcomes(self, session: Session) -> None:
        """Remember that a session has outcomes to state before the output is taken."""
        self._with_outcomes.append(session)

    # Reading: `_read` is what comes next. Each returns events, or None where more bytes are needed.

    def _read_header(self) -> Iterable[Event] | None:
        header = self._input.take(len(AMQP_HEADER))
        if header is None:
            return None
        if header == AMQP_HEADER:
            self._output += AMQP_HEADER
            self._read = self._read_frame
        elif header == SASL_HEADER:
            self._output += SASL_HEADER
            self._send_sasl(SaslMechanisms(Array.of(Symbol, self.limits.mechanisms)))
            self._read = self._read_sasl_init
        else:
            # As AMQP 1.0 demands: a server states the protocol that it speaks, and closes.
            return self._foreign(header)
        return ()

    def _foreign(self, header: bytes) -> Iterable[Event]:
        yield ForeignProtocol(header)
        if not self.is_closed:
            self.reject(SASL_HEADER)

    def _read_sasl_init(self) -> Iterable[Event] | None:
        frame = self._input.take_frame()
        if frame is None:
            return None
        kind, _, body, offset = frame
        init, _ = unpack(body, offset)
        if kind != _SASL_FRAME or not isinstance(init, SaslInit):
            raise ConnectionViolation("amqp:connection:framing-error", "a SASL init frame was expected")
        if init.mechanism not in self.limits.mechanisms:
            self.refuse_login()
            return ()
        return (Authenticating(init.mechanism, init.initial_response or b""),)

    def _read_frame(self) -> Iterable[Event] | None:
        frame = self._input.take_frame()
        if frame is None:
            return None
        kind, channel, body, offset = frame
        if kind != _AMQP_FRAME:
            raise ConnectionViolation("amqp:connection:framing-error", f"there is no frame type {kind}")
        if offset == len(body):
            return ()  # a heartbeat
        performative, end = unpack(body, offset)
        if not self._is_open:
            return self._receive_open(performative)
        if isinstance(performative, Close):
            self.is_closed_by_peer = True
            self.close()
            return ()
        if isinstance(performative, Begin):
            return self._receive_begin(channel, performative)
        return self._receive_on_session(channel, performative, body[end:])

    def _receive_open(self, performative: object) -> Iterable[Event]:
        if not isinstance(performative, Open):
            raise ConnectionViolation("amqp:illegal-state", "a connection begins with an open")
        self._max_frame_size = max(performative.max_frame_size, _MIN_MAX_FRAME_SIZE)
        if performative.idle_time_out:
            # At half the time, so that the peer never waits for one that is on its way.
            self.heartbeat_seconds = max(performative.idle_time_out / 2000, _MIN_HEARTBEAT_SECONDS)
        self._send_open()
        return (Opened(performative.properties or {}),)

    def _send_open(self) -> None:
        limits = self.limits
        capabilities = (limits.container_id,)
        self.send(
            0,
            Open(
                limits.container_id,
                None,
                limits.max_frame_size,
                limits.channel_max,
                int(limits.idle_seconds * 1000),
                offered_capabilities=capabilities,
                desired_capabilities=capabilities,
                properties=limits.properties,
            ),
        )
        self._is_open = True

    def _receive_begin(self, channel: int, begin: Begin) -> Iterable[Event]:
        if channel > self.limits.channel_max:
            raise ConnectionViolation(
                "amqp:connection:framing-error",
                f"channel {channel} is greater than the channel-max of {self.limits.channel_max}",
            )
        session = self._sessions.get(channel)
        if session is not None and not session.is_ended:
            raise ConnectionViolation("amqp:not-allowed", f"channel {channel} has a session already")
        self._sessions[channel] = Session(self, channel, begin)
        window = self.limits.window
        self.send(channel, Begin(channel, 0, window, window, self.limits.handle_max))
        return ()

    def _receive_on_session(self, channel: int, performative: Any, payload: bytes) -> Iterable[Event]:  # noqa: ANN401
        session = self._sessions.get(channel)
        if session is None:
            raise ConnectionViolation("amqp:not-allowed", f"there is no session on channel {channel}")
        if isinstance(performative, End):
            del self._sessions[channel]
            return session.end()
        if session.is_ended:
            return ()
        receive = _RECEIVERS.get(type(performative))
        if receive is None:
            raise ConnectionViolation(
                "amqp:not-allowed", f"a {type(performative).__name__} does not belong on a session"
            )
        try:
            return receive(session, performative, payload)
        except LinkViolation as violation:
            return session.detach_for(violation, performative.handle)
        except SessionViolation as violation:
            return session.end(self.error(violation.condition, violation.description))

    def _send_sasl(self, performative: Performative) -> None:
        body = pack(performative)
        self._output += _FRAME.pack(_FRAME.size + len(body), 2, _SASL_FRAME, 0) + body


# What a session does with each performative and the payload behind it.
_RECEIVERS: dict[type, Callable[[Session, Any, bytes], Iterable[Event]]] = {
    Transfer: Session.receive_transfer,
    Disposition: lambda session, disposition, _: session.receive_disposition(disposition),
    Flow: lambda session, flow, _: session.receive_flow(flow),
    Attach: lambda session, attach, _: session.receive_attach(attach),
    Detach: lambda session, detach, _: session.receive_detach(detach),
}


class _Input:
    """What arrived and was not read yet."""

    def __init__(self, max_frame_size: int) -> None:
        self._max_frame_size = max_frame_size
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        del self._data[: self._at]
        self._at = 0
        self._data += data

    def take(self, size: int) -> bytes | None:
        """Return so many bytes, or None where they have not arrived."""
        end = self._at + size
        if len(self._data) < end:
            return None
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken

    def take_frame(self) -> tuple[int, int, bytes, int] | None:
        """Return a frame's type, its channel, the whole of it and where its body begins; None where it is not whole."""
        if len(self._data) - self._at < _FRAME.size:
            return None
        size, offset, kind, channel = _FRAME.unpack_from(self._data, self._at)
        offset *= 4
        if not _FRAME.size <= offset <= size <= self._max_frame_size:
            raise ConnectionViolation(
                "amqp:connection:framing-error",
                f"a frame of {size} bytes with a body from byte {offset} on does not fit into "
                f"the max-frame-size of {self._max_frame_size}",
            )
        frame = self.take(size)
        return None if frame is None else (kind, channel, frame, offset)
