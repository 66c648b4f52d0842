"""`python -m operations`: look after messages that failed or wait, and after the environment around the function."""

from __future__ import annotations

import logging
import sys

import click
from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus.exceptions import ServiceBusError

from operations.connect import connect, disconnect
from operations.doctor import doctor
from operations.events import events
from operations.failed import failed
from operations.namespace import environment_of
from operations.reconcile import reconcile
from operations.waiting import waiting
from shared.errors import InvalidSettings, InvoicingFailure

PROBLEM = 1
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    type=click.Path(exists=True, dir_okay=False),
    help="A local.settings.json with the function's app settings; they are read from the environment otherwise.",
)
@click.pass_context
def operations(context: click.Context, settings: str | None) -> None:
    """Look after the invoicing of won opportunities.

    Uses the app settings of the function (ServiceBusConnection__fullyQualifiedNamespace, OPPORTUNITY_WON_QUEUE, …)
    and your own login of the Azure CLI. Where there is a managed identity, it is used: OPERATIONS_CLIENT_ID names it,
    where it is another one than the function's.
    """
    context.obj = environment_of(settings)


operations.add_command(connect)
operations.add_command(disconnect)
operations.add_command(doctor)
operations.add_command(failed)
operations.add_command(reconcile)
operations.add_command(waiting)
operations.add_command(events)


def main() -> int:
    """Run a command; return 0, 1 for a problem that is told in a sentence, 2 for wrong usage, 130 for Ctrl-C."""
    logging.getLogger("azure").setLevel(logging.ERROR)
    try:
        code = operations.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted: what was not finished is still where it was.", err=True)
        return INTERRUPTED
    except InvalidSettings as error:
        click.echo(str(error), err=True)
        return PROBLEM
    except InvoicingFailure as error:
        # Its own advice is for who finds a parked message.
        click.echo(f"{error}\nWhich link is broken, and what to do: operations doctor", err=True)
        return PROBLEM
    except (ServiceBusError, ClientAuthenticationError) as error:
        first_line = str(error).partition("\n")[0]
        click.echo(f"Service Bus: {type(error).__name__}: {first_line}", err=True)
        return PROBLEM
    # Outside of standalone mode, a command's exit code is what main returns.
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
