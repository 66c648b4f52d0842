"""The proof can fail: the deployed code with one safeguard removed, and how the histories find that.

A mutant is a staged copy of the deployed package with some lines replaced, run in a process of its own; the code
itself has no switches. Each line must exist exactly once: a mutant that does not apply any more is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
_STAGED = ("shared", "operations")
_SCRIPTS = Path(__file__).parents[1]
_TIMEOUT = 110.0


@dataclass(frozen=True)
class Edit:
    """One place in a file of the package, and its replacement."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A safeguard that is removed. `arguments`: of the command; `found_by`: rules, one of which it breaks.

    `seed`: the first history that is tried. It saves time where it breaks the promise; if it no longer does, one of the
    next ones will.
    """

    name: str
    edits: tuple[Edit, ...]
    found_by: tuple[str, ...]
    command: str = "run_histories.py"
    arguments: tuple[str, ...] = ("--until-broken", "--processes", "1")
    seed: int = 1


@dataclass(frozen=True)
class Found:
    """How a mutant was found: after how many histories, and which violations."""

    histories: int
    violations: tuple[str, ...]


TWICE = "one generated invoice per opportunity"
LOST = "every won opportunity has its invoice"
NO_EVENT = "every won opportunity has its event"
PARKED = "parked is only what has a permanent cause"
NEVER = "nothing is invoiced that should not be"
EARLY = "no request before its time"
ENDLESS = "an invocation ends within its deadline"
SEVERAL_IDS = "all events of an invoice have one id"
TAKEN = "an invoice that somebody has taken stays theirs"
CONTRACT = "every event keeps the contract"
NOTHING_LEFT = "no win is lost"
OUTDATED = "an outdated invoice is parked, and no other"
REFUSED = "a refusal is parked with its text"
OWNED = "the right one owns the invoice"
DELAYED = "the troubles of others delay nothing"
GROWING = "the delays of retries grow"
FAITHFUL = "a copy has the body of its original"
TOKEN = "a valid token is used"
REST = "a history comes to rest"
PAST = "no retry is due in the past"

_CHANGE_SET = "ChangeSet((claim_note(opportunity_id), generate_invoice(opportunity_id))),"
_READS = "        claim, found = claims.records(), oldest_active(invoices)\n"
_GENERATE = "        found, claims = self._claim_and_generate(opportunity_id, deadline)\n"
_OWN = "_NEW_ROOT = RETRY_PROPERTIES | PARKED_PROPERTIES"

_BEGIN = "        self._broker_clock.observe(message.enqueued_at)\n"
_INVOICE = "            with delivery.named_in_log_lines():"

MUTANTS = (
    Mutant(
        "assigning an invoice that has changed since it was read",
        (Edit("shared/sales.py", 'if_match=invoice.etag or "*",', 'if_match="*",'),),
        (TAKEN,),
    ),
    Mutant(
        "no claim",
        (Edit("shared/invoicing.py", _CHANGE_SET, "ChangeSet((generate_invoice(opportunity_id),)),"),),
        (TWICE,),
    ),
    Mutant(
        "no change set: claim and call one after the other",
        (
            Edit(
                "shared/invoicing.py",
                _CHANGE_SET,
                "ChangeSet((claim_note(opportunity_id),)), ChangeSet((generate_invoice(opportunity_id),)),",
            ),
            Edit(
                "shared/invoicing.py",
                "        change_set, claims, invoices = self._dataverse.batch(\n",
                "        _, change_set, claims, invoices = self._dataverse.batch(\n",
            ),
        ),
        (TWICE,),
    ),
    Mutant(
        "trusting the status code: a caller that is refused assumes that another was faster",
        (
            Edit(
                "shared/invoicing.py",
                _READS,
                "        if change_set.status in (412, 429, 500):\n"
                "            return Ignored('another was faster'), claims\n" + _READS,
            ),
            Edit(
                "shared/invoicing.py",
                _GENERATE,
                _GENERATE + "        if isinstance(found, Ignored):\n            return found\n",
            ),
        ),
        (LOST,),
        seed=20,
    ),
    Mutant(
        "completing before scheduling: the retry is sent when the next message comes",
        (
            Edit(
                "shared/handler.py",
                _BEGIN,
                "        self.later = getattr(self, 'later', [])\n"
                "        while self.later:\n            self.later.pop()()\n" + _BEGIN,
            ),
            Edit(
                "shared/handler.py",
                "            self._retry_later(delivery, error, invocation)\n",
                "            self.later.append(lambda error=error: self._retry_later(delivery, error, invocation))\n",
            ),
        ),
        (LOST, NO_EVENT),
    ),
    Mutant(
        "the root's id for the retry",
        (
            Edit(
                "shared/message.py",
                '        return str(uuid.uuid5(_RETRIES, f"{self.delivery}/{self.attempt}"))\n',
                "        return self.root\n",
            ),
        ),
        (LOST, NO_EVENT),
    ),
    Mutant(
        "the old id for a replay",
        (
            Edit(
                "operations/messages.py",
                "            message_id=str(uuid.uuid4()),\n",
                "            message_id=str(message.application_properties['InvoicingOriginalMessageId']),\n",
            ),
        ),
        (LOST,),
        seed=37,
    ),
    Mutant(
        "first-seen time kept for a replay",
        (
            Edit(
                "operations/failed.py",
                _OWN,
                _OWN.replace("RETRY_PROPERTIES |", "(RETRY_PROPERTIES - {'InvoicingFirstSeen'}) |"),
            ),
        ),
        (PARKED,),
        seed=37,
    ),
    Mutant(
        "a random event id",
        (
            Edit(
                "shared/invoice_created.py",
                '    event_id = str(uuid.uuid5(_EVENT_IDS, f"invoice-created:{invoice.id}"))\n',
                "    event_id = str(uuid.uuid4())\n",
            ),
        ),
        (SEVERAL_IDS,),
    ),
    Mutant(
        "an event without a promised member",
        (Edit("shared/invoice_created.py", '        "invoiceNumber": invoice.number,\n', ""),),
        (CONTRACT,),
    ),
    Mutant(
        "ignoring Retry-After",
        (
            Edit(
                "shared/response.py",
                '        value = self.headers.get("retry-after", "")\n',
                '        value = self.headers.get("retry-after", "") and "1"\n',
            ),
        ),
        (EARLY,),
        seed=99,
    ),
    Mutant(
        "no deadline on a send: tried until it succeeds",
        (
            Edit(
                "shared/service_bus.py",
                "                if deadline.remaining <= pause:\n                    raise\n",
                "",
            ),
        ),
        (ENDLESS,),
        seed=14,
    ),
    Mutant(
        "no deadline on one try to send: the broker is waited for",
        (
            Edit(
                "shared/service_bus.py",
                "        seconds = min(deadline.remaining, _TRY_SECONDS)\n",
                "        seconds = 3600\n",
            ),
        ),
        (ENDLESS,),
        command="run_outages.py",
        arguments=("--only", "silent-send"),
    ),
    Mutant(
        "no check for an existing invoice",
        (
            Edit(
                "shared/invoicing.py",
                "        if (found := oldest_active(checked.invoices)) is not None:\n",
                "        if (found := None) is not None:\n",
            ),
        ),
        (NEVER, NO_EVENT, PARKED),
    ),
    Mutant(
        "the sender's message id for the root",
        (
            Edit(
                "shared/message.py",
                "    number = uuid.uuid4() if message.sequence_number is None else message.sequence_number\n",
                "    if message.message_id:\n        return message.message_id\n"
                "    number = uuid.uuid4() if message.sequence_number is None else message.sequence_number\n",
            ),
        ),
        (LOST, NOTHING_LEFT),
        seed=74,
    ),
    Mutant(
        "canceled orders counted",
        (Edit("shared/sales.py", 'f"and statecode ne {_ORDER_CANCELED}&$top=1"', '"&$top=1"'),),
        (LOST, NOTHING_LEFT),
        seed=25,
    ),
    Mutant(
        "a win after a change not checked",
        (Edit("shared/invoicing.py", "            checked.raise_if_outdated(invoice)\n", ""),),
        (OUTDATED,),
        seed=58,
    ),
    Mutant(
        "a difference alone makes an invoice outdated",
        (
            Edit(
                "shared/invoicing.py",
                ' and won_at > max(row.time("createdon") for row in active(self.invoices)):\n',
                ":\n",
            ),
        ),
        (PARKED, OUTDATED),
    ),
    Mutant(
        "the status decides, not the code",
        (
            Edit(
                "shared/response.py",
                "    if error.code in _DECISION_OF_CODE:\n        return _DECISION_OF_CODE[error.code]\n",
                "",
            ),
        ),
        (REFUSED, PARKED),
        seed=68,
    ),
    Mutant(
        "refusals retried for as long as outages",
        (
            Edit(
                "shared/errors.py",
                "class InvoiceRefused(RetryRecord):\n",
                "class InvoiceRefused(RetryRecord):\n    policy = RetryPolicy.OUTAGE\n",
            ),
        ),
        (REFUSED,),
    ),
    Mutant(
        "reads behind a failed change set relied upon",
        (
            Edit(
                "shared/dataverse.py",
                "        while len(responses) < len(operations):\n"
                "            responses += self.one_batch(operations[len(responses) :], deadline)\n",
                "        responses += self.one_batch(operations, deadline)\n"
                "        if len(responses) < len(operations):\n"
                "            raise DataverseUnreachable('parts are missing')\n",
            ),
        ),
        (REFUSED, PARKED, TWICE, LOST),
    ),
    Mutant(
        "a plug-in's 429 throttles the process",
        (
            Edit(
                "shared/dataverse.py", "        if part.exceeds_limits:\n", "        if part.status == 429:\n"
            ),
        ),
        (DELAYED, GROWING),
        seed=54,
    ),
    Mutant(
        "a 429 without Retry-After retried every two seconds",
        (
            Edit(
                "shared/response.py",
                "        return DataverseThrottled(said, retry_after=None, request_id=response.request_id or None)\n",
                "        return DataverseThrottled(said, retry_after=2.0, request_id=response.request_id or None)\n",
            ),
        ),
        (GROWING, REST),
        seed=20,
    ),
    Mutant(
        "a valid token thrown away",
        (
            Edit(
                "shared/credential.py",
                "self._now() < token.expires_at - _LAST_SECONDS else None\n",
                "self._now() < token.refresh_at else None\n",
            ),
        ),
        (TOKEN, DELAYED),
    ),
    Mutant(
        "the worker's clock instead of the broker's",
        (Edit("shared/handler.py", "self._broker_clock.now() + delay", "self._clock.now() + delay"),),
        (PAST, REST),
    ),
    Mutant(
        "an assignment that fails stops the event",
        (
            Edit(
                "shared/retrieval.py",
                "            assigned.raise_for_status()\n        except InvoicingFailure as error:\n",
                "            assigned.raise_for_status()\n        except ValueError as error:\n",
            ),
        ),
        (NO_EVENT, PARKED),
        seed=13,
    ),
    Mutant(
        "no invoice assigned",
        (
            Edit(
                "shared/invoicing.py",
                "        if self._owner is not InvoiceOwner.OPPORTUNITY or owner is None or creator is None:\n",
                "        if owner is None or creator is None or owner:\n",
            ),
        ),
        (OWNED,),
    ),
    Mutant(
        "an unknown column stops the event",
        (
            Edit(
                "shared/columns.py",
                '                errors[name] = "The table invoice has no column of this name."\n',
                "                raise DataverseUnavailable(name)\n",
            ),
        ),
        (NO_EVENT, PARKED),
    ),
    Mutant(
        "a body copied as text",
        (
            Edit(
                "shared/service_bus.py",
                "            body=message.body,\n",
                "            body=message.body.decode(errors='replace').encode(),\n",
            ),
        ),
        (FAITHFUL,),
    ),
    Mutant(
        "nothing done at all",
        (Edit("shared/handler.py", _BEGIN, "        return\n" + _BEGIN),),
        (LOST,),
    ),
    Mutant(
        "everything parked",
        (
            Edit(
                "shared/handler.py",
                "import DataverseThrottled,",
                "import DataverseThrottled, InvalidEvent,",
            ),
            Edit("shared/handler.py", _INVOICE, "            raise InvalidEvent('no')\n" + _INVOICE),
        ),
        (LOST, PARKED),
    ),
    Mutant(
        "a role of lesser depth",
        (),
        (PARKED, NEVER),
        arguments=("--until-broken", "--processes", "1", "--lesser-depth"),
    ),
)


def stage(mutant: Mutant, folder: Path) -> None:
    """Copy the package into a folder and replace the lines; raises AssertionError where one does not exist once."""
    for name in _STAGED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for edit in mutant.edits:
        path = folder / edit.file
        text = path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise AssertionError(
                f"The mutant {mutant.name!r} does not apply: {edit.file} has {text.count(edit.old)} times {edit.old!r}."
            )
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def hunt(mutant: Mutant, folder: Path, *, count: int) -> Found:
    """Run histories on the staged mutant until one breaks the promise; raises AssertionError if none does."""
    stage(mutant, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, str(_SCRIPTS / mutant.command), "--json", *mutant.arguments]
    if mutant.command == "run_histories.py":
        command += ["--count", str(count), "--seed", str(mutant.seed)]
        command += [argument for rule in mutant.found_by for argument in ("--rule", rule)]
    done = subprocess.run(  # noqa: S603 - our own script
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise AssertionError(f"The hunt for {mutant.name!r} failed:\n{done.stderr[-4000:]}") from error
    violations = tuple(violation for each in report["broken"].values() for violation in each)
    return Found(report["histories"], violations)
