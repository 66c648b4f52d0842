"""Measures the sandbox's Service Bus: sends, receives and settlements per second, with 1 and 16 links.

    python -m benchmarks.service_bus                                  # this tree
    python -m benchmarks.service_bus --compare FOLDER --python PYTHON # beside another tree, in turn, in one run

The server runs in a process of its own, from the tree that is measured; the client here sends frames that were encoded
before, so that the figures are the server's. Besides the time that passed, the time that the server computed is
measured: on a machine that does other work, the ratios of those are the ones to compare.
"""

from __future__ import annotations

import os
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from sandbox.service_bus.amqp.encoding import Described, ULong, encode
from sandbox.service_bus.amqp.performatives import (
    RECEIVER,
    SENDER,
    Accepted,
    Attach,
    Begin,
    Disposition,
    Flow,
    Open,
    Performative,
    SaslInit,
    Source,
    Target,
    Transfer,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
_WITHIN = 60.0
_SASL, _AMQP = b"AMQP\x03\x01\x00\x00", b"AMQP\x00\x01\x00\x00"
_TRANSFER, _DISPOSITION = 0x14, 0x15
# Not more than the credit that the server gives a link, so that nothing waits for credit.
_MAX_PER_LINK = 1000
_SIZE, _HEADER = 4, 8
_SERVER = """
import sys, time
from sandbox.service_bus import Broker, Configuration, ServiceBusServer
configuration = Configuration.parse('{"UserConfig": {"Namespaces": [{"Name": "n", "Queues": [{"Name": "q"}]}]}}')
with ServiceBusServer(Broker(configuration)) as server:
    print(server.port, flush=True)
    for _ in sys.stdin:
        print(time.process_time(), flush=True)
"""
OPERATIONS = ("send", "receive", "settle")


@dataclass(frozen=True)
class Rates:
    """Operations per second that passed, and per second that the server computed."""

    elapsed: float
    computed: float


def _frame(performative: Performative, payload: bytes = b"", kind: int = 0) -> bytes:
    body = pack(performative) + payload
    return struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body


def _message() -> bytes:
    properties = [f"id-{'x' * 32}", None, None, "invoice created", None, None, "application/json"]
    sections = {0x73: properties, 0x74: {"cloudEvents_type": "created", "attempt": 1}, 0x75: b"x" * 700}
    return b"".join(encode(Described(ULong(code), value)) for code, value in sections.items())


class _Link:
    """A connection with one link on which it sends and one on which it receives."""

    def __init__(self, port: int, messages: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_WITHIN)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.messages = messages
        self.settled = self.received = 0
        self._buffer = b""
        message = _message()
        self.transfers = b"".join(
            _frame(Transfer(0, number, b"%d" % number, 0), message) for number in range(messages)
        )
        self.dispositions = b"".join(
            _frame(Disposition(RECEIVER, number, number, state=Accepted())) for number in range(messages)
        )
        self.credit = _frame(Flow(0, 2**31 - 1, messages, 2**31 - 1, 1, 0, messages))
        key = b"\0RootManageSharedAccessKey\0SAS_KEY_VALUE"
        self.socket.sendall(_SASL + _frame(SaslInit("PLAIN", key), kind=1))
        self._skip(len(_SASL))
        self._await(2)
        self.socket.sendall(
            _AMQP
            + _frame(Open("benchmark"))
            + _frame(Begin(None, 0, 2**31 - 1, 2**31 - 1))
            + _frame(Attach("out", 0, SENDER, source=Source(), target=Target("q"), initial_delivery_count=0))
            + _frame(Attach("in", 1, RECEIVER, source=Source("q"), target=Target()))
        )
        self._skip(len(_AMQP))
        self._await(5)  # open, begin, two attaches, credit

    def read(self) -> None:
        """Count what the server sent: messages, and outcomes of deliveries."""
        self._buffer += self.socket.recv(1 << 20)
        buffer, at = self._buffer, 0
        while len(buffer) - at >= _HEADER:
            size = int.from_bytes(buffer[at : at + 4], "big")
            if len(buffer) - at < size:
                break
            if buffer[at + 8 : at + 10] == b"\x00\x53":
                self._count(buffer[at + 10], buffer[at + 8 : at + size])
            at += size
        self._buffer = buffer[at:]

    def _count(self, code: int, body: bytes) -> None:
        if code == _TRANSFER:
            self.received += 1
        elif code == _DISPOSITION:
            disposition, _ = unpack(body)
            if not isinstance(disposition.state, Accepted):
                raise click.ClickException(f"the server refused: {disposition}")
            last = disposition.first if disposition.last is None else disposition.last
            self.settled += last - disposition.first + 1

    def _skip(self, size: int) -> None:
        while len(self._buffer) < size:
            self._buffer += self.socket.recv(4096)
        self._buffer = self._buffer[size:]

    def _await(self, frames: int) -> None:
        for _ in range(frames):
            while len(self._buffer) < max(_SIZE, size := int.from_bytes(self._buffer[:_SIZE], "big")):
                self._buffer += self.socket.recv(4096)
            self._buffer = self._buffer[size:]


class _Server:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101 - for the type checker
        self._input, self._output = process.stdin, process.stdout
        self.port = int(self._output.readline())

    def computed(self) -> float:
        """Return how many seconds the server has computed."""
        self._input.write("\n")
        self._input.flush()
        return float(self._output.readline())


@contextmanager
def _server(tree: Path, python: str) -> Iterator[_Server]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    with subprocess.Popen(
        [python, "-c", _SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield _Server(process)
        finally:
            process.terminate()


def measure(tree: Path, python: str, links: int, messages: int) -> dict[str, Rates]:
    """Return the rates of one round in a tree."""
    with _server(tree, python) as server, ExitStack() as closing:
        opened = [_Link(server.port, min(messages // links, _MAX_PER_LINK)) for _ in range(links)]
        for link in opened:
            closing.callback(link.socket.close)
        total = sum(link.messages for link in opened)

        def phase(data: Callable[[_Link], bytes], done: Callable[[], int], expected: int) -> Rates:
            computed, started = server.computed(), time.perf_counter()
            _exchange(opened, data, lambda: done() >= expected)
            elapsed = time.perf_counter() - started
            return Rates(total / elapsed, total / max(server.computed() - computed, 1e-9))

        def settled() -> int:
            return sum(link.settled for link in opened)

        def received() -> int:
            return sum(link.received for link in opened)

        return {
            "send": phase(lambda link: link.transfers, settled, total),
            "receive": phase(lambda link: link.credit, received, total),
            # What a link received is what it settles; with several links they share the queue as they take turns.
            "settle": phase(lambda link: link.dispositions, settled, 2 * total),
        }


def _exchange(links: list[_Link], data: Callable[[_Link], bytes], done: Callable[[], bool]) -> None:
    """Write the links' data and read what the server sends, until all is done."""
    deadline = time.monotonic() + _WITHIN
    with selectors.DefaultSelector() as selector:
        unsent = {link: memoryview(data(link)) for link in links}
        for link in links:
            link.socket.setblocking(False)
            selector.register(link.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, link)
        while not done():
            if time.monotonic() > deadline:
                raise click.ClickException("the server did not do it in time")
            for key, events in selector.select(1.0):
                link = key.data
                if events & selectors.EVENT_WRITE:
                    unsent[link] = unsent[link][link.socket.send(unsent[link][: 1 << 16]) :]
                    if not unsent[link]:
                        selector.modify(link.socket, selectors.EVENT_READ, link)
                if events & selectors.EVENT_READ:
                    link.read()


@click.command()
@click.option(
    "--compare", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another tree."
)
@click.option("--python", default=sys.executable, help="The Python that runs the other tree.")
@click.option("--rounds", default=5, help="How often each is measured, in turn.")
@click.option("--messages", default=1000, help="How many messages each round sends, at most 1,000 on a link.")
def main(compare: Path | None, python: str, rounds: int, messages: int) -> None:
    """Measure the sandbox's Service Bus."""
    trees = [("this tree", ROOT, sys.executable)]
    if compare is not None:
        trees.append((compare.name, compare, python))
    console = Console()
    table = Table(
        "operation",
        "links",
        *(f"{name}, {kind}" for name, _, _ in trees for kind in ("per s", "per s computed")),
    )
    if compare is not None:
        table.add_column("ratio")
        table.add_column("ratio, computed")
    for links in (1, 16):
        figures: dict[str, list[dict[str, Rates]]] = {name: [] for name, _, _ in trees}
        for _ in range(rounds):
            for name, tree, interpreter in trees:
                figures[name].append(measure(tree, interpreter, links, messages))
        for operation in OPERATIONS:
            medians = [
                statistics.median(getattr(each[operation], kind) for each in figures[name])
                for name, _, _ in trees
                for kind in ("elapsed", "computed")
            ]
            row = [f"{each:,.0f}" for each in medians]
            if compare is not None:
                row += [f"{medians[0] / medians[2]:.2f}", f"{medians[1] / medians[3]:.2f}"]
            table.add_row(operation, str(links), *row)
    console.print(table)


if __name__ == "__main__":
    main()
