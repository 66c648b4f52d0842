"""`operations connect` and `disconnect`: set Dataverse up step by step, and undo it; both are idempotent.

The order leaves nothing half done: the service endpoint comes before the step, and the step is enabled last.
Names, numbers and order come from Microsoft's documentation and from public tools; what is not confirmed stands in one
constant with a comment.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

import click

from operations.console import Column, Overflow, confirm, note, say_json, say_table
from operations.dataverse_setup import (
    ENABLED,
    ENDPOINT_NAME,
    ROLE_NAME,
    STEP_KIND,
    STEP_NAME,
    endpoint_values,
    find_application_user,
    find_role,
    find_root_business_unit,
    find_service_endpoint,
    find_step,
    find_win,
    is_as_wanted,
)
from operations.environment import posting_address
from operations.privileges import OPTIONAL_PRIVILEGES, lacking, needed_privileges, privilege_ids
from operations.web_api import Row, WebApi, derived_id
from shared.settings import service_bus_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

SAS_KEY_SETTING = "OPPORTUNITY_WON_SAS_KEY"
SAS_KEY_NAME = "dataverse"
_STEP_TITLE = "Step on Win of opportunity"


class StepOutcome(Enum):
    """What a step of the set-up did."""

    DONE = "done"
    CHANGED = "changed"
    ALREADY_THERE = "already there"
    WOULD_BE_DONE = "would be done"


@dataclass(frozen=True)
class Target:
    """Which identity may do it, and which queue the events go to. `sas_key` None: leave the key as it is."""

    application_id: str
    namespace_address: str
    queue: str
    sas_key_name: str
    sas_key: str | None = field(repr=False)
    privileges: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """One line of what was done."""

    step: str
    outcome: StepOutcome
    detail: str


@click.command()
@click.option(
    "--application-id", required=True, type=click.UUID, help="The client id of the function's identity."
)
@click.option(
    "--sas-key-name", default=SAS_KEY_NAME, show_default=True, help="The rule on the queue with Send only."
)
@click.option(
    "--sas-key-stdin", is_flag=True, help=f"Read the key from standard input, not from {SAS_KEY_SETTING}."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def connect(
    environment: Mapping[str, str],
    application_id: object,
    sas_key_name: str,
    *,
    sas_key_stdin: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Let Dataverse post won opportunities to the queue, and the function invoice them.

    Makes, or corrects, in the environment that DATAVERSE_URL names: the application user, its role, the service
    endpoint and the step. Run it again at any time, with another key to rotate it. Needs a system administrator's
    login.
    """
    api, settings = WebApi.of(environment), service_bus_settings(environment)
    target = Target(
        str(application_id),
        posting_address(settings),
        settings.opportunity_won_queue,
        sas_key_name,
        _sas_key(environment, from_stdin=sas_key_stdin),
        needed_privileges(environment),
    )
    who = api.row("WhoAmI")
    note(f"Environment {api.url}, organization {who['OrganizationId']}, as user {who['UserId']}")
    if not dry_run:
        confirm("Connect this environment?", yes=yes)
    done = SetUp(api, target, dry_run=dry_run).make()
    _say(done, as_json=as_json)
    if not dry_run:
        verify_set_up(api, target)
    note(f"For the function's settings: DATAVERSE_ORGANIZATION_ID={who['OrganizationId']}")


