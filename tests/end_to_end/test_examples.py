"""The sample consumers in examples/, as they are, over real sockets: each invoice is booked once."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.cloud import CREATED_TOPIC, Cloud, CloudOptions, Mode
from sandbox.service_bus import Message
from tests.end_to_end.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandbox.service_bus.messages import Counts

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PUBLISHED = ROOT / "tests" / "contract" / "published" / "invoice-created.v1"
SUBSCRIPTION = f"{CREATED_TOPIC}/Subscriptions/ledger"
# Longer than the lock of a message: what a killed consumer had locked is delivered again.
LOCK_EXPIRES = timedelta(minutes=2)

Event = dict[str, Any]


@pytest.fixture
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """Service Bus with one more subscription, `ledger`; no function runs."""
    options = CloudOptions(
        ROOT,
        mode=getattr(request, "param", Mode.CONNECTION_STRING),
        opportunities=0,
        functions_host=False,
        extra_subscriptions=[(CREATED_TOPIC, "ledger")],
    )
    with Cloud(options) as running:
        yield running


@dataclass
class Consumer:
    """One of the samples: its command, and the ledger that it books into."""

    command: Sequence[str | Path]
    cloud: Cloud
    ledger: Path

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Run it, and kill it in the end: it has no other means of stopping."""
        environment = {
            "PATH": os.environ["PATH"],
            **self.cloud.operator_connection,
            **self.cloud.certificates.settings,
            "NODE_EXTRA_CA_CERTS": str(self.cloud.certificates.bundle),
            "LEDGER_FILE": str(self.ledger),
            "PYTHONUNBUFFERED": "1",
        }
        with self.ledger.with_suffix(".log").open("a") as output:
            process = subprocess.Popen(  # noqa: S603 - arguments of our own
                self.command, env=environment, stdout=output, stderr=output, text=True
            )
            try:
                yield process
                assert process.poll() in (None, -9), self.log
            finally:
                process.kill()
                process.wait()

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for what the running consumer brings about."""
        wait_until(condition, lambda: f"it does not happen that {what}. It printed:\n{self.log}")

    def receive(self) -> None:
        """Wait until it has received a message."""
        self.wait(lambda: self.counts.locked == 1, "it receives the message")

    @property
    def log(self) -> str:
        """What all its processes have printed."""
        return self.ledger.with_suffix(".log").read_text()

    @property
    def counts(self) -> Counts:
        """What is left for it."""
        return self.cloud.broker.counts(SUBSCRIPTION)

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """Open the ledger; make it where there is none yet."""
        with closing(sqlite3.connect(self.ledger, timeout=30)) as database:
            database.executescript((EXAMPLES / "ledger.sql").read_text())
            yield database

    @contextmanager
    def locked_database(self) -> Iterator[sqlite3.Connection]:
        """Open the ledger, so that the consumer cannot write until the transaction ends."""
        with self.database() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database

    def booked(self) -> list[str]:
        """Return the ids of the booked events, sorted."""
        with self.database() as database:
            return sorted(row[0] for row in database.execute("SELECT event_id FROM entry"))

    def process_all(self) -> None:
        """Run it until no message is left for it."""
        with self.running() as process:
            self.wait(
                lambda: self.counts.active == 0 or process.poll() is not None, "it processes all messages"
            )


def python_consumer(_: pytest.FixtureRequest) -> list[str | Path]:
    return [sys.executable, EXAMPLES / "python" / "consumer.py"]


def javascript_consumer(request: pytest.FixtureRequest) -> list[str | Path]:
    install: Callable[[Path], str] = request.getfixturevalue("node_with_packages")
    return [install(EXAMPLES / "javascript"), EXAMPLES / "javascript" / "consumer.mjs"]


@pytest.fixture(params=[python_consumer, javascript_consumer], ids=["Python", "JavaScript"])
def consumer(request: pytest.FixtureRequest, cloud: Cloud, tmp_path: Path) -> Consumer:
    return Consumer(request.param(request), cloud, tmp_path / "ledger.db")


def published(name: str) -> Event:
    event: Event = json.loads((PUBLISHED / f"{name}.json").read_text())["body"]
    return event


def encoded(event: Event) -> bytes:
    return json.dumps(event).encode()


def another(event: Event) -> Event:
    """Return the event of another invoice that says the same."""
    other = copy.deepcopy(event)
    other["id"], other["data"]["invoiceId"] = str(uuid.uuid4()), str(uuid.uuid4())
    other["subject"] = f"opportunities/{other['data']['opportunityId']}/invoices/{other['data']['invoiceId']}"
    return other


def with_unknown_members(event: Event) -> Event:
    """Return an event as a later version of the function may publish it."""
    event["data"]["lines"][0]["color"] = "red"
    event["data"]["amounts"]["surcharge"] = None
    event["data"]["somethingNew"] = {"a": [1]}
    event["newattribute"] = "1"
    return event


def with_data(**changes: object) -> bytes:
    """Return an event with other values in its data."""
    event = published("lines")
    return encoded({**event, "data": event["data"] | changes})


def send(cloud: Cloud, *bodies: bytes) -> None:
    """Publish; no message id is repeated, so duplicate detection drops nothing."""
    messages = [Message(body, message_id=str(uuid.uuid4())) for body in bodies]
    cloud.broker.send(CREATED_TOPIC, *messages)


@pytest.mark.parametrize("cloud", Mode, indirect=True)
def test_each_invoice_is_booked_once(consumer: Consumer) -> None:
    """Every event arrives twice and in no order, some with unknown members, some without lines."""
    kinds = ("lines", "bundle-and-columns", "lines-omitted")
    events = [another(published(kind)) for kind in kinds for _ in range(3)]
    events += [with_unknown_members(another(published("lines"))) for _ in range(3)]
    twice = [*events, *events]
    random.Random(1).shuffle(twice)  # noqa: S311 - an order
    send(consumer.cloud, *map(encoded, twice))

    consumer.process_all()

    assert consumer.booked() == sorted(event["id"] for event in events), consumer.log
    assert consumer.counts.dead_letter == 0
    assert_balanced(consumer, events)


def assert_balanced(consumer: Consumer, events: Sequence[Event]) -> None:
    """Check that an entry's postings add up to zero, and those of the customer to the invoice's total."""
    with consumer.database() as database:
        for event in events:
            data = event["data"]
            places, total = database.execute(
                "SELECT decimal_places, total FROM entry WHERE event_id = ?", (event["id"],)
            ).fetchone()
            assert Decimal(total).scaleb(-places) == Decimal(data["totalAmount"])
            postings = database.execute(
                "SELECT account, text, amount FROM posting WHERE event_id = ?", (event["id"],)
            ).fetchall()
            assert sum(amount for *_, amount in postings) == 0
            assert [amount for account, _, amount in postings if account == "receivables"] == [total]
            revenue = [text for account, text, _ in postings if account == "revenue"]
            if data["lines"] is None:
                assert revenue == ["2000 lines"]
            else:
                assert len(revenue) == sum(line["isPriced"] for line in data["lines"])


def test_both_consumers_book_the_same(cloud: Cloud, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    events = [published(kind) for kind in ("lines", "bundle-and-columns", "lines-omitted")]
    ledgers = []
    for name, command in (("python", python_consumer), ("javascript", javascript_consumer)):
        consumer = Consumer(command(request), cloud, tmp_path / f"{name}.db")
        send(cloud, *map(encoded, events))
        consumer.process_all()
        with consumer.database() as database:
            tables = [
                database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()  # noqa: S608 - two constants
                for table in ("entry", "posting")
            ]
        ledgers.append(tables)
    assert ledgers[0] == ledgers[1]
    assert len(ledgers[0][0]) == len(events)


LINES = published("lines")["data"]["lines"]
UNBOOKABLE = {
    "no JSON": (b"<invoice/>", "InvalidEvent"),
    "no UTF-8": (b"\xff\xfe\xfd", "InvalidEvent"),
    "nothing": (b"", "InvalidEvent"),
    "a list": (b"[]", "InvalidEvent"),
    "nested deeply": (b"[" * 100_000, "InvalidEvent"),
    "another version": (
        encoded(published("lines") | {"type": "invoice-from-opportunity.sales.invoice.created.v2"}),
        "InvalidEvent",
    ),
    "a pricing error": (with_data(pricingErrorCode=6), "PricingError"),
    "no currency": (with_data(currency=None), "AmountsMissing"),
    "of the first shape": (encoded(published("full")), "AmountsMissing"),
    "an amount beyond all bounds": (with_data(totalAmount="9" * 30), "AmountsMissing"),
    "totals that disagree": (encoded(published("totals-disagree")), "TotalsDisagree"),
    "lines that do not sum": (
        with_data(lines=[LINES[0] | {"amount": "1.00"}, *LINES[1:]]),
        "TotalsDisagree",
    ),
}


def test_what_cannot_be_booked_is_dead_lettered_with_the_reason(consumer: Consumer) -> None:
    """One event that cannot be booked keeps no other from being booked."""
    good = another(published("lines"))
    send(consumer.cloud, *(body for body, _ in UNBOOKABLE.values()), encoded(good))

    consumer.process_all()

    dead = consumer.cloud.broker.peek(f"{SUBSCRIPTION}/$DeadLetterQueue", max_messages=50)
    reasons = [message.message.application_properties["DeadLetterReason"] for message in dead]
    assert dict(zip(UNBOOKABLE, reasons, strict=True)) == {
        name: reason for name, (_, reason) in UNBOOKABLE.items()
    }
    assert all(message.message.application_properties["DeadLetterErrorDescription"] for message in dead)
    assert consumer.booked() == [good["id"]]


@pytest.fixture
def event(consumer: Consumer) -> Event:
    """Return the one event that waits for the consumer."""
    event = another(published("lines"))
    send(consumer.cloud, encoded(event))
    return event


def test_an_event_is_booked_once_if_the_consumer_is_killed_before_it_commits(
    consumer: Consumer, event: Event
) -> None:
    with consumer.locked_database(), consumer.running():
        consumer.receive()
    assert consumer.booked() == []

    consumer.cloud.move_broker_clock(LOCK_EXPIRES)
    consumer.process_all()

    assert consumer.booked() == [event["id"]]


def test_an_event_is_booked_once_if_the_consumer_is_killed_after_it_commits(
    consumer: Consumer, event: Event
) -> None:
    """The entry is in the ledger, and Service Bus does not know it."""
    with consumer.locked_database() as database, consumer.running():
        consumer.receive()
        consumer.cloud.plain_server.stop()
        database.rollback()
        consumer.wait(lambda: consumer.booked() == [event["id"]], "it commits the entry")
    consumer.cloud.plain_server.start()
    assert consumer.counts.active == 1

    consumer.cloud.move_broker_clock(LOCK_EXPIRES)
    with consumer.running():
        consumer.wait(lambda: "booked before" in consumer.log, "it finds the entry")

    assert consumer.counts.active == 0
    assert consumer.booked() == [event["id"]]
    assert_balanced(consumer, [event])


def test_an_event_is_booked_once_if_its_lock_expires_meanwhile(consumer: Consumer, event: Event) -> None:
    """The ledger was busy for too long: the consumer goes on, and the message comes again."""
    with consumer.running() as process:
        with consumer.locked_database() as database:
            consumer.receive()
            consumer.cloud.move_broker_clock(LOCK_EXPIRES)
            consumer.wait(
                lambda: consumer.cloud.broker.peek(SUBSCRIPTION)[0].delivery_count == 1, "the lock expires"
            )
            database.rollback()
        consumer.wait(lambda: "booked before" in consumer.log, "it receives the message again")
        assert process.poll() is None, consumer.log

    assert consumer.counts.active == 0
    assert consumer.booked() == [event["id"]]


def test_each_invoice_is_booked_once_however_often_the_consumer_is_killed(consumer: Consumer) -> None:
    events = [another(published("lines")) for _ in range(40)]
    send(consumer.cloud, *map(encoded, [*events, *events]))
    for booked in (1, 8, 20, 33):
        with consumer.running() as process:
            consumer.wait(
                lambda booked=booked: len(consumer.booked()) >= booked,  # type: ignore[misc]
                f"it books {booked} events",
            )
            process.kill()
            process.wait()
        consumer.cloud.move_broker_clock(LOCK_EXPIRES)

    consumer.process_all()

    assert consumer.booked() == sorted(event["id"] for event in events)
    assert consumer.counts.dead_letter == 0
    assert_balanced(consumer, events)


def test_the_samples_import_nothing_of_this_project() -> None:
    for source in EXAMPLES.glob("python/*.py"):
        imported = re.findall(r"^ *(?:from|import) (\w+)", source.read_text(), re.MULTILINE)
        assert imported
        assert not {*imported} & {folder.name for folder in ROOT.iterdir()}
    for source in EXAMPLES.glob("javascript/*.mjs"):
        imported = re.findall(r"from '(.+)';$", source.read_text(), re.MULTILINE)
        assert imported
        assert not [name for name in imported if name.startswith("..")]


def test_the_javascript_sample_fits_the_types(
    node_with_packages: Callable[[Path], str],
) -> None:
    folder = EXAMPLES / "javascript"
    node = node_with_packages(folder)
    done = subprocess.run(  # noqa: S603 - arguments of our own
        [node, "node_modules/typescript/bin/tsc"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
