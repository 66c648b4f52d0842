"""The same win on 50 threads at once, on the command line: `python tests/faults/run_simultaneous.py --rounds 100`.

The exit code is 1 if the promise was broken.
"""

from __future__ import annotations

import logging
import sys

import click
from proofs.report import show
from proofs.simultaneous import THREADS, run


@click.command()
@click.option("--rounds", default=100, show_default=True, help="How many wins, one after the other.")
def main(*, rounds: int) -> None:
    """Handle the same win on 50 threads of four processes at once, again and again."""
    logging.disable(logging.CRITICAL)
    outcome = run(rounds)
    show(
        f"{outcome.rounds} rounds in {outcome.seconds:.0f} s, each with the same win on {sum(THREADS)} threads of "
        f"{len(THREADS)} processes",
        [
            ("change sets", f"{outcome.change_sets:,}"),
            ("of them at once, at least", f"{outcome.met:,}"),
            ("came second and changed nothing", f"{outcome.change_sets - outcome.invoices:,}"),
            ("invoices", f"{outcome.invoices:,}"),
            ("events", f"{outcome.events:,}"),
            *(("BROKEN", problem) for problem in outcome.problems),
        ],
    )
    sys.exit(bool(outcome.problems) or outcome.invoices != rounds or outcome.events != rounds)


if __name__ == "__main__":
    main()
