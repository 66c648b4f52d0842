"""How long the reading of an incoming event takes, beside its floor and at its worst: `python -m benchmarks.parser`.

The floor is the least that reading JSON in Python takes: `json.loads` of the same bytes. The worst are 256 KB,
Service Bus's limit, of input that is hard to read; each must stay below one second, or the exit code is 1.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ParkNow
from shared.opportunity_won import parse_event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LIMIT = 256 * 1024
BOUND = 1.0
OPPORTUNITY = b'"5d4c2c4e-0c5e-4c1a-9b1e-3f6d5f0a1b2c"'
CORPUS = Path(__file__).parents[1] / "tests" / "events"


def hostile_messages() -> dict[str, tuple[bytes, Mapping[str, object]]]:
    """Return bodies and properties that fill a message with one thing, by its name."""

    def filled(unit: bytes, start: bytes = b"", end: bytes = b"") -> tuple[bytes, Mapping[str, object]]:
        return start + unit * ((LIMIT - len(start) - len(end)) // len(unit)) + end, {}

    plain = b'{"opportunityId":' + OPPORTUNITY + b","
    context = b'{"MessageName":"Win","PrimaryEntityName":"opportunity","InputParameters":['
    event = b'{"specversion":"1.0","id":"1","source":"/","data":{},"type":"'
    half = LIMIT // 2
    return {
        "nested lists": filled(b"["),
        "nested objects": filled(b'{"a":'),
        "nested lists, closed": (b"[" * half + b"]" * half, {}),
        "nested below a win": filled(b"[", plain + b'"x":'),
        "a whole number": filled(b"9"),
        "a whole number in a win": filled(b"9", plain + b'"x":', b"}"),
        "a fraction": filled(b"9", plain + b'"x":0.', b"}"),
        "an exponent": filled(b"9", plain + b'"x":1e', b"}"),
        "small numbers": filled(b"1,", plain + b'"x":[', b"1]}"),
        "empty objects": filled(b"{},", plain + b'"x":[', b"{}]}"),
        "small objects": filled(b'{"a":1},', plain + b'"x":[', b"{}]}"),
        "one name again and again": filled(b'"a":1,', plain, b'"a":1}'),
        "white space": filled(b" "),
        "white space before a win": filled(b" ", b"", plain + b'"a":1}'),
        "zeros": filled(b"\0"),
        "quotes": filled(b'"'),
        "backslashes": filled(b"\\", b'"'),
        "escapes in a text": filled(b"\\ud83d", plain + b'"x":"', b'"}'),
        "line ends before a mistake": filled(b"\n", b"{", b"x"),
        "continuation bytes": filled(b"\x80"),
        "XML": filled(b"<a>"),
        "binary XML": filled(b"@"),
        "base64": filled(b"A", event + b'sales.opportunity.won","data_base64":"', b'"}'),
        "base64 of nothing": filled(
            b"A", b'{"specversion":"1.0","id":"1","source":"/","type":"x","data_base64":"', b'"}'
        ),
        "dots in a type": filled(b".", event, b'"}'),
        "almost a type": filled(b"sales.opportunity.", event, b'"}'),
        "versions of a type": filled(b".v1", event + b"sales.opportunity.won", b'"}'),
        "a long GUID": filled(b"a", b'{"opportunityId":"', b'"}'),
        "a long message name": filled(b"a", b'{"MessageName":"', b'"}'),
        "parameters": filled(b'{"key":"a","value":1},', context, b"{}]}"),
        "one parameter again and again": filled(b'{"key":"Target"},', context, b"{}]}"),
        "attributes": filled(
            b'{"key":"a"},', context + b'{"key":"OpportunityClose","value":{"Attributes":[', b"{}]}}]}"
        ),
        "properties": (b"{}", {f"cloudEvents_{number}": "x" for number in range(10_000)}),
        "a long property name": (b"{}", {"/" * LIMIT: "x"}),
    }


def typical_messages() -> dict[str, bytes]:
    """Return bodies as they come every day, from the corpus, by their names there."""
    names = ("dataverse-win", "dataverse-update-other-columns", "cloudevent-structured", "plain")
    return {name: (CORPUS / f"{name}.event").read_bytes().partition(b"\n\n")[2] for name in names}


def main() -> int:
    """Measure and print; return 1 if something took longer than its bound."""
    write = sys.stdout.write
    write(
        f"{'as they come every day':32}{'bytes':>8}{'parse_event':>14}{'json.loads':>13}   (µs, median of 2000)\n"
    )
    for name, body in typical_messages().items():
        mine, floor = _median(partial(_read, body, {})), _median(partial(json.loads, body))
        write(f"{name:32}{len(body):8}{mine * 1e6:14.1f}{floor * 1e6:13.1f}\n")
    write(f"\n{'256 KB of':32}{'ms':>8}   (the worst of 3)\n")
    worst = {
        name: max(_seconds(partial(_read, body, properties)) for _ in range(3))
        for name, (body, properties) in hostile_messages().items()
    }
    for name, seconds in sorted(worst.items(), key=lambda item: -item[1]):
        write(f"{name:32}{seconds * 1e3:8.1f}\n")
    return int(max(worst.values()) >= BOUND)


def _read(body: bytes, properties: Mapping[str, object]) -> object:
    try:
        return parse_event(body, properties, "application/json")
    except ParkNow as error:
        return error


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median(work: Callable[[], object]) -> float:
    return statistics.median(_seconds(work) for _ in range(2_000))


if __name__ == "__main__":
    sys.exit(main())
