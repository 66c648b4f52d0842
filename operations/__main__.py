"""`python -m operations`: messages that failed or wait, and the environment around the function."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from operations.connect import connect, disconnect
from operations.console import Commands, note, printable_lines
from operations.dashboard.command import dashboard
from operations.doctor import doctor
from operations.environment import SettingsFile, environment_of
from operations.events import events
from operations.failed import failed
from operations.opportunity import opportunity
from operations.reconcile import reconcile
from operations.trouble import explain
from operations.waiting import waiting

INTERRUPTED = 130
_NO_LOG = logging.NullHandler()


class Operations(Commands):
    """A group whose commands report trouble with connections, logins and settings in a sentence, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command; raises ClickException for trouble that has a name."""
        try:
            return super().invoke(ctx)
        except (click.UsageError, BrokenPipeError):
            # A pipe whose reader has seen enough, such as head, is no trouble of a connection: click ends quietly.
            raise
        except click.ClickException as error:
            raise click.ClickException(printable_lines(error.message)) from error
        except Exception as error:
            trouble = explain(error)
            if trouble is None:
                raise
            raise click.ClickException(printable_lines(str(trouble))) from error


@click.group(cls=Operations, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A local.settings.json with the function's app settings; they are read from the environment otherwise.",
)
@click.pass_context
def operations(context: click.Context, settings: Path | None) -> None:
    """Operate the invoicing of won opportunities.

    Uses the app settings of the function (ServiceBusConnection__fullyQualifiedNamespace, OPPORTUNITY_WON_QUEUE, …)
    and your own login of the Azure CLI. Where there is a managed identity, it is used: OPERATIONS_CLIENT_ID names it
    if it is not the function's.
    """
    # The SDKs log retries and warnings of their own; what matters is reported by the command.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    # The lines of the function's own modules are for its log: without a handler, Python would print them.
    logging.getLogger("shared").addHandler(_NO_LOG)
    file = None if settings is None else SettingsFile.read(settings)
    if file is not None and file.left_out:
        note(f"Not read from {settings}, since no command uses it: {', '.join(file.left_out)}.")
    context.obj = environment_of(file)


for _command in (connect, disconnect, dashboard, doctor, failed, reconcile, waiting, events, opportunity):
    operations.add_command(_command)


def main() -> int:
    """Run a command; return 0, 1 for a reported problem, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        code = operations.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted: what was not finished is unchanged.", err=True)
        return INTERRUPTED
    # Outside of standalone mode, a command's exit code is what main returns.
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
