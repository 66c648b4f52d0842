"""Random histories on real sockets: `python tests/faults/run_socket_histories.py --count 300 --seed 1`.

Prints what happened in all of them together, and each history that broke the promise with the command that draws it
again alone. Ends with 1 if there was one.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

# As a script it finds its neighbours only.
sys.path.append(str(Path(__file__).parents[2]))

import click
from parallel import spread
from report import follow, show
from socket_histories import OPPORTUNITIES_EACH, SETTINGS, Histories
from sockets import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from socket_histories import Outcome

# As many as share a sandbox: to start one takes seconds, and each history is judged with all before it.
_CHUNK = 25
_COMMAND = "python tests/faults/run_socket_histories.py --replay"


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
            _tell(outcome)
        broken += bool(outcome.violations)
    show(
        f"{done} histories in {time.monotonic() - started:.0f} s, {broken} broke the promise",
        [(name, f"{counts[name]:,}") for name in sorted(counts)],
    )
    sys.exit(bool(broken))


def _outcomes(seeds: range, processes: int) -> Iterator[Outcome]:
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    yield from spread(_chunk, chunks, min(processes, len(chunks)))


def _chunk(seeds: range) -> Iterator[Outcome]:
    logging.disable(logging.CRITICAL)
    with Stage(OPPORTUNITIES_EACH * len(seeds), settings=SETTINGS) as stage:
        histories = Histories(stage)
        for seed in seeds:
            yield histories.run(seed)


def _tell(outcome: Outcome) -> None:
    verdict = "broke the promise" if outcome.violations else "kept the promise"
    click.echo(
        f"seed {outcome.seed} {verdict} in {outcome.seconds:.1f} s; again, alone: {_COMMAND} {outcome.seed}"
    )
    for line in (*outcome.violations, *outcome.told):
        click.echo(f"  {line}")


if __name__ == "__main__":
    main()
