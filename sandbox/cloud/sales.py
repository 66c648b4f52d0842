"""Dataverse with its set-up: the demo organization, who may use it, and what posts its events."""

import os
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.clock import SystemClock
from sandbox.cloud.options import WON_QUEUE, CannotStart
from sandbox.dataverse import (
    DataverseApp,
    DataverseServer,
    Post,
    ServiceProtection,
    ServiceProtectionLimits,
    VerifyToken,
    seed,
)
from sandbox.dataverse.seed import DemoOrganization
from sandbox.identity import Identity
from sandbox.service_bus.configuration import SasRule

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_CONNECT_SECONDS = 120


@dataclass(frozen=True)
class Sales:
    """Dataverse, its server, and the ids of what was seeded."""

    app: DataverseApp
    server: DataverseServer
    demo: DemoOrganization


def start_sales(  # noqa: PLR0913 - what Dataverse depends on, by name
    closing: ExitStack,
    *,
    verify_token: VerifyToken,
    post: Post,
    ssl_context: ssl.SSLContext,
    folder: Path,
    limits: ServiceProtectionLimits | None,
    opportunities: int,
    random_seed: int,
    middleware: "Callable[[WSGIApplication], WSGIApplication]",
) -> Sales:
    """Start Dataverse over HTTPS, with open opportunities and nobody who may use it."""
    clock = SystemClock()
    app = DataverseApp(
        verify_token,
        clock=clock,
        # Readers see what is committed while somebody writes, like in Dataverse.
        directory=folder,
        post=post,
        protection=ServiceProtection(clock, limits) if limits else None,
    )
    closing.callback(app.close)
    server = DataverseServer(app, ssl_context, middleware=middleware)
    server.start()
    closing.callback(server.stop)
    return Sales(app, server, seed.demo_organization(app, opportunities, seed=random_seed))


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