@click.command()
@click.option(
    "--application-id", required=True, type=click.UUID, help="The client id of the function's identity."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def disconnect(
    environment: Mapping[str, str], application_id: object, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Remove what connect made: the step, the service endpoint, the role; the application user is kept.

    Application users cannot be deleted, only deactivated, by an administrator; without its role it may do nothing.
    """
    api = WebApi.of(environment)
    who = api.row("WhoAmI")
    note(f"Environment {api.url}, organization {who['OrganizationId']}, as user {who['UserId']}")
    if not dry_run:
        confirm("Disconnect this environment? Wins are not invoiced any more.", yes=yes)
    _say(take_away(api, str(application_id), dry_run=dry_run), as_json=as_json)


class SetUp:
    """The set-up of one environment."""

    def __init__(self, api: WebApi, target: Target, *, dry_run: bool) -> None:
        self._api = api
        self._target = target
        self._dry_run = dry_run
        self._done: list[Done] = []

    def make(self) -> list[Done]:
        """Do what is missing, in order; raises ClickException where a person must decide."""
        message, message_filter = self._win_message()
        unit = self._root_business_unit()
        user = self._application_user(unit)
        role = self._role(unit)
        self._privileges(role)
        self._assignment(user, role)
        endpoint = self._service_endpoint()
        step = self._step(endpoint, message, message_filter)
        self._enable(step)
        return self._done

    def _record_existing(self, step: str, detail: str = "") -> None:
        self._done.append(Done(step, StepOutcome.ALREADY_THERE, detail))

    def _write(
        self,
        step: str,
        write: Callable[[], object],
        detail: str = "",
        outcome: StepOutcome = StepOutcome.DONE,
    ) -> None:
        """Write to Dataverse and record it; a dry run only records it."""
        if self._dry_run:
            outcome = StepOutcome.WOULD_BE_DONE
        else:
            write()
        self._done.append(Done(step, outcome, detail))

    def _win_message(self) -> tuple[str, str]:
        win, absent = find_win(self._api)
        if win is None:
            raise click.ClickException(
                f"{self._api.url} has no Dynamics 365 Sales (no message {' and no '.join(sorted(absent))}): install it "
                "there, or correct DATAVERSE_URL."
            )
        if not win.filter_ids:
            raise click.ClickException(
                "The message Win is not offered for opportunities in this environment."
            )
        self._record_existing("Dynamics 365 Sales")
        return win.message_id, win.filter_ids[0]

    def _root_business_unit(self) -> str:
        unit = find_root_business_unit(self._api)
        if unit is None:
            raise click.ClickException(
                "Your login does not see the root business unit: an administrator's is needed."
            )
        return unit

    def _application_user(self, unit: str) -> str | None:
        client_id = self._target.application_id
        user = find_application_user(self._api, client_id)
        if user is None:
            values = {"applicationid": client_id, "businessunitid@odata.bind": f"/businessunits({unit})"}
            self._write("Application user", lambda: self._api.create("systemusers", values), client_id)
            if self._dry_run:
                return None
            user = find_application_user(self._api, client_id)
            if user is None:
                raise click.ClickException(
                    "Dataverse took the application user but does not show it: run this again."
                )
        else:
            self._record_existing("Application user", str(user.get("fullname") or ""))
        if user.get("isdisabled"):
            raise click.ClickException(
                "The application user is deactivated: activate it, then run this again."
            )
        return str(user["systemuserid"])

    def _role(self, unit: str) -> str:
        role = find_role(self._api, unit)
        if role is not None:
            self._record_existing("Role", ROLE_NAME)
            return role
        role = derived_id("role", ROLE_NAME, unit)
        values = {
            "roleid": role,
            "name": ROLE_NAME,
            "description": "Generates invoices of won opportunities and leaves a note that says so.",
            "businessunitid@odata.bind": f"/businessunits({unit})",
        }
        self._write("Role", lambda: self._api.create("roles", values), ROLE_NAME)
        return role

    def _privileges(self, role: str) -> None:
        ids = privilege_ids(self._api)
        absent = self._target.privileges.keys() - ids.keys() - OPTIONAL_PRIVILEGES
        if absent:
            raise click.ClickException(
                f"This environment knows no {', '.join(sorted(absent))}: is Sales installed?"
            )
        wanted = {name: depth for name, depth in self._target.privileges.items() if name in ids}
        missing = lacking(wanted, self._granted(role, ids))
        if not missing:
            self._record_existing("Privileges", f"{len(wanted)} at their depth")
            return
        action = f"roles({role})/Microsoft.Dynamics.CRM.AddPrivilegesRole"
        added = [{"PrivilegeId": ids[name], "Depth": depth} for name, depth in sorted(missing.items())]
        self._write(
            "Privileges",
            lambda: self._api.call(action, {"Privileges": added}),
            ", ".join(sorted(missing)),
        )
        if self._dry_run:
            return
        # Whether adding raises a lower depth that was there is not confirmed: so it is read back.
        lower = lacking(wanted, self._granted(role, ids))
        if lower:
            named = ", ".join(f"{name} ({depth})" for name, depth in sorted(lower.items()))
            raise click.ClickException(
                f"Dataverse did not grant {named}: set the depth in the role {ROLE_NAME} by hand, then run this again."
            )

    def _granted(self, role: str, ids: Mapping[str, str]) -> dict[str, str]:
        if self._dry_run and self._api.row_or_none(f"roles({role})?$select=name") is None:
            return {}
        names = {privilege: name for name, privilege in ids.items()}
        granted = self._api.row(f"RetrieveRolePrivilegesRole(RoleId={role})")["RolePrivileges"]
        return {
            names[row["PrivilegeId"]]: str(row["Depth"]) for row in granted if row["PrivilegeId"] in names
        }

    def _assignment(self, user: str | None, role: str) -> None:
        roles = (
            []
            if user is None
            else self._api.rows(f"systemusers({user})/systemuserroles_association?$select=roleid")
        )
        if any(row["roleid"] == role for row in roles):
            self._record_existing("Role of the application user")
            return
        values = {"@odata.id": self._api.address(f"roles({role})")}
        self._write(
            "Role of the application user",
            lambda: self._api.call(f"systemusers({user})/systemuserroles_association/$ref", values),
        )

    def _service_endpoint(self) -> str:
        target = self._target
        values = {
            **endpoint_values(target.namespace_address, target.queue),
            "saskeyname": target.sas_key_name,
        }
        found = find_service_endpoint(self._api)
        if found is None:
            return self._create_endpoint(values)
        endpoint = str(found["serviceendpointid"])
        different = {name: value for name, value in values.items() if not is_as_wanted(name, value, found)}
        if target.sas_key is not None:
            # It cannot be read back: whether this is another one is not known, so it is set.
            different["saskey"] = target.sas_key
        if different:
            self._write(
                "Service endpoint",
                lambda: self._api.update(f"serviceendpoints({endpoint})", different),
                ", ".join(sorted(different)),
                StepOutcome.CHANGED,
            )
        else:
            self._record_existing("Service endpoint", target.queue)
        return endpoint

    def _create_endpoint(self, values: Row) -> str:
        if self._target.sas_key is None:
            raise click.UsageError(
                f"There is no service endpoint yet: put the key of the rule {self._target.sas_key_name} into the "
                f"environment variable {SAS_KEY_SETTING}, or use --sas-key-stdin."
            )
        endpoint = derived_id("serviceendpoint", ENDPOINT_NAME)
        values = {
            "serviceendpointid": endpoint,
            "name": ENDPOINT_NAME,
            "description": "Won opportunities, as JSON, to the queue from which they are invoiced.",
            "saskey": self._target.sas_key,
            **values,
        }
        self._write(
            "Service endpoint", lambda: self._api.create("serviceendpoints", values), self._target.queue
        )
        return endpoint

    def _step(self, endpoint: str, message: str, message_filter: str) -> str:
        values: Row = {
            **STEP_KIND,
            "eventhandler_serviceendpoint@odata.bind": f"/serviceendpoints({endpoint})",
            "sdkmessageid@odata.bind": f"/sdkmessages({message})",
            "sdkmessagefilterid@odata.bind": f"/sdkmessagefilters({message_filter})",
        }
        found = find_step(self._api)
        if found is None:
            step = derived_id("sdkmessageprocessingstep", STEP_NAME)
            values |= {
                "sdkmessageprocessingstepid": step,
                "name": STEP_NAME,
                "description": "Posts the event as a system job, which is repeated until it succeeds.",
                "rank": 1,
                "supporteddeployment": 0,
                "asyncautodelete": True,
            }
            self._write(_STEP_TITLE, lambda: self._api.create("sdkmessageprocessingsteps", values))
            return step
        step = str(found["sdkmessageprocessingstepid"])
        wanted = {**STEP_KIND, "_eventhandler_value": endpoint, "_sdkmessageid_value": message}
        if all(found.get(name) == value for name, value in wanted.items()):
            self._record_existing(_STEP_TITLE)
        else:
            path = f"sdkmessageprocessingsteps({step})"
            self._write(_STEP_TITLE, lambda: self._api.update(path, values), outcome=StepOutcome.CHANGED)
        return step

    def _enable(self, step: str) -> None:
        path = f"sdkmessageprocessingsteps({step})"
        row = self._api.row_or_none(f"{path}?$select=statecode")
        if row is not None and row["statecode"] == ENABLED["statecode"]:
            self._record_existing("Step enabled")
        else:
            self._write("Step enabled", lambda: self._api.update(path, dict(ENABLED)))


def verify_set_up(api: WebApi, target: Target) -> None:
    """Read everything back; raises ClickException for what Dataverse took and does not have."""
    absent = ["Service endpoint"]
    if find_service_endpoint(api) is not None:
        # The key cannot be read back.
        again = SetUp(api, replace(target, sas_key=None), dry_run=True).make()
        absent = [done.step for done in again if done.outcome is not StepOutcome.ALREADY_THERE]
    if absent:
        raise click.ClickException(
            f"Dataverse took everything, but does not have: {', '.join(absent)}. Run this again; if that "
            "does not help, check it in Dataverse by hand."
        )


def take_away(api: WebApi, application_id: str, *, dry_run: bool) -> Iterator[Done]:
    """Delete step, endpoint and role, in this order; yields what was done, or would be."""
    step, endpoint = find_step(api), find_service_endpoint(api)
    unit = find_root_business_unit(api)
    role = find_role(api, unit) if unit else None
    for name, path in (
        (_STEP_TITLE, f"sdkmessageprocessingsteps({step['sdkmessageprocessingstepid']})" if step else None),
        ("Service endpoint", f"serviceendpoints({endpoint['serviceendpointid']})" if endpoint else None),
        ("Role", f"roles({role})" if role else None),
    ):
        if path is None:
            yield Done(name, StepOutcome.ALREADY_THERE, "was not there")
        elif dry_run:
            yield Done(name, StepOutcome.WOULD_BE_DONE, "would be deleted")
        else:
            api.delete(path)
            yield Done(name, StepOutcome.DONE, "deleted")
    detail = "kept, without a role" if find_application_user(api, application_id) else "was not there"
    yield Done("Application user", StepOutcome.ALREADY_THERE, detail)


def _sas_key(environment: Mapping[str, str], *, from_stdin: bool) -> str | None:
    if not from_stdin:
        return environment.get(SAS_KEY_SETTING, "").strip() or None
    key = sys.stdin.readline().strip()
    if not key:
        # The program that should have written it failed. "Already there" would hide that, and the key in use expires.
        raise click.UsageError("There is no key on standard input: the program before the pipe wrote none.")
    return key


_COLUMNS = [
    Column("Step", "step"),
    Column("Outcome", "outcome"),
    Column("Detail", "detail", overflow=Overflow.CUT),
]


def _say(done: Iterable[Done], *, as_json: bool) -> None:
    rows = [{"step": each.step, "outcome": each.outcome.value, "detail": each.detail} for each in done]
    if as_json:
        say_json(rows)
    else:
        say_table(_COLUMNS, rows)
