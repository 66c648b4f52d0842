"""The proof can fail: the product with one safeguard taken away, and how the histories find that out.

A mutant is a staged copy of the deployed package with some lines exchanged, run in a process of its own; the product
itself has no switches. Each line must be there exactly once: a mutant that does not apply any more is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_STAGED = ("shared", "operations")
_HERE = Path(__file__).parent
_TIMEOUT = 110.0


@dataclass(frozen=True)
class Edit:
    """One place in a file of the package, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A safeguard that is taken away. `arguments`: of the command; `found_by`: rules, one of which it breaks."""

    name: str
    edits: tuple[Edit, ...]
    found_by: tuple[str, ...]
    command: str = "run_histories.py"
    arguments: tuple[str, ...] = ("--until-broken", "--processes", "1")


@dataclass(frozen=True)
class Found:
    """What the hunt for a mutant brought: after how many histories, and what was wrong then."""

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
CONTRACT = "every event keeps the contract"
TAKEN = "an invoice that somebody has taken stays theirs"

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
    ),
    Mutant(
        "completing before scheduling: the copy is sent when the next message comes",
        (
            Edit(
                "shared/handler.py",
                _BEGIN,
                "        later = self.__dict__.setdefault('later', [])\n"
                "        while later:\n            later.pop()()\n" + _BEGIN,
            ),
            Edit(
                "shared/handler.py",
                "            self._retry_later(delivery, error)\n",
                "            later.append(lambda error=error: self._retry_later(delivery, error))\n",
            ),
        ),
        (LOST, NO_EVENT),
    ),
    Mutant(
        "the root's id for the copy",
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
    ),
    Mutant(
        "first time seen not reset for a replay",
        (
            Edit(
                "operations/failed.py",
                _OWN,
                _OWN.replace("RETRY_PROPERTIES |", "(RETRY_PROPERTIES - {'InvoicingFirstSeen'}) |"),
            ),
        ),
        (PARKED,),
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
        "an event without what consumers were promised",
        (Edit("shared/invoice_created.py", '        "invoiceNumber": invoice.number,\n', ""),),
        (CONTRACT,),
    ),
    Mutant(
        "ignoring Retry-After",
        (
            Edit(
                "shared/response.py",
                '        value = self.headers.get("retry-after", "").strip()\n',
                "        value = '1'\n",
            ),
        ),
        (EARLY,),
    ),
    Mutant(
        "no deadline on a send: tried until it works",
        (
            Edit(
                "shared/service_bus.py",
                "                if deadline.remaining <= pause:\n                    raise\n",
                "",
            ),
        ),
        (ENDLESS,),
    ),
    Mutant(
        "no deadline on a send: waited for until the broker answers",
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
    """Copy the package into a folder and exchange the lines; raises AssertionError where one is not there once."""
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


def hunt(mutant: Mutant, folder: Path, *, count: int, seed: int = 1) -> Found:
    """Run histories on the staged mutant until one breaks the promise; raises AssertionError if none does."""
    stage(mutant, folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, str(_HERE / mutant.command), "--json", *mutant.arguments]
    if mutant.command == "run_histories.py":
        command += ["--count", str(count), "--seed", str(seed)]
    done = subprocess.run(  # noqa: S603 - our own script
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise AssertionError(f"The hunt for {mutant.name!r} broke off:\n{done.stderr[-4000:]}") from error
    violations = tuple(violation for each in report["broken"].values() for violation in each)
    return Found(report["histories"], violations)
