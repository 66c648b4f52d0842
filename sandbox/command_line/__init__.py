"""The commands of `python -m sandbox`.

A command's module is imported when the command is used: those that talk to a running sandbox need none of its parts.
`options` are shared by the commands that start one, `console` prints tables for people and plain lines for files and
pipes.
"""

import importlib

import click

# More characters than a sentence has.
_WHOLE = 1_000
_MODULES = {
    "start": "start",
    "demo": "demonstrate",
    "faults": "fault_list",
    **dict.fromkeys(("status", "win", "lose", "reopen", "change", "opportunities", "invoices"), "play"),
    **dict.fromkeys(("events", "requests", "traces", "send", "messages"), "play"),
    **dict.fromkeys(("break", "repair", "kill", "pass-time"), "play"),
}


class _LazyGroup(click.Group):
    """Finds a command in its module, as an attribute with its name."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence of each command whole; click's own list cuts it."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=_WHOLE)) for name, command in commands if command]
            )


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Azure on this machine: Service Bus, Dataverse, managed identity and a Functions host, on loopback only.

    `start` and `demo` start a sandbox of their own. The other commands talk to the one that runs; they exit with 0 when
    it is done, 1 when it is refused, 2 for wrong usage and 3 when no sandbox runs.
    """
