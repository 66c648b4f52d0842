"""`python -m sandbox`: Azure on this machine, until Ctrl-C, or as a demonstration.

Exit codes: 0 all well (also after Ctrl-C of `start`), 1 it could not start or the demonstration failed, 2 wrong usage,
130 the demonstration was interrupted.
"""

import sys

from sandbox.stopping import Stop


def main() -> None:
    """Run the command line."""
    # Before everything else: from here on Ctrl-C is a wish that is granted in order, never an exception somewhere.
    stop = Stop()
    stop.listen()
    from sandbox.command_line import cli  # noqa: PLC0415 - a second of imports, during which Ctrl-C may come

    sys.exit(cli.main(prog_name="python -m sandbox", standalone_mode=True, obj=stop))


if __name__ == "__main__":
    main()
