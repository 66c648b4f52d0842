"""Who may use Dataverse and what posts its events: set up here, or by a command like an administrator's."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox.cloud.options import WON_QUEUE, CannotStart
from sandbox.dataverse import DataverseApp, DataverseServer, seed
from sandbox.dataverse.seed import DemoOrganization
from sandbox.identity import Identity
from sandbox.service_bus.configuration import SasRule

_CONNECT_SECONDS = 120


@dataclass(frozen=True)
class Sales:
    """Dataverse, its server, and the ids of what was seeded."""

    app: DataverseApp
    server: DataverseServer
    demo: DemoOrganization


def connect(app: DataverseApp, function: Identity, namespace_address: str, rule: SasRule) -> None:
    """Set up application user, role, service endpoint and step: the state after `operations connect`."""
    role = seed.add_role(app)
    seed.add_application_user(app, function.client_id, function.object_id, roles=[role])
    endpoint = seed.add_service_endpoint(
        app,
        namespace_address=namespace_address,
        path=WON_QUEUE,
        sas_key_name=rule.name,
        sas_key=rule.keys[0],
    )
    seed.add_step(app, endpoint)


def connect_with(command: Sequence[str], function: Identity, settings: Mapping[str, str]) -> None:
    """Run a command that sets Dataverse up as an administrator would; raises CannotStart where it fails."""
    words = [word.replace("{function}", function.client_id) for word in command]
    try:
        done = subprocess.run(  # noqa: S603 - the caller's own command
            words,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CONNECT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotStart(f"the command that connects Dataverse did not run: {error}") from error
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip()
        raise CannotStart(
            f"the command that connects Dataverse ended with {done.returncode}: {output[-1000:] or 'no output'}"
        )
