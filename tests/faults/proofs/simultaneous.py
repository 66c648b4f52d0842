"""The same win, on 50 threads of four processes, at once.

The deployed code talks HTTPS to Dataverse and AMQP to Service Bus. In front of Dataverse is a gate: the change sets of
a round wait there for each other, so that every thread has checked, and found nothing, before the first one commits.
The responses to the losers are each of those that the real service is reported to have.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from typing import TYPE_CHECKING

from published_event import validate_event

from proofs import ROOT
from proofs.checker import QUEUE, Expectations, Watch, judge
from proofs.report import follow
from proofs.rig import as_delivered
from proofs.sockets import function_user
from proofs.users import win
from sandbox.cloud import Cloud, CloudOptions
from sandbox.dataverse import DuplicateResponse
from sandbox.dataverse.schema import TABLES
from shared.bootstrap import build

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from shared.handler import Handler
    from shared.message import Message

# 50 threads on four processes.
THREADS = (13, 13, 12, 12)
_PATIENCE = 60.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    `change_sets`: how many there were, `met`: how many of them were at the gate at once, at least, in any round.
    """

    rounds: int
    invoices: int
    events: int
    change_sets: int
    met: int
    problems: tuple[str, ...]
    seconds: float


class Gate:
    """Lets the change sets of a round continue together."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self.met: list[int] = []

    def wrap(self, application: WSGIApplication) -> WSGIApplication:
        """Be Dataverse's middleware."""

        def gated(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = BytesIO(body)
            if environ["PATH_INFO"].endswith("/$batch") and b"GenerateInvoiceFromOpportunity" in body:
                self._meet()
            return application(environ, start_response)

        return gated

    def _meet(self) -> None:
        try:
            self._barrier.wait(_PATIENCE)
        except threading.BrokenBarrierError:
            # A thread is missing; the others continue, and the outcome shows that they were fewer.
            return
        self.met.append(self._barrier.parties)


def run(rounds: int) -> Outcome:
    """Let the rounds happen and judge them."""
    started = time.monotonic()
    gate = Gate(sum(THREADS))
    options = CloudOptions(ROOT, opportunities=rounds, functions_host=False, dataverse_middleware=gate.wrap)
    with Cloud(options) as cloud, ExitStack() as stack:
        watch = Watch(cloud.broker, validate_event)
        # Kept here: a barrier that is forgotten is taken from under the processes that are still to open it.
        barrier = get_context("spawn").Barrier(sum(THREADS))
        workers = _start(cloud, barrier, stack)
        problems: list[str] = []
        for number, opportunity in enumerate(follow(cloud.demo.opportunities, "Rounds", rounds)):
            responses = list(DuplicateResponse)
            cloud.dataverse.organization.duplicate_response = responses[number % len(responses)]
            message = _won(cloud, opportunity)
            for worker in workers:
                worker.send(message)
            problems += [problem for worker in workers for problem in worker.recv()]
        for worker in workers:
            worker.send(None)
        evidence = watch.evidence(cloud.dataverse.database.commits, function_user(cloud))
        problems += map(str, judge(evidence, Expectations(invoiced=cloud.demo.opportunities)))
        with cloud.dataverse.database.reading() as transaction:
            invoices = transaction.count(TABLES["invoice"])
        if len(gate.met) != rounds * sum(THREADS):
            problems.append(f"{len(gate.met)} change sets met at the gate, not {rounds * sum(THREADS)}")
        return Outcome(
            rounds,
            invoices,
            len(watch.published),
            len(gate.met),
            min(gate.met, default=0),
            tuple(problems),
            time.monotonic() - started,
        )


def _start(cloud: Cloud, barrier: Barrier, stack: ExitStack) -> Sequence[Connection]:
    context = get_context("spawn")
    workers = []
    for threads in THREADS:
        here, there = context.Pipe()
        process = context.Process(
            target=_work, args=(cloud.app_settings, threads, barrier, there), daemon=True
        )
        process.start()
        stack.callback(process.join, _PATIENCE)
        workers.append(here)
    return workers


def _won(cloud: Cloud, opportunity: str) -> Message:
    """Win it, and return the message that Dataverse posted, as the Functions host shows it."""
    win(cloud.dataverse, opportunity)
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for message in cloud.broker.receive(QUEUE):
            assert message.lock_token is not None
            cloud.broker.complete(QUEUE, message.lock_token)
            return as_delivered(message)
        time.sleep(0.005)
    raise AssertionError("Dataverse did not post.")


def _work(settings: dict[str, str], threads: int, barrier: Barrier, connection: Connection) -> None:
    """Be a worker process: handle each message on all threads at once."""
    # What the SDKs read themselves: the identity's endpoint, and which authorities to trust.
    os.environ.update(settings)
    logging.disable(logging.CRITICAL)

    def handle(message: Message, handler: Handler) -> str | None:
        barrier.wait(_PATIENCE)
        try:
            handler.handle(message)
        except Exception as error:  # noqa: BLE001 - it is reported where the rounds are judged
            return f"a thread raised {type(error).__name__}: {error}"
        return None

    with ThreadPoolExecutor(threads) as pool:
        while (message := connection.recv()) is not None:
            # A new one: after a round that was throttled, the old one would let few requests go at once.
            problems = pool.map(handle, [message] * threads, [build(settings)] * threads)
            connection.send([problem for problem in problems if problem is not None])
