"""`operations dashboard`: serve the page until Ctrl-C."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING

import click

from operations.console import note, say

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The port; a free one unless given.")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@click.pass_obj
def dashboard(environment: Mapping[str, str], port: int, *, opens: bool) -> None:
    """Serve a page with the flow, failed messages, retries and the audit to this machine, until Ctrl-C.

    The address has a random token in it: everybody who has it can replay and discard with your login.
    """
    # Here, so that no other command waits for the import of a web framework.
    from operations.dashboard.application import Dashboard  # noqa: PLC0415
    from operations.dashboard.server import Server  # noqa: PLC0415

    application = Dashboard(environment)
    try:
        server = Server(application, port)
    except OSError as error:
        raise click.ClickException(f"Port {port} cannot be used: {error.strerror}.") from error
    application.start()
    note("Ctrl-C ends the dashboard.")
    try:
        say(f"Dashboard: {server.url}")
        if opens:
            webbrowser.open(server.url)
        server.serve()
    except KeyboardInterrupt:
        # This is how it is ended: nothing was interrupted.
        pass
    finally:
        server.stop()
        application.stop()
