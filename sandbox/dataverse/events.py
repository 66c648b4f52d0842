"""Events for service endpoints: steps, system jobs and posts, at least once.

An asynchronous step writes a system job in the transaction of its message. The job posts after the commit; if that
fails, it posts again, with growing intervals. A synchronous step posts before the commit; its post remains even if the
transaction is rolled back. An injected callable sends a post. `run_due_jobs` runs the jobs, or a `Poster` does so in
the background.
"""

import base64
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Final, Self

from sandbox.clock import Clock
from sandbox.dataverse.columns import Row, format_datetime
from sandbox.dataverse.database import Database, Transaction
from sandbox.dataverse.errors import RequestRefused
from sandbox.dataverse.execution_context import (
    Entity,
    ExecutionContext,
    MessageExecution,
    RequestContext,
)
from sandbox.dataverse.schema import TABLES

_log = logging.getLogger(__name__)

_QUEUE_CONTRACTS: Final = frozenset({2, 5, 6})
_JSON: Final = 2
# The intervals between retries grow. After a day the job has failed.
_RETRY_DELAYS: Final = tuple(
    timedelta(seconds=s) for s in (2, 5, 10, 20, 30, 60, 120, 300, 300, *([600] * 6), *([3600] * 22))
)


@dataclass(frozen=True)
class ServiceEndpoint:
    """Where to post: a queue or topic (`path`) of a namespace, and the SAS key to use."""

    namespace_address: str
    path: str
    sas_key_name: str
    sas_key: str


Post = Callable[[ServiceEndpoint, bytes, Mapping[str, str], str], None]
"""Posts (endpoint, body, application properties, content type), or raises any exception."""


class EventPipeline:
    """Posts events to the service endpoints that have steps for them.

    `post` may be replaced at any time.
    """

    def __init__(
        self,
        clock: Clock,
        new_id: Callable[[], str],
        post: Post | None = None,
    ) -> None:
        self.post = post
        self.jobs_written = threading.Event()
        self._clock = clock
        self._new_id = new_id

    def fire(self, transaction: Transaction, event: MessageExecution, request: RequestContext) -> None:
        """Run every enabled step that is registered for an event. Raises RequestRefused if a synchronous one fails."""
        for step, endpoint in _steps(transaction, event):
            operation_id = self._new_id()
            context = ExecutionContext(event, request, step, operation_id, self._clock.now())
            if step["mode"] == 0:
                self._post_now(endpoint, context)
            else:
                self._write_job(transaction, context)

    def run_due_jobs(self, database: Database) -> int:
        """Run each due job once; return how many posted. Not for several threads at once."""
        return sum(self._run(database, job_id) for job_id in self._due(database))

    def _due(self, database: Database) -> list[str]:
        now = format_datetime(self._clock.now())
        with database.reading() as transaction:
            jobs = transaction.rows(
                TABLES["asyncoperation"],
                "statecode IN (0, 1) AND (postponeuntil IS NULL OR postponeuntil <= ?)",
                (now,),
                "ORDER BY createdon, versionnumber",
            )
        return [job["asyncoperationid"] for job in jobs]

    def _run(self, database: Database, job_id: str) -> int:
        table = TABLES["asyncoperation"]
        with database.reading() as transaction:
            job = transaction.get(table, job_id)
            if job is None or job["statecode"] not in (0, 1):
                return 0
            prepared = json.loads(job["_post"])
            endpoint = transaction.get(TABLES["serviceendpoint"], prepared["endpoint"])
            step = transaction.get(TABLES["sdkmessageprocessingstep"], job["owningextensionid"] or "")
        failure: Exception | None = None
        try:
            # Read the endpoint again: its key may have been rotated since the job was written.
            self._send(endpoint, base64.b64decode(prepared["body"]), prepared["properties"])
        except Exception as error:  # noqa: BLE001 - the job records any failure of a post, and is retried
            failure = error
            _log.warning("The post of system job %s failed: %s", job_id, type(error).__name__)
        with database.writing() as transaction:
            if transaction.get(table, job_id) is not None:
                if failure is None and step and step["asyncautodelete"]:
                    transaction.delete(table, job)
                else:
                    transaction.update(table, job_id, self._result(job, failure))
        return int(failure is None)

    def _result(self, job: Row, failure: Exception | None) -> Row:
        """Return the columns of a job that has posted, that will be retried, or that has failed."""
        now = self._clock.now()
        ended = {"statecode": 3, "completedon": format_datetime(now), "modifiedon": format_datetime(now)}
        if failure is None:
            return {**ended, "statuscode": 30, "message": None}
        texts = {
            "message": _reason(failure),
            "friendlymessage": "The post to the service endpoint failed.",
            "errorcode": -2147204093,
        }
        tries = int(job["retrycount"])
        if tries >= len(_RETRY_DELAYS):
            return {**ended, **texts, "statuscode": 31}
        return {
            **texts,
            "statecode": 1,
            "statuscode": 10,
            "retrycount": tries + 1,
            "postponeuntil": format_datetime(now + _RETRY_DELAYS[tries]),
            "modifiedon": format_datetime(now),
        }

    def _send(self, endpoint: Row | None, body: bytes, properties: Mapping[str, str]) -> None:
        if self.post is None:
            raise ConnectionError("The sandbox's Dataverse has nothing to post with.")
        if endpoint is None:
            raise LookupError("The service endpoint does not exist any more.")
        if endpoint["contract"] not in _QUEUE_CONTRACTS:
            raise NotImplementedError(
                f"The sandbox posts to queues and topics, not to contract {endpoint['contract']}."
            )
        if endpoint["messageformat"] != _JSON:
            raise NotImplementedError(f"The sandbox posts JSON, not format {endpoint['messageformat']}.")
        columns = ("namespaceaddress", "path", "saskeyname", "saskey")
        target = ServiceEndpoint(*(endpoint[name] or "" for name in columns))
        self.post(target, body, properties, "application/json")

    def _post_now(self, endpoint: Row, context: "ExecutionContext") -> None:
        try:
            self._send(endpoint, *context.message())
        except Exception as error:
            raise RequestRefused(
                HTTPStatus.BAD_REQUEST,
                "0x80050203",
                f"The post to the service endpoint failed: {_reason(error)}",
            ) from error

    def _write_job(self, transaction: Transaction, context: ExecutionContext) -> None:
        event, request, step = context.event, context.request, context.step
        body, properties = context.message()
        now = format_datetime(self._clock.now())
        transaction.insert(
            TABLES["asyncoperation"],
            {
                "asyncoperationid": context.operation_id,
                "name": step["name"],
                "messagename": event.message,
                "primaryentitytype": event.table,
                "correlationid": request.info.correlation_id,
                "requestid": request.info.request_id,
                "owningextensionid": step["sdkmessageprocessingstepid"],
                "regardingobjectid": event.record_id if event.table == "opportunity" else None,
                "createdon": now,
                "modifiedon": now,
                "createdby": request.caller.user_id,
                "ownerid": request.caller.user_id,
                "owningbusinessunit": request.caller.business_unit_id,
                "_post": json.dumps(
                    {
                        "endpoint": step["eventhandler"],
                        "body": base64.b64encode(body).decode(),
                        "properties": properties,
                    }
                ),
            },
        )
        transaction.after_commit.append(self.jobs_written.set)


