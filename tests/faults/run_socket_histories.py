"""Random histories on real sockets: `python tests/faults/run_socket_histories.py --count 300 --seed 1`.

Prints what happened in all of them together, and each history that broke the promise with the command that draws it
again alone. The exit code is 1 if there was one.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import click
from proofs.parallel import spread
from proofs.report import follow, show_counts, show_history
from proofs.socket_histories import OPPORTUNITIES_EACH, SETTINGS, Histories
from proofs.sockets import Stage

from sandbox.cloud import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proofs.socket_histories import Outcome

# As many as share a sandbox: to start one takes seconds, and each history is judged with all before it.
_CHUNK = 25
_COMMAND = "python tests/faults/run_socket_histories.py"


@click.command()
@click.option("--count", default=300, show_default=True, help="How many histories.")
@click.option("--seed", default=1, show_default=True, help="The seed of the first one.")
@click.option("--replay", type=int, help="Only the history of this seed, and what happened in it.")
@click.option("--processes", default=2, show_default=True, help="How many sandboxes at once.")
def main(*, count: int, seed: int, replay: int | None, processes: int) -> None:
    """Run random histories through the whole sandbox and judge each."""
    seeds = range(seed, seed + count) if replay is None else range(replay, replay + 1)
    started = time.monotonic()
    counts: Counter[str] = Counter()
    broken = done = 0
    for outcome in follow(_outcomes(seeds, processes), "Histories", len(seeds)):
        done += 1
        counts.update(outcome.counts)
        if outcome.violations or replay is not None:
            show_history(outcome, _COMMAND)
        broken += bool(outcome.violations)
    seconds = time.monotonic() - started
    show_counts(f"{done} histories in {seconds:.0f} s, {broken} broke the promise", counts)
    sys.exit(bool(broken))


def _outcomes(seeds: range, processes: int) -> Iterator[Outcome]:
    # In turn with a connection string and with an identity, and with clocks that are right or slow.
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    yield from spread(_chunk, chunks, min(processes, len(chunks)))


def _chunk(seeds: range) -> Iterator[Outcome]:
    logging.disable(logging.CRITICAL)
    number = seeds[0] // _CHUNK
    mode = list(Mode)[number % 2]
    with Stage(OPPORTUNITIES_EACH * len(seeds), mode, settings=SETTINGS) as stage:
        histories = Histories(stage, slow_workers=number % 4 >= 2)
        for seed in seeds:
            yield histories.run(seed)


if __name__ == "__main__":
    main()
