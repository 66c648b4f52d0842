"""`python -m sandbox`: Azure on this machine, until Ctrl-C, or as a demonstration.

Exit codes: 0 done (also after Ctrl-C of `start`), 1 it could not start, the demonstration failed or the sandbox
refused, 2 wrong usage, 3 no sandbox runs, 130 the demonstration was interrupted.
"""

import sys

from sandbox.stopping import Stop


def main() -> None:
    """Run the command line."""
    # Before everything else: from here on Ctrl-C is a request, never an exception at a random point.
    stop = Stop()
    stop.listen()
    from sandbox.command_line import cli  # noqa: PLC0415 - a second of imports, during which Ctrl-C may come

    sys.exit(cli.main(prog_name="python -m sandbox", standalone_mode=True, obj=stop))


if __name__ == "__main__":
    main()