class Poster:
    """Runs the due jobs of a database in the background, in one thread, until it is stopped."""

    def __init__(self, pipeline: EventPipeline, database: Database) -> None:
        self._pipeline = pipeline
        self._database = database
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dataverse-poster", daemon=True)

    def start(self) -> Self:
        """Start the thread; return at once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop; wait some seconds at most for a post that has begun."""
        self._stopping.set()
        self._pipeline.jobs_written.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        while not self._stopping.is_set():
            # Poll too: a test may move the clock, and then retries become due.
            self._pipeline.jobs_written.wait(0.2)
            self._pipeline.jobs_written.clear()
            if not self._stopping.is_set():
                self._pipeline.run_due_jobs(self._database)


def _steps(transaction: Transaction, event: MessageExecution) -> list[tuple[Row, Row]]:
    steps = transaction.rows(
        TABLES["sdkmessageprocessingstep"],
        "t.statecode = 0 AND t.sdkmessageid IN (SELECT sdkmessageid FROM sdkmessage WHERE name = ?) AND"
        " (t.sdkmessagefilterid IS NULL OR t.sdkmessagefilterid IN"
        "  (SELECT sdkmessagefilterid FROM sdkmessagefilter WHERE primaryobjecttypecode = ?))",
        (event.message, event.table),
        "ORDER BY t.rank, t.createdon",
    )
    wanted = []
    for step in steps:
        endpoint = transaction.get(TABLES["serviceendpoint"], step["eventhandler"] or "")
        if endpoint is not None and _concerns(step, event):
            wanted.append((step, endpoint))
    return wanted


def _concerns(step: Row, event: MessageExecution) -> bool:
    """Return whether an Update changes one of the step's filtering columns."""
    names = {name.strip() for name in (step["filteringattributes"] or "").split(",")} - {""}
    if event.message != "Update" or not names:
        return True
    targets = [value for key, value in event.inputs if key == "Target" and isinstance(value, Entity)]
    return any(names & target.values.keys() for target in targets)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
