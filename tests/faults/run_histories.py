"""Random histories on the command line: `python tests/faults/run_histories.py --count 10000 --seed 1`.

The seeds count on from the first one. Prints what happened in all of them together, and each history that broke the
promise with the command that repeats it alone. The exit code is 1 if there was one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

import click
from proofs.histories import run_history
from proofs.parallel import stay_on
from proofs.report import follow, show_counts, show_history

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proofs.histories import Outcome

_CHUNK = 20
_COMMAND = "python tests/faults/run_histories.py"


@click.command()
@click.option("--count", default=10_000, show_default=True, help="How many histories.")
@click.option("--seed", default=1, show_default=True, help="The seed of the first one.")
@click.option("--replay", type=int, help="Only the history of this seed, and what happened in it.")
@click.option("--processes", default=2, show_default=True, help="How many at once.")
@click.option("--until-broken", is_flag=True, help="End with the first history that breaks the promise.")
@click.option("--rule", "rules", multiple=True, help="… that breaks one of these rules.")
@click.option(
    "--lesser-depth", is_flag=True, help="Give the application user a role that is known to be too weak."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    *,
    count: int,
    seed: int,
    replay: int | None,
    processes: int,
    until_broken: bool,
    rules: tuple[str, ...],
    lesser_depth: bool,
    as_json: bool,
) -> None:
    """Run random histories and judge each: at most one invoice, nothing lost, nothing stuck."""
    seeds = range(seed, seed + count) if replay is None else range(replay, replay + 1)
    started = time.monotonic()
    outcomes = _outcomes(seeds, processes if replay is None else 1, lesser_depth=lesser_depth)
    counts: Counter[str] = Counter()
    broken: list[Outcome] = []
    done = 0
    for outcome in follow(outcomes, "Histories", len(seeds)):
        done += 1
        counts.update(outcome.counts)
        if outcome.violations or replay is not None:
            show_history(outcome, _COMMAND, err=as_json, limit=40)
        if outcome.violations:
            broken.append(outcome)
            if until_broken and _breaks(outcome, rules):
                break
    seconds = time.monotonic() - started
    if as_json:
        found = {outcome.seed: [str(violation) for violation in outcome.violations] for outcome in broken}
        click.echo(json.dumps({"histories": done, "broken": found, "counts": counts}))
    else:
        show_counts(f"{done} histories in {seconds:.0f} s, {len(broken)} broke the promise", counts)
    if broken:
        # Not by sys.exit: other processes may still run histories when the first one breaks.
        sys.stdout.flush()
        os._exit(1)


def _breaks(outcome: Outcome, rules: tuple[str, ...]) -> bool:
    return not rules or any(violation.rule in rules for violation in outcome.violations)


def _outcomes(seeds: range, processes: int, *, lesser_depth: bool) -> Iterator[Outcome]:
    if processes == 1:
        stay_on(0)
        for each in seeds:
            yield run_history(each, lesser_depth=lesser_depth)
        return
    context = get_context("spawn")
    turns = context.SimpleQueue()
    for number in range(processes):
        turns.put(number)
    with ProcessPoolExecutor(processes, context, _initialize, (turns,)) as pool:
        chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
        for outcomes in pool.map(_chunk, chunks, [lesser_depth] * len(chunks)):
            yield from outcomes


def _initialize(turns: object) -> None:
    stay_on(turns.get())  # type: ignore[attr-defined]  # a queue of multiprocessing


def _chunk(seeds: Iterable[int], lesser_depth: bool) -> list[Outcome]:  # noqa: FBT001 - as map calls it
    return [run_history(each, lesser_depth=lesser_depth) for each in seeds]


if __name__ == "__main__":
    main()
