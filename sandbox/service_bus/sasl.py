"""The beginning of a connection: protocol headers and SASL, before AMQP itself.

Proton's built-in server knows ANONYMOUS and EXTERNAL only, while Microsoft's .NET client asks for MSSBCBS and
Service Bus also takes a key by PLAIN: three frames, so they are exchanged here.
"""

import struct
from collections.abc import Callable
from typing import Any

from proton import Data, Described, ProtonException, symbol, ubyte, ulong

from sandbox.service_bus.codec import array, owned
from sandbox.service_bus.errors import Unauthorized

MECHANISMS = ("MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL")
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
_HTTP_METHODS = (b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"PATC", b"OPTI")
_NOT_HTTP = (
    b"HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This is the sandbox's Service Bus: it speaks AMQP 1.0 only. Management over HTTP is not offered;\n"
    b"entities are defined in the configuration file.\n"
)
_INIT, _MECHANISMS, _OUTCOME = 0x41, 0x40, 0x44
_FRAME_HEADER = struct.Struct(">IBBH")
_LARGEST_FRAME = 64 * 1024
_OK, _REFUSED = 0, 1


class NotAmqp(Exception):
    """The peer speaks something else; `answer` is the last that it gets."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("the peer does not begin with AMQP")
        self.answer = answer


class Prelude:
    """Reads what comes before AMQP. `check_plain` raises Unauthorized for a wrong user name or password."""

    def __init__(self, check_plain: Callable[[str, str], None]) -> None:
        self._check_plain = check_plain
        self._buffer = b""
        self._in_sasl = False
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes in; return what to answer and, once `done`, what belongs to AMQP. May raise NotAmqp."""
        self._buffer += data
        answer = b""
        while not self.done:
            if not self._in_sasl:
                if len(self._buffer) < len(SASL_HEADER):
                    break
                answer += self._header()
            elif (frame := self._frame()) is None:
                break
            else:
                answer += self._init(frame)
        rest, self._buffer = (self._buffer, b"") if self.done else (b"", self._buffer)
        return answer, rest

    def _header(self) -> bytes:
        if self._buffer.startswith(AMQP_HEADER):
            self.done = True
            return b""
        if not self._buffer.startswith(SASL_HEADER):
            raise NotAmqp(_NOT_HTTP if self._buffer.startswith(_HTTP_METHODS) else SASL_HEADER)
        self._buffer = self._buffer[len(SASL_HEADER) :]
        self._in_sasl = True
        offered = array(Data.SYMBOL, (symbol(each) for each in MECHANISMS))
        return SASL_HEADER + _encode(_MECHANISMS, [offered])

    def _frame(self) -> bytes | None:
        if len(self._buffer) < _FRAME_HEADER.size:
            return None
        size, offset, _, _ = _FRAME_HEADER.unpack_from(self._buffer)
        if not _FRAME_HEADER.size <= size <= _LARGEST_FRAME:
            raise NotAmqp(b"")
        if len(self._buffer) < size:
            return None
        frame, self._buffer = self._buffer[offset * 4 : size], self._buffer[size:]
        return frame

    def _init(self, frame: bytes) -> bytes:
        data = Data()
        try:
            data.decode(frame)
        except ProtonException as error:
            raise NotAmqp(b"") from error
        data.rewind()
        data.next()
        init: Any = data.get_object()
        if not isinstance(init, Described) or init.descriptor != _INIT:
            raise NotAmqp(b"")
        fields = owned(init.value)
        mechanism, response = (*fields, None)[:2]
        code = _OK if mechanism in MECHANISMS else _REFUSED
        if mechanism == "PLAIN":
            parts: list[str] = (response or b"").decode("utf-8", "replace").split("\0")
            _, user, password = (*parts, "", "", "")[:3]
            try:
                self._check_plain(user, password)
            except Unauthorized:
                code = _REFUSED
        # After a good outcome the client begins anew, with the header of AMQP itself.
        self._in_sasl = False
        outcome = _encode(_OUTCOME, [ubyte(code), None])
        if code != _OK:
            raise NotAmqp(outcome)
        return outcome


def _encode(code: int, fields: list[Any]) -> bytes:
    data = Data()
    data.put_object(Described(ulong(code), fields))
    body: bytes = data.encode()
    return _FRAME_HEADER.pack(_FRAME_HEADER.size + len(body), 2, 1, 0) + body
